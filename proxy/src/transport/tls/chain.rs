//! What is wrong with a chain, in BoringSSL's words and with its depth: webpki only says that no path was found.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, OtherError};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// The most certificates that are looked at for a message.
const LOOKED_AT: usize = 32;

/// How many authorities may stand above a peer's certificate, the anchor among them: webpki follows no longer path.
const LONGEST: usize = 7;

/// The error that chooses the alert, and the words for the log.
pub(super) fn describe(
    error: webpki::Error,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    max_depth: usize,
    now: UnixTime,
) -> (Error, String) {
    use webpki::Error as E;
    let path = path(leaf, intermediates);
    let mut depth = 0;
    let (error, what) = match error {
        // A certificate of an authority that stands for itself and is not trusted.
        E::UnknownIssuer | E::CaUsedAsEndEntity => {
            depth = path.len().saturating_sub(1).min(max_depth.max(1));
            let what = match path.last() {
                Some(last) if last.is_self_issued() && path.len() == 1 => "self signed certificate",
                Some(last) if last.is_self_issued() => {
                    "self signed certificate in certificate chain"
                }
                _ => "unable to get local issuer certificate",
            };
            (CertificateError::UnknownIssuer.into(), what)
        }
        // The path ends where it may not go on; that its end is no anchor is what is found wrong with it.
        E::MaximumPathDepthExceeded => {
            depth = max_depth.clamp(1, LONGEST);
            let what = match max_depth <= LONGEST {
                true => "unable to get local issuer certificate",
                false => "certificate chain too long",
            };
            (CertificateError::UnknownIssuer.into(), what)
        }
        E::CertNotValidYet { time, not_before } => {
            depth = depth_of(&path, |c| {
                seconds(now) < c.validity().not_before.timestamp()
            });
            let error = CertificateError::NotValidYetContext { time, not_before };
            (error.into(), "certificate is not yet valid")
        }
        E::CertExpired { time, not_after } => {
            depth = depth_of(&path, |c| seconds(now) > c.validity().not_after.timestamp());
            let error = CertificateError::ExpiredContext { time, not_after };
            (error.into(), "certificate has expired")
        }
        E::CertRevoked => (
            CertificateError::Revoked.into(),
            "certificate revocation check against provided CRLs failed: certificate revoked",
        ),
        E::UnknownRevocationStatus => (
            CertificateError::UnknownRevocationStatus.into(),
            "certificate revocation check against provided CRLs failed: unable to get certificate CRL",
        ),
        E::CrlExpired { time, next_update } => (
            CertificateError::ExpiredRevocationListContext { time, next_update }.into(),
            "certificate revocation check against provided CRLs failed: CRL has expired",
        ),
        E::InvalidSignatureForPublicKey => (
            CertificateError::BadSignature.into(),
            "certificate signature failure",
        ),
        E::RequiredEkuNotFoundContext(_) => (
            CertificateError::InvalidPurpose.into(),
            "unsupported certificate purpose",
        ),
        E::EndEntityUsedAsCa => (
            CertificateError::UnknownIssuer.into(),
            "invalid CA certificate",
        ),
        E::PathLenConstraintViolated => (
            CertificateError::UnknownIssuer.into(),
            "path length constraint exceeded",
        ),
        E::NameConstraintViolation => (other(error), "permitted subtree violation"),
        E::BadDer | E::BadDerTime | E::TrailingData(_) => (
            CertificateError::BadEncoding.into(),
            "error in the encoding of the certificate",
        ),
        _ => (other(error), "unspecified certificate verification error"),
    };
    let words =
        format!("X509_verify_cert: certificate verification error at depth {depth}: {what}");
    (error, words)
}

fn other(error: webpki::Error) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

struct Link<'a>(X509Certificate<'a>);

impl Link<'_> {
    fn is_self_issued(&self) -> bool {
        self.0.subject().as_raw() == self.0.issuer().as_raw()
    }
}

/// The leaf, its issuer among what was shown, that one's issuer, and so on.
fn path<'a>(
    leaf: &'a CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Vec<Link<'a>> {
    let read = |der: &'a CertificateDer<'_>| X509Certificate::from_der(der).ok();
    let mut shown: Vec<X509Certificate<'_>> = intermediates
        .iter()
        .take(LOOKED_AT)
        .filter_map(|der| Some(read(der)?.1))
        .collect();
    let Some((_, first)) = read(leaf) else {
        return Vec::new();
    };
    let mut path = vec![Link(first)];
    while let Some(last) = path.last().filter(|last| !last.is_self_issued()) {
        let issuer = last.0.issuer().as_raw().to_vec();
        let Some(at) = shown.iter().position(|c| c.subject().as_raw() == issuer) else {
            break;
        };
        path.push(Link(shown.swap_remove(at)));
    }
    path
}

fn depth_of(path: &[Link<'_>], wrong: impl Fn(&X509Certificate<'_>) -> bool) -> usize {
    path.iter().position(|link| wrong(&link.0)).unwrap_or(0)
}

/// Whether `der` is valid at `now`, and what is wrong otherwise.
pub(super) fn check_time(der: &CertificateDer<'_>, now: UnixTime) -> Result<(), webpki::Error> {
    let facts = super::facts::read(der).ok_or(webpki::Error::BadDer)?;
    let time = UNIX_EPOCH + Duration::from_secs(now.as_secs());
    if facts.not_before.is_none_or(|begin| time < begin) {
        let not_before = now;
        return Err(webpki::Error::CertNotValidYet {
            time: now,
            not_before,
        });
    }
    if facts.not_after.is_none_or(|end| time > end) {
        return Err(webpki::Error::CertExpired {
            time: now,
            not_after: now,
        });
    }
    Ok(())
}
