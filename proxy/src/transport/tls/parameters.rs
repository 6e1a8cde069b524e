//! `TlsParameters`: versions, cipher suites and key exchange, in Envoy's names.

use std::sync::{Arc, LazyLock};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::{
    CompliancePolicy, TlsProtocol,
};
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group as kx};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};
use xds_client::error::{At, ConfigError};

use super::PROVIDER;

/// What a handshake may use.
#[derive(Debug, Clone)]
pub(super) struct Parameters {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    /// Suites of TLS 1.2 between which the client chooses, where a server chooses otherwise.
    equal: Vec<Vec<SupportedCipherSuite>>,
}

/// Suites of TLS 1.3, which Envoy has no setting for: the client chooses.
const MODERN: [SupportedCipherSuite; 3] = [
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Envoy's default for TLS 1.2.
const DEFAULT_SUITES: [&str; 4] = [
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// The suites of an order, and which of them are equals.
#[derive(Debug, Clone, Default)]
struct Suites {
    order: Vec<SupportedCipherSuite>,
    equal: Vec<Vec<SupportedCipherSuite>>,
}

/// Nearly every context has these: they share one provider.
static DEFAULTS: LazyLock<(Arc<CryptoProvider>, Suites)> = LazyLock::new(|| {
    let names: Vec<String> = DEFAULT_SUITES.iter().map(ToString::to_string).collect();
    let suites = suites(&names).unwrap_or_default();
    let mut provider = (**PROVIDER).clone();
    provider.cipher_suites.clone_from(&suites.order);
    provider.kx_groups = vec![kx::X25519MLKEM768, kx::X25519, kx::SECP256R1];
    (Arc::new(provider), suites)
});

/// Cipher suites of TLS 1.2 by their OpenSSL names.
const SUITES: [(&str, SupportedCipherSuite); 6] = [
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// What Envoy knows and rustls leaves out for good: no forward secrecy, or CBC. istiod puts some of them at the
/// end of its default list, so they are passed over as long as the list has others.
const OBSOLETE: [&str; 8] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
];

/// The OpenSSL name of a suite of TLS 1.2.
pub(super) fn name_of(suite: SupportedCipherSuite) -> &'static str {
    let found = SUITES.iter().find(|(_, s)| *s == suite);
    found.map_or("", |(name, _)| name)
}

/// BoringSSL's name of a group.
pub(super) fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => "",
    }
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    Some(match name {
        "X25519" => kx::X25519,
        "P-256" => kx::SECP256R1,
        "P-384" => kx::SECP384R1,
        "X25519MLKEM768" => kx::X25519MLKEM768,
        _ => return None,
    })
}

impl Parameters {
    /// Compiles `tls_params`; an unset one is Envoy's defaults: TLS 1.2 and 1.3 for servers and clients.
    pub(super) fn compile(proto: Option<&TlsParameters>) -> Result<Self, ConfigError> {
        let default = TlsParameters::default();
        let proto = proto.unwrap_or(&default);
        if !proto.signature_algorithms.is_empty() {
            return Err(ConfigError::unsupported("signature_algorithms"));
        }
        let mut fips = false;
        for policy in &proto.compliance_policies {
            match CompliancePolicy::try_from(*policy) {
                Ok(CompliancePolicy::Fips202205) => fips = true,
                Ok(other) => {
                    let reason = format!("{} is not supported", other.as_str_name());
                    return Err(ConfigError::new(reason).at("compliance_policies"));
                }
                Err(_) => {
                    let reason = format!("unknown value {policy}");
                    return Err(ConfigError::new(reason).at("compliance_policies"));
                }
            }
        }
        let versions = versions(proto)?;
        let (provider, defaults) = &*DEFAULTS;
        if proto.cipher_suites.is_empty() && proto.ecdh_curves.is_empty() && !fips {
            return Ok(Self {
                provider: provider.clone(),
                versions,
                equal: defaults.equal.clone(),
            });
        }
        let mut provider = (**provider).clone();
        let Suites { order, equal } = match proto.cipher_suites.is_empty() {
            true => defaults.clone(),
            false => suites(&proto.cipher_suites)?,
        };
        provider.cipher_suites = order;
        if !proto.ecdh_curves.is_empty() {
            provider.kx_groups = groups(&proto.ecdh_curves)?;
        }
        if fips {
            // NIST SP 800-52r2 as BoringSSL's policy has it.
            provider
                .cipher_suites
                .retain(|s| !format!("{:?}", s.suite()).contains("CHACHA20"));
            let approved = [kx::SECP256R1.name(), kx::SECP384R1.name()];
            if proto.ecdh_curves.is_empty() {
                provider.kx_groups = vec![kx::SECP256R1, kx::SECP384R1];
            }
            provider.kx_groups.retain(|g| approved.contains(&g.name()));
        }
        if provider.kx_groups.is_empty() {
            return Err(ConfigError::new("no group is left").at("ecdh_curves"));
        }
        Ok(Self {
            provider: Arc::new(provider),
            versions,
            equal,
        })
    }

