//! `UpstreamTlsContext`: TLS as a client.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext as Proto;
use filters::http::alpn::AlpnNames;
use filters::tls::TlsInfo;
use prost::Message;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState};
use tokio::io::{AsyncRead, AsyncWrite};
use xds_client::error::{At, ConfigError};

use super::certificate::Certificate;
use super::context::{CommonContext, Ready};
use super::failure::{Failure, Kind};
use super::refusal;
use super::secrets::{Dependent, SecretStore};
use super::stats::TlsStats;
use super::stream::TlsStream;
use super::validation::Validation;
use super::verifier::Verifier;
use super::{facts, group_name, suite_name, version_name};
use crate::telemetry::stats::Scope;
use crate::transport::buffer::Buffer;
use crate::transport::options::TransportOptions;

/// Envoy's limit on the name that is asked for.
const MAX_SNI: usize = 255;

/// How often it is looked whether secrets are there.
const SECRETS_INTERVAL: Duration = Duration::from_millis(20);

/// The client's side of a connection in TLS.
pub type ClientStream<IO> = Box<TlsStream<IO, UnbufferedClientConnection>>;

/// A cluster's TLS.
pub struct UpstreamTls {
    common: CommonContext,
    /// `sni`; empty for none.
    sni: ByteString,
    /// `auto_host_sni`: ask for the endpoint's host name if it has one.
    host_sni: bool,
    /// `auto_sni_san_validation`: the server's certificate must cover the name that is asked for.
    validate_sni: bool,
    session_keys: usize,
    scope: Option<Scope>,
    stats: OnceLock<Arc<TlsStats>>,
    /// Compiled for the first connection after a change: most clusters of a mesh are never used.
    current: ArcSwapOption<Current>,
    /// How often a secret has changed.
    changes: AtomicU64,
    /// The message it came from, to tell equal contexts.
    source: Vec<u8>,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for UpstreamTls {}

/// The most sets of names and protocols whose handshakes are remembered. Names may come from requests; beyond this
/// many all are forgotten, which costs sessions that could have been resumed.
const MAX_VARIANTS: usize = 1024;

/// A compiled context, and how often secrets had changed before it was compiled.
struct Current {
    changes: u64,
    compiled: Arc<Compiled>,
}

/// The context with its secrets as they are at one time.
struct Compiled {
    provider: Arc<CryptoProvider>,
    validation: Arc<Validation>,
    local: Option<Arc<Certificate>>,
    /// Settings by what connections ask for. Only handshakes lock this.
    variants: Mutex<HashMap<Variant, Arc<ClientConfig>>>,
}

/// What makes one connection's handshake differ from another's, but for the name that is asked for. Sessions are
/// kept with it and by that name, so none is resumed under other rules than it began under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Variant {
    alpn: Alpn,
    rules: Rules,
}

/// The protocols that are offered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Alpn {
    /// The request's.
    Asked(AlpnNames),
    /// The context's.
    Own,
    /// What the connection is for.
    Fallback(&'static [&'static str]),
}

/// What the server's certificate must cover beside the validation context's demands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Rules {
    /// One of these (`auto_san_validation`, filter state), if there are any.
    pub(super) subjects: Vec<ByteString>,
    /// The name that was asked for, in place of the context's list (`auto_sni_san_validation`).
    pub(super) server_name: Option<ByteString>,
}

/// What a connection is made for.
#[derive(Debug, Clone, Copy)]
pub struct Connecting<'a> {
    /// The host's address; without a name, sessions are kept by it.
    pub address: Option<IpAddr>,
    /// The endpoint's host name; may be empty.
    pub hostname: &'a str,
    /// What requests ask for.
    pub options: &'a TransportOptions,
    /// The protocols that are spoken, for a context that names none (ALPN).
    pub protocols: &'static [&'static str],
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("sni", &self.sni)
            .finish_non_exhaustive()
    }
}

