//! `envoy.filters.listener.proxy_protocol`: takes the PROXY header off a connection and believes it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version as ProtoVersion;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::proxy_protocol as pb;
use filters::filter_state::keys;
use filters::stream::{Address, DynamicMetadata, FilterObject, FilterState};
use xds_client::error::{At, ConfigError};

use super::{Found, Refusal};
use crate::server::accepted::Accepted;
use crate::server::listener_stats::stats;
use crate::telemetry::stats::{Counter, Scope};
use crate::transport::proxy_protocol::parse::{self, Header, Parsed, Version};
use crate::transport::proxy_protocol::tlvs::Tlv;
use crate::transport::proxy_protocol::{HEAD_V2, PassThrough, tlv_type};

/// Where TLVs go in the dynamic metadata if nothing else is said.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

stats!(
    /// `proxy_proto.[<stat_prefix>.]*`
    GeneralStats {
        /// Connections without a header that were let through.
        not_found_allowed: Counter counter,
        /// Connections without one that were closed.
        not_found_disallowed: Counter counter,
    }
);

stats!(
    /// `proxy_proto.[<stat_prefix>.]versions.v<n>.*`
    VersionStats {
        /// Headers, disallowed ones among them.
        found: Counter counter,
        /// Headers of a version that is not allowed; the connection was closed.
        disallowed: Counter counter,
        /// Malformed headers; the connection was closed.
        error: Counter counter,
    }
);

/// The filter, compiled.
#[derive(Debug)]
pub(super) struct ProxyProtocolFilter {
    /// Let connections through that have no header.
    optional: bool,
    v1: bool,
    v2: bool,
    rules: Vec<Rule>,
    /// What the rules choose goes to the filter state, not to the dynamic metadata.
    to_state: bool,
    pass: PassThrough,
    general: GeneralStats,
    of_v1: VersionStats,
    of_v2: VersionStats,
    /// `downstream_cx_proxy_proto_error`: what is malformed or missing, by its old name.
    errors: Counter,
}

/// A TLV for the dynamic metadata.
#[derive(Debug)]
struct Rule {
    kind: u8,
    namespace: String,
    key: String,
    base64: bool,
}

/// What to do with a connection.
enum Verdict<'a> {
    Wait,
    PassUntouched,
    Close,
    Take(Header<'a>),
}

impl ProxyProtocolFilter {
    /// Compiles the filter. `root` is the scope of all stats.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub(super) fn compile(proto: &ProxyProtocol, root: &Scope) -> Result<Self, ConfigError> {
        let location = pb::TlvLocation::try_from(proto.tlv_location)
            .map_err(|_| ConfigError::new("unknown value").at("tlv_location"))?;
        let disallowed = |v: ProtoVersion| proto.disallowed_versions.contains(&(v as i32));
        let (v1, v2) = (!disallowed(ProtoVersion::V1), !disallowed(ProtoVersion::V2));
        if !v1 && !v2 {
            return Err(ConfigError::new("all versions are disallowed").at("disallowed_versions"));
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (i, rule) in proto.rules.iter().enumerate() {
            let rule = Rule::compile(rule).at(format!("rules[{i}]"))?;
            // One rule for each type: the last, as in Envoy.
            rules.retain(|other| other.kind != rule.kind);
            rules.push(rule);
        }
        let scope = root.scope(&format!("proxy_proto.{}", proto.stat_prefix));
        Ok(Self {
            optional: proto.allow_requests_without_proxy_protocol,
            v1,
            v2,
            rules,
            to_state: location == pb::TlvLocation::FilterState,
            pass: PassThrough::compile(proto.pass_through_tlvs.as_ref()).at("pass_through_tlvs")?,
            general: GeneralStats::new(&scope),
            of_v1: VersionStats::new(&scope.scope("versions.v1.")),
            of_v2: VersionStats::new(&scope.scope("versions.v2.")),
            errors: root.counter("downstream_cx_proxy_proto_error"),
        })
    }

    /// Takes the header off `io` and notes what it says.
    pub(super) async fn run(&self, io: &mut Accepted, found: &mut Found) -> Result<(), Refusal> {
        loop {
            // The header is judged anew with every piece. Until it is complete that is a look at its first bytes.
            match self.judge(&found.prefix) {
                Verdict::Wait => {}
                Verdict::PassUntouched => return Ok(()),
                Verdict::Close => return Err(Refusal::Filter),
                Verdict::Take(header) => {
                    let (length, addresses) = (header.length, header.addresses);
                    let tlvs = self.passed(&header);
                    self.note(&header, &mut found.metadata, &mut found.filter_state);
                    if let Some((source, target)) = addresses {
                        found.remote = Address::Ip(source);
                        let target = Address::Ip(target);
                        if target != found.local {
                            found.restore(target);
                        }
                    }
                    found.tlvs = Some(tlvs);
                    found.prefix.advance(length);
                    return Ok(());
                }
            }
            io.read(&mut found.prefix).await?;
        }
    }

