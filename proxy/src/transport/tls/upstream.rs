//! `UpstreamTlsContext`: TLS as a client.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext as Proto;
use filters::tls::TlsInfo;
use prost::Message;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xds_client::error::{At, ConfigError};

use super::context::{CommonContext, Ready};
use super::failure::{Failure, Kind};
use super::refusal;
use super::secrets::{Dependent, SecretStore};
use super::stats::TlsStats;
use super::validation::Validation;
use super::verifier::Verifier;
use super::{facts, suite_name, version_name};
use crate::telemetry::stats::Scope;

/// Envoy's limit on the name that is asked for.
const MAX_SNI: usize = 255;

/// A cluster's TLS.
pub struct UpstreamTls {
    common: CommonContext,
    sni: Option<ServerName<'static>>,
    /// The server's certificate must cover the name that is asked for.
    validate_sni: bool,
    session_keys: usize,
    /// What to offer if the context has no `alpn_protocols` of its own.
    protocols: Vec<Vec<u8>>,
    scope: Option<Scope>,
    stats: OnceLock<Arc<TlsStats>>,
    /// Compiled for the first connection after a change: most clusters of a mesh are never used.
    current: ArcSwapOption<Compiled>,
    /// The message it came from, to tell equal contexts.
    source: Vec<u8>,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.protocols == other.protocols
    }
}

impl Eq for UpstreamTls {}

struct Compiled {
    config: Arc<ClientConfig>,
    verifies: bool,
    local: Option<Arc<super::certificate::Certificate>>,
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("sni", &self.sni)
            .finish_non_exhaustive()
    }
}

