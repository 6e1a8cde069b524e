//! What a route does with its requests: forward, redirect, answer; mirrors and hash policies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_action as action;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use filters::head::RequestHead;
use filters::header_mutation::MutationList;
use filters::matcher::header::HeaderRef;
use filters::matcher::regex::Substitution;
use filters::runtime::{self, Fraction, Setting};
use http::StatusCode;
use xds_client::data_source;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::router::context::{ClusterRef, CompileContext, reject};
use crate::router::redirect::Redirect;
use crate::upstream::cluster::Cluster;
use crate::upstream::slot::ClusterDirectory;

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Forward to this cluster.
    Cluster(ClusterRef),
    /// Forward to the cluster that this request header names.
    ClusterHeader(HeaderRef, ClusterDirectory<Cluster>),
    /// Send the client elsewhere.
    Redirect(Redirect),
    /// Answer.
    DirectResponse(DirectResponse),
    /// For filters only: nothing is forwarded.
    NonForwarding,
}

/// A fixed answer.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body; empty for none.
    pub body: Bytes,
}

impl DirectResponse {
    /// Compiles the message; `limit` is the body's, in bytes.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile(proto: &pb::DirectResponseAction, limit: usize) -> Result<Self, ConfigError> {
        reject(&[(proto.body_format.is_some(), "body_format")])?;
        let status = u16::try_from(proto.status)
            .ok()
            .filter(|s| (200..600).contains(s))
            .and_then(|s| StatusCode::from_u16(s).ok())
            .ok_or_else(|| ConfigError::new("must be from 200 to 599").at("status"))?;
        let body = match &proto.body {
            None => Bytes::new(),
            Some(source) => data_source::read(source).at("body")?.into(),
        };
        if body.len() > limit {
            let size = body.len();
            return Err(ConfigError::new(format!(
                "response body size is {size} bytes; maximum is {limit}"
            ))
            .at("body"));
        }
        Ok(Self { status, body })
    }
}

/// A cluster that gets copies of requests.
#[derive(Debug, Clone)]
pub struct Mirror {
    target: MirrorTarget,
    /// The requests that are copied.
    share: Setting<Fraction>,
    /// Whether `-shadow` is appended to the copy's host.
    pub append_host_suffix: bool,
    /// The copy's host, instead.
    pub host: Option<ByteString>,
    /// What is changed about the copy's headers.
    pub mutations: MutationList,
}

#[derive(Debug, Clone)]
enum MirrorTarget {
    Cluster(ClusterRef),
    /// The cluster that this request header names.
    Header(HeaderRef, ClusterDirectory<Cluster>),
}

impl Mirror {
    /// Compiles `request_mirror_policies`.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path.
    pub fn compile_all(
        proto: &[action::RequestMirrorPolicy],
        cx: &CompileContext<'_>,
    ) -> Result<Arc<[Self]>, ConfigError> {
        let each = |(i, m)| Self::compile(m, cx).at(format!("request_mirror_policies[{i}]"));
        proto.iter().enumerate().map(each).collect()
    }

    fn compile(
        proto: &action::RequestMirrorPolicy,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        let target = match (proto.cluster.as_str(), proto.cluster_header.as_str()) {
            ("", "") => return Err(ConfigError::new("must not be empty").at("cluster")),
            (name, "") => MirrorTarget::Cluster(cx.cluster(name).at("cluster")?),
            ("", header) => MirrorTarget::Header(
                HeaderRef::parse(header).at("cluster_header")?,
                cx.directory.clone(),
            ),
            _ => return Err(ConfigError::new("cluster and cluster_header are both set")),
        };
        let mutations = MutationList::compile(&proto.request_headers_mutations);
        let host = proto.host_rewrite_literal.as_str();
        let share = runtime::share(proto.runtime_fraction.as_ref(), cx.runtime);
        Ok(Self {
            target,
            share: share.at("runtime_fraction")?,
            append_host_suffix: !proto.disable_shadow_host_suffix_append,
            host: (!host.is_empty()).then(|| host.into()),
            mutations: mutations.at("request_headers_mutations")?,
        })
    }

    /// The cluster that a request's copy goes to, if it is there.
    pub fn cluster(&self, head: &RequestHead) -> Option<Arc<Cluster>> {
        match &self.target {
            MirrorTarget::Cluster(slot) => slot.get(),
            MirrorTarget::Header(header, directory) => {
                let name = header.first_in_request(head)?;
                directory.find(std::str::from_utf8(name).ok()?)?.get()
            }
        }
    }

    /// Whether a request with this random number is copied.
    pub fn applies(&self, random: u64) -> bool {
        self.share.get().takes(random)
    }
}

/// What a request is hashed by.
#[derive(Debug, Clone)]
pub enum HashSource {
    /// A header, through an optional rewrite.
    Header(HeaderRef, Option<Box<Substitution>>),
    /// A cookie, which is made for clients that do not have it if there is a `ttl`.
    Cookie {
        /// Its name.
        name: String,
        /// None: never made. Zero: a session cookie.
        ttl: Option<Duration>,
        /// Its path; may be empty.
        path: String,
        /// Further attributes, by name and value.
        attributes: Vec<(String, String)>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    QueryParameter(String),
    /// A filter-state object.
    FilterState(String),
}

/// A compiled hash policy.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Whether a hash so far ends the list here.
    pub terminal: bool,
}

impl HashPolicy {
    /// Compiles a route's `hash_policy`.
    ///
    /// # Errors
    /// An invalid field, with its path.
    pub fn compile_all(proto: &[action::HashPolicy]) -> Result<Vec<Self>, ConfigError> {
        let mut all = Vec::new();
        for (i, policy) in proto.iter().enumerate() {
            let source = Self::source(policy).at(format!("hash_policy[{i}]"))?;
            all.extend(source.map(|source| Self {
                source,
                terminal: policy.terminal,
            }));
        }
        Ok(all)
    }

    fn source(proto: &action::HashPolicy) -> Result<Option<HashSource>, ConfigError> {
        Ok(Some(match &proto.policy_specifier {
            None => return Err(ConfigError::new("a policy specifier is required")),
            Some(PolicySpecifier::Header(h)) => {
                let rewrite = h.regex_rewrite.as_ref().map(Substitution::compile);
                HashSource::Header(
                    HeaderRef::parse(&h.header_name).at("header.header_name")?,
                    rewrite
                        .transpose()
                        .at("header.regex_rewrite")?
                        .map(Box::new),
                )
            }
            Some(PolicySpecifier::Cookie(c)) => HashSource::Cookie {
                name: c.name.clone(),
                ttl: duration::of_field(c.ttl.as_ref(), "cookie.ttl")?,
                path: c.path.clone(),
                attributes: c
                    .attributes
                    .iter()
                    .map(|a| (a.name.clone(), a.value.clone()))
                    .collect(),
            },
            Some(PolicySpecifier::ConnectionProperties(p)) if p.source_ip => HashSource::SourceIp,
            Some(PolicySpecifier::ConnectionProperties(_)) => return Ok(None),
            Some(PolicySpecifier::QueryParameter(q)) => HashSource::QueryParameter(q.name.clone()),
            Some(PolicySpecifier::FilterState(f)) => HashSource::FilterState(f.key.clone()),
        }))
    }
}
