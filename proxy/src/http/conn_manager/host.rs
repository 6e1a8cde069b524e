//! What becomes of the authority before routing: `strip_matching_host_port`, `strip_any_host_port`,
//! `strip_trailing_host_dot`.

use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::StripPortMode,
};
use filters::head::RequestHead;
use xds_client::error::ConfigError;

/// The rules for hosts of a connection manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HostRules {
    port: StripPort,
    trailing_dot: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum StripPort {
    #[default]
    Keep,
    /// If it is the listener's.
    Matching,
    Any,
}

impl HostRules {
    /// From the fields of the connection manager.
    ///
    /// # Errors
    /// Both ways of stripping the port are on.
    pub(super) fn compile(proto: &HttpConnectionManager) -> Result<Self, ConfigError> {
        let any = matches!(
            proto.strip_port_mode,
            Some(StripPortMode::StripAnyHostPort(true))
        );
        let port = match (any, proto.strip_matching_host_port) {
            (true, true) => {
                return Err(ConfigError::new(
                    "strip_matching_host_port and strip_any_host_port are both set",
                ));
            }
            (true, false) => StripPort::Any,
            (false, true) => StripPort::Matching,
            (false, false) => StripPort::Keep,
        };
        Ok(Self {
            port,
            trailing_dot: proto.strip_trailing_host_dot,
        })
    }

    /// Applies the rules to a request that came in on port `ours`.
    pub(super) fn apply(self, head: &mut RequestHead, ours: Option<u16>) {
        if self.trailing_dot
            && let Some(host) = without_trailing_dot(&head.authority)
        {
            head.authority = host;
        }
        // A CONNECT's authority is where the tunnel leads to.
        if self.port == StripPort::Keep || head.method == http::Method::CONNECT {
            return;
        }
        if let Some((host, port)) = split_port(&head.authority)
            && (self.port == StripPort::Any || ours.map(u32::from) == Some(port))
        {
            head.authority = ByteString::from(host);
        }
    }
}

/// The host without the dot at its end, which may have a port behind it. None if there is no such dot.
fn without_trailing_dot(authority: &str) -> Option<ByteString> {
    if let Some(host) = authority.strip_suffix('.') {
        return Some(host.into());
    }
    let (host, port) = authority.rsplit_once(':')?;
    let host = host.strip_suffix('.')?;
    Some(format!("{host}:{port}").into())
}

/// Splits `host:port`; IPv6 literals keep their brackets. As in Envoy any number is a port.
fn split_port(authority: &str) -> Option<(&str, u32)> {
    let (host, port) = authority.rsplit_once(':')?;
    if host.contains(':') && !host.ends_with(']') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn after(rules: HostRules, method: Method, authority: &str) -> String {
        let mut head = RequestHead::new(method, "/");
        head.authority = authority.into();
        rules.apply(&mut head, Some(80));
        head.authority.to_string()
    }

    #[test]
    fn ports_are_stripped_as_configured() {
        let rules = |port| HostRules {
            port,
            trailing_dot: false,
        };
        for (authority, matching, any) in [
            ("a:80", "a", "a"),
            ("a:81", "a:81", "a"),
            ("a", "a", "a"),
            ("[::1]:80", "[::1]", "[::1]"),
            ("[::1]", "[::1]", "[::1]"),
            ("::1", "::1", "::1"),
            ("a:x", "a:x", "a:x"),
            ("a:", "a:", "a:"),
            ("a:99999", "a:99999", "a"),
        ] {
            let get = Method::GET;
            assert_eq!(
                after(rules(StripPort::Keep), get.clone(), authority),
                authority
            );
            assert_eq!(
                after(rules(StripPort::Matching), get.clone(), authority),
                matching
            );
            assert_eq!(after(rules(StripPort::Any), get, authority), any);
        }
        assert_eq!(
            after(rules(StripPort::Any), Method::CONNECT, "a:80"),
            "a:80"
        );
    }

    #[test]
    fn a_trailing_dot_goes_before_the_port() {
        let mut rules = HostRules {
            trailing_dot: true,
            ..HostRules::default()
        };
        for (from, to) in [
            ("a.", "a"),
            ("a.:1", "a:1"),
            ("a", "a"),
            ("a:1", "a:1"),
            (".", ""),
        ] {
            assert_eq!(after(rules, Method::GET, from), to);
        }
        rules.port = StripPort::Any;
        assert_eq!(after(rules, Method::GET, "a.:1"), "a");
    }
}
