//! External processing over gRPC (`envoy.extensions.filters.http.ext_proc.v3`): headers, and bodies in
//! full duplex.

mod duplex;
mod session;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::{
    ExtProcPerRoute, ExternalProcessor, MetadataOptions, ProcessingMode,
    ext_proc_per_route::Override,
};
use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
use envoy_types::pb::google::protobuf::{Any, value::Kind};
use futures_util::FutureExt;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use pb::processing_request::Request;
use pb::processing_response::Response;
use xds_client::any::unpack;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use self::duplex::{Duplex, Pump, message_of};
use self::session::{Closed, Session, Side};
use super::wire::{self, Target, Unset};
use crate::body::Body;
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::grpc::GrpcChannel;
use crate::head::{RequestHead, ResponseHead};
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::{FilterId, RouteFilterConfig};

/// Envoy's default for `message_timeout`.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);
const SKIP: i32 = 2;
const FULL_DUPLEX: i32 = 4;

/// Compiles the filter.
pub struct ExtProcFactory;

/// What the phases of a message need to know.
#[derive(Clone, Copy)]
struct Mode {
    request_headers: bool,
    response_headers: bool,
    request_body: bool,
    response_body: bool,
}

impl Mode {
    fn compile(mode: &ProcessingMode) -> Result<Self, ConfigError> {
        let body = |value, trailers, name: &str| match (value, trailers) {
            (0, 0 | SKIP) => Ok(false),
            (0, _) => Err(ConfigError::unsupported(&format!("{name}_trailer_mode"))),
            // This mode sends trailers.
            (FULL_DUPLEX, 0 | 1) => Ok(true),
            (FULL_DUPLEX, _) => Err(ConfigError::new("must be SEND for FULL_DUPLEX_STREAMED")
                .at(format!("{name}_trailer_mode"))),
            _ => Err(ConfigError::unsupported(&format!("{name}_body_mode"))),
        };
        Ok(Self {
            request_headers: mode.request_header_mode != SKIP,
            response_headers: mode.response_header_mode != SKIP,
            request_body: body(mode.request_body_mode, mode.request_trailer_mode, "request")?,
            response_body: body(
                mode.response_body_mode,
                mode.response_trailer_mode,
                "response",
            )?,
        })
    }
}

