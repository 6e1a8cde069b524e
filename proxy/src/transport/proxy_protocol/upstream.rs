//! `envoy.transport_sockets.upstream_proxy_protocol`: tells an upstream who the client is, before anything else is
//! said on the connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version as ProtoVersion;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::parse::Version;
use super::tlvs::{AddedTlvs, Tlv};
use super::{Client, PassThrough, encode};
use crate::telemetry::stats::{Counter, Scope};
use crate::transport::upstream::{UpstreamContext, UpstreamTransport};

/// Whose metadata of an endpoint adds TLVs.
const NAMESPACE: &str = "envoy.transport_sockets.proxy_protocol";

/// A transport with a header before it, compiled.
#[derive(Debug, Clone)]
pub struct ProxiedTransport {
    version: Version,
    pass: PassThrough,
    /// Before those that pass; of a type that is here, none passes.
    added: AddedTlvs,
    inner: UpstreamTransport,
    scope: Option<Scope>,
    too_long: Arc<OnceLock<Counter>>,
}

/// Equal settings are equal, wherever they were compiled, so that hosts stay over updates.
impl PartialEq for ProxiedTransport {
    fn eq(&self, other: &Self) -> bool {
        (self.version, &self.pass, &self.added, &self.inner)
            == (other.version, &other.pass, &other.added, &other.inner)
    }
}

impl Eq for ProxiedTransport {}

impl ProxiedTransport {
    /// Compiles the transport socket.
    ///
    /// # Errors
    /// What is wrong or not supported in it or in the one inside, by field.
    pub fn compile(
        proto: &ProxyProtocolUpstreamTransport,
        context: &UpstreamContext<'_>,
    ) -> Result<Self, ConfigError> {
        if proto.allow_unspecified_address {
            return Err(ConfigError::unsupported("allow_unspecified_address"));
        }
        let Some(socket) = &proto.transport_socket else {
            return Err(ConfigError::new("value is required").at("transport_socket"));
        };
        let inner = UpstreamTransport::compile(Some(socket), context).at("transport_socket")?;
        let nested = match inner {
            UpstreamTransport::Proxied(_) => Some("one PROXY header inside of another"),
            UpstreamTransport::Internal(_) => Some("internal_upstream inside of a PROXY header"),
            _ => None,
        };
        if let Some(nested) = nested {
            return Err(ConfigError::new(nested).at("transport_socket"));
        }
        let config = proto.config.clone().unwrap_or_default();
        let pass = PassThrough::compile(config.pass_through_tlvs.as_ref());
        Ok(Self {
            version: match ProtoVersion::try_from(config.version) {
                Ok(ProtoVersion::V1) => Version::V1,
                Ok(ProtoVersion::V2) => Version::V2,
                Err(_) => return Err(ConfigError::new("unknown value").at("config.version")),
            },
            pass: pass.at("pass_through_tlvs").at("config")?,
            added: AddedTlvs::compile(&config.added_tlvs).at("config.added_tlvs")?,
            inner,
            scope: context.scope.clone(),
            too_long: Arc::default(),
        })
    }

    /// What is added to what clients' headers have told.
    pub fn added(&self) -> &AddedTlvs {
        &self.added
    }

    /// What comes after the header.
    pub fn inner(&self) -> &UpstreamTransport {
        &self.inner
    }

    /// The same with the TLVs that an endpoint's metadata adds: they take the place of those of their types.
    /// `None` if it adds none.
    ///
    /// # Errors
    /// Malformed metadata, or a TLV that cannot be made.
    pub fn with_metadata(
        &self,
        metadata: Option<&core::Metadata>,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(own) = metadata.and_then(|m| m.typed_filter_metadata.get(NAMESPACE)) else {
            return Ok(None);
        };
        let at = |e: ConfigError| e.at(format!("metadata.typed_filter_metadata[{NAMESPACE}]"));
        let own: core::PerHostConfig = any::unpack(own).map_err(at)?;
        let added = self.added.with_own(&own.added_tlvs);
        Ok(Some(Self {
            added: added.at("added_tlvs").map_err(at)?,
            ..self.clone()
        }))
    }