    /// Decides, and counts what is decided.
    fn judge<'a>(&self, bytes: &'a [u8]) -> Verdict<'a> {
        let begun = |version| self.allows(version) && parse::may_be(bytes, version);
        if bytes.is_empty() {
            return Verdict::Wait;
        }
        if self.optional && !begun(Version::V1) && !begun(Version::V2) {
            self.general.not_found_allowed.inc();
            return Verdict::PassUntouched;
        }
        let parsed = parse::header(bytes);
        let version = match &parsed {
            Parsed::Header(header) => Some(header.version),
            Parsed::Malformed(version) => Some(*version),
            // A binary header that is not wanted is refused at its beginning.
            Parsed::More if bytes.len() >= HEAD_V2 => {
                parse::version(bytes).filter(|v| *v == Version::V2)
            }
            Parsed::More | Parsed::NotFound => None,
        };
        if let Some(version) = version.filter(|v| !self.allows(*v)) {
            self.stats(version).found.inc();
            self.stats(version).disallowed.inc();
            return Verdict::Close;
        }
        match parsed {
            Parsed::More => Verdict::Wait,
            Parsed::Header(header) => {
                self.stats(header.version).found.inc();
                Verdict::Take(header)
            }
            Parsed::Malformed(version) => {
                self.stats(version).error.inc();
                self.errors.inc();
                Verdict::Close
            }
            Parsed::NotFound => {
                self.general.not_found_disallowed.inc();
                self.errors.inc();
                Verdict::Close
            }
        }
    }

    fn allows(&self, version: Version) -> bool {
        match version {
            Version::V1 => self.v1,
            Version::V2 => self.v2,
        }
    }

    fn stats(&self, version: Version) -> &VersionStats {
        match version {
            Version::V1 => &self.of_v1,
            Version::V2 => &self.of_v2,
        }
    }

    /// Notes what the rules choose.
    fn note(
        &self,
        header: &Header<'_>,
        metadata: &mut DynamicMetadata,
        state: &mut Option<Rc<FilterState>>,
    ) {
        let chosen = parse::tlvs(header.extensions).filter_map(|(kind, value)| {
            let rule = self.rules.iter().find(|rule| rule.kind == kind)?;
            Some((rule, rule.text(value)))
        });
        if self.to_state {
            // The last of a type counts here.
            let fields: BTreeMap<_, _> = chosen
                .map(|(rule, text)| (rule.key.clone(), text))
                .collect();
            if !fields.is_empty() {
                let mut all = state.take().map(Rc::unwrap_or_clone).unwrap_or_default();
                all.set(
                    keys::PROXY_TLVS.into(),
                    FilterObject::Fields(Arc::new(fields)),
                );
                *state = Some(Rc::new(all));
            }
            return;
        }
        for (rule, text) in chosen {
            let object = metadata.entry(rule.namespace.clone()).or_default();
            // The first of a type counts, as in Envoy.
            object.entry(rule.key.clone()).or_insert(text.into());
        }
    }

    fn passed(&self, header: &Header<'_>) -> Rc<[Tlv]> {
        let all = parse::tlvs(header.extensions).filter(|(kind, _)| self.pass.wants(*kind));
        all.map(|(kind, value)| (kind, Bytes::copy_from_slice(value)))
            .collect()
    }
}

impl Rule {
    fn compile(proto: &pb::Rule) -> Result<Self, ConfigError> {
        use pb::key_value_pair::ValueStringEncoding;
        let kind = tlv_type(proto.tlv_type).at("tlv_type")?;
        let Some(pair) = &proto.on_tlv_present else {
            return Err(ConfigError::new("value is required").at("on_tlv_present"));
        };
        if pair.key.is_empty() {
            return Err(ConfigError::new("must not be empty").at("on_tlv_present.key"));
        }
        Ok(Self {
            kind,
            namespace: match pair.metadata_namespace.as_str() {
                "" => NAMESPACE.to_owned(),
                namespace => namespace.to_owned(),
            },
            key: pair.key.clone(),
            base64: pair.value_string_encoding == ValueStringEncoding::Base64 as i32,
        })
    }

    fn text(&self, value: &[u8]) -> String {
        if self.base64 {
            return STANDARD.encode(value);
        }
        let mut text = String::with_capacity(value.len());
        for chunk in value.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '!'));
        }
        text
    }
}
