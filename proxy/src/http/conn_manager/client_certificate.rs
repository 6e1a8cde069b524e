//! `x-forwarded-client-cert`: what the upstream learns of the client's certificate.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails as Forward, SetCurrentClientCertDetails,
};
use filters::tls::{PeerCertificate, TlsInfo};
use http::{HeaderMap, HeaderValue};

use super::client_address::append_to_line;
use super::names;

/// `forward_client_cert_details` and `set_current_client_cert_details`.
#[derive(Debug, Clone)]
pub(super) struct ClientCertificates {
    forward: Forward,
    details: SetCurrentClientCertDetails,
}

impl ClientCertificates {
    /// From the fields of the connection manager.
    pub(super) fn compile(proto: &HttpConnectionManager) -> Self {
        Self {
            forward: proto.forward_client_cert_details(),
            details: proto.set_current_client_cert_details.unwrap_or_default(),
        }
    }

    /// Removes the header, keeps it, or tells this connection's certificate. Only a client that has shown
    /// one is believed what others have shown to it, unless the configuration trusts everybody.
    pub(super) fn apply(&self, headers: &mut HeaderMap, tls: Option<&TlsInfo>) {
        if self.forward == Forward::AlwaysForwardOnly {
            return on_one_line(headers);
        }
        let shown = tls.and_then(|tls| Some((tls, tls.peer.as_ref()?)));
        let Some((tls, peer)) = shown else {
            headers.remove(names::XFCC);
            return;
        };
        match self.forward {
            Forward::Sanitize => drop(headers.remove(names::XFCC)),
            Forward::ForwardOnly | Forward::AlwaysForwardOnly => on_one_line(headers),
            Forward::AppendForward => {
                let element = self.element(tls, peer);
                append_to_line(headers, &names::XFCC, b",", element.as_bytes());
            }
            Forward::SanitizeSet => {
                if let Ok(value) = HeaderValue::try_from(self.element(tls, peer)) {
                    headers.insert(names::XFCC, value);
                }
            }
        }
    }

    /// One element: `By=...;Hash=...` and what else is asked for, in Envoy's order.
    fn element(&self, tls: &TlsInfo, peer: &PeerCertificate) -> String {
        let mut pairs = Vec::new();
        let own = tls.local.iter().flat_map(|local| &local.uri_sans);
        pairs.extend(own.map(|uri| format!("By={uri}")));
        let facts = &peer.facts;
        pairs.push(format!("Hash={}", facts.sha256));
        let details = &self.details;
        if details.cert {
            pairs.push(format!("Cert=\"{}\"", peer.url_encoded_pem()));
        }
        if details.chain {
            pairs.push(format!("Chain=\"{}\"", peer.url_encoded_chain()));
        }
        if details.subject.is_some_and(|v| v.value) {
            pairs.push(format!("Subject=\"{}\"", facts.subject));
        }
        if details.uri {
            pairs.extend(facts.uri_sans.iter().map(|uri| format!("URI={uri}")));
            if facts.uri_sans.is_empty() {
                pairs.push("URI=".to_owned());
            }
        }
        if details.dns {
            pairs.extend(facts.dns_sans.iter().map(|name| format!("DNS={name}")));
        }
        pairs.join(";")
    }
}

/// What is forwarded is one list, whoever wrote its parts.
fn on_one_line(headers: &mut HeaderMap) {
    if headers.get_all(names::XFCC).iter().count() > 1 {
        append_to_line(headers, &names::XFCC, b",", b"");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::google::protobuf::BoolValue;
    use filters::tls::CertificateFacts;

    use super::*;

    fn tls(shown: bool) -> TlsInfo {
        let client = CertificateFacts {
            subject: "CN=client".into(),
            uri_sans: vec!["spiffe://c/1".into(), "spiffe://c/2".into()],
            dns_sans: vec!["c.test".into()],
            sha256: "abcd".into(),
            ..CertificateFacts::default()
        };
        let own = CertificateFacts {
            uri_sans: vec!["spiffe://own".into()],
            ..CertificateFacts::default()
        };
        TlsInfo {
            server_name: Default::default(),
            local: Some(Arc::new(own)),
            peer: shown.then(|| PeerCertificate::new(client, vec![vec![1, 2]], true)),
            ..TlsInfo::default()
        }
    }

    fn after(forward: Forward, tls: Option<&TlsInfo>) -> Option<String> {
        let rules = ClientCertificates {
            forward,
            details: SetCurrentClientCertDetails {
                subject: Some(BoolValue { value: true }),
                uri: true,
                dns: true,
                ..SetCurrentClientCertDetails::default()
            },
        };
        let mut headers = HeaderMap::new();
        headers.insert(names::XFCC, HeaderValue::from_static("Hash=theirs"));
        rules.apply(&mut headers, tls);
        let value = headers.get(names::XFCC)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_mode_with_and_without_a_certificate() {
        let ours = "By=spiffe://own;Hash=abcd;Subject=\"CN=client\";URI=spiffe://c/1;URI=spiffe://c/2;DNS=c.test";
        let theirs = Some("Hash=theirs".to_owned());
        let (with, without) = (tls(true), tls(false));
        for (forward, shown, not_shown) in [
            (Forward::Sanitize, None, None),
            (Forward::ForwardOnly, theirs.clone(), None),
            (
                Forward::AppendForward,
                Some(format!("Hash=theirs,{ours}")),
                None,
            ),
            (Forward::SanitizeSet, Some(ours.to_owned()), None),
            (Forward::AlwaysForwardOnly, theirs.clone(), theirs.clone()),
        ] {
            assert_eq!(after(forward, Some(&with)), shown, "{forward:?}");
            assert_eq!(after(forward, Some(&without)), not_shown, "{forward:?}");
            assert_eq!(after(forward, None), not_shown, "{forward:?}");
        }
    }

    #[test]
    fn several_lines_are_forwarded_as_one() {
        let rules = ClientCertificates {
            forward: Forward::AlwaysForwardOnly,
            details: SetCurrentClientCertDetails::default(),
        };
        let mut headers = HeaderMap::new();
        rules.apply(&mut headers, None);
        assert!(headers.is_empty());
        for value in ["Hash=a", "Hash=b"] {
            headers.append(names::XFCC, HeaderValue::from_static(value));
        }
        rules.apply(&mut headers, None);
        assert_eq!(headers.get_all(names::XFCC).iter().count(), 1);
        assert_eq!(headers[names::XFCC], "Hash=a,Hash=b");
    }

    #[test]
    fn certificates_and_absent_names() {
        let rules = ClientCertificates {
            forward: Forward::SanitizeSet,
            details: SetCurrentClientCertDetails {
                cert: true,
                chain: true,
                uri: true,
                ..SetCurrentClientCertDetails::default()
            },
        };
        let facts = CertificateFacts {
            sha256: "ef".into(),
            ..CertificateFacts::default()
        };
        let peer = PeerCertificate::new(facts, vec![vec![1], vec![2]], true);
        let element = rules.element(&TlsInfo::default(), &peer);
        assert!(element.starts_with("Hash=ef;Cert=\"-----BEGIN%20"));
        assert!(element.contains(";Chain=\"-----BEGIN") && element.ends_with(";URI="));
    }
}
