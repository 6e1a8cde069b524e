//! Tags: the parts of a stat's name that become Prometheus labels.

/// A tag's name and how to find its value in a stat's name.
#[derive(Debug)]
pub struct TagExtractor {
    /// The tag's name, such as `envoy.cluster_name`.
    pub name: String,
    /// Group 1 is removed from the name; group 2 (or else 1) is the value.
    regex: Option<fancy_regex::Regex>,
    fixed: String,
}

/// A stat's name without its tags, and the tags in the order of the extractors.
pub type ExtractedTags = (String, Vec<(String, String)>);

/// Envoy's well-known tags, in the order in which Envoy applies them (that of its documentation of `stats_tags`).
const DEFAULTS: &[(&str, &str)] = &[
    ("envoy.response_code", r"_rq(_(\d{3}))$"),
    ("envoy.response_code_class", r"_rq_(\d)xx$"),
    (
        "envoy.http_user_agent",
        r"^http(?=\.).*?\.user_agent\.((.+?)\.)\w+?$",
    ),
    ("envoy.virtual_cluster", r"^vhost\..*?\.vcluster\.((.+?)\.)"),
    ("envoy.route", r"^vhost\..*?\.route\.((.+?)\.)"),
    ("envoy.virtual_host", r"^vhost\.((.+?)\.)"),
    ("envoy.ssl_cipher", r"\.ssl\.(?:ciphers|cipher)(\.(.+?))$"),
    ("envoy.tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    (
        "envoy.worker_id",
        r"(?:^listener\..*?|^server)\.((worker_\d+)\.)",
    ),
    (
        "envoy.listener_address",
        r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    (
        "envoy.http_conn_manager_prefix",
        r"^(?:listener\..*?\.)?http\.((.*?)\.)",
    ),
    ("envoy.rds_route_config", r"^http\..*?\.rds\.((.+?)\.)\w+?$"),
    ("envoy.cluster_name", r"^cluster\.((.+?)\.)"),
];

impl TagExtractor {
    /// An extractor by regex (ECMAScript syntax as Envoy's `std::regex`, which has look-ahead).
    ///
    /// # Errors
    /// The regex does not compile.
    pub fn regex(name: &str, regex: &str) -> Result<Self, Box<fancy_regex::Error>> {
        Ok(Self {
            name: name.to_owned(),
            regex: Some(fancy_regex::Regex::new(regex)?),
            fixed: String::new(),
        })
    }

    /// A tag every stat has.
    pub fn fixed(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            regex: None,
            fixed: value.to_owned(),
        }
    }

    /// Envoy's default extractors.
    pub fn defaults() -> Vec<Self> {
        DEFAULTS
            .iter()
            .filter_map(|(name, regex)| Self::regex(name, regex).ok())
            .collect()
    }

    /// The well-known extractor of this name.
    pub fn default_named(name: &str) -> Option<Self> {
        let (name, regex) = DEFAULTS.iter().find(|(n, _)| *n == name)?;
        Self::regex(name, regex).ok()
    }
}

/// Splits a stat's name. All regexes see the whole name, as in Envoy; removed ranges are cut at the end.
pub fn extract(extractors: &[TagExtractor], name: &str) -> ExtractedTags {
    let mut tags: Vec<(String, String)> = Vec::new();
    let mut cuts: Vec<std::ops::Range<usize>> = Vec::new();
    for extractor in extractors {
        if tags.iter().any(|(tag, _)| *tag == extractor.name) {
            continue;
        }
        let Some(regex) = &extractor.regex else {
            tags.push((extractor.name.clone(), extractor.fixed.clone()));
            continue;
        };
        // Backtracking is limited inside the engine; a name that exceeds it has no such tag.
        let Ok(Some(captures)) = regex.captures(name) else {
            continue;
        };
        let Some(cut) = captures.get(1) else { continue };
        let value = captures.get(2).unwrap_or(cut);
        tags.push((extractor.name.clone(), value.as_str().to_owned()));
        cuts.push(cut.start()..cut.end());
    }
    cuts.sort_by_key(|cut| cut.start);
    let (mut rest, mut at) = (String::with_capacity(name.len()), 0);
    for cut in cuts {
        if cut.start > at {
            rest.push_str(name.get(at..cut.start).unwrap_or_default());
        }
        at = at.max(cut.end);
    }
    rest.push_str(name.get(at..).unwrap_or_default());
    (rest, tags)
}