/// What does not depend on the route.
struct Settings {
    timeout: Duration,
    status_on_error: Option<StatusCode>,
    namespaces: Vec<String>,
    clear_route_cache: Clear,
    no_immediate: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clear {
    IfAsked,
    Always,
    Never,
}

struct ExtProcFilter {
    id: FilterId,
    channel: GrpcChannel,
    mode: Mode,
    failure_mode_allow: bool,
    settings: Arc<Settings>,
}

/// A route's overrides.
struct PerRoute {
    mode: Option<Mode>,
    channel: Option<GrpcChannel>,
    failure_mode_allow: Option<bool>,
}

fn namespaces(options: Option<&MetadataOptions>) -> Result<Vec<String>, ConfigError> {
    let Some(options) = options else {
        return Ok(Vec::new());
    };
    let any = |o: &Option<_>| o.is_some();
    if any(&options.forwarding_namespaces) {
        return Err(ConfigError::unsupported("forwarding_namespaces").at("metadata_options"));
    }
    if any(&options.cluster_metadata_forwarding_namespaces) {
        let error = ConfigError::unsupported("cluster_metadata_forwarding_namespaces");
        return Err(error.at("metadata_options"));
    }
    let receiving = options.receiving_namespaces.as_ref();
    if receiving.is_some_and(|r| !r.typed.is_empty()) {
        return Err(ConfigError::unsupported("receiving_namespaces.typed").at("metadata_options"));
    }
    Ok(receiving.map(|r| r.untyped.clone()).unwrap_or_default())
}

fn refuse(fields: &[(bool, &str)]) -> Result<(), ConfigError> {
    match fields.iter().find(|(set, _)| *set) {
        Some((_, field)) => Err(ConfigError::unsupported(field)),
        None => Ok(()),
    }
}

impl HttpFilterFactory for ExtProcFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: ExternalProcessor = unpack(any)?;
        refuse(&[
            (proto.http_service.is_some(), "http_service"),
            (!proto.request_attributes.is_empty(), "request_attributes"),
            (!proto.response_attributes.is_empty(), "response_attributes"),
            (proto.mutation_rules.is_some(), "mutation_rules"),
            (proto.forward_rules.is_some(), "forward_rules"),
            (proto.allow_mode_override, "allow_mode_override"),
            (proto.observability_mode, "observability_mode"),
            (
                proto.processing_request_modifier.is_some(),
                "processing_request_modifier",
            ),
            (
                proto.on_processing_response.is_some(),
                "on_processing_response",
            ),
            (
                proto.allow_content_length_header,
                "allow_content_length_header",
            ),
            (
                proto.send_body_without_waiting_for_header_response,
                "send_body_without_waiting_for_header_response",
            ),
        ])?;
        let service = proto.grpc_service.as_ref();
        let service = service.ok_or_else(|| ConfigError::new("is required").at("grpc_service"))?;
        let timeout = duration::of_field(proto.message_timeout.as_ref(), "message_timeout")?;
        let clear_route_cache = match (proto.route_cache_action, proto.disable_clear_route_cache) {
            (0, false) => Clear::IfAsked,
            (0, true) | (2, _) => Clear::Never,
            (1, false) => Clear::Always,
            _ => return Err(ConfigError::new("conflicts").at("route_cache_action")),
        };
        let mode = proto.processing_mode.unwrap_or_default();
        let on_error = proto.status_on_error.as_ref();
        Ok(Arc::new(ExtProcFilter {
            id: cx.id,
            channel: cx.grpc.channel(service).at("grpc_service")?,
            mode: Mode::compile(&mode).at("processing_mode")?,
            failure_mode_allow: proto.failure_mode_allow,
            settings: Arc::new(Settings {
                timeout: timeout.unwrap_or(MESSAGE_TIMEOUT),
                status_on_error: on_error
                    .map(|s| wire::status(Some(s), StatusCode::INTERNAL_SERVER_ERROR)),
                namespaces: namespaces(proto.metadata_options.as_ref())?,
                clear_route_cache,
                no_immediate: proto.disable_immediate_response,
            }),
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        cx: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        let over = match unpack::<ExtProcPerRoute>(any)?.r#override {
            Some(Override::Disabled(true)) => return Ok(RouteFilterConfig::Disabled),
            Some(Override::Overrides(over)) => over,
            _ => return Err(ConfigError::new("is required").at("override")),
        };
        #[allow(deprecated)] // async_mode is refused
        refuse(&[
            (over.async_mode, "async_mode"),
            (!over.request_attributes.is_empty(), "request_attributes"),
            (!over.response_attributes.is_empty(), "response_attributes"),
            (over.metadata_options.is_some(), "metadata_options"),
            (
                !over.grpc_initial_metadata.is_empty(),
                "grpc_initial_metadata",
            ),
            (
                over.processing_request_modifier.is_some(),
                "processing_request_modifier",
            ),
        ])
        .at("overrides")?;
        let mode = over.processing_mode.as_ref().map(Mode::compile);
        let channel = over.grpc_service.as_ref().map(|s| cx.grpc.channel(s));
        Ok(RouteFilterConfig::Config(Arc::new(PerRoute {
            mode: mode.transpose().at("overrides.processing_mode")?,
            channel: channel.transpose().at("overrides.grpc_service")?,
            failure_mode_allow: over.failure_mode_allow.map(|b| b.value),
        })))
    }
}

/// How a processor failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Timeout,
    Call,
    /// It answered what was not asked.
    Spurious,
}

impl From<Closed> for Cause {
    fn from(how: Closed) -> Self {
        match how {
            Closed::Spurious => Self::Spurious,
            Closed::Done | Closed::Failed => Self::Call,
        }
    }
}

/// The answer when the processor failed.
fn failure(settings: &Settings, cause: Cause) -> LocalReply {
    let (status, details) = match cause {
        Cause::Timeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "ext_proc_error_per-message_timeout_exceeded",
        ),
        Cause::Call => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "ext_proc_error_gRPC_error",
        ),
        Cause::Spurious => (StatusCode::INTERNAL_SERVER_ERROR, "spurious_message"),
    };
    LocalReply::new(settings.status_on_error.unwrap_or(status), "", details)
}

