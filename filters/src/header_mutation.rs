//! Adding, setting and removing headers, with values from format strings: routes, filters, local replies.

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as rules;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use http::{HeaderMap, HeaderName, HeaderValue};
use xds_client::error::{At, ConfigError};

use crate::formatter::{FormatContext, Formatter};
use crate::head::RequestHead;
use crate::matcher::StringMatcher;
use crate::stream::StreamInfo;

/// Mutations that apply one after the other (`config.common.mutation_rules.v3.HeaderMutation`): each sees
/// what those before it did.
#[derive(Debug, Clone, Default)]
pub struct MutationList(Vec<Mutation>);

#[derive(Debug, Clone)]
enum Mutation {
    Remove(HeaderName),
    RemoveMatching(StringMatcher),
    Append(Box<Addition>),
}

impl MutationList {
    /// Compiles `mutations`.
    ///
    /// # Errors
    /// A bad name, matcher or format, with the path from the list on.
    pub fn compile(mutations: &[rules::HeaderMutation]) -> Result<Self, ConfigError> {
        let one = |(i, mutation): (usize, &rules::HeaderMutation)| {
            let compiled = match &mutation.action {
                None => Err(ConfigError::new("an action is required")),
                Some(Action::Remove(name)) => modifiable(name).map(Mutation::Remove).at("remove"),
                Some(Action::Append(option)) => Addition::compile(option)
                    .map(|addition| Mutation::Append(Box::new(addition)))
                    .at("append"),
                Some(Action::RemoveOnMatch(matching)) => matching
                    .key_matcher
                    .as_ref()
                    .ok_or_else(|| ConfigError::new("is required"))
                    .and_then(StringMatcher::compile)
                    .map(Mutation::RemoveMatching)
                    .at("remove_on_match.key_matcher"),
            };
            compiled.at(format!("[{i}]"))
        };
        let all = mutations.iter().enumerate().map(one);
        Ok(Self(all.collect::<Result<_, _>>()?))
    }

    /// Applies the mutations to a request.
    pub fn apply_to_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        for mutation in &self.0 {
            match mutation {
                Mutation::Remove(name) => drop(head.headers.remove(name)),
                Mutation::RemoveMatching(matcher) => {
                    let names = head.headers.keys().filter(|n| matcher.matches(n.as_str()));
                    for name in names.cloned().collect::<Vec<_>>() {
                        head.headers.remove(name);
                    }
                }
                Mutation::Append(addition) => {
                    let value = addition.value(&FormatContext {
                        info,
                        request: Some(head),
                        response: None,
                        trailers: None,
                        local_reply: None,
                    });
                    if let Some(value) = value {
                        addition.write_now(value, &mut head.headers);
                    }
                }
            }
        }
    }
}

/// What to do if the header is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Append {
    Add,
    IfAbsent,
    Overwrite,
    OverwriteIfExists,
}

#[derive(Debug, Clone)]
struct Addition {
    name: HeaderName,
    /// Parsed once if it has no operator.
    constant: Option<HeaderValue>,
    value: Formatter,
    append: Append,
    keep_empty: bool,
}

/// One level's mutations: removals first, then additions, as in Envoy.
#[derive(Debug, Clone, Default)]
pub struct HeaderMutations {
    remove: Vec<HeaderName>,
    add: Vec<Addition>,
}

fn modifiable(name: &str) -> Result<HeaderName, ConfigError> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(ConfigError::new(
            ":-prefixed or host headers may not be modified",
        ));
    }
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| ConfigError::new(format!("invalid header name {name:?}")))
}

/// The mutations that each level of a route configuration has for the heads of both messages.
#[derive(Debug, Default)]
pub struct MessageMutations {
    /// `request_headers_to_add` and `_to_remove`.
    pub request: HeaderMutations,
    /// `response_headers_to_add` and `_to_remove`.
    pub response: HeaderMutations,
}

impl MessageMutations {
    /// Compiles what is to be added and removed for each message.
    ///
    /// # Errors
    /// See [`HeaderMutations::compile`].
    pub fn compile(
        (add_request, remove_request): (&[HeaderValueOption], &[String]),
        (add_response, remove_response): (&[HeaderValueOption], &[String]),
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            request: HeaderMutations::compile("request", add_request, remove_request)?,
            response: HeaderMutations::compile("response", add_response, remove_response)?,
        })
    }
}

impl HeaderMutations {
    /// Compiles `KIND_headers_to_add` and `KIND_headers_to_remove`, where `kind` is `request` or
    /// `response`.
    ///
    /// # Errors
    /// A bad name or format, with the path of the field.
    pub fn compile(
        kind: &str,
        add: &[HeaderValueOption],
        remove: &[String],
    ) -> Result<Self, ConfigError> {
        let remove = remove
            .iter()
            .enumerate()
            .map(|(i, n)| modifiable(n).at(format!("{kind}_headers_to_remove[{i}]")));
        Ok(Self {
            remove: remove.collect::<Result<_, _>>()?,
            ..Self::additions(&format!("{kind}_headers_to_add"), add)?
        })
    }

