//! From `Route` messages to routes: one for each message, or for each of its weighted clusters.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route::Action as ProtoAction;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster as weighted;
use filters::head::RequestHead;
use filters::header_mutation::MessageMutations;
use filters::matcher::HeaderRef;
use filters::metadata::ConfiguredMetadata;
use xds_client::error::{At, ConfigError};

use crate::router::action::{Action, DirectResponse};
use crate::router::context::{CompileContext, Scope, buffer_limit, reject};
use crate::router::forwarding::Forward;
use crate::router::redirect::Redirect;
use crate::router::rewrite::{HostRewrite, MatchedPath};
use crate::router::route::{Route, Shared, Weighted};

/// A route of a table: with one outcome, or one for each weighted cluster.
#[derive(Debug, Clone)]
pub enum CompiledRoute {
    /// One outcome.
    Single(Arc<Route>),
    /// One by chance.
    Weighted {
        /// The header that holds the number instead of chance.
        header: Option<HeaderRef>,
        /// The sum of the weights; positive.
        total: u64,
        /// Each outcome with the sum of the weights up to and including its own.
        entries: Vec<(u64, Arc<Route>)>,
        /// The last of them, which the last sum leads to.
        last: Arc<Route>,
    },
}

impl CompiledRoute {
    /// Compiles a route.
    ///
    /// # Errors
    /// An invalid or unsupported field, with its path inside the route.
    pub fn compile(
        proto: &pb::Route,
        scope: &Scope<'_>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        reject(&[(!proto.route_specifiers.is_empty(), "route_specifiers")])?;
        let matching = proto.r#match.as_ref();
        let matching = matching.ok_or_else(|| ConfigError::new("match is required"))?;
        let matched = MatchedPath::compile(matching).at("match")?;
        let forward = match &proto.action {
            Some(ProtoAction::Route(route)) => {
                Forward::compile(route, &matched, scope, cx).at("route")?
            }
            _ => Forward::default(),
        };
        let shared = Arc::new(Shared {
            name: proto.name.clone().into(),
            virtual_host: scope.virtual_host.clone(),
            config: scope.config.clone(),
            matched,
            headers: MessageMutations::compile(
                (
                    &proto.request_headers_to_add,
                    &proto.request_headers_to_remove,
                ),
                (
                    &proto.response_headers_to_add,
                    &proto.response_headers_to_remove,
                ),
            )?,
            filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
            metadata: ConfiguredMetadata::compile(proto.metadata.as_ref()),
            buffer_limit: buffer_limit(
                proto.per_request_buffer_limit_bytes.as_ref(),
                proto.request_body_buffer_limit.as_ref(),
            ),
            forward,
        });
        let action = match &proto.action {
            None => return Err(ConfigError::new("an action is required")),
            Some(ProtoAction::Route(route)) => match &route.cluster_specifier {
                Some(ClusterSpecifier::WeightedClusters(clusters)) => {
                    return Self::weighted(clusters, &shared, cx)
                        .at("weighted_clusters")
                        .at("route");
                }
                specifier => target(specifier.as_ref(), cx).at("route")?,
            },
            Some(ProtoAction::Redirect(redirect)) => {
                Action::Redirect(Redirect::compile(redirect, &shared.matched).at("redirect")?)
            }
            Some(ProtoAction::DirectResponse(direct)) => {
                let limit = scope.config.max_direct_response_body;
                let direct = DirectResponse::compile(direct, limit).at("direct_response")?;
                Action::DirectResponse(direct)
            }
            Some(ProtoAction::NonForwardingAction(_)) => Action::NonForwarding,
            Some(ProtoAction::FilterAction(_)) => {
                return Err(ConfigError::unsupported("filter_action"));
            }
        };
        Ok(Self::Single(Arc::new(Route {
            action,
            shared,
            weighted: None,
        })))
    }