/// The answer that the processor gave.
fn immediate(settings: &Settings, answer: pb::ImmediateResponse) -> LocalReply {
    if settings.no_immediate {
        return failure(settings, Cause::Call);
    }
    // Spaces would break the fields of an access log.
    let details = answer.details.split_whitespace().collect::<Vec<_>>();
    let status = wire::status(answer.status.as_ref(), StatusCode::OK);
    let mut reply = LocalReply::new(status, answer.body, details.join("_"));
    reply.grpc_status = answer.grpc_status.and_then(|s| u8::try_from(s.status).ok());
    if let Some(mutation) = &answer.headers {
        wire::apply(&mutation.set_headers, Unset::Append, &mut reply.headers);
    }
    reply
}

/// Keeps metadata of the namespaces that the configuration lets in.
fn note_metadata(settings: &Settings, answer: &pb::ProcessingResponse, info: &SharedInfo) {
    let Some(metadata) = &answer.dynamic_metadata else {
        return;
    };
    for name in &settings.namespaces {
        if let Some(Kind::StructValue(fields)) =
            metadata.fields.get(name).and_then(|v| v.kind.as_ref())
        {
            wire::merge_metadata(&mut info.borrow_mut(), name, fields);
        }
    }
}

/// What the filter remembers about a stream.
struct State {
    session: Session,
    mode: Mode,
    failure_mode_allow: bool,
    /// The first message tells the body modes.
    greeted: bool,
    /// A failure was allowed: the rest passes through.
    off: bool,
}

impl State {
    /// Sends one message's head and does what the answer says; then puts the duplex body in place.
    async fn process(
        &mut self,
        side: Side,
        settings: &Arc<Settings>,
        pairs: envoy_types::pb::envoy::config::core::v3::HeaderMap,
        head: &mut impl Target,
        body: &mut Body,
        info: &SharedInfo,
    ) -> Flow {
        let (send, duplex) = match side {
            Side::Request => (self.mode.request_headers, self.mode.request_body),
            Side::Response => (self.mode.response_headers, self.mode.response_body),
        };
        let end = body.is_end();
        let duplex = duplex && !end;
        if self.off || self.session.closed() == Some(Closed::Done) || !(send || duplex) {
            return Flow::Continue;
        }
        let mut pump = duplex.then(|| Pump::new(side, std::mem::take(body), &self.session));
        if send {
            let message = pb::HttpHeaders {
                headers: Some(pairs),
                end_of_stream: end,
                ..pb::HttpHeaders::default()
            };
            let mut message = message_of(match side {
                Side::Request => Request::RequestHeaders(message),
                Side::Response => Request::ResponseHeaders(message),
            });
            if !std::mem::replace(&mut self.greeted, true) {
                let number = |on| if on { FULL_DUPLEX } else { 0 };
                message.protocol_config = Some(pb::ProtocolConfiguration {
                    request_body_mode: number(self.mode.request_body),
                    response_body_mode: number(self.mode.response_body),
                    ..pb::ProtocolConfiguration::default()
                });
            }
            let session = &self.session;
            let mut sender = session.sender(side);
            let mut message = Some(message);
            let answer = std::future::poll_fn(|cx| {
                if message.is_some()
                    && let Poll::Ready(room) = sender.poll_reserve(cx)
                    && let Some(message) = message.take()
                    && room.is_ok()
                {
                    let _ = sender.send_item(message);
                }
                // A processor may want to see the body before it answers the head.
                if let (None, Some(pump)) = (&message, &mut pump) {
                    let _ = pump.poll(cx);
                    if let Some(error) = pump.take_error() {
                        return Poll::Ready(Err(error));
                    }
                }
                session.poll_next(side, cx).map(Ok)
            });
            // In full duplex the processor answers when it likes, as in Envoy.
            let answer = match duplex || settings.timeout.is_zero() {
                true => Ok(answer.await),
                false => tokio::time::timeout(settings.timeout, answer).await,
            };
            let answered = match answer {
                Ok(Err(error)) => return Flow::Reset(error),
                Ok(Ok(Ok(answer))) => self.obey(side, settings, answer, head, info),
                Ok(Ok(Err(Closed::Done))) if pump.as_ref().is_none_or(|p| !p.touched) => Ok(()),
                Ok(Ok(Err(how))) => Err((Box::new(failure(settings, how.into())), true)),
                Err(_) => Err((Box::new(failure(settings, Cause::Timeout)), true)),
            };
            if let Err((reply, failed)) = answered {
                let whole = pump.as_ref().is_none_or(|p| !p.touched);
                if !(failed && self.failure_mode_allow && whole) {
                    self.off = true;
                    return Flow::Reply(reply);
                }
                self.off = true;
            }
        }
        let Some(pump) = pump else {
            return Flow::Continue;
        };
        if self.off || (self.session.closed() == Some(Closed::Done) && !pump.touched) {
            *body = pump.into_original();
            return Flow::Continue;
        }
        // What comes back may be of another length.
        head.map().remove(CONTENT_LENGTH);
        *body = Body::stream(Duplex {
            pump,
            session: self.session.clone(),
            settings: Arc::clone(settings),
            info: info.clone(),
            done: false,
        });
        Flow::Continue
    }

