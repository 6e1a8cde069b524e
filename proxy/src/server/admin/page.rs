//! What the pages share: the answer, the query, JSON as Envoy prints it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use serde::Serialize as _;
use serde_json::Value;

/// An answer.
pub(super) struct Page {
    pub(super) status: u16,
    content_type: &'static str,
    pub(super) body: String,
    /// The process ends once this has been sent.
    pub(super) is_last: bool,
}

impl Page {
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self::error(200, body)
    }

    pub(super) fn error(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=UTF-8",
            body: body.into(),
            is_last: false,
        }
    }

    /// The answer before the end of the process.
    pub(super) fn last(body: impl Into<String>) -> Self {
        Self {
            is_last: true,
            ..Self::text(body)
        }
    }

    pub(super) fn json(body: String) -> Self {
        Self {
            status: 200,
            content_type: "application/json",
            body,
            is_last: false,
        }
    }

    /// `/config_dump` names no charset with its errors.
    pub(super) fn bare_error(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "text/plain",
            body,
            is_last: false,
        }
    }

    pub(super) fn into_response(self) -> Response<Whole> {
        let mut response = Response::new(Whole(Some(Bytes::from(self.body))));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in [
            ("content-type", self.content_type),
            ("cache-control", "no-cache, max-age=0"),
            ("x-content-type-options", "nosniff"),
            ("server", "envoy"),
        ] {
            response
                .headers_mut()
                .insert(name, http::HeaderValue::from_static(value));
        }
        response
    }
}

/// A body in one piece that does not tell its length: Envoy's admin interface sends every answer chunked.
pub(super) struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The parameters of a request, in their order.
pub(super) struct Query(pub(super) Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let decode = |s: &str| {
            percent_encoding::percent_decode_str(s)
                .decode_utf8_lossy()
                .into_owned()
        };
        let pairs = query.unwrap_or_default().split('&');
        Self(
            pairs
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// JSON with one space for each level, as Envoy prints it.
pub(super) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Neither a `Value` nor memory can fail to be written.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8(out).unwrap_or_default()
}
