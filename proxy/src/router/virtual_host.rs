//! Virtual hosts: which one serves a host name, and which of its routes takes a request.

use std::cmp::Reverse;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use filters::head::RequestHead;
use filters::stream::StreamInfo;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use xds_client::error::{At, ConfigError};

use super::compiled_route::CompiledRoute;
use super::conditions::Conditions;
use super::context::{CompileContext, RouteConfigInfo, Scope, VirtualHostInfo};
use super::path_index::PathIndex;
use super::table::RouteOutcome;

/// A compiled virtual host.
#[derive(Debug)]
pub(super) struct VirtualHost {
    info: Arc<VirtualHostInfo>,
    tls: TlsRequirementType,
    routes: Box<[(Conditions, CompiledRoute)]>,
    index: PathIndex,
}

impl VirtualHost {
    /// Compiles the message.
    ///
    /// # Errors
    /// The first bad or unsupported field.
    pub(super) fn compile(
        config: &pb::VirtualHost,
        parent: &Arc<RouteConfigInfo>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        if config.name.is_empty() {
            return Err(ConfigError::new("must not be empty").at("name"));
        }
        if config.matcher.is_some() {
            return Err(ConfigError::unsupported("matcher"));
        }
        let tls = TlsRequirementType::try_from(config.require_tls)
            .map_err(|_| ConfigError::new("unknown value").at("require_tls"))?;
        let info = Arc::new(VirtualHostInfo::compile(config, cx)?);
        let scope = Scope {
            config: parent,
            virtual_host: &info,
        };
        let one = |(i, route): (usize, &pb::Route)| {
            let rule = route.r#match.as_ref();
            let compiled = rule
                .ok_or_else(|| ConfigError::new("is required").at("match"))
                .and_then(|rule| Conditions::compile(rule, cx.runtime).at("match"))
                .and_then(|rule| Ok((rule, CompiledRoute::compile(route, &scope, cx)?)));
            compiled.at(format!("routes[{i}]"))
        };
        // In a box: one virtual host of ten thousand has one route, and a vector begins with room for four.
        let routes: Box<[_]> = config
            .routes
            .iter()
            .enumerate()
            .map(one)
            .collect::<Result<_, _>>()?;
        let index = PathIndex::build(routes.iter().map(|(rule, _)| rule.key()));
        Ok(Self {
            info,
            tls,
            routes,
            index,
        })
    }

    /// Chooses the route: the first in the configuration whose conditions all hold.
    pub(super) fn route(
        &self,
        head: &RequestHead,
        path: &str,
        info: &StreamInfo,
        random: u64,
    ) -> RouteOutcome {
        if self.wants_tls(head) {
            return RouteOutcome::HttpsRedirect(self.info.clone());
        }
        self.index
            .candidates(path)
            .filter_map(|number| self.routes.get(usize::try_from(number).ok()?))
            .find(|(rule, _)| rule.matches(head, path, info, random))
            .map_or(RouteOutcome::NotFound, |(_, route)| {
                RouteOutcome::Matched(route.pick(head, random).clone())
            })
    }

    /// The number of routes.
    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    fn wants_tls(&self, head: &RequestHead) -> bool {
        let header = |name: &str| head.headers.get(name).map(http::HeaderValue::as_bytes);
        // The scheme that the client's connection had, which a trusted proxy in front may know better.
        let plain = || header("x-forwarded-proto").unwrap_or(head.scheme.as_bytes()) != b"https";
        match self.tls {
            TlsRequirementType::None => false,
            TlsRequirementType::ExternalOnly => {
                plain() && header("x-envoy-internal") != Some(b"true")
            }
            TlsRequirementType::All => plain(),
        }
    }
}

/// A host name's lower-case bytes, on the stack for all legal names.
type Name = SmallVec<[u8; 256]>;

/// Wildcards of one length, without their `*`.
#[derive(Debug)]
struct Wildcards {
    len: usize,
    names: FxHashMap<Box<[u8]>, usize>,
}

/// From host names to the numbers of virtual hosts.
// The hash is fast and predictable; only the configuration fills the maps.
#[derive(Debug, Default)]
pub(super) struct HostTable {
    exact: FxHashMap<Box<[u8]>, usize>,
    /// `*.example.com` and `*-a.example.com`, the longest first.
    suffixes: Vec<Wildcards>,
    /// `example.*`, the longest first.
    prefixes: Vec<Wildcards>,
    any: Option<usize>,
}

impl HostTable {
    /// Files the domains of a route configuration's virtual hosts.
    ///
    /// # Errors
    /// A virtual host without domains, and a domain that occurs twice.
    pub(super) fn compile(config: &pb::RouteConfiguration) -> Result<Self, ConfigError> {
        let mut table = Self::default();
        for (number, host) in config.virtual_hosts.iter().enumerate() {
            let step = format!("virtual_hosts[{number}].domains");
            if host.domains.is_empty() {
                return Err(ConfigError::new("must have one item at least").at(step));
            }
            for domain in &host.domains {
                table.add(domain, number, &config.name).at(&step)?;
            }
        }
        table.suffixes.sort_by_key(|w| Reverse(w.len));
        table.prefixes.sort_by_key(|w| Reverse(w.len));
        Ok(table)
    }