    /// Writes the header to a fresh connection between `local` and `peer`, which are told where there is no client.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn write(
        &self,
        io: &mut (impl AsyncWrite + Unpin),
        client: Option<&Client>,
        ends: Option<(SocketAddr, SocketAddr)>,
    ) -> io::Result<()> {
        io.write_all(&self.header(client, ends)).await?;
        io.flush().await
    }

    fn header(&self, client: Option<&Client>, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
        let pair = client.map(|client| (client.source, client.target));
        if self.version == Version::V1 {
            return match pair.or(ends) {
                Some((source, target)) => encode::v1(source, target),
                None => b"PROXY UNKNOWN\r\n".to_vec(),
            };
        }
        let of_client = |tlvs: fn(&Client) -> &Option<Rc<[Tlv]>>| {
            let tlvs = client.and_then(|client| tlvs(client).as_deref());
            tlvs.unwrap_or_default()
        };
        let (passed, made) = (of_client(|c| &c.tlvs), of_client(|c| &c.made));
        let added = self.added.fixed.iter().chain(made);
        // What is added takes the place of what would pass.
        let is_added = |kind: u8| added.clone().any(|(other, _)| *other == kind);
        let passed = passed
            .iter()
            .filter(|(kind, _)| self.pass.wants(*kind) && !is_added(*kind));
        let tlvs = added.clone().chain(passed);
        let tlvs = tlvs.map(|(kind, value)| (*kind, &**value));
        let (header, complete) = encode::v2(pair, tlvs);
        if !complete {
            self.count_too_long();
        }
        header
    }

    fn count_too_long(&self) {
        tracing::debug!("TLVs for an upstream are too long and are left out");
        if let Some(scope) = &self.scope {
            let make = || scope.counter("upstream.proxyprotocol.v2_tlvs_exceed_max_length");
            self.too_long.get_or_init(make).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::Bytes;
    use filters::stream::{ConnectionInfo, StreamInfo};
    use prost::{Message, Name};

    use super::*;
    use crate::http::testing::connection;
    use crate::telemetry::stats::Stats;
    use crate::transport::proxy_protocol::parse::{self, Parsed};
    use crate::transport::tls::secrets::SecretStore;

    fn entry(kind: u32, value: &[u8]) -> core::TlvEntry {
        core::TlvEntry {
            r#type: kind,
            value: value.to_vec(),
            format_string: None,
        }
    }

    fn proto(config: core::ProxyProtocolConfig) -> ProxyProtocolUpstreamTransport {
        ProxyProtocolUpstreamTransport {
            config: Some(config),
            transport_socket: Some(core::TransportSocket {
                name: "envoy.transport_sockets.raw_buffer".into(),
                config_type: None,
            }),
            ..Default::default()
        }
    }

    fn compile(proto: &ProxyProtocolUpstreamTransport) -> Result<ProxiedTransport, String> {
        let secrets = SecretStore::default();
        let context = UpstreamContext {
            secrets: &secrets,
            scope: Some(Stats::new().scope("cluster.c.")),
            metadata: None,
        };
        ProxiedTransport::compile(proto, &context).map_err(|e| e.to_string())
    }

    fn two(added: Vec<core::TlvEntry>, pass: bool) -> ProxiedTransport {
        compile(&proto(core::ProxyProtocolConfig {
            version: ProtoVersion::V2 as i32,
            pass_through_tlvs: pass.then(Default::default),
            added_tlvs: added,
        }))
        .unwrap()
    }

    fn client_of(info: &Rc<ConnectionInfo>) -> Option<Client> {
        Client::of(
            &StreamInfo::for_connection(info.clone()),
            &AddedTlvs::default(),
        )
    }

    fn told(transport: &ProxiedTransport, client: Option<&Client>) -> Vec<(u8, Vec<u8>)> {
        let header = transport.header(client, None);
        let Parsed::Header(header) = parse::header(&header) else {
            panic!("{header:?}")
        };
        assert_eq!(header.addresses.is_some(), client.is_some());
        let tlvs = parse::tlvs(header.extensions);
        tlvs.map(|(kind, value)| (kind, value.to_vec())).collect()
    }

    #[test]
    fn lines_tell_of_the_client_or_of_the_connection_itself() {
        let one = compile(&proto(core::ProxyProtocolConfig::default())).unwrap();
        let info = Rc::new(connection("192.0.2.1:1", "192.0.2.2:2"));
        let client = client_of(&info);
        let line = |client, ends| String::from_utf8(one.header(client, ends)).unwrap();
        let expected = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
        assert_eq!(line(client.as_ref(), None), expected);
        let ends = Some((
            "127.0.0.1:5".parse().unwrap(),
            "127.0.0.1:6".parse().unwrap(),
        ));
        assert_eq!(line(None, ends), "PROXY TCP4 127.0.0.1 127.0.0.1 5 6\r\n");
        assert_eq!(line(None, None), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn added_tlvs_come_before_those_that_pass_and_take_their_place() {
        let mut info = connection("192.0.2.1:1", "192.0.2.2:2");
        let passed = [(1, "a"), (2, "b"), (2, "c")];
        info.proxy_tlvs = Some(passed.map(|(kind, v)| (kind, Bytes::from(v))).into());
        let info = Rc::new(info);
        let client = client_of(&info);
        let all = |tlvs: &[(u8, &str)]| -> Vec<(u8, Vec<u8>)> {
            tlvs.iter()
                .map(|(kind, v)| (*kind, v.as_bytes().to_vec()))
                .collect()
        };
        let added = vec![entry(1, b"x"), entry(7, b"y")];
        assert_eq!(
            told(&two(added.clone(), false), client.as_ref()),
            all(&[(1, "x"), (7, "y")])
        );
        let both = two(added, true);
        assert_eq!(
            told(&both, client.as_ref()),
            all(&[(1, "x"), (7, "y"), (2, "b"), (2, "c")])
        );
        assert_eq!(told(&both, None), all(&[]));
        let own = core::PerHostConfig {
            added_tlvs: vec![entry(7, b"host")],
        };
        let own = envoy_types::pb::google::protobuf::Any {
            type_url: core::PerHostConfig::type_url(),
            value: own.encode_to_vec(),
        };
        let metadata = core::Metadata {
            typed_filter_metadata: [(NAMESPACE.to_owned(), own)].into(),
            ..Default::default()
        };
        let host = both.with_metadata(Some(&metadata)).unwrap().unwrap();
        assert_eq!(
            told(&host, client.as_ref()),
            all(&[(7, "host"), (1, "x"), (2, "b"), (2, "c")])
        );
        let source = vec![entry(1, b"x"), entry(7, b"y")];
        assert!(host != both && both == two(source, true));
        assert!(both.with_metadata(None).unwrap().is_none());
    }

    #[test]
    fn tlvs_that_are_too_long_are_left_out_and_counted() {
        let (one, two_and_three) = (
            entry(1, &[0; 40000]),
            [entry(2, &[0; 40000]), entry(3, b"x")],
        );
        let long = two([&[one][..], &two_and_three].concat(), false);
        let info = Rc::new(connection("192.0.2.1:1", "192.0.2.2:2"));
        let kinds = told(&long, client_of(&info).as_ref());
        assert_eq!(
            kinds.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [1, 3]
        );
        assert_eq!(long.too_long.get().unwrap().value(), 1);
    }

    #[test]
    fn clients_differ_by_their_connections() {
        let client = |from: &str| {
            let info = Rc::new(connection(from, "192.0.2.2:2"));
            let client = client_of(&info).unwrap();
            (info, client)
        };
        let (_first, a) = client("192.0.2.1:1");
        let (second, b) = client("192.0.2.1:1");
        let (_third, c) = client("192.0.2.1:3");
        assert!(a == b && a != c);
        drop(second);
        assert!(a.is_connected() && !b.is_connected());
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let refused = |change: &dyn Fn(&mut ProxyProtocolUpstreamTransport)| {
            let mut made = proto(core::ProxyProtocolConfig::default());
            change(&mut made);
            compile(&made).unwrap_err()
        };
        let error = refused(&|p| p.transport_socket = None);
        assert!(error.contains("transport_socket"), "{error}");
        let error = refused(&|p| p.allow_unspecified_address = true);
        assert!(error.contains("allow_unspecified_address"), "{error}");
        let error = refused(&|p| p.config.as_mut().unwrap().added_tlvs = vec![entry(256, b"x")]);
        assert!(error.contains("config.added_tlvs[0].type"), "{error}");
        let both = |value: &[u8]| {
            let mut both = entry(1, value);
            both.format_string = Some(Default::default());
            refused(&|p| p.config.as_mut().unwrap().added_tlvs = vec![both.clone()])
        };
        let path = "config.added_tlvs[0]";
        assert!(both(b"x").starts_with(&format!("{path}: only one of")));
        assert!(both(b"").starts_with(&format!("{path}.format_string.format: ")));
        let error = refused(&|p| p.config.as_mut().unwrap().added_tlvs = vec![entry(1, b"")]);
        assert!(error.starts_with(&format!("{path}: one of")), "{error}");
    }

    #[test]
    fn formats_tell_of_the_clients_connection() {
        let mut dynamic = entry(9, b"");
        dynamic.format_string = Some(core::SubstitutionFormatString {
            format: Some(core::substitution_format_string::Format::TextFormatSource(
                core::DataSource {
                    specifier: Some(core::data_source::Specifier::InlineString(
                        "%DOWNSTREAM_REMOTE_ADDRESS%".into(),
                    )),
                    ..Default::default()
                },
            )),
            ..Default::default()
        });
        let transport = two(vec![dynamic, entry(1, b"x")], false);
        let client = |from: &str| {
            let info = Rc::new(connection(from, "192.0.2.2:2"));
            let info = StreamInfo::for_connection(info);
            Client::of(&info, transport.added()).unwrap()
        };
        let one = client("192.0.2.1:1");
        let all = [(1, b"x".to_vec()), (9, b"192.0.2.1:1".to_vec())];
        assert_eq!(told(&transport, Some(&one)), all);
        assert!(one != client("192.0.2.1:2"));
    }
}
