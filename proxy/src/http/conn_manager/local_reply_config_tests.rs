use std::cell::RefCell;
use std::rc::Rc;

use filters::flags::ResponseFlags;
use http::Method;
use serde_json::json;
use xds_client::json::{Pool, UnknownFields};

use super::*;
use crate::http::testing::stream_info;

fn info() -> SharedInfo {
    Rc::new(RefCell::new(stream_info()))
}

fn config(json: &serde_json::Value) -> Result<LocalReplyConfig, ConfigError> {
    let proto = Pool::load()
        .unwrap()
        .parse_as::<pb::LocalReplyConfig>(json, UnknownFields::Reject)
        .unwrap();
    LocalReplyConfig::compile(&proto, &crate::config::runtime::Runtime::default())
}

fn rewritten(json: &serde_json::Value, mut reply: LocalReply) -> LocalReply {
    let mut head = RequestHead::new(Method::GET, "/a");
    head.authority = "h".into();
    let config = config(json).unwrap();
    config.rewrite(&mut reply, Some(&head), &info());
    reply
}

fn status_filter(op: &str, code: u16) -> serde_json::Value {
    json!({"status_code_filter": {"comparison":
        {"op": op, "value": {"default_value": code, "runtime_key": "r"}}}})
}

#[test]
fn the_first_mapper_that_matches_decides() {
    let json = json!({
        "mappers": [
            {"filter": status_filter("EQ", 404), "status_code": 410},
            {"filter": {"response_flag_filter": {"flags": ["UF"]}}, "status_code": 599,
             "body": {"inline_string": "mapped"},
             "headers_to_add": [{"header": {"key": "x-was", "value": "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%"}}],
             "body_format_override": {"json_format": {"c": "%RESPONSE_CODE%", "b": "%LOCAL_REPLY_BODY%"}}},
            {"filter": status_filter("GE", 500), "status_code": 500},
        ],
        "body_format": {"text_format_source": {"inline_string": "<%LOCAL_REPLY_BODY%>"}, "content_type": "text/html"},
    });
    let refused = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "why", "d")
        .with_flags(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    let reply = rewritten(&json, refused);
    assert_eq!(reply.status, 599);
    assert_eq!(reply.headers["x-was"], "503 d");
    assert_eq!(reply.headers[CONTENT_TYPE], JSON);
    assert_eq!(reply.body, "{\"b\":\"mapped\",\"c\":599}\n");
    let reply = rewritten(&json, LocalReply::new(StatusCode::NOT_FOUND, "", "d"));
    assert_eq!((reply.status.as_u16(), &*reply.body), (410, &b"<>"[..]));
    assert_eq!(reply.headers[CONTENT_TYPE], "text/html");
}

#[test]
fn without_a_match_only_the_format_applies_and_headers_win() {
    let json = json!({"mappers": [{"filter": status_filter("EQ", 1), "status_code": 500,
        "headers_to_add": [{"header": {"key": "content-type", "value": "a/b"},
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}]});
    let reply = rewritten(&json, LocalReply::new(StatusCode::NOT_FOUND, "x", "d"));
    assert_eq!((reply.status.as_u16(), &*reply.body), (404, &b"x"[..]));
    assert_eq!(reply.headers[CONTENT_TYPE], "text/plain");
    let mut json = json;
    json["mappers"][0]["filter"] = status_filter("EQ", 404);
    json["mappers"][0]["body"] = json!({"inline_string": "new"});
    let reply = rewritten(&json, LocalReply::new(StatusCode::NOT_FOUND, "x", "d"));
    assert_eq!((reply.status.as_u16(), &*reply.body), (500, &b"new"[..]));
    assert_eq!(reply.headers[CONTENT_TYPE], "a/b");
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let path = |json| config(&json).err().unwrap().to_string();
    let error = path(json!({"mappers": [{"status_code": 500}]}));
    assert!(error.contains("mappers[0].filter"), "{error}");
    let error = path(json!({"mappers": [{"filter": status_filter("EQ", 4), "status_code": 99}]}));
    assert!(error.contains("mappers[0].status_code"), "{error}");
    let error = path(json!({"body_format": {"content_type": "a/b"}}));
    assert!(error.contains("body_format.format"), "{error}");
}
