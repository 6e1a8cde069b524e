//! What a certificate says, read with x509-parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use filters::tls::{CertificateFacts, PeerCertificate};
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use super::digest::{hex, sha1, sha256};

/// Reads a certificate; `None` if it is not one.
pub fn read(der: &[u8]) -> Option<CertificateFacts> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut facts = CertificateFacts {
        subject: rfc2253(certificate.subject()),
        issuer: rfc2253(certificate.issuer()),
        serial: serial_text(certificate.raw_serial()),
        sha256: hex(&sha256(der)),
        sha1: hex(sha1(der).as_ref()),
        not_before: time(certificate.validity().not_before),
        not_after: time(certificate.validity().not_after),
        ..CertificateFacts::default()
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::URI(uri) => facts.uri_sans.extend(clean(uri)),
            GeneralName::DNSName(name) => facts.dns_sans.extend(clean(name)),
            GeneralName::RFC822Name(address) => facts.email_sans.extend(clean(address)),
            GeneralName::IPAddress(bytes) => facts.ip_sans.extend(ip(bytes)),
            GeneralName::OtherName(oid, value) => {
                let text = other_name(value).map(|text| (oid.to_id_string(), text));
                facts.other_sans.extend(text);
            }
            _ => {}
        }
    }
    Some(facts)
}

/// A serial number in hexadecimal, two digits a byte without leading zero bytes; `0` for zero, as BoringSSL writes it.
fn serial_text(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    match bytes.get(zeros..) {
        Some(number) if !number.is_empty() => hex(number),
        _ => "0".to_owned(),
    }
}

/// The certificate that a peer has shown; `None` without one that can be read.
pub(super) fn peer(chain: &[CertificateDer<'_>], validated: bool) -> Option<Box<PeerCertificate>> {
    let facts = read(chain.first()?)?;
    let chain = chain.iter().map(|c| c.to_vec()).collect();
    Some(PeerCertificate::new(facts, chain, validated).with_reader(read))
}

/// The alternative names that can be matched, in the certificate's order.
pub(super) fn sans(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|n| &n.value.general_names);
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => {
            clean(name)
        }
        GeneralName::IPAddress(bytes) => ip(bytes),
        GeneralName::OtherName(_, value) => other_name(value),
        _ => None,
    };
    names.filter_map(text).collect()
}

/// Whether one of the names could be read in two ways: it has a control character (a NUL cuts it short for some), or is
/// no UTF-8.
pub(super) fn has_bad_name(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return true;
    };
    let bad = |name: &GeneralName<'_>| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => {
            clean(name).is_none()
        }
        GeneralName::Invalid(..) => true,
        _ => false,
    };
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().any(bad),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Whether `der` is a certificate and nothing else.
pub(super) fn is_certificate(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

/// Whether the certificate asks clients to insist on a staple (RFC 7633): status_request among its TLS features.
pub(super) fn must_staple(der: &[u8]) -> bool {
    const STATUS_REQUEST: &[u8] = &[2, 1, 5];
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        let extensions = certificate.extensions().iter();
        let mut features = extensions.filter(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.24");
        features.any(|e| e.value.windows(3).any(|part| part == STATUS_REQUEST))
    })
}

/// The certificate's serial number, big-endian.
pub(super) fn serial(der: &[u8]) -> Vec<u8> {
    let read = X509Certificate::from_der(der);
    read.map_or_else(|_| Vec::new(), |(_, c)| c.raw_serial().to_vec())
}

/// The most specific common name of the subject, for certificates without alternative names.
pub(super) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().last()?;
    clean(name.as_str().ok()?)
}

/// The key of a certificate as `SubjectPublicKeyInfo` in DER.
pub(super) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

/// A name that a NUL or a control character could cut short for somebody else is no name.
fn clean(name: &str) -> Option<String> {
    (!name.chars().any(char::is_control)).then(|| name.to_owned())
}

/// The text of an `otherName`'s value: of strings and numbers, as their kinds are written.
fn other_name(explicit: &[u8]) -> Option<String> {
    let (_, outer) = Any::from_der(explicit).ok()?;
    let (_, value) = Any::from_der(outer.data).ok()?;
    match value.tag() {
        Tag::Boolean => Some(value.bool().ok()?.to_string()),
        Tag::Integer | Tag::Enumerated => Some(value.as_i64().ok()?.to_string()),
        Tag::Oid => Some(value.as_oid().ok()?.to_id_string()),
        Tag::BmpString => clean(&value.as_bmpstring().ok()?.string()),
        Tag::UniversalString => clean(&value.as_universalstring().ok()?.string()),
        Tag::Null => Some(String::new()),
        Tag::BitString => clean(std::str::from_utf8(value.data.get(1..)?).ok()?),
        _ => clean(std::str::from_utf8(value.data).ok()?),
    }
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(v4)).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(v6)).to_string())
}

fn time(time: ASN1Time) -> Option<SystemTime> {
    let seconds = u64::try_from(time.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// RFC 2253: the last relative name first, commas between, special characters escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for relative in name.iter_rdn() {
        let attributes: Vec<String> = relative
            .iter()
            .map(|attribute| {
                let oid = attribute.attr_type().to_id_string();
                let label = label(&oid).unwrap_or(&oid);
                let value = attribute
                    .as_str()
                    .map_or_else(|_| format!("#{}", hex(attribute.attr_value().data)), escape);
                format!("{label}={value}")
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn label(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (i == 0 && matches!(c, '#' | ' '))
            || (i == last && c == ' ');
        if special {
            out.push('\\');
        }
        if c.is_control() {
            out.push_str(&format!("\\{:02X}", c as u32));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    #[test]
    fn reads_names_serial_and_validity() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()));
        params
            .subject_alt_names
            .push(SanType::Rfc822Name("me@a.example".try_into().unwrap()));
        params
            .subject_alt_names
            .push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
        params.serial_number = Some(SerialNumber::from_slice(&[0xab, 0xcd]));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "A, B");
        params.distinguished_name.push(DnType::CommonName, "c+d");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let facts = read(certificate.der()).unwrap();
        assert_eq!(facts.subject, r"CN=c\+d,O=A\, B");
        assert_eq!(facts.issuer, facts.subject);
        assert_eq!(facts.serial, "abcd");
        assert_eq!(facts.dns_sans, ["a.example"]);
        assert_eq!(facts.uri_sans, ["spiffe://td/ns/a/sa/b"]);
        assert_eq!(facts.email_sans, ["me@a.example"]);
        assert_eq!(facts.ip_sans, ["10.0.0.1"]);
        assert_eq!(facts.sha256.len(), 64);
        assert!(facts.not_before < facts.not_after);
        assert_eq!(common_name(certificate.der()).as_deref(), Some("c+d"));
        assert_eq!(read(b"not a certificate"), None);
    }

    #[test]
    fn a_serial_loses_only_leading_zero_bytes() {
        // 0x0a and 0x20 are white space to ASCII and digits to a serial number.
        assert_eq!(serial_text(&[0x0a, 0xdb]), "0adb");
        assert_eq!(serial_text(&[0x20, 0x20]), "2020");
        assert_eq!(serial_text(&[0, 0xab, 0]), "ab00");
        assert_eq!(serial_text(&[0, 0]), "0");
        assert_eq!(serial_text(&[]), "0");
    }

    #[test]
    fn names_with_control_characters_are_none() {
        assert_eq!(clean("good.example\0.evil.example"), None);
        assert_eq!(ip(&[1, 2, 3]), None);
    }
}
