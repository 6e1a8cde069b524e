//! Access log filters: which streams a log tells of.
//!
//! Envoy: `envoy.config.accesslog.v3.AccessLogFilter`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3::{
    self as pb, ComparisonFilter, access_log_filter::FilterSpecifier, comparison_filter::Op,
};
use filters::flags::ResponseFlags;
use filters::formatter::FormatContext;
use filters::grpc::status_of;
use filters::head::RequestHead;
use filters::matcher::HeaderMatcher;
use filters::matcher::metadata::MetadataMatcher;
use filters::runtime::{Fraction, Live, RuntimeKeys, Setting};
use xds_client::error::{At, ConfigError};

/// How deeply filters may be nested.
const MAX_DEPTH: usize = 16;

/// A compiled access log filter.
pub(crate) enum Filter {
    Always,
    /// Nothing is ever traced.
    Never,
    Status(Op, Setting<u64>),
    Duration(Op, Setting<u64>),
    Flags(Vec<ResponseFlags>),
    Header(Box<HeaderMatcher>),
    /// By [`AccessLogType`](filters::stream::AccessLogType)'s number; `true`: all but these.
    Moment(Vec<i32>, bool),
    /// A share of the requests; `true`: chosen anew for each log.
    Share(Arc<Live<Fraction>>, bool),
    /// `true`: all but these.
    GrpcStatus(Vec<i32>, bool),
    /// With what holds if there is no such metadata.
    Metadata(Box<MetadataMatcher>, bool),
    And(Vec<Filter>),
    Or(Vec<Filter>),
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// The path of the field that is not supported.
    pub(crate) fn compile(
        spec: &FilterSpecifier,
        runtime: &dyn RuntimeKeys,
    ) -> Result<Self, ConfigError> {
        Self::nested(spec, runtime, 0)
    }

