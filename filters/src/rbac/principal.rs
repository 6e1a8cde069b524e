//! Principals: who does it.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as MtlsAuthenticated;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::{Layer, Metadata, Subject, any, each, header, path};
use crate::matcher::{CidrRange, FilterStateMatcher, HeaderMatcher, SanMatcher, StringMatcher};
use crate::stream::Address;
use crate::tls::TlsInfo;

/// A compiled principal.
#[derive(Debug)]
pub(super) enum Principal {
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    Any,
    /// Over TLS, and with such a name if there is a matcher.
    Authenticated(Option<StringMatcher>),
    /// With a certificate that was verified, and has such a name if there is a matcher.
    Validated(Option<SanMatcher>),
    Ip(Source, CidrRange),
    Header(Box<HeaderMatcher>),
    Path(StringMatcher),
    Metadata(Box<Metadata>),
    FilterState(Box<FilterStateMatcher>),
}

/// Which of a client's addresses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// That of the connection (PROXY protocol).
    Connection,
    /// That of the socket.
    Direct,
    /// The one that is trusted (PROXY protocol, XFF).
    Remote,
}

impl Principal {
    /// Compiles a principal. How deeply they nest is bounded by the decoder: 100 messages.
    ///
    /// # Errors
    /// The path of what is wrong or not supported.
    pub(super) fn compile(proto: &pb::Principal, layer: Layer) -> Result<Self, ConfigError> {
        let all =
            |set: &pb::principal::Set| each(&set.ids, |id| Self::compile(id, layer)).at("ids");
        Ok(match &proto.identifier {
            None => return Err(ConfigError::new("value is required").at("identifier")),
            Some(Identifier::AndIds(set)) => Self::And(all(set).at("and_ids")?),
            Some(Identifier::OrIds(set)) => Self::Or(all(set).at("or_ids")?),
            Some(Identifier::NotId(id)) => {
                Self::Not(Box::new(Self::compile(id, layer).at("not_id")?))
            }
            Some(Identifier::Any(value)) => any(*value).map(|()| Self::Any)?,
            Some(Identifier::Authenticated(authenticated)) => {
                let name = authenticated.principal_name.as_ref();
                let matcher = name.map(StringMatcher::compile).transpose();
                Self::Authenticated(matcher.at("authenticated.principal_name")?)
            }
            Some(Identifier::SourceIp(range)) => Self::Ip(
                Source::Connection,
                CidrRange::compile(range).at("source_ip")?,
            ),
            Some(Identifier::DirectRemoteIp(range)) => Self::Ip(
                Source::Direct,
                CidrRange::compile(range).at("direct_remote_ip")?,
            ),
            Some(Identifier::RemoteIp(range)) => {
                Self::Ip(Source::Remote, CidrRange::compile(range).at("remote_ip")?)
            }
            Some(Identifier::Header(matcher)) => Self::Header(Box::new(header(matcher, layer)?)),
            Some(Identifier::UrlPath(matcher)) => Self::Path(path(matcher)?),
            Some(Identifier::Metadata(matcher)) => {
                Self::Metadata(Box::new(Metadata::dynamic(matcher)?))
            }
            Some(Identifier::SourcedMetadata(sourced)) => {
                Self::Metadata(Box::new(Metadata::sourced(sourced)?))
            }
            Some(Identifier::FilterState(matcher)) => {
                let matcher = FilterStateMatcher::compile(matcher);
                Self::FilterState(Box::new(matcher.at("filter_state")?))
            }
            Some(Identifier::Custom(custom)) => validated(custom).at("custom")?,
        })
    }

    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|p| p.matches(subject)),
            Self::Or(all) => all.iter().any(|p| p.matches(subject)),
            Self::Not(id) => !id.matches(subject),
            Self::Any => true,
            Self::Authenticated(matcher) => {
                let tls = subject.connection.tls.as_deref();
                tls.is_some_and(|tls| matcher.as_ref().is_none_or(|m| has_name(tls, m)))
            }
            Self::Validated(matcher) => {
                let tls = subject.connection.tls.as_deref();
                let peer = tls.and_then(|tls| tls.peer.as_ref());
                peer.filter(|peer| peer.validated)
                    .is_some_and(|peer| matcher.as_ref().is_none_or(|m| m.matches(&peer.facts)))
            }
            Self::Ip(source, range) => source
                .of(subject)
                .ip()
                .is_some_and(|address| range.contains(address.ip())),
            Self::Header(matcher) => subject.header(matcher),
            Self::Path(matcher) => subject.path().is_some_and(|path| matcher.matches(path)),
            Self::Metadata(metadata) => metadata.matches(subject),
            Self::FilterState(matcher) => subject
                .filter_state
                .is_some_and(|state| matcher.matches(state)),
        }
    }
}

/// The one principal by extension: `envoy.rbac.principals.mtls_authenticated`.
fn validated(custom: &TypedExtensionConfig) -> Result<Principal, ConfigError> {
    let config = custom
        .typed_config
        .as_ref()
        .ok_or_else(|| ConfigError::new("value is required"));
    let compiled = config
        .and_then(any::unpack)
        .and_then(|config: MtlsAuthenticated| {
            let matcher = config.san_matcher.as_ref().map(SanMatcher::compile);
            if matcher.is_none() && !config.any_validated_client_certificate {
                return Err(ConfigError::new("at least one field must be set"));
            }
            Ok(Principal::Validated(matcher.transpose().at("san_matcher")?))
        });
    compiled.at("typed_config")
}

impl Source {
    fn of<'a>(self, subject: &Subject<'a>) -> &'a Address {
        match self {
            Self::Connection => &subject.connection.remote,
            Self::Direct => &subject.connection.direct_remote,
            Self::Remote => subject.remote,
        }
    }
}

/// Whether the peer's certificate has a name that matches: a URI, a DNS name, or its subject. A peer without one
/// has the empty name, as in Envoy.
fn has_name(tls: &TlsInfo, matcher: &StringMatcher) -> bool {
    let Some(peer) = &tls.peer else {
        return matcher.matches("");
    };
    let facts = &peer.facts;
    let mut names = facts.uri_sans.iter().chain(&facts.dns_sans);
    names.any(|name| matcher.matches(name)) || matcher.matches(&facts.subject)
}
