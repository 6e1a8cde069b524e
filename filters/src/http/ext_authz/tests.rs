use std::sync::Mutex;

use auth::authorization_server::{Authorization, AuthorizationServer};
use auth::check_response::HttpResponse;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{BoolValue, Duration as PbDuration};
use envoy_types::pb::google::rpc::Status;
use http::Method;
use xds_client::any::pack;

use super::*;
use crate::body::ResetReason;
use crate::chain::tests::info;
use crate::http::testing::{Slow, chunks, context, serve};

#[derive(Clone)]
struct Service {
    /// None: never answers.
    answer: Option<auth::CheckResponse>,
    seen: Arc<Mutex<Vec<auth::CheckRequest>>>,
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: tonic::Request<auth::CheckRequest>,
    ) -> Result<tonic::Response<auth::CheckResponse>, tonic::Status> {
        self.seen.lock().unwrap().push(request.into_inner());
        match self.answer.clone() {
            Some(answer) => Ok(tonic::Response::new(answer)),
            None => std::future::pending().await,
        }
    }
}

fn option(key: &str, value: &str, append: Option<bool>) -> core::HeaderValueOption {
    #[allow(deprecated)]
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        append: append.map(|value| BoolValue { value }),
        ..core::HeaderValueOption::default()
    }
}

fn config() -> ExtAuthz {
    ExtAuthz {
        services: Some(Services::GrpcService(core::GrpcService {
            timeout: Some(PbDuration {
                seconds: 20,
                nanos: 0,
            }),
            ..core::GrpcService::default()
        })),
        ..ExtAuthz::default()
    }
}

fn answer(code: i32, http_response: HttpResponse) -> auth::CheckResponse {
    auth::CheckResponse {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        http_response: Some(http_response),
        ..auth::CheckResponse::default()
    }
}

struct Outcome {
    flow: Flow,
    head: RequestHead,
    body: Body,
    response: ResponseHead,
    stale: bool,
}

async fn run(config: &ExtAuthz, cx: &FactoryContext, mut body: Body) -> Outcome {
    let filter = ExtAuthzFactory.compile(&pack(config), cx).unwrap();
    let facts = info();
    let mut head = RequestHead::new(Method::POST, "/a?b=c");
    head.authority = "example.com".into();
    head.headers.append("x-a", HeaderValue::from_static("1"));
    head.headers.append("x-a", HeaderValue::from_static("2"));
    head.headers.append("x-gone", HeaderValue::from_static("1"));
    let mut slot = None;
    let flow = match filter.on_request(&mut head, &mut body, &mut slot, &facts) {
        Step::Ready(flow) => flow,
        Step::Wait(future) => future.await,
    };
    let mut response = ResponseHead::new(StatusCode::OK);
    filter.on_response(&mut response, &mut Body::Empty, &mut slot, &facts);
    let stale = facts.borrow().route_stale;
    Outcome {
        flow,
        head,
        body,
        response,
        stale,
    }
}

fn service(answer: Option<auth::CheckResponse>) -> Service {
    Service {
        answer,
        seen: Arc::default(),
    }
}

#[tokio::test]
async fn allows_and_changes_headers_both_ways() {
    let ok = auth::OkHttpResponse {
        headers: vec![
            option("x-user", "me", None),
            option("x-a", "3", Some(true)),
            option(":path", "/new", None),
            option("content-length", "7", None),
            option("bad name", "7", None),
        ],
        headers_to_remove: vec!["x-gone".into(), ":method".into()],
        response_headers_to_add: vec![option("x-back", "1", None)],
        ..auth::OkHttpResponse::default()
    };
    let server = service(Some(answer(0, HttpResponse::OkResponse(ok))));
    let cx = serve(AuthorizationServer::new(server.clone())).await;
    let mut config = config();
    config.clear_route_cache = true;
    let out = run(&config, &cx, Body::Empty).await;
    assert!(matches!(out.flow, Flow::Continue) && out.stale);
    assert_eq!(out.head.headers["x-user"], "me");
    assert_eq!(out.head.headers.get_all("x-a").iter().count(), 1);
    assert_eq!(out.head.headers["x-a"], "1,2,3");
    assert!(!out.head.headers.contains_key("x-gone"));
    assert!(!out.head.headers.contains_key("content-length"));
    assert_eq!((&*out.head.path, &out.head.method), ("/new", &Method::POST));
    assert_eq!(out.response.headers["x-back"], "1");
    let seen = server.seen.lock().unwrap().pop().unwrap();
    let attributes = seen.attributes.unwrap();
    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!(http.headers["x-a"], "1,2");
    assert_eq!(http.headers[":path"], "/a?b=c");
    assert_eq!(http.headers[":authority"], "example.com");
    assert_eq!((&*http.method, &*http.path), ("POST", "/a?b=c"));
    assert_eq!((&*http.host, &*http.protocol), ("example.com", "HTTP/1.1"));
    assert!(attributes.source.unwrap().address.is_some());
}

