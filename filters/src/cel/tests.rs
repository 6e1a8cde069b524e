//! What the differential suite does not reach: metadata, certificates, and what is refused.

use std::rc::Rc;
use std::sync::Arc;

use envoy_types::pb::google::api::expr::v1alpha1::Expr;
use serde_json::{Value as Json, json};
use xds_client::json::{Pool, UnknownFields};

use super::*;
use crate::stream::{ConnectionInfo, DynamicMetadata};
use crate::tls::{CertificateFacts, PeerCertificate, TlsInfo};

fn text(value: &str) -> Json {
    json!({"const_expr": {"string_value": value}})
}

fn at(path: &str) -> Json {
    let mut names = path.split('.');
    let first = json!({"ident_expr": {"name": names.next().unwrap()}});
    names.fold(
        first,
        |operand, field| json!({"select_expr": {"operand": operand, "field": field}}),
    )
}

fn call(function: &str, args: &[Json]) -> Json {
    json!({"call_expr": {"function": function, "args": args}})
}

fn compile(expression: &Json) -> Result<Expression, String> {
    let proto: Expr = Pool::load()
        .unwrap()
        .parse_as(expression, UnknownFields::Reject)
        .unwrap();
    Expression::compile(&proto).map_err(|e| e.to_string())
}

fn connection() -> ConnectionInfo {
    let names = |uri: &str| CertificateFacts {
        subject: "CN=a".into(),
        uri_sans: vec![uri.into()],
        sha256: "ab".into(),
        ..Default::default()
    };
    let info = crate::chain::tests::info();
    let mut connection = ConnectionInfo::clone(&info.borrow().connection);
    connection.tls = Some(Rc::new(TlsInfo {
        version: "TLSv1.3",
        server_name: Default::default(),
        local: Some(Arc::new(names("spiffe://local"))),
        peer: Some(PeerCertificate::new(
            names("spiffe://peer"),
            Vec::new(),
            true,
        )),
        ..Default::default()
    }));
    connection
}

fn is_true(expression: &Json) -> bool {
    let connection = connection();
    let Json::Object(object) =
        json!({"s": "v", "n": 5, "b": true, "l": ["x", 1], "o": {"k": null}})
    else {
        unreachable!()
    };
    let metadata = DynamicMetadata::from([("ns".to_owned(), object)]);
    let facts = Attributes {
        connection: &connection,
        remote: &connection.remote,
        head: None,
        protocol: None,
        bytes_received: 0,
        metadata: Some(&metadata),
        filter_state: None,
    };
    compile(expression).unwrap().is_true(&facts)
}

#[test]
fn metadata_is_json() {
    let at = |path: &str| at(&format!("metadata.filter_metadata.ns.{path}"));
    let five = json!({"const_expr": {"int64_value": "5"}});
    assert!(is_true(&call("_==_", &[at("s"), text("v")])));
    assert!(is_true(&call("_==_", &[at("n"), five.clone()])));
    assert!(is_true(&at("b")) && !is_true(&at("s")));
    assert!(is_true(&call("@in", &[text("x"), at("l")])));
    assert!(!is_true(&call("@in", &[text("y"), at("l")])));
    let null = json!({"const_expr": {"null_value": "NULL_VALUE"}});
    assert!(is_true(&call("_==_", &[at("o.k"), null])));
    assert!(!is_true(&call("_==_", &[at("none"), text("")])));
    let list =
        json!({"list_expr": {"elements": [text("x"), {"const_expr": {"uint64_value": "1"}}]}});
    assert!(is_true(&call("_==_", &[list.clone(), at("l")])));
    assert!(is_true(&call("_==_", &[at("l"), list])));
    assert!(!is_true(&call("_==_", &[at("l"), five])));
}

#[test]
fn certificates() {
    for (name, value) in [
        ("tls_version", "TLSv1.3"),
        ("subject_peer_certificate", "CN=a"),
        ("uri_san_peer_certificate", "spiffe://peer"),
        ("uri_san_local_certificate", "spiffe://local"),
        ("sha256_peer_certificate_digest", "ab"),
    ] {
        let name = at(&format!("connection.{name}"));
        assert!(
            is_true(&call("_==_", &[name.clone(), text(value)])),
            "{name}"
        );
    }
    assert!(is_true(&at("connection.mtls")));
    let none = at("connection.dns_san_peer_certificate");
    assert!(!is_true(&call("_==_", &[none, text("")])));
    // There is no request to ask about.
    assert!(!is_true(&call("_==_", &[at("request.path"), text("")])));
}

#[test]
fn what_is_refused() {
    let path = at("request.path");
    let header = call("_[_]", &[at("request.headers"), text("x")]);
    for (expression, reason) in [
        (json!({}), "empty expression"),
        (call("nosuch", &[text("x")]), "call_expr.function: nosuch"),
        (call("size", &[text("x"), text("y")]), "size"),
        (call("string", &[text("x")]), "string"),
        (call("timestamp", &[text("x")]), "timestamp"),
        (call("_==_", &[text("x")]), "_==_"),
        (call("matches", &[path.clone(), text("(")]), "invalid regex"),
        (
            call("matches", &[path.clone(), header.clone()]),
            "no constant",
        ),
        (call("_[_]", &[at("request"), header]), "no constant"),
        (
            call("_[_]", &[at("request"), text("time")]),
            "time is not supported",
        ),
        (at("request.total_size"), "total_size is not supported"),
        (at("connection.termination_details"), "termination_details"),
        (
            at("metadata.typed_filter_metadata"),
            "typed_filter_metadata",
        ),
        (
            at("response.code"),
            "select_expr.ident_expr: response is not supported",
        ),
        (call("_==_", &[at("request"), path]), "all attributes"),
        (json!({"comprehension_expr": {}}), "comprehension"),
        (json!({"struct_expr": {"message_name": "a.B"}}), "a message"),
        (
            json!({"const_expr": {"duration_value": "1s"}}),
            "time is not supported",
        ),
    ] {
        let error = compile(&expression).unwrap_err();
        assert!(error.contains(reason), "{expression}: {error}");
    }
}