    /// Applies the answer to a head; an `Err` is what to reply, and whether it is a failure.
    fn obey(
        &self,
        side: Side,
        settings: &Settings,
        answer: pb::ProcessingResponse,
        head: &mut impl Target,
        info: &SharedInfo,
    ) -> Result<(), (Box<LocalReply>, bool)> {
        note_metadata(settings, &answer, info);
        let common = match (answer.response, side) {
            (Some(Response::RequestHeaders(answer)), Side::Request)
            | (Some(Response::ResponseHeaders(answer)), Side::Response) => answer.response,
            (Some(Response::ImmediateResponse(answer)), _) => {
                let reply = immediate(settings, answer);
                return Err((Box::new(reply), settings.no_immediate));
            }
            _ => return Err((Box::new(failure(settings, Cause::Spurious)), true)),
        };
        let common = common.unwrap_or_default();
        if common.status != 0 {
            // CONTINUE_AND_REPLACE
            return Err((Box::new(failure(settings, Cause::Call)), true));
        }
        if let Some(mutation) = &common.header_mutation {
            wire::remove(&mutation.remove_headers, head.map());
            wire::apply(&mutation.set_headers, Unset::Append, head);
        }
        let clear = match settings.clear_route_cache {
            Clear::IfAsked => common.clear_route_cache,
            Clear::Always => true,
            Clear::Never => false,
        };
        if side == Side::Request && clear {
            info.borrow_mut().route_stale = true;
        }
        Ok(())
    }
}

impl HttpFilter for ExtProcFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        body: &'a mut Body,
        slot: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let route = route_config::<PerRoute>(info, self.id);
        let route = route.as_deref();
        let channel = route.and_then(|r| r.channel.as_ref());
        let allow = route.and_then(|r| r.failure_mode_allow);
        let mut state = State {
            session: Session::new(channel.unwrap_or(&self.channel).clone()),
            mode: route.and_then(|r| r.mode).unwrap_or(self.mode),
            failure_mode_allow: allow.unwrap_or(self.failure_mode_allow),
            greeted: false,
            off: false,
        };
        let work = async move {
            let pairs = wire::header_map(wire::request_pairs(head));
            let flow = state
                .process(Side::Request, &self.settings, pairs, head, body, info)
                .await;
            *slot = Some(Box::new(state));
            flow
        };
        Step::Wait(work.boxed_local())
    }

    fn on_response<'a>(
        &'a self,
        head: &'a mut ResponseHead,
        body: &'a mut Body,
        slot: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        let Some(state) = slot.as_mut().and_then(|s| s.downcast_mut::<State>()) else {
            return Step::CONTINUE;
        };
        let work = async move {
            state.session.begin_response();
            let status = head.status.as_str().as_bytes().to_vec();
            let pairs = wire::header_map(
                [(":status", status.into())]
                    .into_iter()
                    .chain(wire::map_pairs(&head.headers)),
            );
            state
                .process(Side::Response, &self.settings, pairs, head, body, info)
                .await
        };
        Step::Wait(work.boxed_local())
    }
}

#[cfg(test)]
mod tests;
