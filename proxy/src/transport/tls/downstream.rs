//! `DownstreamTlsContext`: TLS as a server.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::{
    OcspStaplePolicy, SessionTicketKeysType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, DownstreamTlsContext as Proto,
};
use prost::Message;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::certificate::{self, Certificate};
use super::context::{self, CommonContext};
use super::parameters::Parameters;
use super::refusal::{self, Refusal};
use super::secrets::{Dependent, SecretSlot, SecretStore, SecretValue};
use super::sessions::{SessionSettings, Sessions, TicketKey};
use super::stats::TlsStats;
use super::upstream::Rules;
use super::validation::Validation;
use super::verifier::Verifier;

/// A filter chain's TLS.
#[derive(Debug)]
pub struct DownstreamTls {
    common: CommonContext,
    require_client_certificate: bool,
    require_sni: bool,
    scan_on_mismatch: bool,
    prefer_client_ciphers: bool,
    session_settings: SessionSettings,
    ticket_keys: Option<Arc<SecretSlot>>,
    ocsp_policy: OcspStaplePolicy,
    pub(super) stats: Arc<TlsStats>,
    sessions: Mutex<Option<Kept>>,
    current: ArcSwapOption<Compiled>,
}

/// The sessions of a context, with what they are bound to.
#[derive(Debug)]
struct Kept {
    rules: Option<CertificateValidationContext>,
    keys: Option<Arc<[TicketKey]>>,
    sessions: Sessions,
}

/// A context with its secrets.
#[derive(Debug)]
pub(super) struct Compiled {
    /// With the protocols, in every order of suites.
    with_alpn: [OnceLock<Arc<ServerConfig>>; Parameters::ORDERS],
    /// The same without protocols.
    without_alpn: [OnceLock<Arc<ServerConfig>>; Parameters::ORDERS],
    parts: Parts,
}

/// What the configurations of one context have in common.
#[derive(Debug)]
struct Parts {
    parameters: Parameters,
    alpn: Vec<Vec<u8>>,
    resolver: Arc<Resolver>,
    verifier: Option<Arc<Verifier>>,
    sessions: Sessions,
    prefer_client_ciphers: bool,
    verifies: bool,
}

impl Parts {
    fn make(&self, order: usize, alpn: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = self.parameters.ordered(order);
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.parameters.versions)?;
        let builder = match &self.verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(self.resolver.clone());
        if alpn {
            config.alpn_protocols.clone_from(&self.alpn);
        }
        config.ignore_client_order = !self.prefer_client_ciphers;
        config.session_storage = self.sessions.store.clone();
        match &self.sessions.tickets {
            Some(tickets) => config.ticketer = tickets.clone(),
            None => config.send_tls13_tickets = 0,
        }
        Ok(Arc::new(config))
    }
}