    /// How many answers [`Self::order_for`] has.
    pub(super) const ORDERS: usize = MODERN.len() * 2;

    /// Which order of suites suits a client: those of TLS 1.3 as it prefers them, and among equals of TLS 1.2 the one
    /// that it names first.
    pub(super) fn order_for(&self, offered: &[CipherSuite]) -> usize {
        let rank = |s: &SupportedCipherSuite| offered.iter().position(|o| *o == s.suite());
        let ranked = MODERN.iter().enumerate();
        let modern = ranked.filter_map(|(at, s)| Some((rank(s)?, at))).min();
        let turned = self.equal.iter().any(|equal| {
            let ranks: Vec<_> = equal.iter().filter_map(rank).collect();
            ranks.len() > 1 && !ranks.is_sorted()
        });
        modern.map_or(0, |(_, at)| at) * 2 + usize::from(turned)
    }

    /// The provider with its suites in an order that [`Self::order_for`] has found.
    pub(super) fn ordered(&self, order: usize) -> Arc<CryptoProvider> {
        let (modern, turned) = (order / 2, order % 2 == 1);
        if modern == 0 && !turned {
            return self.provider.clone();
        }
        let mut provider = (*self.provider).clone();
        if turned {
            for equal in &self.equal {
                let suites = provider.cipher_suites.iter_mut();
                let places = suites.filter(|s| equal.contains(s));
                for (place, suite) in places.zip(equal.iter().rev()) {
                    *place = *suite;
                }
            }
        }
        if let Some(first) = MODERN.get(modern) {
            provider.cipher_suites.sort_by_key(|s| s != first);
        }
        Arc::new(provider)
    }
}

fn versions(proto: &TlsParameters) -> Result<Vec<&'static SupportedProtocolVersion>, ConfigError> {
    let oldest = match proto.tls_minimum_protocol_version() {
        TlsProtocol::TlSv13 => 3,
        // Older ones cannot be spoken; a range that reaches below 1.2 begins there.
        _ => 2,
    };
    let newest = match proto.tls_maximum_protocol_version() {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => 3,
        TlsProtocol::TlSv12 => 2,
        old => {
            return Err(
                ConfigError::new(format!("{} is not supported", old.as_str_name()))
                    .at("tls_maximum_protocol_version"),
            );
        }
    };
    if oldest > newest {
        return Err(
            ConfigError::new("is newer than tls_maximum_protocol_version")
                .at("tls_minimum_protocol_version"),
        );
    }
    let mut versions = Vec::with_capacity(2);
    if newest >= 3 {
        versions.push(&TLS13);
    }
    if oldest <= 2 {
        versions.push(&TLS12);
    }
    Ok(versions)
}

/// The suites of TLS 1.2 that `names` allow, in their order, and those of TLS 1.3, which Envoy has no setting for.
fn suites(names: &[String]) -> Result<Suites, ConfigError> {
    let mut chosen = MODERN.to_vec();
    let fixed = chosen.len();
    let mut equals = Vec::new();
    let mut passed_over = Vec::new();
    for (i, entry) in names.iter().enumerate() {
        // BoringSSL's groups of equal preference: `[a|b]`.
        let group = match entry.strip_prefix('[') {
            None => entry.as_str(),
            Some(open) => open.strip_suffix(']').ok_or_else(|| {
                ConfigError::new("'[' is not closed").at(format!("cipher_suites[{i}]"))
            })?,
        };
        let begin = chosen.len();
        for name in group.split('|') {
            match SUITES.iter().find(|(n, _)| *n == name) {
                Some((_, s)) if chosen.contains(s) => {}
                Some((_, s)) => chosen.push(*s),
                None if OBSOLETE.contains(&name) => passed_over.push(name),
                None => {
                    return Err(ConfigError::new(format!("'{name}' is not supported"))
                        .at(format!("cipher_suites[{i}]")));
                }
            }
        }
        equals.push(chosen.get(begin..).unwrap_or_default().to_vec());
    }
    if chosen.len() == fixed {
        return Err(ConfigError::new(format!(
            "none of these is supported: {}",
            passed_over.join(", ")
        ))
        .at("cipher_suites"));
    }
    if !passed_over.is_empty() {
        tracing::debug!(
            "obsolete cipher suites left out: {}",
            passed_over.join(", ")
        );
    }
    equals.retain(|equal| equal.len() > 1);
    Ok(Suites {
        order: chosen,
        equal: equals,
    })
}

