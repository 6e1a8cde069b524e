use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement,
    jwt_provider::{JwksSourceSpecifier, NormalizePayload},
    jwt_requirement::RequiresType,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use xds_client::any::pack;

use super::*;
use crate::chain::tests::info;
use crate::registry::tests::cx;

/// "secret", as a key set.
const KEYS: &str =
    r#"{"keys": [{"kty": "oct", "kid": "one", "k": "c2VjcmV0"}, {"kty": "unheard-of"}]}"#;

fn keys(text: &str) -> JwksSourceSpecifier {
    JwksSourceSpecifier::LocalJwks(DataSource {
        specifier: Some(Specifier::InlineString(text.into())),
        watched_directory: None,
    })
}

fn provider() -> JwtProvider {
    JwtProvider {
        issuer: "me".into(),
        audiences: vec!["https://shop/".into()],
        jwks_source_specifier: Some(keys(KEYS)),
        ..JwtProvider::default()
    }
}

fn config(provider: JwtProvider) -> JwtAuthentication {
    let requires = JwtRequirement {
        requires_type: Some(RequiresType::ProviderName("p".into())),
    };
    JwtAuthentication {
        providers: HashMap::from([("p".to_owned(), provider)]),
        rules: vec![RequirementRule {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".into())),
                ..RouteMatch::default()
            }),
            requirement_type: Some(RequirementType::Requires(requires)),
        }],
        ..JwtAuthentication::default()
    }
}

fn token(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
    let header = Header {
        kid: Some("one".into()),
        ..Header::new(algorithm)
    };
    encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn good(claims: &Value) -> String {
    let mut all = json!({"iss": "me", "aud": "shop", "sub": "you", "exp": 4_102_444_800_u64});
    let more = claims.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    token(Algorithm::HS256, b"secret", &all)
}

fn ask(
    config: &JwtAuthentication,
    head: &mut RequestHead,
    info: &SharedInfo,
) -> Option<LocalReply> {
    let filter = JwtAuthnFactory.compile(&pack(config), &cx()).unwrap();
    let (mut body, mut slot) = (Body::Empty, None);
    match filter.on_request(head, &mut body, &mut slot, info) {
        Step::Ready(Flow::Reply(reply)) => Some(*reply),
        _ => None,
    }
}

fn with(token: &str) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, "/a?b=c");
    let value = format!("Bearer {token}").parse().unwrap();
    head.headers.insert(AUTHORIZATION, value);
    head
}

fn verdict(provider: JwtProvider, token: &str) -> Option<String> {
    let reply = ask(&config(provider), &mut with(token), &info());
    reply.map(|reply| reply.details.to_string())
}

#[test]
fn a_good_token_becomes_headers_and_metadata_and_goes() {
    let config = config(JwtProvider {
        forward_payload_header: "x-payload".into(),
        payload_in_metadata: "payload".into(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims: vec!["scope".into()],
        }),
        claim_to_headers: vec![JwtClaimToHeader {
            header_name: "x-deep".into(),
            claim_name: "a.b".into(),
            claim_path: Vec::new(),
        }],
        clear_route_cache: true,
        ..provider()
    });
    let token = good(&json!({"a": {"b": 12}, "scope": "read write"}));
    let (mut head, info) = (with(&token), info());
    head.headers.insert("x-deep", "forged".parse().unwrap());
    assert!(ask(&config, &mut head, &info).is_none());
    let deep: Vec<_> = head.headers.get_all("x-deep").iter().collect();
    assert_eq!(deep, ["12"]);
    assert_eq!(
        head.headers.get("x-payload").unwrap(),
        token.split('.').nth(1).unwrap()
    );
    assert!(head.headers.get(AUTHORIZATION).is_none());
    let info = info.borrow();
    assert_eq!(
        info.dynamic_metadata.get(NAMESPACE).unwrap()["payload"]["scope"],
        json!(["read", "write"])
    );
    assert!(info.route_stale);
}