impl DownstreamTls {
    /// Compiles the context. It serves as soon as its secrets are there.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub fn compile(
        proto: &Proto,
        secrets: &SecretStore,
        stats: Arc<TlsStats>,
    ) -> Result<Arc<Self>, ConfigError> {
        let default = Default::default();
        let common = proto.common_tls_context.as_ref().unwrap_or(&default);
        let (stateless, ticket_keys) = match &proto.session_ticket_keys_type {
            None => (true, None),
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(disable)) => {
                (!disable, None)
            }
            Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
                let keys = secrets.inline(&Type::SessionTicketKeys(keys.clone()));
                (true, Some(keys.at("session_ticket_keys")?))
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => {
                let slot = context::slot(config, secrets);
                let slot = slot.at("session_ticket_keys_sds_secret_config")?;
                (true, Some(slot))
            }
        };
        let timeout = duration::of_field(proto.session_timeout.as_ref(), "session_timeout")?;
        let lifetime = SessionSettings::lifetime(timeout);
        let flag = |value: &Option<envoy_types::pb::google::protobuf::BoolValue>| {
            value.as_ref().is_some_and(|v| v.value)
        };
        let common = CommonContext::compile(common, secrets).at("common_tls_context")?;
        if !common.has_certificates() {
            return Err(
                ConfigError::new("No TLS certificates found for server context")
                    .at("common_tls_context"),
            );
        }
        let tls = Arc::new(Self {
            common,
            require_client_certificate: flag(&proto.require_client_certificate),
            require_sni: flag(&proto.require_sni),
            scan_on_mismatch: flag(&proto.full_scan_certs_on_sni_mismatch),
            prefer_client_ciphers: proto.prefer_client_ciphers,
            session_settings: SessionSettings {
                stateless,
                stateful: !proto.disable_stateful_session_resumption,
                lifetime,
            },
            ticket_keys,
            ocsp_policy: proto.ocsp_staple_policy(),
            stats,
            sessions: Mutex::default(),
            current: ArcSwapOption::empty(),
        });
        tls.rebuild()?;
        for slot in tls.common.slots().chain(&tls.ticket_keys) {
            let dependent: Arc<dyn Dependent> = tls.clone();
            slot.depend(Arc::downgrade(&dependent));
        }
        Ok(tls)
    }

    fn rebuild(&self) -> Result<(), ConfigError> {
        let Some(ready) = self.common.ready() else {
            return Ok(());
        };
        let provider = &self.common.parameters.provider;
        let algorithms = provider.signature_verification_algorithms;
        let keys = match self.ticket_keys.as_ref().map(|slot| slot.value()) {
            None => None,
            Some(Some(SecretValue::TicketKeys(keys))) => Some(keys),
            Some(_) => return Ok(()),
        };
        let sessions = self.sessions(ready.validation.as_ref(), keys)?;
        for certificate in &ready.certificates {
            certificate.check_staple(self.ocsp_policy)?;
        }
        let resolver = Arc::new(Resolver {
            certificates: ready.certificates,
            ocsp_policy: self.ocsp_policy,
            stats: self.stats.clone(),
            require_sni: self.require_sni,
            scan_on_mismatch: self.scan_on_mismatch,
        });
        let proto = ready.validation.unwrap_or_default();
        let validation = Arc::new(Validation::compile(&proto)?);
        // A client is asked for its certificate if one is required, or if there is something to hold it against.
        let required = self.require_client_certificate || validation.demands();
        let ask = required || validation.verifies() || validation.has_anchors();
        let verifies = validation.verifies();
        let verifier = ask.then(|| {
            Arc::new(Verifier {
                hints: if proto.suppress_client_ca_list {
                    Vec::new()
                } else {
                    validation.hints.clone()
                },
                validation,
                algorithms,
                stats: self.stats.clone(),
                required,
                rules: Rules::default(),
            })
        });
        let compiled = Compiled {
            with_alpn: Default::default(),
            without_alpn: Default::default(),
            parts: Parts {
                parameters: self.common.parameters.clone(),
                alpn: self.common.alpn.clone(),
                resolver,
                verifier,
                sessions,
                prefer_client_ciphers: self.prefer_client_ciphers,
                verifies,
            },
        };
        // What can fail fails here, for every order alike.
        compiled
            .config(0, true)
            .map_err(|e| ConfigError::new(e.to_string()))?;
        self.current.store(Some(Arc::new(compiled)));
        Ok(())
    }

    /// Kept while only certificates change, made anew when what clients must be or the tickets' keys change, so that
    /// no session outlives the rules that it began under.
    fn sessions(
        &self,
        rules: Option<&CertificateValidationContext>,
        keys: Option<Arc<[TicketKey]>>,
    ) -> Result<Sessions, ConfigError> {
        let mut kept = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |a: &Option<Arc<[TicketKey]>>, b: &Option<Arc<[TicketKey]>>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if let Some(kept) = &*kept
            && kept.rules.as_ref() == rules
            && same(&kept.keys, &keys)
        {
            return Ok(kept.sessions.clone());
        }
        let mut bound = rules.map(Message::encode_to_vec).unwrap_or_default();
        bound.push(u8::from(self.require_client_certificate));
        let sessions = Sessions::new(self.session_settings, &bound, keys.clone())?;
        *kept = Some(Kept {
            rules: rules.cloned(),
            keys,
            sessions: sessions.clone(),
        });
        Ok(sessions)
    }

    /// The context as it is now; `None` while a secret is missing.
    pub(super) fn current(&self) -> Option<Arc<Compiled>> {
        self.current.load_full()
    }
}

