//! What the connection manager does to a response head before the codec gets it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use filters::head::ResponseHead;
use http::header::{self, HeaderValue};

use super::client_address::append_to_line;
use super::config::{HcmConfig, ServerHeader};
use super::names;
use crate::http::validate;

/// Removes hop-by-hop fields, sets `server`, `date`, and the request id where asked for.
pub(super) fn finish(
    head: &mut ResponseHead,
    config: &HcmConfig,
    request_id: Option<&HeaderValue>,
) {
    let headers = &mut head.headers;
    validate::remove_hop_by_hop(headers);
    match config.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, config.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers
                .entry(header::SERVER)
                .or_insert_with(|| config.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    headers.entry(header::DATE).or_insert_with(date);
    if let Some(id) = request_id {
        headers.insert(names::REQUEST_ID, id.clone());
    }
    if let Some(via) = &config.via {
        append_to_line(headers, &header::VIA, b", ", via.as_bytes());
    }
}

/// The current date, formatted at most twice a second per worker (RFC 9110, 6.6.1).
fn date() -> HeaderValue {
    thread_local! {
        static CACHED: RefCell<Option<(Instant, HeaderValue)>> = const { RefCell::new(None) };
    }
    CACHED.with_borrow_mut(|cached| match cached {
        Some((at, value)) if at.elapsed() < Duration::from_millis(500) => value.clone(),
        _ => {
            let text = httpdate::fmt_http_date(std::time::SystemTime::now());
            let value =
                HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
            *cached = Some((Instant::now(), value.clone()));
            value
        }
    })
}
