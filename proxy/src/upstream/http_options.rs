//! How a cluster is spoken to in HTTP: the version, its settings, and the names that requests ask the servers'
//! TLS for. Compiled from `envoy.extensions.upstreams.http.v3.HttpProtocolOptions` and the cluster's older fields.

use std::net::IpAddr;

use bytestring::ByteString;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::google::protobuf as wkt;
use filters::head::RequestHead;
use filters::http::alpn::AlpnOverride;
use filters::matcher::header::HeaderRef;
use filters::stream::Protocol;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use crate::http::h1::Http1Settings;
use crate::http::h2::Keepalive;
use crate::transport::options::TransportOptions;
use crate::upstream::cluster_config::ClusterConfig;

const EXTENSION: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Which version of HTTP a cluster is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What the server chooses by ALPN (`auto_config`).
    Auto,
}

/// HTTP/2 settings, bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Options {
    /// `initial_stream_window_size`, bytes; 1 MiB by default. Envoy's 16 MiB would be memory that one slow
    /// client makes us hold, as a window here is only given back when the client has taken the data.
    pub stream_window: u32,
    /// `initial_connection_window_size`, bytes; 24 MiB by default.
    pub connection_window: u32,
    /// `max_concurrent_streams` on one connection; 1024 by default.
    pub max_streams: u32,
    /// `connection_keepalive`.
    pub keepalive: Option<Keepalive>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            stream_window: 1 << 20,
            connection_window: 24 << 20,
            max_streams: 1024,
            keepalive: None,
        }
    }
}

fn window(value: Option<&wkt::UInt32Value>, default: u32, field: &str) -> Result<u32, ConfigError> {
    let value = value.map_or(default, |v| v.value);
    if (65_535..=0x7fff_ffff).contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError::new("must be between 65535 and 2147483647").at(field))
    }
}

fn http2(options: Option<&core::Http2ProtocolOptions>) -> Result<Http2Options, ConfigError> {
    let Some(o) = options else {
        return Ok(Http2Options::default());
    };
    if o.allow_metadata {
        return Err(ConfigError::unsupported("allow_metadata"));
    }
    if !o.custom_settings_parameters.is_empty() {
        return Err(ConfigError::unsupported("custom_settings_parameters"));
    }
    let default = Http2Options::default();
    let keepalive = match &o.connection_keepalive {
        None => None,
        Some(keepalive) => Keepalive::compile(keepalive).at("connection_keepalive")?,
    };
    let max = o.max_concurrent_streams.as_ref();
    Ok(Http2Options {
        stream_window: window(
            o.initial_stream_window_size.as_ref(),
            default.stream_window,
            "initial_stream_window_size",
        )?,
        connection_window: window(
            o.initial_connection_window_size.as_ref(),
            default.connection_window,
            "initial_connection_window_size",
        )?,
        max_streams: max.map_or(default.max_streams, |v| v.value).max(1),
        keepalive,
    })
}

/// `upstream_http_protocol_options`: names for TLS that come from the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AutoNames {
    /// `auto_sni`: ask for the request's host.
    sni: bool,
    /// `auto_san_validation`: the server's certificate must cover it.
    san: bool,
    /// `override_auto_sni_header`: where the host is taken from if the request has this header.
    header: Option<HeaderRef>,
}

impl ClusterConfig {
    /// What a request to this cluster asks of the transport, its head as it will be sent, beside what is `asked`
    /// already.
    pub fn transport_options(
        &self,
        head: &RequestHead,
        downstream: Protocol,
        alpn: Option<&AlpnOverride>,
        asked: TransportOptions,
    ) -> TransportOptions {
        let mut options = asked;
        self.auto.apply(head, &mut options);
        let http2 = match self.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Downstream => downstream == Protocol::Http2,
            UpstreamProtocol::Http2 | UpstreamProtocol::Auto => true,
        };
        let alpn = alpn.filter(|_| !self.keeps_alpn).and_then(|asked| {
            let names = if http2 { &asked.http2 } else { &asked.http1 };
            names.clone()
        });
        if alpn.is_some() {
            options.alpn = alpn;
        }
        options
    }
}

impl AutoNames {
    fn compile(proto: &core::UpstreamHttpProtocolOptions) -> Result<Self, ConfigError> {
        let header = match proto.override_auto_sni_header.as_str() {
            "" => None,
            name => Some(HeaderRef::parse(name).at("override_auto_sni_header")?),
        };
        Ok(Self {
            sni: proto.auto_sni,
            san: proto.auto_san_validation,
            header,
        })
    }

