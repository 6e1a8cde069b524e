//! Certificates for tests, made by rcgen.

use std::io;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, TlsCertificate,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::accept::client_hello;
use crate::transport::buffer::Buffer;

/// Reads a ClientHello: the name that it asks for, and its bytes.
pub(crate) async fn requested_name<IO>(io: &mut IO) -> io::Result<(String, Bytes)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut bytes = Buffer::default();
    let accepted = client_hello(&mut bytes, io).await?;
    let name = accepted
        .client_hello()
        .server_name()
        .unwrap_or("-")
        .to_owned();
    Ok((name, Bytes::copy_from_slice(bytes.filled())))
}

/// An inline data source.
pub(crate) fn data(text: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..Default::default()
    }
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// A validation context that trusts this authority.
    pub(crate) fn trusted(&self) -> CertificateValidationContext {
        CertificateValidationContext {
            trusted_ca: Some(data(&self.issuer.pem())),
            ..Default::default()
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's own certificate, as a server may show it that signed for itself.
    pub(crate) fn own(&self) -> TlsCertificate {
        TlsCertificate {
            certificate_chain: Some(data(&self.issuer.pem())),
            private_key: Some(data(&self.issuer.key().serialize_pem())),
            ..Default::default()
        }
    }

    /// A list of revoked serial numbers.
    pub(crate) fn crl(&self, serials: &[u64]) -> DataSource {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        data(&params.signed_by(&self.issuer).unwrap().pem().unwrap())
    }

    pub(crate) fn issue(&self, names: &[&str]) -> TlsCertificate {
        self.issue_with(names, |_| {})
    }

    pub(crate) fn issue_rsa(&self, names: &[&str]) -> TlsCertificate {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
        self.sign(names, key.unwrap(), |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsCertificate {
        self.sign(names, KeyPair::generate().unwrap(), change)
    }

    fn sign(
        &self,
        names: &[&str],
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsCertificate {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        for name in names {
            params.subject_alt_names.push(match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsCertificate {
            certificate_chain: Some(data(&certificate.pem())),
            private_key: Some(data(&key.serialize_pem())),
            ..Default::default()
        }
    }
}