#[test]
fn a_token_counts_only_if_signed_and_for_us_and_now() {
    let denied = |reason: &str| Some(format!("jwt_authn_access_denied{{{reason}}}"));
    assert_eq!(verdict(provider(), &good(&json!({}))), None);
    let claims = json!({"iss": "me", "aud": "shop"});
    let forged = token(Algorithm::HS256, b"guessed", &claims);
    assert_eq!(
        verdict(provider(), &forged),
        denied("Jwt_verification_fails")
    );
    let other = good(&json!({"aud": ["a", "b"]}));
    assert_eq!(
        verdict(provider(), &other),
        denied("Audiences_in_Jwt_are_not_allowed")
    );
    let stranger = good(&json!({"iss": "they"}));
    assert_eq!(
        verdict(provider(), &stranger),
        denied("Jwt_issuer_is_not_configured")
    );
    assert_eq!(
        verdict(provider(), &good(&json!({"exp": 1}))),
        denied("Jwt_is_expired")
    );
    let later = good(&json!({"nbf": 4_102_444_800_u64}));
    assert_eq!(verdict(provider(), &later), denied("Jwt_not_yet_valid"));
}

#[test]
fn a_public_key_is_no_secret() {
    // The attack: a token signed with the bytes of the public key, said to be HS256.
    let public = "sXch".repeat(80);
    let set = json!({"keys": [{"kty": "RSA", "kid": "one", "e": "AQAB", "n": public}]});
    let provider = JwtProvider {
        jwks_source_specifier: Some(keys(&set.to_string())),
        ..provider()
    };
    let claims = json!({"iss": "me", "aud": "shop"});
    let forged = token(Algorithm::HS256, public.as_bytes(), &claims);
    let details = verdict(provider, &forged).unwrap();
    assert_eq!(details, "jwt_authn_access_denied{Jwt_verification_fails}");
}

#[test]
fn a_refusal_says_what_is_missing_and_where() {
    let mut head = RequestHead::new(Method::GET, format!("/{}", "x".repeat(400)));
    head.authority = "a.test".into();
    let reply = ask(&config(provider()), &mut head, &info()).unwrap();
    assert_eq!(reply.status, 401);
    let challenge = format!("Bearer realm=\"http://a.test/{}\"", "x".repeat(255));
    assert_eq!(
        reply.headers.get(WWW_AUTHENTICATE).unwrap(),
        challenge.as_str()
    );
    let quiet = JwtAuthentication {
        strip_failure_response: true,
        ..config(provider())
    };
    let reply = ask(&quiet, &mut with("a.b.c"), &info()).unwrap();
    assert!(reply.headers.get(WWW_AUTHENTICATE).is_none());
}

#[test]
fn two_lines_are_judged_as_one() {
    let mut head = with(&good(&json!({})));
    head.headers
        .append(AUTHORIZATION, "Bearer other".parse().unwrap());
    let reply = ask(&config(provider()), &mut head, &info()).unwrap();
    assert_eq!(reply.status, 401);
}

#[test]
fn what_is_not_had_is_refused_by_name() {
    let compile = |config: &JwtAuthentication| {
        let compiled = JwtAuthnFactory.compile(&pack(config), &cx());
        compiled.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let unnamed = JwtProvider {
        from_headers: vec![JwtHeader {
            name: "a b".into(),
            value_prefix: String::new(),
        }],
        ..provider()
    };
    assert!(compile(&config(unnamed)).contains("from_headers.name"));
    let remote = JwtProvider {
        jwks_source_specifier: Some(JwksSourceSpecifier::RemoteJwks(Default::default())),
        ..provider()
    };
    assert!(compile(&config(remote)).contains("remote_jwks: not supported"));
    let keyless = JwtProvider {
        jwks_source_specifier: Some(keys("{\"keys\": []}")),
        ..provider()
    };
    assert!(compile(&config(keyless)).contains("has no key that can be used"));
    let mut wrong = config(provider());
    wrong.providers.clear();
    assert!(compile(&wrong).contains("no provider \"p\""));
}
