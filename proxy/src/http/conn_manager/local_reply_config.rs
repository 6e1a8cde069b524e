//! `local_reply_config`: what becomes of the responses that Fairway makes itself.
//!
//! Envoy: "Local reply modification"; `LocalReplyConfig`. The first mapper whose filter admits the stream
//! changes status, body and headers; then the body is formatted.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, substitution_format_string,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as pb, ResponseMapper,
};
use filters::filter::{LocalReply, SharedInfo};
use filters::formatter::FormatContext;
use filters::head::{RequestHead, ResponseHead};
use filters::header_mutation::HeaderMutations;
use filters::runtime::RuntimeKeys;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use xds_client::data_source;
use xds_client::error::{At, ConfigError};

use crate::telemetry::log_filter::Filter;
use crate::telemetry::log_format::Format;

const JSON: &str = "application/json";

/// A compiled `local_reply_config`.
pub(super) struct LocalReplyConfig {
    mappers: Vec<Mapper>,
    format: Option<BodyFormat>,
}

struct Mapper {
    filter: Filter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    headers: HeaderMutations,
    format: Option<BodyFormat>,
}

struct BodyFormat {
    format: Format,
    content_type: HeaderValue,
}

impl LocalReplyConfig {
    /// Compiles the message.
    ///
    /// # Errors
    /// The path of the field that is invalid or not supported.
    pub(super) fn compile(
        proto: &pb::LocalReplyConfig,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        let mapper = |(i, mapper)| Mapper::compile(mapper, runtime).at(format!("mappers[{i}]"));
        let mappers = proto.mappers.iter().enumerate().map(mapper);
        Ok(Self {
            mappers: mappers.collect::<Result<_, _>>()?,
            format: body_format(proto.body_format.as_ref()).at("body_format")?,
        })
    }

    /// Changes a reply before it is rendered. `request` is absent if it never became one.
    pub(super) fn rewrite(
        &self,
        reply: &mut LocalReply,
        request: Option<&RequestHead>,
        info: &SharedInfo,
    ) {
        // Envoy's CORS filter writes its preflight response itself, past this configuration.
        if reply.details == "cors_response" {
            return;
        }
        {
            // Filters and formats below speak of the reply as it will be logged.
            let mut info = info.borrow_mut();
            info.flags.insert(reply.flags);
            info.details = Some(reply.details.clone());
            info.response_code = Some(reply.status.as_u16());
        }
        let headers = std::mem::take(&mut reply.headers);
        let mut response = ResponseHead::with_headers(reply.status, headers);
        let content_type = response.headers.get(CONTENT_TYPE).cloned();
        let body_before = reply.body.clone();
        let mapper = self.mappers.iter().find(|m| {
            m.filter.admits(&FormatContext {
                info: &info.borrow(),
                request,
                response: Some(&response),
                trailers: None,
                local_reply: Some(&reply.body),
            })
        });
        if let Some(mapper) = mapper {
            mapper.apply(reply, &mut response, request, info);
        }
        let format = mapper.and_then(|m| m.format.as_ref());
        if let Some(format) = format.or(self.format.as_ref()) {
            format.apply(reply, &response, request, info);
        }
        // A new body has the format's type, unless the mapper's headers name another.
        let present = response.headers.get(CONTENT_TYPE);
        let same = present == content_type.as_ref();
        if present.is_none() || (same && reply.body != body_before) {
            let format = format.or(self.format.as_ref());
            let text = HeaderValue::from_static("text/plain");
            let value = format.map_or(text, |f| f.content_type.clone());
            response.headers.insert(CONTENT_TYPE, value);
        }
        reply.headers = response.headers;
    }
}

impl Mapper {
    fn compile(proto: &ResponseMapper, runtime: &dyn RuntimeKeys) -> Result<Self, ConfigError> {
        let filter = proto.filter.as_ref();
        let filter = filter.and_then(|f| f.filter_specifier.as_ref());
        let filter = filter.ok_or_else(|| ConfigError::new("is required").at("filter"))?;
        let status = match &proto.status_code {
            None => None,
            Some(code) => Some(status(code.value).at("status_code")?),
        };
        let format = proto.body_format_override.as_ref();
        Ok(Self {
            filter: Filter::compile(filter, runtime).at("filter")?,
            status,
            body: proto.body.as_ref().map(body).transpose().at("body")?,
            headers: HeaderMutations::compile("", &proto.headers_to_add, &[])
                .at("headers_to_add")?,
            format: body_format(format).at("body_format_override")?,
        })
    }

    fn apply(
        &self,
        reply: &mut LocalReply,
        response: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &SharedInfo,
    ) {
        if let Some(body) = &self.body {
            reply.body = body.clone();
        }
        let values = self.headers.values(&FormatContext {
            info: &info.borrow(),
            request,
            response: Some(response),
            trailers: None,
            local_reply: Some(&reply.body),
        });
        self.headers.write(values, &mut response.headers);
        if let Some(status) = self.status {
            reply.status = status;
            response.status = status;
            info.borrow_mut().response_code = Some(status.as_u16());
        }
    }
}

impl BodyFormat {
    fn apply(
        &self,
        reply: &mut LocalReply,
        response: &ResponseHead,
        request: Option<&RequestHead>,
        info: &SharedInfo,
    ) {
        let mut body = Vec::new();
        self.format.write(
            &FormatContext {
                info: &info.borrow(),
                request,
                response: Some(response),
                trailers: None,
                local_reply: Some(&reply.body),
            },
            &mut body,
        );
        // A JSON line's end has no place in `grpc-message`.
        if self.content_type == JSON
            && request.is_some_and(RequestHead::is_grpc)
            && body.last() == Some(&b'\n')
        {
            body.pop();
        }
        reply.body = body.into();
    }
}

fn status(code: u32) -> Result<StatusCode, ConfigError> {
    let code = u16::try_from(code).ok().filter(|c| (200..600).contains(c));
    let code = code.and_then(|c| StatusCode::from_u16(c).ok());
    code.ok_or_else(|| ConfigError::new("must be from 200 to 599"))
}

fn body(source: &DataSource) -> Result<Bytes, ConfigError> {
    if source.specifier.is_none() {
        return Err(ConfigError::new("is required").at("specifier"));
    }
    data_source::read(source).map(Bytes::from)
}

fn body_format(
    proto: Option<&SubstitutionFormatString>,
) -> Result<Option<BodyFormat>, ConfigError> {
    use substitution_format_string::Format as Spec;
    let Some(proto) = proto else { return Ok(None) };
    let own = match &proto.format {
        None => return Err(ConfigError::new("is required").at("format")),
        Some(Spec::JsonFormat(_)) => JSON,
        Some(_) => "text/plain",
    };
    let content_type = match proto.content_type.as_str() {
        "" => HeaderValue::from_static(own),
        other => HeaderValue::from_str(other)
            .map_err(|_| ConfigError::new("not a valid header value").at("content_type"))?,
    };
    Ok(Some(BodyFormat {
        format: Format::substitution(proto.clone())?,
        content_type,
    }))
}

#[cfg(test)]
#[path = "local_reply_config_tests.rs"]
mod tests;
