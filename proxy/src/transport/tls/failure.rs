//! Failed handshakes in Envoy's words: BoringSSL's error numbers and reasons for what rustls reports.
//!
//! Operators search for these texts, and dashboards match them: `TLS_error:|268435581:SSL routines:OPENSSL_internal:
//! CERTIFICATE_VERIFY_FAILED:verify cert failed: ...:TLS_error_end`.

use std::io;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

use super::refusal::Refusal;

/// Where BoringSSL's errors of its TLS part begin, and those of the operating system.
const SSL: u32 = 16 << 24;
const SYSTEM: u32 = 2 << 24;
/// Reasons for received alerts begin here.
const ALERTS: u32 = 1000;

/// What a failure counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The peer has left, or the socket broke: no error of TLS.
    Gone,
    /// The verifier refused the peer's certificate, and has counted that.
    Refused,
    /// The peer showed none and had to.
    NoCertificate,
    /// There is no certificate that may be shown.
    Rejected,
    /// Anything else.
    Protocol,
}

/// A handshake that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// Empty if the peer just left.
    pub(super) text: String,
}

impl Failure {
    /// What `error` is in Envoy's words; `version` is what was agreed on, if it was, and `refusal` what the verifier said.
    pub(super) fn new(error: &io::Error, version: &str, refusal: Option<&Refusal>) -> Self {
        if let Some(code) = error.raw_os_error().and_then(|c| u32::try_from(c).ok()) {
            let mut what = error.to_string();
            if let Some(at) = what.find(" (os error") {
                what.truncate(at);
            }
            return Self {
                kind: Kind::Gone,
                text: framed(&format!(
                    "{}:system library:OPENSSL_internal:{what}",
                    SYSTEM + code
                )),
            };
        }
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        let Some(inner) = inner else {
            return Self {
                kind: Kind::Gone,
                text: String::new(),
            };
        };
        // Before TLS 1.3 a group is part of a suite.
        let (number, reason) = match reason(inner) {
            (266, _) if version == "TLSv1.2" => (184, "NO_SHARED_CIPHER"),
            other => other,
        };
        if let (Error::General(_), Some(_)) = (inner, refusal) {
            return Self {
                kind: Kind::Rejected,
                text: ssl(133, "CONNECTION_REJECTED"),
            };
        }
        let kind = match (inner, refusal) {
            (Error::InvalidCertificate(_), Some(_)) => Kind::Refused,
            (Error::NoCertificatesPresented, _) => Kind::NoCertificate,
            _ => Kind::Protocol,
        };
        let detail = match (kind, refusal) {
            (Kind::Refused, Some(refusal)) => format!(":{}", refusal.why),
            (Kind::NoCertificate, _) => {
                ":peer did not provide required client certificate".to_owned()
            }
            _ => String::new(),
        };
        Self {
            kind,
            text: ssl(number, &format!("{reason}{detail}")),
        }
    }
}

/// What TLS found wrong with a connection after its handshake; empty if the peer just left.
pub fn text(error: &io::Error) -> String {
    Failure::new(error, "", None).text
}

fn ssl(number: u32, reason: &str) -> String {
    let number = SSL + number;
    framed(&format!("{number}:SSL routines:OPENSSL_internal:{reason}"))
}

fn framed(text: &str) -> String {
    format!("TLS_error:|{text}:TLS_error_end")
}