    fn nested(
        spec: &FilterSpecifier,
        runtime: &dyn RuntimeKeys,
        depth: usize,
    ) -> Result<Self, ConfigError> {
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("nested too deeply"));
        }
        let comparison = |c: &Option<ComparisonFilter>| {
            let c = c.as_ref();
            let c = c.ok_or_else(|| ConfigError::new("is required").at("comparison"))?;
            let (key, default) = c.value.as_ref().map_or(("", 0), |v| {
                (v.runtime_key.as_str(), u64::from(v.default_value))
            });
            let value = match key {
                "" => Setting::Fixed(default),
                key => Setting::Live(runtime.number(key, default)),
            };
            Ok((c.op(), value))
        };
        let all = |filters: &[pb::AccessLogFilter]| {
            filters
                .iter()
                .enumerate()
                .map(|(i, filter)| {
                    match &filter.filter_specifier {
                        Some(spec) => Self::nested(spec, runtime, depth + 1),
                        None => Err(ConfigError::new("is required")),
                    }
                    .at(format!("filters[{i}]"))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match spec {
            FilterSpecifier::StatusCodeFilter(filter) => {
                let (op, value) = comparison(&filter.comparison).at("status_code_filter")?;
                Self::Status(op, value)
            }
            FilterSpecifier::DurationFilter(filter) => {
                let (op, value) = comparison(&filter.comparison).at("duration_filter")?;
                Self::Duration(op, value)
            }
            // No filter here marks requests as health checks.
            FilterSpecifier::NotHealthCheckFilter(_) => Self::Always,
            FilterSpecifier::TraceableFilter(_) => Self::Never,
            FilterSpecifier::RuntimeFilter(filter) => {
                share(filter, runtime).at("runtime_filter")?
            }
            FilterSpecifier::ResponseFlagFilter(filter) => {
                flags(&filter.flags).at("response_flag_filter.flags")?
            }
            FilterSpecifier::HeaderFilter(filter) => {
                let header = filter.header.clone().unwrap_or_default();
                Self::Header(Box::new(
                    HeaderMatcher::compile(&header).at("header_filter.header")?,
                ))
            }
            FilterSpecifier::GrpcStatusFilter(filter) => {
                if let Some(status) = filter.statuses.iter().find(|s| !(0..=16).contains(*s)) {
                    let error = ConfigError::new(format!("unknown status {status}"));
                    return Err(error.at("grpc_status_filter.statuses"));
                }
                Self::GrpcStatus(filter.statuses.clone(), filter.exclude)
            }
            FilterSpecifier::MetadataFilter(filter) => {
                let missing = filter.match_if_key_not_found.is_none_or(|v| v.value);
                let matcher = filter.matcher.as_ref();
                let matcher = matcher.ok_or_else(|| ConfigError::new("is required"));
                let matcher = matcher.and_then(MetadataMatcher::compile);
                Self::Metadata(Box::new(matcher.at("metadata_filter.matcher")?), missing)
            }
            FilterSpecifier::LogTypeFilter(filter) => {
                Self::Moment(filter.types.clone(), filter.exclude)
            }
            FilterSpecifier::AndFilter(filter) => Self::And(all(&filter.filters).at("and_filter")?),
            FilterSpecifier::OrFilter(filter) => Self::Or(all(&filter.filters).at("or_filter")?),
            FilterSpecifier::ExtensionFilter(filter) => {
                let error = ConfigError::new(format!("{} is not supported", filter.name));
                return Err(error.at("extension_filter"));
            }
        })
    }

    /// Whether the stream passes.
    pub(crate) fn admits(&self, context: &FormatContext<'_>) -> bool {
        let info = context.info;
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Status(op, value) => {
                let status = info.response_code.unwrap_or(0);
                compare(*op, status.into(), value.get())
            }
            Self::Duration(op, value) => {
                compare(*op, info.start.elapsed().as_millis(), value.get())
            }
            Self::Flags(flags) if flags.is_empty() => !info.flags.is_empty(),
            Self::Flags(flags) => flags.iter().any(|flag| info.flags.contains(*flag)),
            Self::Header(matcher) => context.request.is_some_and(|head| matcher.matches(head)),
            Self::Moment(numbers, exclude) => {
                numbers.contains(&info.log_type.name_and_number().1) != *exclude
            }
            Self::Share(fraction, independent) => {
                let own = context.request.filter(|_| !independent);
                let random = own.and_then(random_of_id);
                fraction
                    .get()
                    .takes(random.unwrap_or_else(|| fastrand::u64(..)))
            }
            Self::GrpcStatus(statuses, exclude) => {
                let status = status_of(context.trailers, context.response, info.response_code);
                // A status that is none is Unknown.
                let status = status.and_then(|s| i32::try_from(s).ok()).unwrap_or(2);
                statuses.contains(&status) != *exclude
            }
            Self::Metadata(matcher, missing) => {
                let object = info.dynamic_metadata.get(matcher.namespace());
                match matcher.finds(object) {
                    true => matcher.matches_object(object),
                    false => *missing,
                }
            }
            Self::And(filters) => filters.iter().all(|f| f.admits(context)),
            Self::Or(filters) => filters.iter().any(|f| f.admits(context)),
        }
    }
}

fn share(filter: &pb::RuntimeFilter, runtime: &dyn RuntimeKeys) -> Result<Filter, ConfigError> {
    if filter.runtime_key.is_empty() {
        return Err(ConfigError::new("is required").at("runtime_key"));
    }
    let default = match &filter.percent_sampled {
        Some(percent) => Fraction::compile(percent).at("percent_sampled")?,
        None => Fraction::NONE,
    };
    let fraction = runtime.fraction(&filter.runtime_key, default);
    Ok(Filter::Share(fraction, filter.use_independent_randomness))
}

fn flags(names: &[String]) -> Result<Filter, ConfigError> {
    let flag = |name: &String| {
        ResponseFlags::from_short(name)
            .ok_or_else(|| ConfigError::new(format!("unknown flag {name}")))
    };
    let flags = names.iter().map(flag).collect::<Result<_, _>>();
    flags.map(Filter::Flags)
}

/// The number that a request's id is for all who sample: its first eight digits.
fn random_of_id(request: &RequestHead) -> Option<u64> {
    let id = request.headers.get("x-request-id")?.to_str().ok()?;
    // Only UUIDs, as in Envoy.
    let digits = id.get(..8).filter(|_| id.len() == 36)?;
    u64::from_str_radix(digits, 16).ok()
}

fn compare(op: Op, left: u128, right: u64) -> bool {
    let right = u128::from(right);
    match op {
        Op::Eq => left == right,
        Op::Ge => left >= right,
        Op::Le => left <= right,
        Op::Ne => left != right,
    }
}
