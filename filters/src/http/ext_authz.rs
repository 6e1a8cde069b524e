//! External authorization over gRPC (`envoy.extensions.filters.http.ext_authz.v3`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    BufferSettings, ExtAuthz, ExtAuthzPerRoute, ext_authz::Services, ext_authz_per_route::Override,
};
use envoy_types::pb::envoy::service::auth::v3 as auth;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Timestamp};
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use tonic::metadata::AsciiMetadataValue;
use xds_client::any::unpack;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::wire::{self, Unset};
use crate::body::{Body, BodyError, BodyStream, Frame};
use crate::chain::route_config;
use crate::filter::{Flow, HttpFilter, LocalReply, SharedInfo, Slot, Step};
use crate::flags::ResponseFlags;
use crate::grpc::GrpcChannel;
use crate::head::{RequestHead, ResponseHead};
use crate::matcher::metadata::MetadataMatcher;
use crate::registry::{FactoryContext, HttpFilterFactory};
use crate::stream::{Address, FilterId, Protocol, RouteFilterConfig};

/// The namespace of the metadata that the service returns.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
/// Envoy's default for a service without `timeout`.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Compiles the filter.
pub struct ExtAuthzFactory;

struct ExtAuthzFilter {
    id: FilterId,
    channel: GrpcChannel,
    timeout: Duration,
    /// The same as the service is told it.
    timeout_header: Option<AsciiMetadataValue>,
    failure_mode_allow: bool,
    failure_header: bool,
    status_on_error: StatusCode,
    clear_route_cache: bool,
    body: Option<BufferSettings>,
    /// Which requests the service is asked about: all, or those whose metadata is so.
    only: Option<MetadataMatcher>,
}

/// A route's settings.
struct PerRoute {
    extensions: HashMap<String, String>,
    no_body: bool,
}

impl HttpFilterFactory for ExtAuthzFactory {
    fn compile(&self, any: &Any, cx: &FactoryContext) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        let proto: ExtAuthz = unpack(any)?;
        let service = match &proto.services {
            Some(Services::GrpcService(service)) => service,
            Some(Services::HttpService(_)) => {
                return Err(ConfigError::unsupported("http_service"));
            }
            None => return Err(ConfigError::new("is required").at("services")),
        };
        // Each of these would change who is let in.
        for (set, field) in [
            (proto.filter_enabled.is_some(), "filter_enabled"),
            (proto.deny_at_disable.is_some(), "deny_at_disable"),
            (proto.validate_mutations, "validate_mutations"),
            (
                !proto.metadata_context_namespaces.is_empty(),
                "metadata_context_namespaces",
            ),
            (
                !proto.typed_metadata_context_namespaces.is_empty(),
                "typed_metadata_context_namespaces",
            ),
            (
                !proto.route_metadata_context_namespaces.is_empty(),
                "route_metadata_context_namespaces",
            ),
            (
                !proto.route_typed_metadata_context_namespaces.is_empty(),
                "route_typed_metadata_context_namespaces",
            ),
            (proto.include_peer_certificate, "include_peer_certificate"),
            (proto.include_tls_session, "include_tls_session"),
            (proto.allowed_headers.is_some(), "allowed_headers"),
            (proto.disallowed_headers.is_some(), "disallowed_headers"),
            (proto.encode_raw_headers, "encode_raw_headers"),
            (
                proto.decoder_header_mutation_rules.is_some(),
                "decoder_header_mutation_rules",
            ),
            (proto.shadow_mode, "shadow_mode"),
        ] {
            if set {
                return Err(ConfigError::unsupported(field));
            }
        }
        let timeout = duration::of_field(service.timeout.as_ref(), "grpc_service.timeout")?;
        let timeout = timeout.unwrap_or(TIMEOUT);
        if proto
            .with_request_body
            .is_some_and(|b| b.max_request_bytes == 0)
        {
            let error = ConfigError::new("must be greater than 0");
            return Err(error.at("with_request_body.max_request_bytes"));
        }
        let only = proto.filter_enabled_metadata.as_ref();
        let only = only
            .map(|m| MetadataMatcher::compile(m).at("filter_enabled_metadata"))
            .transpose()?;
        Ok(Arc::new(ExtAuthzFilter {
            id: cx.id,
            channel: cx.grpc.channel(service).at("grpc_service")?,
            timeout,
            timeout_header: timeout_header(timeout),
            failure_mode_allow: proto.failure_mode_allow,
            failure_header: proto.failure_mode_allow_header_add,
            status_on_error: wire::status(proto.status_on_error.as_ref(), StatusCode::FORBIDDEN),
            clear_route_cache: proto.clear_route_cache,
            body: proto.with_request_body,
            only,
        }))
    }

    fn compile_route(
        &self,
        any: &Any,
        _: &FactoryContext,
    ) -> Result<RouteFilterConfig, ConfigError> {
        match unpack::<ExtAuthzPerRoute>(any)?.r#override {
            Some(Override::Disabled(true)) => Ok(RouteFilterConfig::Disabled),
            Some(Override::CheckSettings(settings)) => {
                let unsupported = |field| Err(ConfigError::unsupported(field).at("check_settings"));
                if settings.with_request_body.is_some() {
                    return unsupported("with_request_body");
                }
                if settings.service_override.is_some() {
                    return unsupported("service_override");
                }
                Ok(RouteFilterConfig::Config(Arc::new(PerRoute {
                    extensions: settings.context_extensions,
                    no_body: settings.disable_request_body_buffering,
                })))
            }
            _ => Err(ConfigError::new("is required").at("override")),
        }
    }
}

