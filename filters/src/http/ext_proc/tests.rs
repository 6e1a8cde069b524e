use std::cell::Cell;
use std::rc::Rc;
use std::sync::Mutex;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::metadata_options::MetadataNamespaces;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Duration as PbDuration, Struct, Value};
use http::{HeaderMap, HeaderValue, Method};
use pb::external_processor_server::{ExternalProcessor as Service, ExternalProcessorServer};
use tokio_stream::wrappers::ReceiverStream;
use xds_client::any::pack;

use super::*;
use crate::body::{BodyError, BodyStream, Frame, ResetReason};
use crate::chain::tests::info;
use crate::http::testing::{Slow, chunks, context, serve};

/// What the processor does at its n-th message, counted over both sides.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Echo,
    /// Answers the request's head only when its body has ended.
    HeadLast,
    Immediate(usize),
    Done(usize),
    Fail(usize),
    Mute,
}

#[derive(Clone)]
struct Processor {
    act: Act,
    seen: Arc<Mutex<Vec<pb::ProcessingRequest>>>,
}

fn set(key: &str, value: &str) -> Option<pb::HeaderMutation> {
    Some(pb::HeaderMutation {
        set_headers: vec![core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: key.into(),
                value: value.into(),
                raw_value: Vec::new(),
            }),
            ..core::HeaderValueOption::default()
        }],
        remove_headers: vec!["x-gone".into()],
    })
}

fn echo(request: Request) -> Response {
    let headers = || pb::HeadersResponse {
        response: Some(pb::CommonResponse {
            header_mutation: set("x-proc", "1"),
            clear_route_cache: true,
            ..pb::CommonResponse::default()
        }),
    };
    let body = |b: pb::HttpBody| pb::BodyResponse {
        response: Some(pb::CommonResponse {
            body_mutation: Some(pb::BodyMutation {
                mutation: Some(pb::body_mutation::Mutation::StreamedResponse(
                    pb::StreamedBodyResponse {
                        body: b.body.to_ascii_uppercase(),
                        end_of_stream: b.end_of_stream,
                        ..pb::StreamedBodyResponse::default()
                    },
                )),
            }),
            ..pb::CommonResponse::default()
        }),
    };
    let trailers = || pb::TrailersResponse {
        header_mutation: set("x-proc", "1"),
    };
    match request {
        Request::RequestHeaders(_) => Response::RequestHeaders(headers()),
        Request::ResponseHeaders(_) => Response::ResponseHeaders(headers()),
        Request::RequestBody(b) => Response::RequestBody(body(b)),
        Request::ResponseBody(b) => Response::ResponseBody(body(b)),
        Request::RequestTrailers(_) => Response::RequestTrailers(trailers()),
        Request::ResponseTrailers(_) => Response::ResponseTrailers(trailers()),
    }
}

#[tonic::async_trait]
impl Service for Processor {
    type ProcessStream = ReceiverStream<Result<pb::ProcessingResponse, tonic::Status>>;