impl Compiled {
    fn config(&self, order: usize, alpn: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        let made = match alpn {
            true => &self.with_alpn,
            false => &self.without_alpn,
        };
        let Some(place) = made.get(order) else {
            return self.parts.make(order, alpn);
        };
        if let Some(config) = place.get() {
            return Ok(config.clone());
        }
        let config = self.parts.make(order, alpn)?;
        // Another worker may have made the same one meanwhile.
        Ok(place.get_or_init(|| config).clone())
    }

    /// What a client is served with. One that offers protocols of which we speak none agrees on none: rustls would
    /// refuse it, Envoy does not.
    pub(super) fn config_for(
        &self,
        hello: &ClientHello<'_>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let ours = &self.parts.alpn;
        let agreed = hello
            .alpn()
            .is_none_or(|mut offered| offered.any(|theirs| ours.iter().any(|own| own == theirs)));
        let order = match self.parts.prefer_client_ciphers {
            true => 0,
            false => self.parts.parameters.order_for(hello.cipher_suites()),
        };
        self.config(order, agreed)
    }

    /// Whether peers' certificates are verified.
    pub(super) fn verifies(&self) -> bool {
        self.parts.verifies
    }

    /// Whether TLS 1.3 is among the versions.
    pub(super) fn speaks_tls13(&self) -> bool {
        let versions = &self.parts.parameters.versions;
        versions.contains(&&rustls::version::TLS13)
    }

    /// The certificate that a client who asks for this name is most probably shown.
    pub(super) fn shown(&self, name: Option<&str>) -> Option<&Arc<Certificate>> {
        self.parts.resolver.chosen(name)
    }
}

impl Dependent for DownstreamTls {
    fn secret_changed(&self) {
        match self.rebuild() {
            Ok(()) => self.stats.context_updated_by_sds.inc(),
            // The last good one serves on.
            Err(error) => tracing::error!("a secret cannot be used in its context: {error}"),
        }
    }
}

#[derive(Debug)]
struct Resolver {
    certificates: Vec<Arc<Certificate>>,
    ocsp_policy: OcspStaplePolicy,
    stats: Arc<TlsStats>,
    require_sni: bool,
    scan_on_mismatch: bool,
}

impl Resolver {
    /// The certificate that a handshake most probably uses: the name's. Of several kinds of keys for one
    /// name the facts that are read from it (its names) are the same.
    fn chosen(&self, name: Option<&str>) -> Option<&Arc<Certificate>> {
        certificate::choose(&self.certificates, name, self.scan_on_mismatch, |_| true)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if name.is_none() && self.require_sni {
            return None;
        }
        let schemes = hello.signature_schemes();
        let now = SystemTime::now();
        let fits = |c: &Certificate| {
            c.key.key.choose_scheme(schemes).is_some() && c.shown(self.ocsp_policy, now).is_some()
        };
        let chosen = certificate::choose(&self.certificates, name, self.scan_on_mismatch, fits)?;
        let shown = chosen.shown(self.ocsp_policy, now);
        if shown.is_none() {
            self.stats.ocsp_staple_failed.inc();
            refusal::leave(Refusal {
                why: "OCSP staple is out of date".to_owned(),
                peer: None,
            });
        }
        shown.cloned()
    }
}
