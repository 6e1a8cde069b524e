use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderValue, Method};

use super::*;
use crate::stream::{Address, ConnectionInfo, Protocol};

fn info() -> StreamInfo {
    let address = |s: &str| Address::Ip(s.parse().unwrap());
    let connection = ConnectionInfo {
        id: 7,
        remote: address("1.2.3.4:5"),
        direct_remote: address("1.2.3.4:5"),
        local: address("[::1]:80"),
        direct_local: address("10.0.0.1:15001"),
        server_name: Some("a.example".into()),
        alpn: None,
        ja4: None,
        secure: false,
        tls: None,
        listener: "l".into(),
        filter_chain: "fc".into(),
        listener_metadata: Default::default(),
        filter_chain_metadata: Default::default(),
        proxy_tlvs: None,
        filter_state: None,
        local_restored: false,
        notes: None,
    };
    let mut info = StreamInfo::new(Rc::new(connection), Protocol::Http11);
    info.start_time = UNIX_EPOCH + Duration::from_millis(1_522_796_769_123);
    info.response_code = Some(200);
    info
}

fn format(text: &str) -> String {
    let info = info();
    let mut head = RequestHead::new(Method::GET, "/a?b");
    head.headers
        .insert("x-a", HeaderValue::from_static("value"));
    let context = FormatContext {
        info: &info,
        request: Some(&head),
        response: None,
        trailers: None,
        local_reply: None,
    };
    let mut out = Vec::new();
    Formatter::compile(text).unwrap().write(&context, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn operators() {
    assert_eq!(
        format("%REQ(:METHOD)% %REQ(X-NONE?:PATH)% 100%%"),
        "GET /a?b 100%"
    );
    assert_eq!(
        format("%REQ(X-A):3%|%RESP(X-A)%|%REQ_WITHOUT_QUERY(:PATH)%"),
        "val|-|/a"
    );
    assert_eq!(format("%START_TIME%"), "2018-04-03T23:06:09.123Z");
    assert_eq!(
        format("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f %s %a %j)%"),
        "2018/04/03T23:06:09.123 1522796769 Tue 093"
    );
    assert_eq!(
        format("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
        "1.2.3.4:5 ::1"
    );
    assert_eq!(
        format("%DOWNSTREAM_DIRECT_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_PORT%"),
        "10.0.0.1:15001 15001"
    );
    assert_eq!(
        format("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_HOST%"),
        "HTTP/1.1 200 - -"
    );
    assert_eq!(
        format("%DOWNSTREAM_REMOTE_PORT% %REQUESTED_SERVER_NAME% %ROUTE_NAME%"),
        "5 a.example -"
    );
}

#[test]
fn refusals() {
    for text in [
        "%",
        "%REQ%",
        "%NOPE%",
        "%REQ(a",
        "%START_TIME(%Q)%",
        "%REQ(a):x%",
        "50% off",
        "%PROTOCOL(x)%",
        "%PROTOCOL:3%",
        "%REQ()%",
        "%REQ(a?b?c)%",
        "%REQ(a)b%",
        "%REQ(a):99999999999999999999%",
        "%REQ(a):-1%",
        "%DYNAMIC_METADATA%",
        "%METADATA(FOO:a)%",
        "%CLUSTER_METADATA(a):3%",
        "%GRPC_STATUS(FOO)%",
        "%PATH(FOO)%",
        "%QUERY_PARAMS(FOO)%",
        "%REQUESTED_SERVER_NAME(SNI_FIRST:FOO)%",
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%",
        "%COMMON_DURATION(DS_RX_BEG)%",
        "%COALESCE({})%",
        "%COALESCE({\"operators\": []})%",
        "%COALESCE({\"operators\": [\"REQ\"]})%",
        "%COALESCE({\"operators\": [{\"command\": \"COALESCE\", \"param\": \"{}\"}]})%",
    ] {
        assert!(Formatter::compile(text).is_err(), "{text}");
    }
}

#[test]
fn an_argument_may_have_parentheses_and_percent_signs_and_empty_ones_are_none() {
    assert_eq!(format("%START_TIME(%s (%Y))%"), "1522796769 (2018)");
    assert_eq!(format("%PROTOCOL()%-%PATH():2%"), "HTTP/1.1-/a");
}

#[test]
fn values_in_json_are_what_they_are() {
    let info = info();
    let context = FormatContext {
        info: &info,
        request: None,
        response: None,
        trailers: None,
        local_reply: None,
    };
    let json = |text: &str| Formatter::compile(text).unwrap().json(&context, b"-");
    assert_eq!(json("%RESPONSE_CODE%"), 200);
    assert_eq!(json("code %RESPONSE_CODE%"), "code 200");
    assert_eq!(json("%REQ(a)%"), serde_json::Value::Null);
    assert_eq!(json("%REQ(a)%%REQ(a)%"), "--");
    assert_eq!(json("%PROTOCOL%"), "HTTP/1.1");
    let first = r#"%COALESCE({"operators": [{"command": "REQ", "param": "a"}, "RESPONSE_CODE"]})%"#;
    assert_eq!(json(first), 200);
}

#[test]
fn istio_default_compiles() {
    let text = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %ROUTE_NAME%\n";
    Formatter::compile(text).unwrap();
}

/// Formats put together from pieces of others, with a fixed seed: refused or written, and the same in both forms.
#[test]
fn mutated_formats_are_refused_or_written() {
    const PIECES: [&str; 24] = [
        "%",
        "%%",
        "(",
        ")",
        ":",
        "?",
        "REQ",
        "RESP",
        "PATH",
        "QUERY_PARAM",
        "QUERY_PARAMS",
        "DECODED",
        "REQUESTED_SERVER_NAME",
        "SNI_FIRST",
        "METADATA",
        "DYNAMIC",
        "FILTER_STATE",
        "PLAIN",
        "a",
        "x-a",
        "3",
        "99999999999999999999",
        "\u{e9}",
        "COALESCE({\"operators\": [\"PROTOCOL\"]})",
    ];
    let info = info();
    let mut head = RequestHead::new(Method::GET, "/a?%2&b=%e9%zz&a=%41");
    head.headers
        .insert("x-a", HeaderValue::from_bytes(b"\xe9%").unwrap());
    let context = FormatContext {
        info: &info,
        request: Some(&head),
        response: None,
        trailers: None,
        local_reply: None,
    };
    let mut random = fastrand::Rng::with_seed(7);
    let mut written = 0;
    for _ in 0..100_000 {
        let whole = random.bool();
        let mut format: String = (0..random.usize(1..8))
            .map(|_| PIECES[random.usize(..PIECES.len())])
            .collect();
        if whole {
            format = format!("%{}({format})%", PIECES[random.usize(6..18)]);
        }
        let Ok(compiled) = Formatter::compile(&format) else {
            continue;
        };
        written += 1;
        let mut line = Vec::new();
        compiled.write(&context, &mut line);
        if let serde_json::Value::String(told) = compiled.json(&context, b"-")
            && told.is_ascii()
        {
            assert_eq!(told.as_bytes(), line, "{format}");
        }
    }
    assert!(written > 1000, "{written}");
}
