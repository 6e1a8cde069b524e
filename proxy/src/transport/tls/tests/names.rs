//! Names of peers: who must have one, and which are none.

use rcgen::CustomExtension;

use super::*;

/// The kind of a DNS name among the alternative names.
const DNS: u8 = 0x82;

/// Alternative names in DER, as no library would write them.
fn general_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let element = |tag: u8, body: &[u8]| {
        let mut out = vec![tag, u8::try_from(body.len()).unwrap()];
        out.extend_from_slice(body);
        out
    };
    let names: Vec<u8> = names.iter().flat_map(|(tag, n)| element(*tag, n)).collect();
    element(0x30, &names)
}

#[tokio::test]
async fn a_client_is_asked_for_a_certificate_that_must_have_a_name() {
    let authority = Authority::new("ca");
    let mut named = authority.trusted();
    named.match_typed_subject_alt_names = vec![SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact("spiffe://td/a".into())),
            ..Default::default()
        }),
        ..Default::default()
    }];
    let certificate = Some(authority.issue(&["a.example"]));
    let tls = compile(&server(common(certificate, Some(named)), false));
    let asking = |certificate| {
        let common = common(certificate, Some(authority.trusted()));
        connector(&client(common, "a.example"))
    };
    assert!(meet(&tls, &asking(None)).await.is_err());
    let known = asking(Some(authority.issue(&["spiffe://td/a"])));
    assert!(meet(&tls, &known).await.is_ok());
}

#[tokio::test]
async fn a_name_that_a_nul_cuts_short_is_refused_whatever_is_asked_for() {
    let authority = Authority::new("ca");
    let issued = |names: &[(u8, &[u8])]| {
        let value = general_names(names);
        authority.issue_with(&[], |params| {
            let oid = [2, 5, 29, 17];
            let extension = CustomExtension::from_oid_content(&oid, value);
            params.custom_extensions.push(extension);
        })
    };
    let tls = |certificate| compile(&server(common(Some(certificate), None), false));
    let trusting = connector(&client(
        common(None, Some(authority.trusted())),
        "a.example",
    ));
    let good = tls(issued(&[(DNS, b"a.example")]));
    assert!(meet(&good, &trusting).await.is_ok());
    for bad in [&b"a.example\0.evil.example"[..], b"\xff", b"a\r\nb: c"] {
        let tls = tls(issued(&[(DNS, b"a.example"), (DNS, bad)]));
        let error = meet(&tls, &trusting).await.unwrap_err();
        assert!(error.contains("control character"), "{error}");
    }
}

#[tokio::test]
async fn another_name_is_matched_by_its_kind_and_text() {
    let authority = Authority::new("ca");
    let other = SanType::OtherName;
    let matcher = |oid: &str| SubjectAltNameMatcher {
        san_type: other.into(),
        oid: oid.to_owned(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact("me@td".into())),
            ..Default::default()
        }),
    };
    let certificate = authority.issue_with(&[], |params| {
        let value = rcgen::OtherNameValue::Utf8String("me@td".to_owned());
        let name = rcgen::SanType::OtherName((vec![1, 3, 6, 1, 4], value));
        params.subject_alt_names.push(name);
    });
    let tls = compile(&server(common(Some(certificate), None), false));
    let trusting = |oid: &str| {
        let mut validation = authority.trusted();
        validation.match_typed_subject_alt_names = vec![matcher(oid)];
        let common = common(None, Some(validation));
        UpstreamTls::compile(&client(common, "a.example"), &SecretStore::default(), None)
    };
    let accepted = trusting("1.3.6.1.4").unwrap();
    assert!(meet(&tls, &accepted).await.is_ok());
    let refused = trusting("1.3.6.1.5").unwrap();
    assert!(meet(&tls, &refused).await.is_err());
    assert!(trusting("").unwrap_err().path().ends_with("oid"));
}