    /// Compiles a list of additions alone; `field` is where it stands.
    ///
    /// # Errors
    /// A bad name or format, with the path of the field.
    pub fn additions(field: &str, add: &[HeaderValueOption]) -> Result<Self, ConfigError> {
        let add = add
            .iter()
            .enumerate()
            .map(|(i, a)| Addition::compile(a).at(format!("{field}[{i}]")));
        Ok(Self {
            remove: Vec::new(),
            add: add.collect::<Result<_, _>>()?,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Applies the removals.
    pub fn remove(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// The new values, computed before any is written, so that each sees the message as it was.
    pub fn values(&self, context: &FormatContext<'_>) -> Vec<Option<HeaderValue>> {
        self.add.iter().map(|a| a.value(context)).collect()
    }

    /// Writes what [`values`](Self::values) computed: overwrites first, then additions.
    pub fn write(&self, values: Vec<Option<HeaderValue>>, headers: &mut HeaderMap) {
        let mut later = Vec::new();
        for (addition, value) in self.add.iter().zip(values) {
            let Some(value) = value else { continue };
            let present = headers.contains_key(&addition.name);
            match addition.append {
                Append::Overwrite => drop(headers.insert(addition.name.clone(), value)),
                Append::OverwriteIfExists if present => {
                    headers.insert(addition.name.clone(), value);
                }
                Append::IfAbsent if present => {}
                Append::IfAbsent | Append::Add => later.push((addition.name.clone(), value)),
                Append::OverwriteIfExists => {}
            }
        }
        for (name, value) in later {
            headers.append(name, value);
        }
    }
}

impl Addition {
    fn compile(config: &HeaderValueOption) -> Result<Self, ConfigError> {
        let header = config
            .header
            .as_ref()
            .ok_or_else(|| ConfigError::new("header is required"))?;
        #[allow(deprecated)] // `append` is still sent
        let append = match (&config.append, config.append_action) {
            (Some(_), action) if action != 0 => {
                return Err(ConfigError::new("append and append_action are both set"));
            }
            (Some(append), _) if !append.value => Append::Overwrite,
            (_, 0) => Append::Add,
            (_, 1) => Append::IfAbsent,
            (_, 2) => Append::Overwrite,
            (_, 3) => Append::OverwriteIfExists,
            (_, other) => {
                return Err(ConfigError::new(format!("unknown value {other}")).at("append_action"));
            }
        };
        let raw = String::from_utf8(header.raw_value.clone())
            .map_err(|_| ConfigError::unsupported("raw_value (not UTF-8)"))?;
        let text = if raw.is_empty() { &header.value } else { &raw };
        let value = Formatter::compile(text).at("header.value")?;
        let constant = value.as_literal().map(HeaderValue::from_bytes).transpose();
        Ok(Self {
            name: modifiable(&header.key).at("header.key")?,
            constant: constant.map_err(|_| ConfigError::new("invalid value").at("header.value"))?,
            value,
            append,
            keep_empty: config.keep_empty_value,
        })
    }

    fn write_now(&self, value: HeaderValue, headers: &mut HeaderMap) {
        let present = headers.contains_key(&self.name);
        match self.append {
            Append::Add => drop(headers.append(self.name.clone(), value)),
            Append::IfAbsent if present => {}
            Append::OverwriteIfExists if !present => {}
            Append::IfAbsent | Append::Overwrite | Append::OverwriteIfExists => {
                headers.insert(self.name.clone(), value);
            }
        }
    }

    fn value(&self, context: &FormatContext<'_>) -> Option<HeaderValue> {
        let value = match &self.constant {
            Some(value) => value.clone(),
            None => {
                let mut out = Vec::new();
                // A header has no `-` for a missing value: it is not added.
                self.value.write_or(context, &mut out, b"");
                HeaderValue::from_bytes(&out).ok()?
            }
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use envoy_types::pb::envoy::config::core::v3::HeaderValue as ConfigValue;
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
    use http::Method;

    use super::*;
    use crate::stream::{Address, ConnectionInfo, Protocol};

    fn info() -> StreamInfo {
        let address = Address::Ip("127.0.0.1:1".parse().unwrap());
        let connection = ConnectionInfo {
            id: 1,
            remote: address.clone(),
            direct_remote: address.clone(),
            direct_local: address.clone(),
            local: address,
            server_name: None,
            alpn: None,
            ja4: None,
            secure: false,
            tls: None,
            listener: "".into(),
            filter_chain: "".into(),
            listener_metadata: Default::default(),
            filter_chain_metadata: Default::default(),
            proxy_tlvs: None,
            filter_state: None,
            local_restored: false,
            notes: None,
        };
        StreamInfo::new(Rc::new(connection), Protocol::Http11)
    }

    fn option(key: &str, value: &str, action: i32) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(ConfigValue {
                key: key.into(),
                value: value.into(),
                ..ConfigValue::default()
            }),
            append_action: action,
            ..HeaderValueOption::default()
        }
    }

    fn request(headers: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::new(Method::GET, "/");
        for (name, value) in headers {
            let name = HeaderName::from_static(name);
            head.headers.append(name, HeaderValue::from_static(value));
        }
        head
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let line = |(n, v): (&HeaderName, &HeaderValue)| format!("{n}={}", v.to_str().unwrap());
        let mut all: Vec<_> = headers.iter().map(line).collect();
        all.sort();
        all
    }

    fn apply(mutations: &HeaderMutations, head: &mut RequestHead) {
        mutations.remove(&mut head.headers);
        let values = mutations.values(&FormatContext {
            info: &info(),
            request: Some(head),
            response: None,
            trailers: None,
            local_reply: None,
        });
        mutations.write(values, &mut head.headers);
    }

    #[test]
    fn every_action_with_and_without_the_header() {
        let add: Vec<_> = (0..4)
            .map(|a| option(&format!("x-{a}"), "new", a))
            .collect();
        let mutations = HeaderMutations::compile("request", &add, &[]).unwrap();
        let mut head = request(&[]);
        apply(&mutations, &mut head);
        assert_eq!(lines(&head.headers), ["x-0=new", "x-1=new", "x-2=new"]);
        let mut head = request(&[("x-0", "a"), ("x-1", "a"), ("x-2", "a"), ("x-3", "a")]);
        apply(&mutations, &mut head);
        let want = ["x-0=a", "x-0=new", "x-1=a", "x-2=new", "x-3=new"];
        assert_eq!(lines(&head.headers), want);
    }

    #[test]
    fn values_see_the_request_as_it_was_but_without_what_is_removed() {
        let add = [
            option("x-a", "%REQ(x-b)%", 2),
            option("x-b", "%REQ(x-a)%", 2),
            option("x-c", "%REQ(x-gone)%", 0),
        ];
        let mutations = HeaderMutations::compile("request", &add, &["x-gone".into()]).unwrap();
        let mut head = request(&[("x-a", "1"), ("x-b", "2"), ("x-gone", "3")]);
        apply(&mutations, &mut head);
        assert_eq!(lines(&head.headers), ["x-a=2", "x-b=1"]);
    }

    #[test]
    fn empty_values_are_kept_only_on_request() {
        let mut kept = option("x-kept", "", 0);
        kept.keep_empty_value = true;
        let add = [
            kept,
            option("x-empty", "", 0),
            option("x-percent", "100%%", 0),
        ];
        let mutations = HeaderMutations::compile("request", &add, &[]).unwrap();
        let mut head = request(&[]);
        apply(&mutations, &mut head);
        assert_eq!(lines(&head.headers), ["x-kept=", "x-percent=100%"]);
    }

    #[test]
    fn errors_name_the_field() {
        let refused = |add: &[HeaderValueOption], remove: &[String]| {
            let compiled = HeaderMutations::compile("response", add, remove);
            compiled.unwrap_err().path().to_owned()
        };
        assert_eq!(
            refused(&[], &[":path".into()]),
            "response_headers_to_remove[0]"
        );
        assert_eq!(
            refused(&[], &["Host".into()]),
            "response_headers_to_remove[0]"
        );
        let key = "response_headers_to_add[0].header.key";
        assert_eq!(refused(&[option("a b", "v", 0)], &[]), key);
        let value = "response_headers_to_add[0].header.value";
        assert_eq!(refused(&[option("a", "%REQ(%", 0)], &[]), value);
        let action = "response_headers_to_add[0].append_action";
        assert_eq!(refused(&[option("a", "v", 9)], &[]), action);
    }

    #[test]
    fn a_list_applies_in_its_order() {
        let action = |action| rules::HeaderMutation {
            action: Some(action),
        };
        let pattern = matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(
                "x-tmp".into(),
            )),
            ..matcher::StringMatcher::default()
        };
        let list = MutationList::compile(&[
            action(Action::Append(option("x-a", "one", 0))),
            action(Action::Append(option("x-b", "%REQ(x-a)%", 2))),
            action(Action::Remove("x-a".into())),
            action(Action::RemoveOnMatch(
                rules::header_mutation::RemoveOnMatch {
                    key_matcher: Some(pattern),
                },
            )),
            action(Action::Append(option("x-c", "%REQ(x-a)%", 0))),
        ])
        .unwrap();
        let mut head = request(&[("x-b", "old"), ("x-tmp-1", "t"), ("x-tmp", "t")]);
        list.apply_to_request(&mut head, &info());
        assert_eq!(lines(&head.headers), ["x-b=one"]);
        let error = MutationList::compile(&[rules::HeaderMutation::default()]).unwrap_err();
        assert_eq!(error.path(), "[0]");
    }
}