impl UpstreamTls {
    /// Compiles the context. It connects as soon as its secrets are there. `protocols` are offered if the context
    /// names none. Stats are made in `scope` (`cluster.<name>.`) with the first connection.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub fn compile(
        proto: &Proto,
        secrets: &SecretStore,
        protocols: &[&str],
        scope: Option<Scope>,
    ) -> Result<Arc<Self>, ConfigError> {
        if proto.allow_renegotiation {
            return Err(ConfigError::unsupported("allow_renegotiation"));
        }
        if proto.auto_host_sni {
            return Err(ConfigError::unsupported("auto_host_sni"));
        }
        if proto.sni.len() > MAX_SNI {
            return Err(ConfigError::new("must have at most 255 bytes").at("sni"));
        }
        let sni = match proto.sni.as_str() {
            "" => None,
            name => Some(
                ServerName::try_from(name.to_owned())
                    .map_err(|_| ConfigError::new(format!("'{name}' is no host name")))
                    .at("sni")?,
            ),
        };
        let default = Default::default();
        let common = proto.common_tls_context.as_ref().unwrap_or(&default);
        if common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len() > 1 {
            return Err(ConfigError::new(
                "Multiple TLS certificates are not supported for client contexts",
            )
            .at("common_tls_context"));
        }
        let session_keys = proto.max_session_keys.as_ref().map_or(1, |v| v.value);
        let tls = Arc::new(Self {
            common: CommonContext::compile(common, secrets).at("common_tls_context")?,
            validate_sni: proto.auto_sni_san_validation && sni.is_some(),
            sni,
            session_keys: usize::try_from(session_keys)
                .unwrap_or(usize::MAX)
                .min(1024),
            protocols: protocols.iter().map(|p| p.as_bytes().to_vec()).collect(),
            scope,
            stats: OnceLock::new(),
            current: ArcSwapOption::empty(),
            source: proto.encode_to_vec(),
        });
        for slot in tls.common.slots() {
            let dependent: Arc<dyn Dependent> = tls.clone();
            slot.depend(Arc::downgrade(&dependent));
        }
        Ok(tls)
    }

    fn stats(&self) -> &Arc<TlsStats> {
        self.stats.get_or_init(|| {
            let scope = self.scope.as_ref();
            Arc::new(scope.map(TlsStats::upstream).unwrap_or_default())
        })
    }

    /// The context as it is now; `None` while a secret is missing.
    fn current(&self) -> Result<Option<Arc<Compiled>>, ConfigError> {
        if let Some(current) = self.current.load_full() {
            return Ok(Some(current));
        }
        let Some(ready) = self.common.ready() else {
            return Ok(None);
        };
        let compiled = Arc::new(self.build(ready)?);
        self.current.store(Some(compiled.clone()));
        Ok(Some(compiled))
    }

    fn build(&self, ready: Ready) -> Result<Compiled, ConfigError> {
        let provider = self.common.parameters.provider.clone();
        let algorithms = provider.signature_verification_algorithms;
        let mut validation = Validation::compile(&ready.validation.unwrap_or_default())?;
        if self.validate_sni
            && validation.has_anchors()
            && let Some(ServerName::DnsName(name)) = &self.sni
        {
            validation.require_dns(name.as_ref());
        }
        let verifies = validation.verifies();
        let verifier = Arc::new(Verifier {
            validation: Arc::new(validation),
            algorithms,
            stats: self.stats().clone(),
            required: false,
            hints: Vec::new(),
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.common.parameters.versions)
            .map_err(|e| ConfigError::new(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let local = ready.certificates.into_iter().next();
        let mut config = match &local {
            Some(certificate) => builder.with_client_cert_resolver(Arc::new(
                SingleCertAndKey::from(certificate.key.clone()),
            )),
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = self.sni.is_some();
        config.alpn_protocols = if self.common.alpn.is_empty() {
            self.protocols.clone()
        } else {
            self.common.alpn.clone()
        };
        // A new store with every change: no session outlives the rules it began under.
        config.resumption = match self.session_keys {
            0 => Resumption::disabled(),
            n => Resumption::in_memory_sessions(n),
        };
        Ok(Compiled {
            config: Arc::new(config),
            verifies,
            local,
        })
    }

    /// Shakes hands as a client with the host at `address`.
    ///
    /// # Errors
    /// The server failed, its certificate was refused, or the context has no secrets yet.
    pub async fn connect<IO>(
        &self,
        io: IO,
        address: Option<IpAddr>,
    ) -> io::Result<(TlsStream<IO>, TlsInfo)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(compiled) = self.current().map_err(io::Error::other)? else {
            self.stats().context_secrets_not_ready.inc();
            return Err(io::Error::other("TLS error: Secret is not supplied by SDS"));
        };
        // Without SNI the name only keeps the sessions of different hosts apart.
        let name = self.sni.clone().unwrap_or_else(|| {
            let unknown = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            ServerName::IpAddress(address.unwrap_or(unknown).into())
        });
        let connecting = TlsConnector::from(compiled.config.clone()).connect(name, io);
        match refusal::watched(connecting).await {
            (Ok(stream), _) => {
                let info = self.info(&compiled, stream.get_ref().1);
                Ok((stream, info))
            }
            (Err(error), refusal) => {
                let failure = Failure::new(&error, "", refusal.as_ref());
                if failure.kind == Kind::Protocol {
                    self.stats().connection_error.inc();
                }
                Err(io::Error::new(error.kind(), failure.text))
            }
        }
    }

    fn info(&self, compiled: &Compiled, connection: &ClientConnection) -> TlsInfo {
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = facts::peer(chain, compiled.verifies);
        let info = TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: suite_name(connection.negotiated_cipher_suite()),
            local: compiled.local.as_ref().map(|c| c.facts.clone()),
            peer,
        };
        let group = connection.negotiated_key_exchange_group();
        self.stats().shaken(&info, group.map(|group| group.name()));
        if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.stats().session_reused.inc();
        }
        info
    }
}

impl Dependent for UpstreamTls {
    fn secret_changed(&self) {
        self.current.store(None);
        if let Some(stats) = self.stats.get() {
            stats.context_updated_by_sds.inc();
        }
    }
}