    async fn process(
        &self,
        request: tonic::Request<tonic::Streaming<pb::ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, tonic::Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut messages = request.into_inner();
        let me = self.clone();
        tokio::spawn(async move {
            let mut n = 0;
            let mut late = Vec::new();
            while let Ok(Some(message)) = messages.message().await {
                me.seen.lock().unwrap().push(message.clone());
                let request = message.request.unwrap();
                let ends = match &request {
                    Request::RequestBody(b) => b.end_of_stream,
                    Request::RequestTrailers(_) => true,
                    _ => false,
                };
                let head = matches!(request, Request::RequestHeaders(_));
                let response = match me.act {
                    Act::Immediate(at) if at == n => {
                        Response::ImmediateResponse(pb::ImmediateResponse {
                            status: Some(HttpStatus { code: 418 }),
                            headers: set("x-now", "1"),
                            body: b"tea".to_vec(),
                            details: "short and stout".into(),
                            ..pb::ImmediateResponse::default()
                        })
                    }
                    Act::Done(at) if at == n => return,
                    Act::Fail(at) if at == n => {
                        let _ = sender.send(Err(tonic::Status::internal("no"))).await;
                        return;
                    }
                    Act::Mute => continue,
                    _ => echo(request),
                };
                n += 1;
                let fields = |key: &str, kind| {
                    let value = Value { kind: Some(kind) };
                    Struct {
                        fields: [(key.to_owned(), value)].into(),
                    }
                };
                let space = fields("k", Kind::StringValue("v".into()));
                let mut metadata = fields("mine", Kind::StructValue(space.clone()));
                metadata
                    .fields
                    .extend(fields("other", Kind::StructValue(space)).fields);
                let answer = pb::ProcessingResponse {
                    dynamic_metadata: Some(metadata),
                    response: Some(response),
                    ..pb::ProcessingResponse::default()
                };
                if me.act == Act::HeadLast && head || !late.is_empty() {
                    late.push(answer);
                    if ends {
                        for answer in late.drain(..) {
                            let _ = sender.send(Ok(answer)).await;
                        }
                    }
                    continue;
                }
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }
}

async fn processor(act: Act) -> (Processor, FactoryContext) {
    let processor = Processor {
        act,
        seen: Arc::default(),
    };
    let cx = serve(ExternalProcessorServer::new(processor.clone())).await;
    (processor, cx)
}

fn config(duplex: bool) -> ExternalProcessor {
    let (body, trailers) = if duplex { (FULL_DUPLEX, 1) } else { (0, 0) };
    ExternalProcessor {
        grpc_service: Some(core::GrpcService::default()),
        message_timeout: Some(PbDuration {
            seconds: 20,
            nanos: 0,
        }),
        metadata_options: Some(MetadataOptions {
            receiving_namespaces: Some(MetadataNamespaces {
                untyped: vec!["mine".into()],
                typed: Vec::new(),
            }),
            ..MetadataOptions::default()
        }),
        processing_mode: Some(ProcessingMode {
            request_body_mode: body,
            response_body_mode: body,
            request_trailer_mode: trailers,
            response_trailer_mode: trailers,
            ..ProcessingMode::default()
        }),
        ..ExternalProcessor::default()
    }
}

struct Stream {
    filter: Arc<dyn HttpFilter>,
    slot: Slot,
    facts: SharedInfo,
}

impl Stream {
    fn new(config: &ExternalProcessor, cx: &FactoryContext) -> Self {
        Self {
            filter: ExtProcFactory.compile(&pack(config), cx).unwrap(),
            slot: None,
            facts: info(),
        }
    }

    async fn request(&mut self, body: &mut Body) -> (Flow, RequestHead) {
        let mut head = RequestHead::new(Method::POST, "/");
        head.headers.insert("x-gone", HeaderValue::from_static("1"));
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from_static("9"));
        let flow = match self
            .filter
            .on_request(&mut head, body, &mut self.slot, &self.facts)
        {
            Step::Ready(flow) => flow,
            Step::Wait(future) => future.await,
        };
        (flow, head)
    }

    async fn response(&mut self, body: &mut Body) -> (Flow, ResponseHead) {
        let mut head = ResponseHead::new(StatusCode::OK);
        let flow = match self
            .filter
            .on_response(&mut head, body, &mut self.slot, &self.facts)
        {
            Step::Ready(flow) => flow,
            Step::Wait(future) => future.await,
        };
        (flow, head)
    }
}

fn trailers() -> Frame {
    let mut map = HeaderMap::new();
    map.insert("t", HeaderValue::from_static("1"));
    Frame::Trailers(map)
}

fn slow(data: &[u8], with_trailers: bool) -> Slow {
    let mut frames = chunks(data);
    if with_trailers {
        frames.push(Ok(trailers()));
    }
    Slow::new(frames)
}

#[tokio::test]
async fn heads_alone_both_ways() {
    let (processor, cx) = processor(Act::Echo).await;
    let mut stream = Stream::new(&config(false), &cx);
    let mut body = Body::from(Bytes::from_static(b"abc"));
    let (flow, head) = stream.request(&mut body).await;
    assert!(matches!(flow, Flow::Continue));
    assert_eq!(head.headers["x-proc"], "1");
    assert!(!head.headers.contains_key("x-gone"));
    assert_eq!(head.headers[CONTENT_LENGTH], "9");
    assert_eq!(body.remaining(), Some(3));
    assert!(stream.facts.borrow().route_stale);
    let (flow, head) = stream.response(&mut Body::Empty).await;
    assert!(matches!(flow, Flow::Continue));
    assert_eq!(head.headers["x-proc"], "1");
    let facts = stream.facts.borrow();
    assert_eq!(facts.dynamic_metadata["mine"]["k"], "v");
    assert!(!facts.dynamic_metadata.contains_key("other"));
    let seen = processor.seen.lock().unwrap();
    assert!(seen[0].protocol_config.is_some() && seen[1].protocol_config.is_none());
    assert!(matches!(&seen[1].request, Some(Request::ResponseHeaders(h)) if h.end_of_stream));
}

#[tokio::test]
async fn full_duplex_in_random_chunks_even_if_the_head_is_answered_last() {
    let data: Vec<u8> = (0..2000u32).map(|i| b'a' + (i % 26) as u8).collect();
    for act in [Act::Echo, Act::HeadLast] {
        let (_, cx) = processor(act).await;
        for with_trailers in [true, false].repeat(5) {
            let mut stream = Stream::new(&config(true), &cx);
            let mut body = Body::stream(slow(&data, with_trailers));
            let (flow, head) = stream.request(&mut body).await;
            assert!(matches!(flow, Flow::Continue), "{flow:?}");
            assert_eq!(head.headers["x-proc"], "1");
            assert!(!head.headers.contains_key(CONTENT_LENGTH));
            // The response begins while the request is still on its way.
            let mut back = Body::stream(slow(&data, with_trailers));
            if act == Act::Echo {
                let (flow, _) = stream.response(&mut back).await;
                assert!(matches!(flow, Flow::Continue));
                let (one, two) =
                    futures_util::future::join(body.collect(9999), back.collect(9999)).await;
                for all in [one.unwrap(), two.unwrap()] {
                    assert_eq!(all.data, data.to_ascii_uppercase());
                    let proc = all.trailers.map(|t| t["x-proc"].clone());
                    assert_eq!(proc.is_some(), with_trailers);
                }
            } else {
                let all = body.collect(9999).await.unwrap();
                assert_eq!(all.data, data.to_ascii_uppercase());
            }
        }
    }
}

#[tokio::test]
async fn immediate_response_done_and_failure_at_every_message() {
    let data = b"abcdefgh";
    let frames = || {
        let mut frames: Vec<_> = (data.chunks(2))
            .map(|c| Ok(Frame::Data(Bytes::copy_from_slice(c))))
            .collect();
        frames.push(Ok(trailers()));
        frames
    };
    // Message 0 is the head, 1 to 4 the data, 5 the trailers.
    for at in 0..6 {
        for act in [Act::Immediate(at), Act::Done(at), Act::Fail(at)] {
            let (_, cx) = processor(act).await;
            let mut stream = Stream::new(&config(true), &cx);
            let mut body = Body::stream(Slow::new(frames()));
            let (flow, _) = stream.request(&mut body).await;
            let reply = match flow {
                Flow::Reply(reply) => reply,
                Flow::Reset(error) => panic!("{error:?}"),
                Flow::Continue => match body.collect(100).await {
                    Ok(all) => panic!("{act:?} {all:?}"),
                    Err(_) => stream.facts.borrow_mut().body_reply.take().unwrap(),
                },
            };
            match act {
                Act::Immediate(_) => {
                    assert_eq!((reply.status.as_u16(), &reply.body[..]), (418, &b"tea"[..]));
                    assert_eq!(reply.headers["x-now"], "1");
                    assert_eq!(reply.details, "short_and_stout");
                }
                _ => assert_eq!(reply.status, 500, "{act:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_response_ends_early_at_every_message() {
    // The request's head is message 0; then come the response's head, data and trailers.
    for at in 1..5 {
        for act in [Act::Immediate(at), Act::Done(at), Act::Fail(at)] {
            let (_, cx) = processor(act).await;
            let mut stream = Stream::new(&config(true), &cx);
            stream.request(&mut Body::Empty).await;
            let data = Ok(Frame::Data(Bytes::from_static(b"abc")));
            let mut body = Body::stream(Slow::new(vec![data.clone(), data, Ok(trailers())]));
            match stream.response(&mut body).await.0 {
                Flow::Reply(reply) => {
                    let expected = if matches!(act, Act::Immediate(_)) {
                        418
                    } else {
                        500
                    };
                    assert_eq!(reply.status, expected, "{act:?}");
                }
                Flow::Reset(error) => panic!("{error:?}"),
                // The head is on its way: all that is left is to end the stream.
                Flow::Continue => assert!(body.collect(100).await.is_err(), "{act:?}"),
            }
            assert!(stream.facts.borrow().body_reply.is_none());
        }
    }
}

#[tokio::test]
async fn the_originals_reset_passes_at_every_point() {
    let (_, cx) = processor(Act::Echo).await;
    for at in 0..5 {
        let error = BodyError::new(ResetReason::RemoteReset);
        let mut frames = vec![Ok(Frame::Data(Bytes::from_static(b"abc"))); at];
        frames.push(Err(error.clone()));
        let mut stream = Stream::new(&config(true), &cx);
        let mut body = Body::stream(Slow::new(frames));
        match stream.request(&mut body).await.0 {
            Flow::Reset(e) => assert_eq!(e, error),
            _ => assert_eq!(body.collect(100).await, Err(error)),
        }
        assert!(stream.facts.borrow().body_reply.is_none());
    }
}

#[tokio::test]
async fn failures_and_timeouts_close_or_open() {
    let mute = processor(Act::Mute).await.1;
    let failing = processor(Act::Fail(0)).await.1;
    for (cx, status) in [(mute, 504), (failing, 500), (context(1), 500)] {
        let mut config = config(false);
        config.message_timeout = Some(PbDuration {
            seconds: 0,
            nanos: if status == 504 {
                20_000_000
            } else {
                999_999_999
            },
        });
        let mut stream = Stream::new(&config, &cx);
        let (flow, _) = stream.request(&mut Body::Empty).await;
        assert!(matches!(flow, Flow::Reply(r) if r.status == status));
        config.failure_mode_allow = true;
        let mut stream = Stream::new(&config, &cx);
        let mut body = Body::from(Bytes::from_static(b"abc"));
        let (flow, _) = stream.request(&mut body).await;
        assert!(matches!(flow, Flow::Continue));
        assert_eq!(body.remaining(), Some(3));
        let (flow, _) = stream.response(&mut Body::Empty).await;
        assert!(matches!(flow, Flow::Continue));
    }
}

/// An endless body of large frames.
struct Endless(Rc<Cell<usize>>);
impl BodyStream for Endless {
    fn poll_frame(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame, BodyError>>> {
        self.0.set(self.0.get() + 1);
        Poll::Ready(Some(Ok(Frame::Data(Bytes::from_static(&[b'a'; 65536])))))
    }
}

#[tokio::test]
async fn what_is_in_flight_is_bounded_when_nobody_pulls() {
    let (_, cx) = processor(Act::Echo).await;
    let pulled = Rc::new(Cell::new(0));
    let mut stream = Stream::new(&config(true), &cx);
    let mut body = Body::stream(Endless(pulled.clone()));
    let (flow, _) = stream.request(&mut body).await;
    assert!(matches!(flow, Flow::Continue));
    let mut got = 0;
    let mut most = 0;
    for _ in 0..100 {
        let frame = body.frame().await.unwrap().unwrap();
        assert!(matches!(&frame, Frame::Data(d) if d.len() == 65536));
        got += 1;
        // Everybody else may run for as long as there is anything to do.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        most = most.max(pulled.get() - got);
    }
    // HTTP/2's windows both ways, at 2 MiB each, and a few frames of ours.
    assert!(most <= 80, "{most}");
}

#[tokio::test]
async fn configuration_is_checked() {
    let cx = context(1);
    let refused = |change: fn(&mut ExternalProcessor)| {
        let mut config = config(true);
        change(&mut config);
        let error = ExtProcFactory.compile(&pack(&config), &cx).err();
        error.unwrap().to_string()
    };
    assert!(refused(|c| c.grpc_service = None).contains("grpc_service"));
    assert!(refused(|c| c.observability_mode = true).contains("observability_mode"));
    let text = refused(|c| c.processing_mode.as_mut().unwrap().request_body_mode = 1);
    assert!(text.contains("request_body_mode"), "{text}");
    let text = refused(|c| c.processing_mode.as_mut().unwrap().response_trailer_mode = SKIP);
    assert!(text.contains("response_trailer_mode"), "{text}");
    let off = ExtProcPerRoute {
        r#override: Some(Override::Disabled(true)),
    };
    let off = ExtProcFactory.compile_route(&pack(&off), &cx);
    assert!(matches!(off, Ok(RouteFilterConfig::Disabled)));
}