    fn weighted(
        proto: &pb::WeightedCluster,
        shared: &Arc<Shared>,
        cx: &CompileContext<'_>,
    ) -> Result<Self, ConfigError> {
        use weighted::RandomValueSpecifier as Random;
        let header = match &proto.random_value_specifier {
            Some(Random::HeaderName(name)) => Some(HeaderRef::parse(name).at("header_name")?),
            Some(Random::UseHashPolicy(on)) if on.value => {
                return Err(ConfigError::unsupported("use_hash_policy"));
            }
            Some(Random::UseHashPolicy(_)) | None => None,
        };
        let mut total = 0_u64;
        let mut entries = Vec::new();
        for (i, cluster) in proto.clusters.iter().enumerate() {
            let (action, weighted) = entry(cluster, cx).at(format!("clusters[{i}]"))?;
            total += cluster.weight.as_ref().map_or(0, |w| u64::from(w.value));
            entries.push((
                total,
                Arc::new(Route {
                    action,
                    shared: shared.clone(),
                    weighted: Some(weighted),
                }),
            ));
        }
        if total == 0 || total > u64::from(u32::MAX) {
            return Err(ConfigError::new(
                "the sum of the weights must be from 1 to 4294967295",
            ));
        }
        let Some((_, last)) = entries.last() else {
            return Err(ConfigError::new("is empty").at("clusters"));
        };
        let last = last.clone();
        Ok(Self::Weighted {
            header,
            total,
            entries,
            last,
        })
    }

    /// The outcome for a request and a random number.
    pub fn pick(&self, head: &RequestHead, random: u64) -> &Arc<Route> {
        match self {
            Self::Single(route) => route,
            Self::Weighted {
                header,
                total,
                entries,
                last,
            } => {
                let given = header.as_ref().and_then(|header| number_in(header, head));
                let point = given.unwrap_or(random) % (*total).max(1);
                let at = entries.partition_point(|(up_to, _)| *up_to <= point);
                entries.get(at).map_or(last, |(_, route)| route)
            }
        }
    }
}

/// The number that a header holds. Repeated, it holds none: which line counts would be chance.
fn number_in(header: &HeaderRef, head: &RequestHead) -> Option<u64> {
    let value = header.in_request(head)?;
    std::str::from_utf8(&value).ok()?.trim().parse().ok()
}

/// Compiles what one weighted cluster is and adds.
fn entry(
    proto: &weighted::ClusterWeight,
    cx: &CompileContext<'_>,
) -> Result<(Action, Weighted), ConfigError> {
    use weighted::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
    let action = match (proto.name.as_str(), proto.cluster_header.as_str()) {
        ("", "") => return Err(ConfigError::new("name or cluster_header is required")),
        ("", header) => by_header(header, cx)?,
        (name, "") => Action::Cluster(cx.cluster(name).at("name")?),
        _ => return Err(ConfigError::new("name and cluster_header are both set")),
    };
    let host = match &proto.host_rewrite_specifier {
        Some(HostRewriteLiteral(host)) => HostRewrite::literal(host)?,
        None => None,
    };
    let weighted = Weighted {
        headers: MessageMutations::compile(
            (
                &proto.request_headers_to_add,
                &proto.request_headers_to_remove,
            ),
            (
                &proto.response_headers_to_add,
                &proto.response_headers_to_remove,
            ),
        )?,
        filter_configs: cx.filter_configs(&proto.typed_per_filter_config)?,
        host,
    };
    Ok((action, weighted))
}

fn target(
    specifier: Option<&ClusterSpecifier>,
    cx: &CompileContext<'_>,
) -> Result<Action, ConfigError> {
    Ok(match specifier {
        Some(ClusterSpecifier::Cluster(name)) => Action::Cluster(cx.cluster(name).at("cluster")?),
        Some(ClusterSpecifier::ClusterHeader(name)) => by_header(name, cx)?,
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            return Err(ConfigError::unsupported("cluster_specifier_plugin"));
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return Err(ConfigError::unsupported("inline_cluster_specifier_plugin"));
        }
        Some(ClusterSpecifier::WeightedClusters(_)) | None => {
            return Err(ConfigError::new("a cluster specifier is required"));
        }
    })
}

fn by_header(name: &str, cx: &CompileContext<'_>) -> Result<Action, ConfigError> {
    let header = HeaderRef::parse(name).at("cluster_header")?;
    Ok(Action::ClusterHeader(header, cx.directory.clone()))
}