fn groups(names: &[String]) -> Result<Vec<&'static dyn SupportedKxGroup>, ConfigError> {
    let found = |(i, name): (usize, &String)| {
        group(name)
            .ok_or_else(|| ConfigError::new(format!("'{name}' is not supported")))
            .at(format!("ecdh_curves[{i}]"))
    };
    names.iter().enumerate().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(proto: &TlsParameters) -> Result<Parameters, ConfigError> {
        Parameters::compile(Some(proto))
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_both_versions_and_post_quantum_first() {
        let p = Parameters::compile(None).unwrap();
        assert_eq!(p.versions, [&TLS13, &TLS12]);
        assert_eq!(p.provider.kx_groups[0].name(), kx::X25519MLKEM768.name());
        assert_eq!(p.provider.cipher_suites.len(), 9);
    }

    #[test]
    fn the_client_chooses_among_equals() {
        let p = Parameters::compile(None).unwrap();
        let offer = |suites: &[SupportedCipherSuite]| {
            let offered: Vec<CipherSuite> = suites.iter().map(|s| s.suite()).collect();
            let order = p.order_for(&offered);
            assert!(order < Parameters::ORDERS);
            let suites = p.ordered(order).cipher_suites.clone();
            assert_eq!(suites.len(), 9);
            suites
        };
        let (aes, chacha) = (
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        );
        let aes256 = suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
        assert_eq!(offer(&[aes256, aes, chacha])[3..5], [aes, chacha]);
        assert_eq!(offer(&[aes256, chacha, aes])[3..5], [chacha, aes]);
        let modern = suite::TLS13_AES_128_GCM_SHA256;
        assert_eq!(offer(&[modern, MODERN[0]])[0], modern);
        assert_eq!(offer(&[])[0], MODERN[0]);
        for order in 0..Parameters::ORDERS {
            let mut suites = p.ordered(order).cipher_suites.clone();
            suites.sort_by_key(|s| u16::from(s.suite()));
            suites.dedup();
            assert_eq!(suites.len(), 9);
        }
    }

    #[test]
    fn istiods_default_list_keeps_what_can_be_had() {
        let p = compile(&TlsParameters {
            cipher_suites: names(&[
                "ECDHE-ECDSA-AES256-GCM-SHA384",
                "ECDHE-RSA-AES256-GCM-SHA384",
                "ECDHE-ECDSA-AES128-GCM-SHA256",
                "ECDHE-RSA-AES128-GCM-SHA256",
                "AES256-GCM-SHA384",
                "AES128-GCM-SHA256",
            ]),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(p.provider.cipher_suites.len(), 3 + 4);
        assert_eq!(
            p.provider.cipher_suites[3],
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        );
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let path = |p: TlsParameters| compile(&p).unwrap_err().to_string();
        let error = path(TlsParameters {
            cipher_suites: names(&["[ECDHE-RSA-AES128-GCM-SHA256|RC4-MD5]"]),
            ..Default::default()
        });
        assert!(error.contains("cipher_suites[0]") && error.contains("RC4-MD5"));
        let error = path(TlsParameters {
            cipher_suites: names(&["AES128-SHA"]),
            ..Default::default()
        });
        assert!(error.contains("AES128-SHA"));
        let error = path(TlsParameters {
            ecdh_curves: names(&["P-256", "P-521"]),
            ..Default::default()
        });
        assert!(error.contains("ecdh_curves[1]") && error.contains("P-521"));
        let error = path(TlsParameters {
            tls_maximum_protocol_version: TlsProtocol::TlSv11.into(),
            ..Default::default()
        });
        assert!(error.contains("tls_maximum_protocol_version"));
        let error = path(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv12.into(),
            ..Default::default()
        });
        assert!(error.contains("tls_minimum_protocol_version"));
    }

    #[test]
    fn versions_and_the_fips_policy_narrow_the_choice() {
        let p = compile(&TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            compliance_policies: vec![CompliancePolicy::Fips202205.into()],
            ..Default::default()
        })
        .unwrap();
        assert_eq!(p.versions, [&TLS13]);
        assert_eq!(p.provider.kx_groups.len(), 2);
        assert!(
            p.provider
                .cipher_suites
                .iter()
                .all(|s| !format!("{:?}", s.suite()).contains("CHACHA"))
        );
    }
}
