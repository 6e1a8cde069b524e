//! `stats_config` of the bootstrap.

use envoy_types::pb::envoy::config::metrics::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::tags::{self, ExtractedTags, TagExtractor};

/// Envoy's default buckets (`histogram_bucket_settings` overrides them).
const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0,
    60000.0, 300000.0, 600000.0, 1800000.0, 3600000.0,
];

#[derive(Debug)]
enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(regex::Regex),
}

#[derive(Debug)]
struct Pattern {
    ignore_case: bool,
    kind: StringMatch,
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        let lower;
        let name = if self.ignore_case {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        match &self.kind {
            StringMatch::Exact(s) => name == s,
            StringMatch::Prefix(s) => name.starts_with(s),
            StringMatch::Suffix(s) => name.ends_with(s),
            StringMatch::Contains(s) => name.contains(s),
            StringMatch::Regex(regex) => regex.is_match(name),
        }
    }

    /// None, with a log line, of a pattern that cannot be compiled: stats never fail the start.
    fn new(pb: &matcher::StringMatcher) -> Option<Self> {
        use matcher::string_matcher::MatchPattern as P;
        let fold = |s: &String| {
            if pb.ignore_case {
                s.to_ascii_lowercase()
            } else {
                s.clone()
            }
        };
        let mut ignore_case = pb.ignore_case;
        let kind = match pb.match_pattern.as_ref()? {
            P::Exact(s) => StringMatch::Exact(fold(s)),
            P::Prefix(s) => StringMatch::Prefix(fold(s)),
            P::Suffix(s) => StringMatch::Suffix(fold(s)),
            P::Contains(s) => StringMatch::Contains(fold(s)),
            P::SafeRegex(r) => {
                // `ignore_case` has no effect on a regex; the whole name must match.
                ignore_case = false;
                match regex::Regex::new(&format!("^(?:{})$", r.regex)) {
                    Ok(regex) => StringMatch::Regex(regex),
                    Err(error) => {
                        tracing::warn!(regex = r.regex, %error, "stats_config: skipping a regex that does not compile");
                        return None;
                    }
                }
            }
            _ => {
                tracing::warn!("stats_config: skipping a string matcher of an unknown kind");
                return None;
            }
        };
        Some(Self { ignore_case, kind })
    }
}

#[derive(Debug, Default)]
enum Matcher {
    #[default]
    All,
    RejectAll,
    Only(Vec<Pattern>),
    Except(Vec<Pattern>),
}

/// Which stats exist, their tags, and the buckets of histograms.
#[derive(Debug)]
pub struct StatsSettings {
    matcher: Matcher,
    tags: Vec<TagExtractor>,
    buckets: Vec<(Pattern, Vec<f64>)>,
}

impl Default for StatsSettings {
    fn default() -> Self {
        Self {
            matcher: Matcher::All,
            tags: TagExtractor::defaults(),
            buckets: Vec::new(),
        }
    }
}

impl StatsSettings {
    /// From the bootstrap. Never fails: a regex that does not compile is logged and skipped.
    pub fn from_proto(pb: &pb::StatsConfig) -> Self {
        use pb::stats_matcher::StatsMatcher as M;
        let patterns = |list: &matcher::ListStringMatcher| {
            list.patterns
                .iter()
                .filter_map(Pattern::new)
                .collect::<Vec<_>>()
        };
        let matcher = match pb
            .stats_matcher
            .as_ref()
            .and_then(|m| m.stats_matcher.as_ref())
        {
            None | Some(M::RejectAll(false)) => Matcher::All,
            Some(M::RejectAll(true)) => Matcher::RejectAll,
            Some(M::ExclusionList(list)) => Matcher::Except(patterns(list)),
            Some(M::InclusionList(list)) => Matcher::Only(patterns(list)),
        };
        let mut tags = if pb.use_all_default_tags.as_ref().is_none_or(|v| v.value) {
            TagExtractor::defaults()
        } else {
            Vec::new()
        };
        for tag in &pb.stats_tags {
            use pb::tag_specifier::TagValue as V;
            let regex = match &tag.tag_value {
                Some(V::FixedValue(value)) => {
                    tags.push(TagExtractor::fixed(&tag.tag_name, value));
                    continue;
                }
                Some(V::Regex(regex)) if !regex.is_empty() => regex,
                _ => {
                    tags.extend(TagExtractor::default_named(&tag.tag_name));
                    continue;
                }
            };
            match TagExtractor::regex(&tag.tag_name, regex) {
                Ok(extractor) => tags.push(extractor),
                Err(error) => {
                    tracing::warn!(tag = tag.tag_name, %error, "stats_config.stats_tags: skipping a regex that does not compile");
                }
            }
        }
        let buckets = pb
            .histogram_bucket_settings
            .iter()
            .filter_map(|s| Some((Pattern::new(s.r#match.as_ref()?)?, s.buckets.clone())))
            .collect();
        Self {
            matcher,
            tags,
            buckets,
        }
    }

    /// Adds tags that every stat has (`--stats-tag`).
    pub fn add_tags(&mut self, tags: &[(String, String)]) {
        let fixed = tags.iter().map(|(n, value)| TagExtractor::fixed(n, value));
        self.tags.extend(fixed);
    }

    /// Whether `stats_matcher` lets this stat exist.
    pub fn admits(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::All => true,
            Matcher::RejectAll => false,
            Matcher::Only(list) => list.iter().any(|p| p.matches(name)),
            Matcher::Except(list) => !list.iter().any(|p| p.matches(name)),
        }
    }

    /// The name without its tags, and the tags.
    pub fn tags(&self, name: &str) -> ExtractedTags {
        tags::extract(&self.tags, name)
    }

    /// The upper bounds of a histogram's Prometheus buckets.
    pub fn buckets(&self, name: &str) -> &[f64] {
        self.buckets
            .iter()
            .find(|(pattern, buckets)| !buckets.is_empty() && pattern.matches(name))
            .map_or(&BUCKETS, |(_, buckets)| buckets)
    }
}