/// What was read of a body, and then the rest of it.
struct Resumed {
    first: Option<Frame>,
    rest: Body,
}

impl BodyStream for Resumed {
    fn poll_frame(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame, BodyError>>> {
        match self.first.take() {
            Some(frame) => std::task::Poll::Ready(Some(Ok(frame))),
            None => self.rest.poll_frame(cx),
        }
    }

    fn remaining(&self) -> Option<u64> {
        let first = match &self.first {
            Some(Frame::Data(data)) => data.len() as u64,
            _ => 0,
        };
        Some(self.rest.remaining()? + first)
    }

    fn is_end(&self) -> bool {
        self.first.is_none() && self.rest.is_end()
    }
}

/// A deadline in gRPC's form, which has eight digits at most.
fn timeout_header(timeout: Duration) -> Option<AsciiMetadataValue> {
    let millis = timeout.as_millis().min(99_999_999);
    let text = (millis > 0).then(|| format!("{millis}m"))?;
    AsciiMetadataValue::try_from(text).ok()
}

/// Changes an allowed request as Envoy does: a value is appended to what is there, on the same line and only if
/// something is, or else takes its place. `append_action` has no say here.
#[allow(deprecated)] // `append` is what counts
fn set_or_join(options: &[core::HeaderValueOption], head: &mut RequestHead) {
    for option in options {
        let mut option = option.clone();
        let appends = option.append.is_some_and(|append| append.value);
        option.append = Some(BoolValue { value: false });
        if appends && let Some(header) = &mut option.header {
            let present = head.headers.get_all(header.key.as_str());
            let mut lines: Vec<&[u8]> = present.iter().map(HeaderValue::as_bytes).collect();
            if lines.is_empty() {
                continue;
            }
            lines.push(match header.raw_value.is_empty() {
                true => header.value.as_bytes(),
                false => &header.raw_value,
            });
            header.raw_value = lines.join(&b","[..]);
        }
        wire::apply(&[option], Unset::Overwrite, head);
    }
}

fn peer(address: &Address) -> auth::attribute_context::Peer {
    auth::attribute_context::Peer {
        address: Some(address.to_proto()),
        ..auth::attribute_context::Peer::default()
    }
}

impl ExtAuthzFilter {
    /// Takes what the service may see off the body, and leaves the body as it was. An `Err` is the answer
    /// to a body that is too large.
    async fn peek(
        &self,
        settings: &BufferSettings,
        body: &mut Body,
    ) -> Result<(Bytes, bool), Flow> {
        let limit = settings.max_request_bytes as usize;
        let mut held = BytesMut::new();
        let mut trailers = None;
        let mut ended = true;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(Frame::Data(data)) => held.extend_from_slice(&data),
                Ok(Frame::Trailers(map)) => trailers = Some(map),
                Err(error) => return Err(Flow::Reset(error)),
            }
            let full = match settings.allow_partial_message {
                true => held.len() >= limit,
                false => held.len() > limit,
            };
            if full && !settings.allow_partial_message {
                return Err(Flow::Reply(Box::new(LocalReply::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "Payload Too Large",
                    "request_payload_too_large",
                ))));
            }
            if full && trailers.is_none() {
                ended = body.is_end();
                break;
            }
        }
        let all = held.freeze();
        let seen = all.slice(..all.len().min(limit));
        let partial = !ended || seen.len() < all.len();
        let rest = match trailers {
            Some(trailers) => Body::stream(Resumed {
                first: Some(Frame::Trailers(trailers)),
                rest: Body::Empty,
            }),
            None => std::mem::take(body),
        };
        *body = match rest.is_end() {
            true => all.into(),
            false => Body::stream(Resumed {
                first: (!all.is_empty()).then_some(Frame::Data(all)),
                rest,
            }),
        };
        Ok((seen, partial))
    }

    fn request(
        &self,
        head: &RequestHead,
        seen: Option<(Bytes, bool)>,
        info: &SharedInfo,
    ) -> auth::CheckRequest {
        let mut headers: HashMap<String, String> = HashMap::new();
        for (name, value) in wire::request_pairs(head) {
            let text = String::from_utf8_lossy(&value);
            headers
                .entry(name.to_owned())
                .and_modify(|all| {
                    all.push(',');
                    all.push_str(&text);
                })
                .or_insert_with(|| text.into_owned());
        }
        if let Some((_, partial)) = &seen {
            headers.insert("x-envoy-auth-partial-body".into(), partial.to_string());
        }
        let (data, _) = seen.unwrap_or_default();
        let (raw_body, body) = match self.body.is_some_and(|b| b.pack_as_bytes) {
            true => (data.to_vec(), String::new()),
            false => (Vec::new(), String::from_utf8_lossy(&data).into_owned()),
        };
        let info = info.borrow();
        let http = auth::attribute_context::HttpRequest {
            // Envoy's number of the stream, which is random too.
            id: fastrand::u64(..).to_string(),
            method: head.method.as_str().into(),
            headers,
            path: head.path.to_string(),
            host: head.authority.to_string(),
            scheme: head.scheme.to_string(),
            size: i64::try_from(info.bytes_received).unwrap_or(i64::MAX),
            protocol: info.protocol.map_or("", Protocol::as_str).into(),
            body,
            raw_body,
            ..auth::attribute_context::HttpRequest::default()
        };
        let since = info.start_time.duration_since(std::time::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        let extensions = route_config_of(&info, self.id);
        auth::CheckRequest {
            attributes: Some(auth::AttributeContext {
                source: Some(peer(&info.remote)),
                destination: Some(peer(&info.connection.local)),
                request: Some(auth::attribute_context::Request {
                    time: Some(Timestamp {
                        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
                    }),
                    http: Some(http),
                }),
                context_extensions: extensions,
                metadata_context: Some(core::Metadata::default()),
                route_metadata_context: Some(core::Metadata::default()),
                ..auth::AttributeContext::default()
            }),
        }
    }

    fn failed(&self, head: &mut RequestHead) -> Flow {
        if self.failure_mode_allow {
            if self.failure_header {
                let value = HeaderValue::from_static("true");
                head.headers
                    .insert("x-envoy-auth-failure-mode-allowed", value);
            }
            return Flow::Continue;
        }
        let reply = LocalReply::new(self.status_on_error, "", "ext_authz_error");
        Flow::Reply(Box::new(
            reply.with_flags(ResponseFlags::UNAUTHORIZED_EXTERNAL),
        ))
    }

    async fn check(
        &self,
        head: &mut RequestHead,
        body: &mut Body,
        slot: &mut Slot,
        info: &SharedInfo,
    ) -> Flow {
        use auth::check_response::HttpResponse;
        let no_body = route_config::<PerRoute>(info, self.id).is_some_and(|r| r.no_body);
        let seen = match &self.body {
            Some(settings) if !no_body && !body.is_end() && !head.is_tunnel() => {
                match self.peek(settings, body).await {
                    Ok(seen) => Some(seen),
                    Err(flow) => return flow,
                }
            }
            _ => None,
        };
        let mut request = tonic::Request::new(self.request(head, seen, info));
        if let Some(timeout) = &self.timeout_header {
            request
                .metadata_mut()
                .insert("grpc-timeout", timeout.clone());
        }
        let mut client = auth::authorization_client::AuthorizationClient::new(self.channel.clone());
        let answer = match self.timeout.is_zero() {
            true => client.check(request).await.ok(),
            false => tokio::time::timeout(self.timeout, client.check(request))
                .await
                .ok()
                .and_then(Result::ok),
        };
        let Some(answer) = answer else {
            return self.failed(head);
        };
        let answer = answer.into_inner();
        if let Some(fields) = &answer.dynamic_metadata {
            wire::merge_metadata(&mut info.borrow_mut(), NAMESPACE, fields);
        }
        let allowed = answer.status.as_ref().is_none_or(|s| s.code == 0);
        match answer.http_response {
            Some(HttpResponse::OkResponse(ok)) if allowed => {
                // These would need the query rewritten; without them the request is not what was allowed.
                if !ok.query_parameters_to_set.is_empty()
                    || !ok.query_parameters_to_remove.is_empty()
                {
                    return self.failed(head);
                }
                let changed = !ok.headers.is_empty() || !ok.headers_to_remove.is_empty();
                wire::remove(&ok.headers_to_remove, &mut head.headers);
                set_or_join(&ok.headers, head);
                if changed && self.clear_route_cache {
                    info.borrow_mut().route_stale = true;
                }
                if !ok.response_headers_to_add.is_empty() {
                    *slot = Some(Box::new(ok.response_headers_to_add));
                }
                Flow::Continue
            }
            _ if allowed => Flow::Continue,
            Some(HttpResponse::ErrorResponse(_)) => self.failed(head),
            other => {
                let denied = match other {
                    Some(HttpResponse::DeniedResponse(denied)) => denied,
                    _ => auth::DeniedHttpResponse::default(),
                };
                let status = wire::status(denied.status.as_ref(), StatusCode::FORBIDDEN);
                let mut reply = LocalReply::new(status, denied.body, "ext_authz_denied")
                    .with_flags(ResponseFlags::UNAUTHORIZED_EXTERNAL);
                // A header may be given several times, as `set-cookie` is.
                wire::apply(&denied.headers, Unset::Append, &mut reply.headers);
                Flow::Reply(Box::new(reply))
            }
        }
    }
}

fn route_config_of(info: &crate::stream::StreamInfo, id: FilterId) -> HashMap<String, String> {
    match info.route.as_deref().and_then(|r| r.filter_config(id)) {
        Some(RouteFilterConfig::Config(config)) => config
            .downcast_ref::<PerRoute>()
            .map(|r| r.extensions.clone())
            .unwrap_or_default(),
        _ => HashMap::new(),
    }
}

impl HttpFilter for ExtAuthzFilter {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        body: &'a mut Body,
        slot: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        if let Some(only) = &self.only
            && !only.matches(&info.borrow())
        {
            return Step::CONTINUE;
        }
        Step::Wait(self.check(head, body, slot, info).boxed_local())
    }

    fn on_response<'a>(
        &'a self,
        head: &'a mut ResponseHead,
        _: &'a mut Body,
        slot: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        if let Some(add) = slot
            .as_ref()
            .and_then(|s| s.downcast_ref::<Vec<core::HeaderValueOption>>())
        {
            wire::apply(add, Unset::Append, head);
        }
        Step::CONTINUE
    }
}

#[cfg(test)]
mod tests;