    /// Adds the names for a request where none are asked for yet. As in Envoy an address is not asked for, but the certificate must cover it.
    fn apply(&self, head: &RequestHead, options: &mut TransportOptions) {
        if !(self.sni || self.san) {
            return;
        }
        let header = self.header.as_ref().and_then(|h| h.in_request(head));
        let header = header.filter(|value| !value.is_empty());
        let host = header.as_deref().unwrap_or(head.authority.as_bytes());
        let (name, address) = match std::str::from_utf8(host) {
            Ok(host) => split(host),
            // No certificate covers this; no name is asked for that was not understood.
            Err(_) => ("", true),
        };
        let name = ByteString::from(name.to_ascii_lowercase());
        if self.san && options.subjects.is_empty() {
            options.subjects.push(name.clone());
        }
        if self.sni && !address && options.server_name.is_none() {
            options.server_name = Some(name);
        }
    }
}

/// A host without its port and brackets, and whether it is an address.
fn split(authority: &str) -> (&str, bool) {
    if let Some(rest) = authority.strip_prefix('[') {
        return (rest.split(']').next().unwrap_or_default(), true);
    }
    if authority.parse::<IpAddr>().is_ok() {
        return (authority, true);
    }
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    (host, host.parse::<IpAddr>().is_ok())
}

/// Everything about HTTP that a cluster's configuration says.
pub(super) struct HttpOptions {
    pub(super) protocol: UpstreamProtocol,
    pub(super) http1: Http1Settings,
    pub(super) http2: Http2Options,
    pub(super) auto: AutoNames,
    pub(super) common: Option<core::HttpProtocolOptions>,
}

impl HttpOptions {
    // Control planes still send the deprecated fields, and Envoy still reads them.
    #[allow(deprecated)]
    pub(super) fn compile(proto: &pb::Cluster) -> Result<Self, ConfigError> {
        if let Some(any) = proto.typed_extension_protocol_options.get(EXTENSION) {
            let step = format!("typed_extension_protocol_options[{EXTENSION}]");
            let options: http::HttpProtocolOptions = any::unpack(any).at(&step)?;
            return Self::typed(&options, proto).at(step);
        }
        let (protocol, http2) = match &proto.http2_protocol_options {
            Some(options) => (
                UpstreamProtocol::Http2,
                http2(Some(options)).at("http2_protocol_options")?,
            ),
            None => (UpstreamProtocol::Http1, Http2Options::default()),
        };
        let mut http1 = Http1Settings::upstream();
        if let Some(options) = &proto.http_protocol_options {
            http1 = http1.with_options(options).at("http_protocol_options")?;
        }
        Ok(Self {
            protocol: match proto.protocol_selection {
                1 => UpstreamProtocol::Downstream,
                _ => protocol,
            },
            http1,
            http2,
            auto: names(proto.upstream_http_protocol_options.as_ref())?,
            common: proto.common_http_protocol_options,
        })
    }

    #[allow(deprecated)]
    fn typed(
        options: &http::HttpProtocolOptions,
        proto: &pb::Cluster,
    ) -> Result<Self, ConfigError> {
        if !options.http_filters.is_empty() {
            return Err(ConfigError::unsupported("http_filters"));
        }
        let (protocol, http2) = http_protocol(options)?;
        Ok(Self {
            protocol,
            http1: http1_settings(options)?,
            http2,
            auto: names(options.upstream_http_protocol_options.as_ref())?,
            common: options
                .common_http_protocol_options
                .or(proto.common_http_protocol_options),
        })
    }
}

fn names(proto: Option<&core::UpstreamHttpProtocolOptions>) -> Result<AutoNames, ConfigError> {
    proto.map_or_else(
        || Ok(AutoNames::default()),
        |proto| AutoNames::compile(proto).at("upstream_http_protocol_options"),
    )
}

fn http_protocol(
    options: &http::HttpProtocolOptions,
) -> Result<(UpstreamProtocol, Http2Options), ConfigError> {
    use http::http_protocol_options::UpstreamProtocolOptions as U;
    use http::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    match &options.upstream_protocol_options {
        None => Err(ConfigError::new("is required").at("upstream_protocol_options")),
        Some(U::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            None | Some(P::HttpProtocolOptions(_)) => {
                Ok((UpstreamProtocol::Http1, Http2Options::default()))
            }
            Some(P::Http2ProtocolOptions(o)) => Ok((
                UpstreamProtocol::Http2,
                http2(Some(o)).at("explicit_http_config.http2_protocol_options")?,
            )),
            Some(P::Http3ProtocolOptions(_)) => Err(ConfigError::unsupported(
                "explicit_http_config.http3_protocol_options",
            )),
        },
        Some(U::UseDownstreamProtocolConfig(c)) => {
            let h2 = http2(c.http2_protocol_options.as_ref())
                .at("use_downstream_protocol_config.http2_protocol_options")?;
            Ok((UpstreamProtocol::Downstream, h2))
        }
        Some(U::AutoConfig(c)) => {
            let h2 = http2(c.http2_protocol_options.as_ref())
                .at("auto_config.http2_protocol_options")?;
            if c.http3_protocol_options.is_some() {
                return Err(ConfigError::unsupported(
                    "auto_config.http3_protocol_options",
                ));
            }
            Ok((UpstreamProtocol::Auto, h2))
        }
    }
}