impl UpstreamTls {
    /// Compiles the context. It connects as soon as its secrets are there. Stats are made in `scope`
    /// (`cluster.<name>.`) with the first connection.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub fn compile(
        proto: &Proto,
        secrets: &SecretStore,
        scope: Option<Scope>,
    ) -> Result<Arc<Self>, ConfigError> {
        if proto.allow_renegotiation {
            return Err(ConfigError::unsupported("allow_renegotiation"));
        }
        if proto.sni.len() > MAX_SNI {
            return Err(ConfigError::new("must have at most 255 bytes").at("sni"));
        }
        if !proto.sni.is_empty() && ServerName::try_from(proto.sni.as_str()).is_err() {
            let reason = format!("'{}' is no host name", proto.sni);
            return Err(ConfigError::new(reason).at("sni"));
        }
        let default = Default::default();
        let common = proto.common_tls_context.as_ref().unwrap_or(&default);
        if common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len() > 1 {
            return Err(ConfigError::new(
                "Multiple TLS certificates are not supported for client contexts",
            )
            .at("common_tls_context"));
        }
        if proto.auto_sni_san_validation && common.validation_context_type.is_none() {
            return Err(ConfigError::new(
                "'auto_sni_san_validation' was configured without a validation context",
            ));
        }
        let session_keys = proto.max_session_keys.as_ref().map_or(1, |v| v.value);
        let tls = Arc::new(Self {
            common: CommonContext::compile(common, secrets).at("common_tls_context")?,
            sni: proto.sni.as_str().into(),
            host_sni: proto.auto_host_sni,
            validate_sni: proto.auto_sni_san_validation,
            session_keys: usize::try_from(session_keys)
                .unwrap_or(usize::MAX)
                .min(1024),
            scope,
            stats: OnceLock::new(),
            current: ArcSwapOption::empty(),
            changes: AtomicU64::new(0),
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

    /// The context as it is now; `None` while a secret is missing. If the secrets of now make no context, the last
    /// good one stays.
    fn current(&self) -> Result<Option<Arc<Compiled>>, ConfigError> {
        // Before the secrets are read: what is compiled of older ones is never taken for newer.
        let changes = self.changes.load(Ordering::Acquire);
        let last = self.current.load_full();
        if let Some(last) = last.as_ref().filter(|last| last.changes == changes) {
            return Ok(Some(last.compiled.clone()));
        }
        let Some(ready) = self.common.ready() else {
            return Ok(None);
        };
        let compiled = match (self.build(ready), last) {
            (Ok(compiled), _) => Arc::new(compiled),
            (Err(error), Some(last)) => {
                tracing::error!("a secret cannot be used in its context: {error}");
                last.compiled.clone()
            }
            (Err(error), None) => return Err(error),
        };
        self.current.store(Some(Arc::new(Current {
            changes,
            compiled: compiled.clone(),
        })));
        Ok(Some(compiled))
    }

    fn build(&self, ready: Ready) -> Result<Compiled, ConfigError> {
        Ok(Compiled {
            provider: self.common.parameters.provider.clone(),
            validation: Arc::new(Validation::compile(&ready.validation.unwrap_or_default())?),
            local: ready.certificates.into_iter().next(),
            variants: Mutex::default(),
        })
    }

    /// The settings for a handshake; those of an equal one are used again.
    fn config(&self, compiled: &Compiled, variant: Variant) -> Result<Arc<ClientConfig>, String> {
        let variants = &compiled.variants;
        let mut variants = variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = variants.get(&variant) {
            return Ok(config.clone());
        }
        let verifier = Arc::new(Verifier {
            validation: compiled.validation.clone(),
            algorithms: compiled.provider.signature_verification_algorithms,
            stats: self.stats().clone(),
            required: false,
            hints: Vec::new(),
            rules: variant.rules.clone(),
        });
        let builder = ClientConfig::builder_with_provider(compiled.provider.clone())
            .with_protocol_versions(&self.common.parameters.versions)
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &compiled.local {
            Some(certificate) => builder.with_client_cert_resolver(Arc::new(
                SingleCertAndKey::from(certificate.key.clone()),
            )),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = match &variant.alpn {
            Alpn::Asked(names) => names.iter().map(|n| n.as_bytes().to_vec()).collect(),
            Alpn::Own => self.common.alpn.clone(),
            Alpn::Fallback(names) => names.iter().map(|n| n.as_bytes().to_vec()).collect(),
        };
        // A store of its own, and a new one with every change: no session outlives the rules it began under.
        config.resumption = match self.session_keys {
            0 => Resumption::disabled(),
            n => Resumption::in_memory_sessions(n),
        };
        let config = Arc::new(config);
        if variants.len() >= MAX_VARIANTS {
            variants.clear();
        }
        variants.insert(variant, config.clone());
        Ok(config)
    }

    /// The name that a connection asks for; empty for none.
    fn server_name(&self, connecting: &Connecting<'_>) -> ByteString {
        match &connecting.options.server_name {
            Some(name) if !name.is_empty() => name.clone(),
            _ if self.host_sni && !connecting.hostname.is_empty() => connecting.hostname.into(),
            _ => self.sni.clone(),
        }
    }

    fn variant(&self, connecting: &Connecting<'_>, server_name: &ByteString) -> Variant {
        Variant {
            alpn: match &connecting.options.alpn {
                Some(names) => Alpn::Asked(names.clone()),
                None if !self.common.alpn.is_empty() => Alpn::Own,
                None => Alpn::Fallback(connecting.protocols),
            },
            rules: Rules {
                subjects: connecting.options.subjects.clone(),
                // Without a name to ask for, no certificate fits.
                server_name: self.validate_sni.then(|| server_name.clone()),
            },
        }
    }

    /// Whether nobody waits for its secrets any longer: they are there, or they were given up.
    pub fn is_answered(&self, secrets: &SecretStore) -> bool {
        let named = self.common.slots().map(|slot| slot.name());
        let mut named = named.filter(|name| !name.is_empty());
        named.all(|name| secrets.is_answered(name))
    }

    /// Whether it asks for the endpoint's host name.
    pub fn asks_for_host(&self) -> bool {
        self.host_sni
    }

    /// Bytes that came could not be read as TLS: an alert of the server's, as a rule.
    pub fn broke(&self) {
        self.stats().connection_error.inc();
    }

    /// Waits until the secrets are there.
    pub async fn secrets(&self) {
        while self.common.ready().is_none() {
            tokio::time::sleep(SECRETS_INTERVAL).await;
        }
    }

    /// Shakes hands as a client.
    ///
    /// # Errors
    /// The server failed, its certificate was refused, or the context has no secrets yet.
    pub async fn connect<IO>(
        &self,
        io: IO,
        connecting: Connecting<'_>,
    ) -> io::Result<(ClientStream<IO>, TlsInfo)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(compiled) = self.current().map_err(io::Error::other)? else {
            self.stats().context_secrets_not_ready.inc();
            return Err(io::Error::other("TLS error: Secret is not supplied by SDS"));
        };
        let asked = self.server_name(&connecting);
        // An address is not asked for (RFC 6066, 3); it only keeps the sessions of different hosts apart.
        let name = if asked.is_empty() {
            let unknown = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            ServerName::IpAddress(connecting.address.unwrap_or(unknown).into())
        } else {
            ServerName::try_from(asked.to_string())
                .ok()
                .filter(|_| asked.len() <= MAX_SNI)
                .ok_or_else(|| {
                    io::Error::other("TLS error: the name that is to be asked for is no host name")
                })?
        };
        let variant = self.variant(&connecting, &asked);
        let config = self.config(&compiled, variant).map_err(io::Error::other)?;
        let session = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
        let stream = TlsStream::new(io, session, Buffer::default());
        match refusal::watched(stream.handshake()).await {
            (Ok(stream), _) => {
                let info = self.info(&compiled, stream.session(), asked);
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

    fn info(
        &self,
        compiled: &Compiled,
        connection: &CommonState,
        server_name: ByteString,
    ) -> TlsInfo {
        self.stats().shook_hands(connection);
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = facts::peer(chain, compiled.validation.verifies());
        TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: suite_name(connection.negotiated_cipher_suite()),
            group: group_name(connection.negotiated_key_exchange_group()),
            server_name,
            local: compiled.local.as_ref().map(|c| c.facts.clone()),
            peer,
        }
    }
}

impl Dependent for UpstreamTls {
    fn secret_changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        if let Some(stats) = self.stats.get() {
            stats.context_updated_by_sds.inc();
        }
    }
}
