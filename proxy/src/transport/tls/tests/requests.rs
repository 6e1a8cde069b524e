//! What requests ask of the transport: names, protocols, sessions.

use super::*;

/// What a request asks for.
fn asking(server_name: &str, subject: Option<&str>, alpn: &[&str]) -> TransportOptions {
    TransportOptions {
        server_name: Some(server_name.into()),
        subjects: subject
            .map(|names| names.split(',').map(Into::into).collect())
            .unwrap_or_default(),
        alpn: (!alpn.is_empty()).then(|| alpn.iter().map(|n| (*n).into()).collect()),
    }
}

#[tokio::test]
async fn requests_endpoints_and_contexts_name_the_server_in_this_order() {
    let authority = Authority::new("ca");
    let tls = compile(&server(
        common(Some(authority.issue(&["a.example"])), None),
        false,
    ));
    let mut proto = client(common(None, None), "fixed.example");
    let told = async |proto: &UpstreamTlsContext, hostname: &str, options: &TransportOptions| {
        let client = connector(proto);
        let met = meet_with(&tls, &client, hostname, options).await.unwrap();
        met.2.split(' ').next().unwrap().to_owned()
    };
    let (nothing, asked) = (
        TransportOptions::default(),
        asking("asked.example", None, &[]),
    );
    assert_eq!(
        told(&proto, "host.example", &nothing).await,
        "fixed.example"
    );
    assert_eq!(told(&proto, "host.example", &asked).await, "asked.example");
    assert_eq!(
        told(&proto, "", &asking("", None, &[])).await,
        "fixed.example"
    );
    proto.auto_host_sni = true;
    assert_eq!(told(&proto, "host.example", &nothing).await, "host.example");
    assert_eq!(told(&proto, "", &nothing).await, "fixed.example");
    assert_eq!(told(&proto, "host.example", &asked).await, "asked.example");
    let bad = asking("not a name", None, &[]);
    let refused = meet_with(&tls, &connector(&proto), "", &bad).await;
    assert!(refused.unwrap_err().contains("no host name"));
}

#[tokio::test]
async fn the_certificate_must_cover_what_the_request_or_the_name_demands() {
    let authority = Authority::new("ca");
    let tls = compile(&server(
        common(Some(authority.issue(&["a.example", "spiffe://td/a"])), None),
        false,
    ));
    let validation = || Some(authority.trusted());
    let plain = connector(&client(common(None, validation()), "fixed.example"));
    let met = async |client: &UpstreamTls, options: &TransportOptions| {
        meet_with(&tls, client, "", options).await.map(drop)
    };
    let subject = |name| asking("x.example", Some(name), &[]);
    assert!(met(&plain, &subject("a.example")).await.is_ok());
    assert!(met(&plain, &subject("spiffe://td/a")).await.is_ok());
    let error = met(&plain, &subject("x.example")).await.unwrap_err();
    assert!(
        error.contains("verify SAN list, expected SANs: [x.example]"),
        "{error}"
    );
    assert!(met(&plain, &subject("x.example,a.example")).await.is_ok());
    // A session that began under one rule is not resumed under another.
    assert!(met(&plain, &subject("x.example")).await.is_err());
    let mut proto = client(common(None, validation()), "a.example");
    proto.auto_sni_san_validation = true;
    let bound = connector(&proto);
    assert!(met(&bound, &TransportOptions::default()).await.is_ok());
    assert!(met(&bound, &asking("b.example", None, &[])).await.is_err());
    assert!(met(&bound, &asking("", None, &[])).await.is_ok());
    proto.common_tls_context = Some(common(None, None));
    let error = UpstreamTls::compile(&proto, &SecretStore::default(), None).unwrap_err();
    assert!(error.reason().contains("without a validation context"));
}

#[tokio::test]
async fn protocols_come_from_the_request_the_context_or_the_pool() {
    let authority = Authority::new("ca");
    let mut serving = common(Some(authority.issue(&["a.example"])), None);
    serving.alpn_protocols = ["istio-h2", "http/1.1", "h2"].map(Into::into).to_vec();
    let tls = compile(&server(serving, false));
    let mut offering = common(None, None);
    let chosen = async |common: &CommonTlsContext, alpn: &[&str]| {
        let client = connector(&client(common.clone(), "a.example"));
        let options = asking("a.example", None, alpn);
        let met = meet_with(&tls, &client, "", &options).await.unwrap();
        met.2.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(
        chosen(&offering, &["istio-h2", "istio", "h2"]).await,
        "istio-h2"
    );
    offering.alpn_protocols = vec!["http/1.1".into()];
    assert_eq!(chosen(&offering, &[]).await, "http/1.1");
    offering.alpn_protocols.clear();
    assert_eq!(chosen(&offering, &[]).await, "h2");
}

#[tokio::test]
async fn sessions_are_resumed_for_the_same_name_and_protocols_only() {
    let authority = Authority::new("ca");
    let tls = compile(&server(
        common(Some(authority.issue(&["a.example"])), None),
        false,
    ));
    let client = connector(&client(common(None, Some(authority.trusted())), ""));
    let kind = async |options: &TransportOptions| {
        let met = meet_with(&tls, &client, "", options).await.unwrap();
        met.2.split(' ').nth(2).unwrap().to_owned()
    };
    let first = asking("a.example", None, &["h2"]);
    assert_eq!(kind(&first).await, "Full");
    assert_eq!(kind(&first).await, "Resumed");
    assert_eq!(kind(&asking("b.example", None, &["h2"])).await, "Full");
    assert_eq!(
        kind(&asking("a.example", None, &["http/1.1"])).await,
        "Full"
    );
    let bound = asking("a.example", Some("a.example"), &["h2"]);
    assert_eq!(kind(&bound).await, "Full");
}