/// What is wrong with a client's first bytes, at least the header of a record, that rustls would tell less well:
/// other protocols, an alert, an older ClientHello. And whether to answer with an alert.
pub(super) fn first_bytes(bytes: &[u8]) -> Option<(Failure, bool)> {
    let http = [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "];
    let (number, reason) = match bytes {
        [21, 3, _, 0, 2, 2, alert, ..] => alert_reason(AlertDescription::from(*alert)),
        // The version of a ClientHello stands behind the header of its record and its own.
        [22, 3, _, _, _, 1, _, _, _, 3, 0..=2, ..] => (240, "UNSUPPORTED_PROTOCOL"),
        [20..=23, 3, ..] => return None,
        _ if bytes.starts_with(b"CONNE") => (155, "HTTPS_PROXY_REQUEST"),
        _ if http.iter().any(|method| bytes.starts_with(method)) => (156, "HTTP_REQUEST"),
        _ => (247, "WRONG_VERSION_NUMBER"),
    };
    let failure = Failure {
        kind: Kind::Protocol,
        text: ssl(number, reason),
    };
    Some((failure, matches!(number, 240 | 247)))
}

/// BoringSSL's number and reason.
fn reason(error: &Error) -> (u32, &'static str) {
    match error {
        Error::AlertReceived(alert) => alert_reason(*alert),
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => {
            (125, "CERTIFICATE_VERIFY_FAILED")
        }
        Error::NoCertificatesPresented => (192, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        Error::DecryptError => (139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        Error::PeerSentOversizedRecord => (146, "ENCRYPTED_LENGTH_TOO_LONG"),
        Error::NoApplicationProtocol => (307, "NO_APPLICATION_PROTOCOL"),
        Error::InappropriateMessage { .. } => (225, "UNEXPECTED_RECORD"),
        Error::InappropriateHandshakeMessage { .. } => (223, "UNEXPECTED_MESSAGE"),
        Error::InvalidMessage(invalid) => message_reason(invalid),
        Error::PeerIncompatible(what) => incompatible_reason(what),
        Error::PeerMisbehaved(what) => misbehaved_reason(what),
        // The resolver had no certificate for this client.
        Error::General(text) if text.contains("no server certificate chain") => {
            (184, "NO_SHARED_CIPHER")
        }
        _ => (215, "SSL_HANDSHAKE_FAILURE"),
    }
}

fn message_reason(invalid: &InvalidMessage) -> (u32, &'static str) {
    use InvalidMessage as M;
    match invalid {
        M::HandshakePayloadTooLarge | M::CertificatePayloadTooLarge => {
            (150, "EXCESSIVE_MESSAGE_SIZE")
        }
        M::MessageTooLarge => (146, "ENCRYPTED_LENGTH_TOO_LONG"),
        M::UnknownProtocolVersion => (247, "WRONG_VERSION_NUMBER"),
        M::InvalidContentType | M::UnexpectedMessage(_) => (225, "UNEXPECTED_RECORD"),
        M::InvalidCcs => (103, "BAD_CHANGE_CIPHER_SPEC"),
        M::InvalidServerName => (190, "PARSE_TLSEXT"),
        M::DuplicateExtension(_) => (257, "DUPLICATE_EXTENSION"),
        M::PreSharedKeyIsNotFinalExtension => (267, "PRE_SHARED_KEY_MUST_BE_LAST"),
        _ => (137, "DECODE_ERROR"),
    }
}

fn incompatible_reason(what: &PeerIncompatible) -> (u32, &'static str) {
    use PeerIncompatible as P;
    match what {
        P::NoCipherSuitesInCommon => (184, "NO_SHARED_CIPHER"),
        P::NoKxGroupsInCommon => (266, "NO_SHARED_GROUP"),
        P::NoSignatureSchemesInCommon | P::NoCertificateRequestSignatureSchemesInCommon => {
            (253, "NO_COMMON_SIGNATURE_ALGORITHMS")
        }
        P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled => (240, "UNSUPPORTED_PROTOCOL"),
        P::KeyShareExtensionRequired => (258, "MISSING_KEY_SHARE"),
        P::NullCompressionRequired => (178, "NO_COMPRESSION_SPECIFIED"),
        _ => (164, "MISSING_EXTENSION"),
    }
}

fn misbehaved_reason(what: &PeerMisbehaved) -> (u32, &'static str) {
    use PeerMisbehaved as P;
    match what {
        P::SelectedUnofferedCipherSuite | P::SelectedUnusableCipherSuiteForVersion => {
            (242, "WRONG_CIPHER_RETURNED")
        }
        P::SelectedUnofferedKxGroup | P::WrongGroupForKeyShare => (243, "WRONG_CURVE"),
        P::SelectedUnofferedApplicationProtocol => (259, "INVALID_ALPN_PROTOCOL"),
        P::DuplicateClientHelloExtensions
        | P::DuplicateServerHelloExtensions
        | P::DuplicateEncryptedExtensions => (257, "DUPLICATE_EXTENSION"),
        P::OfferedDuplicateKeyShares => (264, "DUPLICATE_KEY_SHARE"),
        P::PskExtensionMustBeLast => (267, "PRE_SHARED_KEY_MUST_BE_LAST"),
        P::TooManyEmptyFragments => (219, "TOO_MANY_EMPTY_FRAGMENTS"),
        P::TooManyWarningAlertsReceived => (220, "TOO_MANY_WARNING_ALERTS"),
        P::TooManyKeyUpdateRequests => (260, "TOO_MANY_KEY_UPDATES"),
        P::AttemptedDowngradeToTls12WhenTls13IsSupported => (297, "TLS13_DOWNGRADE"),
        P::SignedHandshakeWithUnadvertisedSigScheme | P::SignedKxWithWrongAlgorithm => {
            (245, "WRONG_SIGNATURE_TYPE")
        }
        P::UnsolicitedServerHelloExtension
        | P::UnsolicitedEncryptedExtension
        | P::UnsolicitedCertExtension => (222, "UNEXPECTED_EXTENSION"),
        P::TooMuchEarlyDataReceived => (270, "TOO_MUCH_SKIPPED_EARLY_DATA"),
        _ => (137, "DECODE_ERROR"),
    }
}

/// An alert that the peer sent.
fn alert_reason(alert: AlertDescription) -> (u32, &'static str) {
    use AlertDescription as A;
    let name = match alert {
        A::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        A::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        A::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        A::DecryptionFailed => "TLSV1_ALERT_DECRYPTION_FAILED",
        A::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        A::DecompressionFailure => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
        A::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        A::NoCertificate => "SSLV3_ALERT_NO_CERTIFICATE",
        A::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        A::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        A::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        A::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        A::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        A::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        A::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        A::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        A::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        A::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        A::ExportRestriction => "TLSV1_ALERT_EXPORT_RESTRICTION",
        A::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        A::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        A::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        A::InappropriateFallback => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        A::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        A::NoRenegotiation => "TLSV1_ALERT_NO_RENEGOTIATION",
        A::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        A::CertificateUnobtainable => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
        A::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        A::BadCertificateStatusResponse => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        A::BadCertificateHashValue => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
        A::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        A::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        A::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        A::EncryptedClientHelloRequired => "TLSV1_ALERT_ECH_REQUIRED",
        _ => return (227, "UNKNOWN_ALERT_TYPE"),
    };
    (ALERTS + u32::from(u8::from(alert)), name)
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use super::*;

    fn told(error: Error, refusal: Option<&Refusal>) -> Failure {
        Failure::new(
            &io::Error::new(io::ErrorKind::InvalidData, error),
            "",
            refusal,
        )
    }

    #[test]
    fn failures_are_told_as_envoy_does() {
        let refusal = Refusal {
            why: "verify cert failed: cert hash and spki".to_owned(),
            peer: None,
        };
        let refused = CertificateError::ApplicationVerificationFailure;
        let failure = told(refused.into(), Some(&refusal));
        assert_eq!(failure.kind, Kind::Refused);
        assert_eq!(
            failure.text,
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:\
             verify cert failed: cert hash and spki:TLS_error_end"
        );
        let failure = told(Error::AlertReceived(AlertDescription::UnknownCA), None);
        assert_eq!(failure.kind, Kind::Protocol);
        assert_eq!(
            failure.text,
            "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
        );
        let failure = told(Error::NoCertificatesPresented, None);
        assert_eq!(failure.kind, Kind::NoCertificate);
        assert!(
            failure
                .text
                .contains("268435648:SSL routines:OPENSSL_internal:PEER_DID")
        );
    }

    #[test]
    fn a_peer_that_leaves_is_no_error_of_tls() {
        let failure = Failure::new(&io::ErrorKind::UnexpectedEof.into(), "", None);
        assert_eq!((failure.kind, failure.text.as_str()), (Kind::Gone, ""));
        let reset = io::Error::from_raw_os_error(104);
        assert_eq!(
            Failure::new(&reset, "", None).text,
            "TLS_error:|33554536:system library:OPENSSL_internal:Connection reset by peer:TLS_error_end"
        );
    }

    #[test]
    fn first_bytes_are_told_apart() {
        let seen = |bytes: &[u8]| {
            let (failure, alert) = first_bytes(bytes)?;
            let reason = failure.text.split(':').nth(4)?.to_owned();
            Some((reason, alert))
        };
        assert_eq!(seen(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\x03"), None);
        assert_eq!(seen(b"\x17\x03\x03\x00\x05"), None);
        for (bytes, reason, alert) in [
            (&b"GET /"[..], "HTTP_REQUEST", false),
            (b"CONNECT", "HTTPS_PROXY_REQUEST", false),
            (b"PRI *", "WRONG_VERSION_NUMBER", true),
            (b"\x16\x02\x00\x00\x05", "WRONG_VERSION_NUMBER", true),
            (
                b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\x02",
                "UNSUPPORTED_PROTOCOL",
                true,
            ),
            (
                b"\x15\x03\x01\x00\x02\x02\x28",
                "SSLV3_ALERT_HANDSHAKE_FAILURE",
                false,
            ),
        ] {
            assert_eq!(seen(bytes), Some((reason.to_owned(), alert)), "{bytes:?}");
        }
    }
}
