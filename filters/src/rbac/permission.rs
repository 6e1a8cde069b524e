//! Permissions: what is done.

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
use xds_client::error::{At, ConfigError};

use super::{Layer, Metadata, Subject, any, each, header, path};
use crate::matcher::{CidrRange, HeaderMatcher, StringMatcher, UriTemplate};

/// A compiled permission.
#[derive(Debug)]
pub(super) enum Permission {
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Any,
    Header(Box<HeaderMatcher>),
    Path(StringMatcher),
    Destination(CidrRange),
    /// From, up to and without.
    Ports(u32, u32),
    Metadata(Box<Metadata>),
    ServerName(StringMatcher),
    Template(Box<UriTemplate>),
}

impl Permission {
    /// Compiles a permission. How deeply they nest is bounded by the decoder: 100 messages.
    ///
    /// # Errors
    /// The path of what is wrong or not supported.
    pub(super) fn compile(proto: &pb::Permission, layer: Layer) -> Result<Self, ConfigError> {
        let all = |set: &pb::permission::Set| {
            each(&set.rules, |rule| Self::compile(rule, layer)).at("rules")
        };
        Ok(match &proto.rule {
            None => return Err(ConfigError::new("value is required").at("rule")),
            Some(Rule::AndRules(set)) => Self::And(all(set).at("and_rules")?),
            Some(Rule::OrRules(set)) => Self::Or(all(set).at("or_rules")?),
            Some(Rule::NotRule(rule)) => {
                Self::Not(Box::new(Self::compile(rule, layer).at("not_rule")?))
            }
            Some(Rule::Any(value)) => any(*value).map(|()| Self::Any)?,
            Some(Rule::Header(matcher)) => Self::Header(Box::new(header(matcher, layer)?)),
            Some(Rule::UrlPath(matcher)) => Self::Path(path(matcher)?),
            Some(Rule::DestinationIp(range)) => {
                Self::Destination(CidrRange::compile(range).at("destination_ip")?)
            }
            Some(Rule::DestinationPort(port)) if *port <= u16::MAX.into() => {
                Self::Ports(*port, port + 1)
            }
            Some(Rule::DestinationPort(_)) => {
                return Err(ConfigError::new("not a port").at("destination_port"));
            }
            Some(Rule::DestinationPortRange(range)) => {
                let bound = |n: i32| u32::try_from(n).ok().filter(|n| *n <= 65536);
                match (bound(range.start), bound(range.end)) {
                    (Some(start), Some(end)) if start < end => Self::Ports(start, end),
                    _ => {
                        return Err(
                            ConfigError::new("not a range of ports").at("destination_port_range")
                        );
                    }
                }
            }
            Some(Rule::Metadata(matcher)) => Self::Metadata(Box::new(Metadata::dynamic(matcher)?)),
            Some(Rule::SourcedMetadata(sourced)) => {
                Self::Metadata(Box::new(Metadata::sourced(sourced)?))
            }
            Some(Rule::RequestedServerName(matcher)) => {
                Self::ServerName(StringMatcher::compile(matcher).at("requested_server_name")?)
            }
            Some(Rule::Matcher(_)) => return Err(ConfigError::unsupported("matcher")),
            Some(Rule::UriTemplate(template)) => {
                let template = UriTemplate::of_extension(template).at("uri_template")?;
                Self::Template(Box::new(template))
            }
        })
    }

    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        let local = &subject.connection.local;
        match self {
            Self::And(all) => all.iter().all(|p| p.matches(subject)),
            Self::Or(all) => all.iter().any(|p| p.matches(subject)),
            Self::Not(rule) => !rule.matches(subject),
            Self::Any => true,
            Self::Header(matcher) => subject.header(matcher),
            Self::Path(matcher) => subject.path().is_some_and(|path| matcher.matches(path)),
            Self::Template(template) => subject.path().is_some_and(|path| template.matches(path)),
            Self::Destination(range) => local.ip().is_some_and(|a| range.contains(a.ip())),
            Self::Ports(start, end) => local
                .ip()
                .is_some_and(|a| (*start..*end).contains(&a.port().into())),
            Self::Metadata(metadata) => metadata.matches(subject),
            Self::ServerName(matcher) => matcher.matches(
                subject
                    .connection
                    .server_name
                    .as_deref()
                    .unwrap_or_default(),
            ),
        }
    }
}
