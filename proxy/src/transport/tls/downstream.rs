//! `DownstreamTlsContext`: TLS as a server.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::{
    OcspStaplePolicy, SessionTicketKeysType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, DownstreamTlsContext as Proto,
};
use filters::tls::TlsInfo;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
    ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use std::sync::Mutex;
use std::sync::PoisonError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use xds_client::error::{At, ConfigError};

use super::certificate::{self, Certificate};
use super::context::CommonContext;
use super::secrets::{Dependent, SecretStore};
use super::stats::TlsStats;
use super::upstream::Rules;
use super::validation::Validation;
use super::verifier::Verifier;
use super::{facts, suite_name, version_name};

/// Sessions that a server without tickets remembers.
const SESSIONS: usize = 1024;

/// A filter chain's TLS.
#[derive(Debug)]
pub struct DownstreamTls {
    common: CommonContext,
    require_client_certificate: bool,
    require_sni: bool,
    scan_on_mismatch: bool,
    prefer_client_ciphers: bool,
    stateless: bool,
    stateful: bool,
    stats: Arc<TlsStats>,
    sessions: Mutex<Option<Sessions>>,
    current: ArcSwapOption<Compiled>,
}

/// What lets sessions resume: kept while only certificates change, made anew when what clients must be changes, so
/// that no session outlives the rules that it began under.
#[derive(Debug, Clone)]
struct Sessions {
    rules: Option<CertificateValidationContext>,
    tickets: Option<Arc<dyn ProducesTickets>>,
    store: Arc<dyn StoresServerSessions>,
}

#[derive(Debug)]
struct Compiled {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
    verifies: bool,
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
        if proto.session_timeout.is_some() {
            return Err(ConfigError::unsupported("session_timeout"));
        }
        if proto.ocsp_staple_policy() != OcspStaplePolicy::LenientStapling {
            return Err(ConfigError::unsupported("ocsp_staple_policy"));
        }
        let stateless = match &proto.session_ticket_keys_type {
            None => true,
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(disable)) => !disable,
            Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
                return Err(ConfigError::unsupported("session_ticket_keys"));
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => {
                return Err(ConfigError::unsupported(
                    "session_ticket_keys_sds_secret_config",
                ));
            }
        };
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
            stateless,
            stateful: !proto.disable_stateful_session_resumption,
            stats,
            sessions: Mutex::default(),
            current: ArcSwapOption::empty(),
        });
        tls.rebuild()?;
        for slot in tls.common.slots() {
            let dependent: Arc<dyn Dependent> = tls.clone();
            slot.depend(Arc::downgrade(&dependent));
        }
        Ok(tls)
    }

    fn rebuild(&self) -> Result<(), ConfigError> {
        let Some(ready) = self.common.ready() else {
            return Ok(());
        };
        let provider = self.common.parameters.provider.clone();
        let algorithms = provider.signature_verification_algorithms;
        let sessions = self.sessions(ready.validation.as_ref())?;
        let resolver = Arc::new(Resolver {
            certificates: ready.certificates,
            require_sni: self.require_sni,
            scan_on_mismatch: self.scan_on_mismatch,
        });
        let failed = |e: rustls::Error| ConfigError::new(e.to_string());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.common.parameters.versions)
            .map_err(failed)?;
        let proto = ready.validation.unwrap_or_default();
        let validation = Arc::new(Validation::compile(&proto)?);
        // A client is asked for its certificate if one is required, or if there is something to hold it against.
        let ask =
            self.require_client_certificate || validation.verifies() || validation.has_anchors();
        let verifies = validation.verifies();
        let builder = if ask {
            builder.with_client_cert_verifier(Arc::new(Verifier {
                hints: if proto.suppress_client_ca_list {
                    Vec::new()
                } else {
                    validation.hints.clone()
                },
                validation,
                algorithms,
                stats: self.stats.clone(),
                required: self.require_client_certificate,
                rules: Rules::default(),
            }))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(resolver.clone());
        config.alpn_protocols.clone_from(&self.common.alpn);
        config.ignore_client_order = !self.prefer_client_ciphers;
        config.session_storage = sessions.store;
        match sessions.tickets {
            Some(tickets) => config.ticketer = tickets,
            None if !self.stateful => config.send_tls13_tickets = 0,
            None => {}
        }
        self.current.store(Some(Arc::new(Compiled {
            config: Arc::new(config),
            resolver,
            verifies,
        })));
        Ok(())
    }

    fn sessions(
        &self,
        rules: Option<&CertificateValidationContext>,
    ) -> Result<Sessions, ConfigError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*sessions
            && kept.rules.as_ref() == rules
        {
            return Ok(kept.clone());
        }
        let failed = |e: rustls::Error| ConfigError::new(e.to_string());
        let made = Sessions {
            rules: rules.cloned(),
            tickets: if self.stateless {
                Some(Ticketer::new().map_err(failed)?)
            } else {
                None
            },
            store: if self.stateful {
                ServerSessionMemoryCache::new(SESSIONS)
            } else {
                Arc::new(NoServerSessionStorage {})
            },
        };
        *sessions = Some(made.clone());
        Ok(made)
    }

    /// Shakes hands as a server.
    ///
    /// # Errors
    /// The peer failed, or the context has no secrets yet. The peer has been sent an alert then, and the reason is
    /// counted.
    pub async fn accept<IO>(&self, io: IO) -> std::io::Result<(TlsStream<IO>, TlsInfo)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(compiled) = self.current.load_full() else {
            self.stats.context_secrets_not_ready.inc();
            return Err(std::io::Error::other("TLS secrets are not there yet"));
        };
        let accepting = TlsAcceptor::from(compiled.config.clone()).accept(io);
        match accepting.await {
            Ok(stream) => {
                let info = self.info(&compiled, stream.get_ref().1);
                Ok((stream, info))
            }
            Err(error) => {
                self.stats.connection_error.inc();
                let missing = error
                    .get_ref()
                    .and_then(|e| e.downcast_ref::<rustls::Error>())
                    .is_some_and(|e| matches!(e, rustls::Error::NoCertificatesPresented));
                if missing {
                    self.stats.fail_verify_no_cert.inc();
                }
                Err(error)
            }
        }
    }

    fn info(&self, compiled: &Compiled, connection: &ServerConnection) -> TlsInfo {
        self.stats.shook_hands(connection);
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = facts::peer(chain, compiled.verifies);
        let local = compiled.resolver.chosen(connection);
        TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: suite_name(connection.negotiated_cipher_suite()),
            local: local.map(|c| c.facts.clone()),
            peer,
        }
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
    require_sni: bool,
    scan_on_mismatch: bool,
}

impl Resolver {
    /// The certificate that a finished handshake most probably used: the name's. Of several kinds of keys for one
    /// name the facts that are read from it (its names) are the same.
    fn chosen(&self, connection: &ServerConnection) -> Option<&Arc<Certificate>> {
        let name = connection.server_name();
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
        certificate::choose(&self.certificates, name, self.scan_on_mismatch, |c| {
            c.key.key.choose_scheme(schemes).is_some()
        })
        .map(|c| c.key.clone())
    }
}