    fn add(&mut self, domain: &str, number: usize, config: &str) -> Result<(), ConfigError> {
        let lower = domain.to_ascii_lowercase();
        let previous = if lower == "*" {
            if self.any.replace(number).is_some() {
                return Err(ConfigError::new(format!(
                    "Only a single wildcard domain is permitted in route {config}"
                )));
            }
            None
        } else if let Some(suffix) = lower.strip_prefix('*') {
            wildcard(&mut self.suffixes, suffix, number)
        } else if let Some(prefix) = lower.strip_suffix('*') {
            wildcard(&mut self.prefixes, prefix, number)
        } else {
            self.exact.insert(lower.as_bytes().into(), number)
        };
        match previous {
            None => Ok(()),
            Some(_) => Err(ConfigError::new(format!(
                "Only unique values for domains are permitted. Duplicate entry of domain {lower} in route {config}"
            ))),
        }
    }

    /// The virtual host of a host name in any case: exact, then the longest suffix wildcard, then the
    /// longest prefix wildcard, then `*`. A wildcard stands for one character at least.
    pub(super) fn find(&self, host: &[u8]) -> Option<usize> {
        let lower: Name = host.iter().map(u8::to_ascii_lowercase).collect();
        let host = lower.as_slice();
        let suffix = |w: &Wildcards| {
            let at = host.len().checked_sub(w.len).filter(|at| *at > 0)?;
            w.names.get(host.get(at..)?).copied()
        };
        let prefix = |w: &Wildcards| {
            let part = host.get(..w.len).filter(|part| part.len() < host.len())?;
            w.names.get(part).copied()
        };
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.suffixes.iter().find_map(suffix))
            .or_else(|| self.prefixes.iter().find_map(prefix))
            .or(self.any)
    }
}

fn wildcard(lengths: &mut Vec<Wildcards>, name: &str, number: usize) -> Option<usize> {
    let names = match lengths.iter_mut().position(|w| w.len == name.len()) {
        Some(at) => lengths.get_mut(at),
        None => {
            lengths.push(Wildcards {
                len: name.len(),
                names: FxHashMap::default(),
            });
            lengths.last_mut()
        }
    };
    names.and_then(|w| w.names.insert(name.as_bytes().into(), number))
}

/// A host without its port, brackets of an IPv6 address kept.
pub(super) fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|b| *b == b':' || *b == b']') {
        Some(at) if host.get(at) == Some(&b':') => host.get(..at).unwrap_or(host),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(hosts: &[&[&str]]) -> Result<HostTable, ConfigError> {
        let host = |domains: &&[&str]| pb::VirtualHost {
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            ..Default::default()
        };
        HostTable::compile(&pb::RouteConfiguration {
            name: "r".into(),
            virtual_hosts: hosts.iter().map(host).collect(),
            ..Default::default()
        })
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let t = table(&[
            &["*"],
            &["*.foo.com"],
            &["*-bar.foo.com"],
            &["foo.*"],
            &["foo.bar.*"],
            &["WWW.foo.com", "foo.com:8080"],
        ])
        .unwrap();
        for (host, number) in [
            ("www.FOO.com", 5),
            ("foo.com:8080", 5),
            ("x.foo.com", 1),
            ("x-bar.foo.com", 2),
            ("-bar.foo.com", 1),
            (".foo.com", 0),
            ("foo.com", 3),
            ("foo.bar.x", 4),
            ("foo.bar.", 3),
            ("foo.foo.com", 1),
            ("foo.", 0),
            ("", 0),
            ("else", 0),
        ] {
            assert_eq!(t.find(host.as_bytes()), Some(number), "{host}");
        }
        assert_eq!(table(&[&["a"]]).unwrap().find(b"b"), None);
    }

    #[test]
    fn a_domain_may_occur_once() {
        let error = table(&[&["a.b"], &["A.b"]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "virtual_hosts[1].domains: Only unique values for domains are permitted. \
             Duplicate entry of domain a.b in route r"
        );
        assert!(table(&[&["*.b", "*.B"]]).is_err());
        assert!(table(&[&["b.*", "b.*"]]).is_err());
        let error = table(&[&["*"], &["*"]]).unwrap_err();
        assert!(error.reason().starts_with("Only a single wildcard domain"));
        assert!(table(&[&[]]).is_err());
    }

    #[test]
    fn ports() {
        for (host, bare) in [
            ("a.b:80", "a.b"),
            ("a.b", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(without_port(host.as_bytes()), bare.as_bytes());
        }
    }
}