fn http1_settings(options: &http::HttpProtocolOptions) -> Result<Http1Settings, ConfigError> {
    use http::http_protocol_options::UpstreamProtocolOptions as U;
    use http::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    let (http1, step) = match &options.upstream_protocol_options {
        Some(U::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(P::HttpProtocolOptions(o)) => {
                (Some(o), "explicit_http_config.http_protocol_options")
            }
            _ => (None, ""),
        },
        Some(U::UseDownstreamProtocolConfig(c)) => (
            c.http_protocol_options.as_ref(),
            "use_downstream_protocol_config.http_protocol_options",
        ),
        Some(U::AutoConfig(c)) => (
            c.http_protocol_options.as_ref(),
            "auto_config.http_protocol_options",
        ),
        None => (None, ""),
    };
    let settings = Http1Settings::upstream();
    match http1 {
        Some(options) => settings.with_options(options).at(step),
        None => Ok(settings),
    }
}

#[cfg(test)]
mod tests {
    use ::http::Method;
    use filters::filter_state::keys;

    use super::*;

    fn names(sni: bool, san: bool) -> AutoNames {
        AutoNames::compile(&core::UpstreamHttpProtocolOptions {
            auto_sni: sni,
            auto_san_validation: san,
            override_auto_sni_header: "x-sni".into(),
        })
        .unwrap()
    }

    fn asked_by(names: &AutoNames, head: &RequestHead) -> (Option<String>, Option<String>) {
        let mut options = TransportOptions::default();
        names.apply(head, &mut options);
        let text = |name: Option<ByteString>| name.map(|n| n.to_string());
        assert!(options.subjects.len() < 2);
        (text(options.server_name), text(options.subjects.pop()))
    }

    fn asked(names: &AutoNames, host: &str) -> (Option<String>, Option<String>) {
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = host.into();
        asked_by(names, &head)
    }

    #[test]
    fn the_host_without_port_is_asked_for_and_an_address_only_verified() {
        let both = names(true, true);
        let name = || Some("a.example".to_owned());
        assert_eq!(asked(&both, "A.example:8443"), (name(), name()));
        assert_eq!(asked(&names(true, false), "a.example"), (name(), None));
        let address = |text: &str| (None, Some(text.to_owned()));
        assert_eq!(asked(&both, "10.0.0.1:443"), address("10.0.0.1"));
        assert_eq!(asked(&both, "[::1]:443"), address("::1"));
        assert_eq!(asked(&AutoNames::default(), "a.example"), (None, None));
    }

    #[test]
    fn what_filter_state_asks_for_stays() {
        let mut state = filters::filter_state::FilterState::default();
        let mut set = |key: &'static str, name: &'static str| {
            let object = filters::stream::FilterObject::Name(name.into());
            state.set(key.into(), object);
        };
        set(keys::UPSTREAM_SERVER_NAME, "");
        set(keys::SUBJECT_ALT_NAMES, "b.example,c.example");
        let mut options = TransportOptions::of_state(&state);
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = "a.example".into();
        names(true, true).apply(&head, &mut options);
        assert_eq!(options.server_name.as_deref(), Some(""));
        assert_eq!(options.subjects, ["b.example", "c.example"]);
    }

    #[test]
    fn a_header_that_is_there_and_not_empty_takes_the_hosts_place() {
        let names = names(true, false);
        let mut head = RequestHead::new(Method::GET, "/");
        head.authority = "a.example".into();
        let asked = |head: &RequestHead| asked_by(&names, head).0.unwrap();
        assert_eq!(asked(&head), "a.example");
        head.headers.insert("x-sni", "".parse().unwrap());
        assert_eq!(asked(&head), "a.example");
        head.headers.insert("x-sni", "b.example:1".parse().unwrap());
        assert_eq!(asked(&head), "b.example");
    }
}