#[tokio::test]
async fn denies_with_what_the_service_says() {
    let denied = auth::DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![option("www-authenticate", "Basic", None)],
        body: "who?".into(),
    };
    let server = service(Some(answer(7, HttpResponse::DeniedResponse(denied))));
    let cx = serve(AuthorizationServer::new(server)).await;
    let out = run(&config(), &cx, Body::Empty).await;
    let Flow::Reply(reply) = out.flow else {
        panic!("{:?}", out.flow)
    };
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (401, &b"who?"[..])
    );
    assert_eq!(reply.headers["www-authenticate"], "Basic");
    assert_eq!(reply.details, "ext_authz_denied");
    assert!(reply.flags.contains(ResponseFlags::UNAUTHORIZED_EXTERNAL));
    // An OK body with a failed status is a denial, with the default status.
    let ok = HttpResponse::OkResponse(auth::OkHttpResponse::default());
    let cx = serve(AuthorizationServer::new(service(Some(answer(7, ok))))).await;
    let out = run(&config(), &cx, Body::Empty).await;
    assert!(matches!(out.flow, Flow::Reply(r) if r.status == 403));
}

#[tokio::test]
async fn failures_and_timeouts_close_or_open() {
    let mute = serve(AuthorizationServer::new(service(None))).await;
    let unused = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut config = config();
    if let Some(Services::GrpcService(service)) = &mut config.services {
        service.timeout = Some(PbDuration {
            seconds: 0,
            nanos: 50_000_000,
        });
    }
    for cx in [mute, context(unused)] {
        config.failure_mode_allow = false;
        let out = run(&config, &cx, Body::Empty).await;
        let Flow::Reply(reply) = out.flow else {
            panic!("{:?}", out.flow)
        };
        assert_eq!(
            (reply.status.as_u16(), &*reply.details),
            (403, "ext_authz_error")
        );
        assert!(reply.flags.contains(ResponseFlags::UNAUTHORIZED_EXTERNAL));
        config.failure_mode_allow = true;
        let out = run(&config, &cx, Body::Empty).await;
        assert!(matches!(out.flow, Flow::Continue));
    }
}

#[tokio::test]
async fn bodies_in_random_chunks_partial_or_too_large_or_reset() {
    let ok = HttpResponse::OkResponse(auth::OkHttpResponse::default());
    let server = service(Some(answer(0, ok)));
    let cx = serve(AuthorizationServer::new(server.clone())).await;
    let data = b"0123456789".repeat(10);
    for partial in [true, false] {
        for limit in [1, 50, 100, 200] {
            let mut config = config();
            config.with_request_body = Some(BufferSettings {
                max_request_bytes: limit,
                allow_partial_message: partial,
                pack_as_bytes: true,
            });
            let trailers = ::http::HeaderMap::from_iter([(
                ::http::HeaderName::from_static("t"),
                HeaderValue::from_static("1"),
            )]);
            let mut frames = chunks(&data);
            frames.push(Ok(Frame::Trailers(trailers.clone())));
            let slow = Slow::new(frames.clone());
            let pulled = slow.pulled.clone();
            let mut out = run(&config, &cx, Body::stream(slow)).await;
            if !partial && limit < 100 {
                assert!(matches!(out.flow, Flow::Reply(r) if r.status == 413));
                assert!(server.seen.lock().unwrap().is_empty());
                continue;
            }
            assert!(matches!(out.flow, Flow::Continue));
            let mut sum = 0;
            let needed = frames.iter().position(|f| {
                sum += matches!(f, Ok(Frame::Data(_)))
                    .then(|| match f {
                        Ok(Frame::Data(d)) => d.len(),
                        _ => 0,
                    })
                    .unwrap_or(0);
                sum >= limit as usize
            });
            if partial {
                // It reads not one frame more than it needs.
                assert!(pulled.get() <= needed.unwrap_or(frames.len()) + 1);
            }
            let seen = server.seen.lock().unwrap().pop().unwrap();
            let http = seen.attributes.unwrap().request.unwrap().http.unwrap();
            assert_eq!(http.raw_body, data[..data.len().min(limit as usize)]);
            let all = out.body.collect(1000).await.unwrap();
            assert_eq!((&all.data[..], all.trailers), (&data[..], Some(trailers)));
            // A reset anywhere is a reset, before or after the check.
            for at in 0..frames.len() {
                let error = BodyError::new(ResetReason::RemoteReset);
                let mut broken = frames.clone();
                broken.truncate(at);
                broken.push(Err(error.clone()));
                let mut out = run(&config, &cx, Body::stream(Slow::new(broken))).await;
                match out.flow {
                    Flow::Reset(e) => assert_eq!(e, error),
                    _ => assert_eq!(out.body.collect(1000).await, Err(error)),
                }
                server.seen.lock().unwrap().clear();
            }
        }
    }
}

#[tokio::test]
async fn configuration_is_checked() {
    let cx = context(1);
    let refused = |c: &ExtAuthz| {
        let error = ExtAuthzFactory.compile(&pack(c), &cx).err();
        error.unwrap().to_string()
    };
    assert!(refused(&ExtAuthz::default()).contains("services"));
    let mut shadow = config();
    shadow.shadow_mode = true;
    assert!(refused(&shadow).contains("shadow_mode"));
    let off = ExtAuthzPerRoute {
        r#override: Some(Override::Disabled(true)),
    };
    let off = ExtAuthzFactory.compile_route(&pack(&off), &cx);
    assert!(matches!(off, Ok(RouteFilterConfig::Disabled)));
    assert!(
        ExtAuthzFactory
            .compile_route(&pack(&config()), &cx)
            .is_err()
    );
}
