//! The gRPC services that the filters call: they do what a request's headers say.

use std::collections::HashMap;
use std::pin::Pin;

use envoy_types::pb::envoy::config::core::v3::HeaderMap;
use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::envoy::service::ext_proc::v3 as proc;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::rpc;
use futures_util::{Stream, stream};
use proc::processing_request::Request;
use proc::processing_response::Response;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, Streaming};

use crate::plan::turn;

/// The port of both services.
pub struct Services {
    pub port: u16,
}

/// Serves until the runtime ends.
pub async fn start() -> Services {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder()
        .add_service(auth::authorization_server::AuthorizationServer::new(
            Authorizer,
        ))
        .add_service(proc::external_processor_server::ExternalProcessorServer::new(Processor))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    Services { port }
}

struct Authorizer;

#[tonic::async_trait]
impl auth::authorization_server::Authorization for Authorizer {
    async fn check(
        &self,
        request: tonic::Request<auth::CheckRequest>,
    ) -> Result<tonic::Response<auth::CheckResponse>, Status> {
        let headers: HashMap<String, String> = request
            .into_inner()
            .attributes
            .and_then(|a| a.request?.http)
            .map(|http| http.headers)
            .unwrap_or_default();
        let code = match headers.get("x-authz").map(String::as_str) {
            Some("allow") => 0,
            Some("deny") => 7,
            _ => return Err(Status::internal("as the plan says")),
        };
        Ok(tonic::Response::new(auth::CheckResponse {
            status: Some(rpc::Status {
                code,
                ..rpc::Status::default()
            }),
            ..auth::CheckResponse::default()
        }))
    }
}

struct Processor;

/// One stream's plan and how far it is.
struct Processing {
    messages: Streaming<proc::ProcessingRequest>,
    fault: String,
    at: usize,
    collects: bool,
    seen: usize,
    held: [Vec<u8>; 2],
    failed: bool,
}

#[tonic::async_trait]
impl proc::external_processor_server::ExternalProcessor for Processor {
    type ProcessStream =
        Pin<Box<dyn Stream<Item = Result<proc::ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<proc::ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let processing = Processing {
            messages: request.into_inner(),
            fault: String::new(),
            at: 0,
            collects: false,
            seen: 0,
            held: Default::default(),
            failed: false,
        };
        let answers = stream::unfold(processing, |mut processing| async move {
            let answer = processing.next().await?;
            Some((answer, processing))
        });
        Ok(tonic::Response::new(Box::pin(answers)))
    }
}

impl Processing {
    async fn next(&mut self) -> Option<Result<proc::ProcessingResponse, Status>> {
        loop {
            if self.failed {
                return None;
            }
            let message = self.messages.message().await.ok()??;
            if let Some(answer) = self.answer(message.request?) {
                self.failed = answer.is_err();
                return Some(answer.map(|response| proc::ProcessingResponse {
                    response: Some(response),
                    ..proc::ProcessingResponse::default()
                }));
            }
        }
    }

    fn learn(&mut self, headers: Option<&HeaderMap>) {
        let plan = headers
            .into_iter()
            .flat_map(|map| &map.headers)
            .find(|h| h.key == "x-proc")
            .map(|h| String::from_utf8_lossy(&h.raw_value).into_owned())
            .unwrap_or_default();
        let mut parts = plan.split(' ');
        self.fault = parts.next().unwrap_or_default().to_owned();
        self.at = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        self.collects = parts.next() == Some("true");
    }

    fn answer(&mut self, request: Request) -> Option<Result<Response, Status>> {
        let answered = |side: &str| (self.fault == side).then(|| Ok(immediate()));
        match request {
            Request::RequestHeaders(head) => {
                self.learn(head.headers.as_ref());
                if self.fault == "head" {
                    return Some(Ok(immediate()));
                }
                let ok = proc::HeadersResponse::default();
                Some(Ok(Response::RequestHeaders(ok)))
            }
            Request::ResponseHeaders(_) => {
                let ok = proc::HeadersResponse::default();
                answered("response").or(Some(Ok(Response::ResponseHeaders(ok))))
            }
            Request::RequestBody(body) => {
                let passed = self.seen + body.body.len() > self.at;
                if passed && self.fault == "body" {
                    return Some(Ok(immediate()));
                }
                self.body(0, body).map(|r| r.map(Response::RequestBody))
            }
            Request::ResponseBody(body) => {
                self.body(1, body).map(|r| r.map(Response::ResponseBody))
            }
            Request::RequestTrailers(_) => {
                let ok = proc::TrailersResponse::default();
                Some(Ok(Response::RequestTrailers(ok)))
            }
            Request::ResponseTrailers(_) => {
                let ok = proc::TrailersResponse::default();
                Some(Ok(Response::ResponseTrailers(ok)))
            }
        }
    }

    /// A part of a body: turned, now or once all of it is there.
    fn body(
        &mut self,
        side: usize,
        part: proc::HttpBody,
    ) -> Option<Result<proc::BodyResponse, Status>> {
        self.seen += part.body.len();
        if self.fault == "fails" && self.seen > self.at {
            return Some(Err(Status::internal("as the plan says")));
        }
        let held = &mut self.held[side];
        held.extend_from_slice(&part.body);
        if self.collects && !part.end_of_stream {
            return None;
        }
        let mut body = std::mem::take(held);
        turn(&mut body);
        let streamed = proc::StreamedBodyResponse {
            body,
            end_of_stream: part.end_of_stream,
            ..proc::StreamedBodyResponse::default()
        };
        let mutation = proc::body_mutation::Mutation::StreamedResponse(streamed);
        Some(Ok(proc::BodyResponse {
            response: Some(proc::CommonResponse {
                body_mutation: Some(proc::BodyMutation {
                    mutation: Some(mutation),
                }),
                ..proc::CommonResponse::default()
            }),
        }))
    }
}

fn immediate() -> Response {
    Response::ImmediateResponse(proc::ImmediateResponse {
        status: Some(HttpStatus { code: 418 }),
        ..proc::ImmediateResponse::default()
    })
}
