//! From the protobuf message to the tree.

use std::collections::{HashMap, HashSet};

use envoy_types::pb::envoy::extensions::matching::input_matchers::{
    ip::v3::Ip, metadata::v3::Metadata,
};
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher as EnvoyStringMatcher;
use envoy_types::pb::google::api::expr::v1alpha1::Expr;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::{
    self as pb, Matcher,
    matcher::{
        MatcherTree as TreeProto, MatcherType, OnMatch as OnMatchProto,
        matcher_list::{
            Predicate as PredicateProto,
            predicate::{
                MatchType, PredicateList, SinglePredicate, single_predicate::Matcher as Single,
            },
        },
        matcher_tree::{MatchMap, TreeType},
        on_match::OnMatch as Follows,
    },
};
use envoy_types::pb::xds::r#type::v3::{CelExpression, cel_expression::ExprSpecifier};
use prost::{Message as _, Name as _};
use xds_client::any;
use xds_client::error::{At, ConfigError};
use xds_client::proto::xds::r#type::matcher::v3::{CelMatcher, IpMatcher, ServerNameMatcher};

use super::domains::Domains;
use super::keys::{ExactKeys, Keyed, PrefixKeys};
use super::ranges::Ranges;
use super::{Branches, Input, MatcherTree, OnMatch, Place, Predicate, StringMatcher, Test};
use crate::cel::Expression;
use crate::matcher::{CidrRange, CidrSet, ValueMatcher};

/// How deeply matchers and predicates nest. Custom matchers are messages of their own, which the decoder's limit
/// does not count.
const MAX_DEPTH: usize = 32;

type Result<T> = std::result::Result<T, ConfigError>;

impl<A> MatcherTree<A> {
    /// Compiles the message. `action` compiles what it leads to. What it takes is proportional to the message.
    ///
    /// # Errors
    /// The path of what is wrong, unknown or not supported; nesting beyond 32 levels.
    pub fn compile(
        proto: &Matcher,
        place: Place,
        action: &dyn Fn(&Any) -> Result<A>,
    ) -> Result<Self> {
        let compiler = Compiler { place, action };
        compiler.matcher(proto, 0)
    }
}

struct Compiler<'a, A> {
    place: Place,
    action: &'a dyn Fn(&Any) -> Result<A>,
}

impl<A> Compiler<'_, A> {
    fn matcher(&self, proto: &Matcher, depth: usize) -> Result<MatcherTree<A>> {
        let depth = deeper(depth)?;
        let branches = match &proto.matcher_type {
            None => Branches::None,
            Some(MatcherType::MatcherList(list)) => {
                let each = |(i, m): (usize, &pb::matcher::matcher_list::FieldMatcher)| {
                    let predicate = required(m.predicate.as_ref(), "predicate");
                    let predicate =
                        predicate.and_then(|p| self.predicate(p, depth).at("predicate"));
                    let step = format!("matchers[{i}]");
                    Ok((
                        predicate.at(&step)?,
                        self.on_match(m.on_match.as_ref(), depth).at(&step)?,
                    ))
                };
                if list.matchers.is_empty() {
                    return Err(ConfigError::new("must not be empty").at("matcher_list.matchers"));
                }
                let all = list.matchers.iter().enumerate().map(each);
                Branches::List(all.collect::<Result<_>>().at("matcher_list")?)
            }
            Some(MatcherType::MatcherTree(tree)) => self.tree(tree, depth).at("matcher_tree")?,
        };
        let on_no_match = proto.on_no_match.as_deref();
        let on_no_match = on_no_match.map(|m| self.follow(m, depth)).transpose();
        Ok(MatcherTree {
            branches,
            on_no_match: on_no_match.at("on_no_match")?,
        })
    }

    fn on_match(&self, proto: Option<&OnMatchProto>, depth: usize) -> Result<OnMatch<A>> {
        required(proto, "on_match").and_then(|m| self.follow(m, depth).at("on_match"))
    }

    fn follow(&self, proto: &OnMatchProto, depth: usize) -> Result<OnMatch<A>> {
        if proto.keep_matching {
            return Err(ConfigError::unsupported("keep_matching"));
        }
        match &proto.on_match {
            None => Err(ConfigError::new("a matcher or an action is required")),
            Some(Follows::Matcher(matcher)) => {
                let matcher = self.matcher(matcher, depth).at("matcher")?;
                Ok(OnMatch::Matcher(Box::new(matcher)))
            }
            Some(Follows::Action(action)) => config(action)
                .and_then(self.action)
                .map(OnMatch::Action)
                .at("action"),
        }
    }

    fn input(&self, proto: Option<&TypedExtensionConfig>) -> Result<Input> {
        let input = required(proto, "input")?;
        config(input)
            .and_then(|c| Input::compile(c, self.place))
            .at("input")
    }

    fn tree(&self, proto: &TreeProto, depth: usize) -> Result<Branches<A>> {
        let input = self.input(proto.input.as_ref())?;
        if matches!(input, Input::Attributes) {
            return Err(ConfigError::new("takes text").at("input"));
        }
        match &proto.tree_type {
            None => Err(ConfigError::new("value is required").at("tree_type")),
            Some(TreeType::ExactMatchMap(map)) => {
                let entries = self.map(map, depth).at("exact_match_map")?;
                Ok(Branches::Exact(input, ExactKeys::new(entries)))
            }
            Some(TreeType::PrefixMatchMap(map)) => {
                let entries = self.map(map, depth).at("prefix_match_map")?;
                Ok(Branches::Prefix(input, PrefixKeys::new(entries)))
            }
            Some(TreeType::CustomMatch(custom)) => {
                self.custom(input, custom, depth).at("custom_match")
            }
        }
    }

    fn map(&self, proto: &MatchMap, depth: usize) -> Result<Keyed<OnMatch<A>>> {
        if proto.map.is_empty() {
            return Err(ConfigError::new("must not be empty").at("map"));
        }
        let each = |(key, on_match): (&String, _)| {
            let on_match = self.follow(on_match, depth);
            Ok((
                key.as_bytes().into(),
                on_match.at(format!("map[\"{key}\"]"))?,
            ))
        };
        let map: &HashMap<String, OnMatchProto> = &proto.map;
        map.iter().map(each).collect()
    }

    fn custom(
        &self,
        input: Input,
        custom: &TypedExtensionConfig,
        depth: usize,
    ) -> Result<Branches<A>> {
        let custom = config(custom)?;
        let name = any::inner_type_name(custom).at("typed_config")?;
        let compiled = match name {
            name if name == IpMatcher::full_name() => any::unpack(custom)
                .and_then(|proto| self.ranges(&proto, depth))
                .map(|(ranges, all)| Branches::Ranges(input, ranges, all)),
            name if name == ServerNameMatcher::full_name() => any::unpack(custom)
                .and_then(|proto| self.domains(&proto, depth))
                .map(|(domains, all)| Branches::Domains(input, domains, all)),
            other => Err(ConfigError::new(format!(
                "matcher {other} is not supported"
            ))),
        };
        compiled.at("typed_config")
    }

    /// No range matcher at all is what istiod sends for a waypoint without services.
    fn ranges(&self, proto: &IpMatcher, depth: usize) -> Result<(Ranges, Vec<OnMatch<A>>)> {
        let (mut ranges, mut all) = (Vec::new(), Vec::new());
        for (branch, matcher) in proto.range_matchers.iter().enumerate() {
            let step = format!("range_matchers[{branch}]");
            if matcher.ranges.is_empty() {
                return Err(ConfigError::new("must not be empty").at("ranges").at(step));
            }
            for (i, range) in matcher.ranges.iter().enumerate() {
                let range = CidrRange::compile_xds(range).at(format!("ranges[{i}]"));
                ranges.push((range.at(&step)?, branch, matcher.exclusive));
            }
            all.push(self.on_match(matcher.on_match.as_ref(), depth).at(&step)?);
        }
        Ok((Ranges::new(ranges), all))
    }

    fn domains(
        &self,
        proto: &ServerNameMatcher,
        depth: usize,
    ) -> Result<(Domains, Vec<OnMatch<A>>)> {
        let (mut domains, mut all, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (branch, matcher) in proto.domain_matchers.iter().enumerate() {
            let step = format!("domain_matchers[{branch}]");
            if matcher.domains.is_empty() {
                return Err(ConfigError::new("must not be empty").at("domains").at(step));
            }
            for (i, domain) in matcher.domains.iter().enumerate() {
                let checked = well_formed(domain, seen.insert(domain.as_str()));
                checked.at(format!("domains[{i}]")).at(&step)?;
                domains.push((domain.clone(), branch));
            }
            all.push(self.on_match(matcher.on_match.as_ref(), depth).at(&step)?);
        }
        Ok((Domains::new(domains), all))
    }

    fn predicate(&self, proto: &PredicateProto, depth: usize) -> Result<Predicate> {
        let depth = deeper(depth)?;
        Ok(match &proto.match_type {
            None => return Err(ConfigError::new("value is required").at("match_type")),
            Some(MatchType::SinglePredicate(single)) => {
                self.single(single).at("single_predicate")?
            }
            Some(MatchType::AndMatcher(list)) => {
                Predicate::And(self.predicates(list, depth).at("and_matcher")?)
            }
            Some(MatchType::OrMatcher(list)) => {
                Predicate::Or(self.predicates(list, depth).at("or_matcher")?)
            }
            Some(MatchType::NotMatcher(not)) => {
                Predicate::Not(Box::new(self.predicate(not, depth).at("not_matcher")?))
            }
        })
    }

    fn predicates(&self, list: &PredicateList, depth: usize) -> Result<Vec<Predicate>> {
        if list.predicate.len() < 2 {
            return Err(ConfigError::new("must have at least 2 items").at("predicate"));
        }
        let each = |(i, p)| self.predicate(p, depth).at(format!("predicate[{i}]"));
        list.predicate.iter().enumerate().map(each).collect()
    }

    fn single(&self, proto: &SinglePredicate) -> Result<Predicate> {
        let input = self.input(proto.input.as_ref())?;
        let test = match &proto.matcher {
            None => return Err(ConfigError::new("value is required").at("matcher")),
            Some(Single::ValueMatch(matcher)) => Test::Text(string(matcher).at("value_match")?),
            Some(Single::CustomMatch(custom)) => config(custom)
                .and_then(|c| test(c).at("typed_config"))
                .at("custom_match")?,
        };
        if matches!(input, Input::Attributes) != matches!(test, Test::Condition(_)) {
            return Err(ConfigError::new("the matcher takes another input"));
        }
        Ok(Predicate::Single(input, test))
    }
}

/// One level deeper.
fn deeper(depth: usize) -> Result<usize> {
    match depth {
        MAX_DEPTH.. => Err(ConfigError::new("nested too deeply")),
        depth => Ok(depth + 1),
    }
}

fn required<'a, T>(value: Option<&'a T>, field: &str) -> Result<&'a T> {
    value.ok_or_else(|| ConfigError::new("value is required").at(field))
}

fn config(extension: &TypedExtensionConfig) -> Result<&Any> {
    required(extension.typed_config.as_ref(), "typed_config")
}

/// xDS's string matcher, which has the fields and numbers of Envoy's.
fn string(proto: &pb::StringMatcher) -> Result<StringMatcher> {
    let same = EnvoyStringMatcher::decode(proto.encode_to_vec().as_slice());
    same.map_err(|e| ConfigError::new(e.to_string()))
        .and_then(|proto| StringMatcher::compile(&proto))
}

/// A matcher of single inputs.
fn test(config: &Any) -> Result<Test> {
    match any::inner_type_name(config)? {
        name if name == Ip::full_name() => {
            let proto: Ip = any::unpack(config)?;
            CidrSet::compile(&proto.cidr_ranges)
                .at("cidr_ranges")
                .map(Test::Ip)
        }
        name if name == Metadata::full_name() => {
            let proto: Metadata = any::unpack(config)?;
            let value = required(proto.value.as_ref(), "value")?;
            Ok(Test::Metadata {
                value: ValueMatcher::compile(value).at("value")?,
                invert: proto.invert,
            })
        }
        name if name == CelMatcher::full_name() => {
            let proto: CelMatcher = any::unpack(config)?;
            let condition = required(proto.expr_match.as_ref(), "expr_match")?;
            self::condition(condition)
                .at("expr_match")
                .map(|c| Test::Condition(Box::new(c)))
        }
        other => Err(ConfigError::new(format!(
            "matcher {other} is not supported"
        ))),
    }
}

/// The parsed form, or the older one.
fn condition(proto: &CelExpression) -> Result<Expression> {
    #[allow(deprecated)] // and still sent
    let (expression, field) = match (&proto.cel_expr_parsed, &proto.expr_specifier) {
        (Some(parsed), _) => {
            let parsed = required(parsed.expr.as_ref(), "cel_expr_parsed.expr")?;
            // The same message under another name.
            let same = Expr::decode(parsed.encode_to_vec().as_slice());
            (
                same.map_err(|e| ConfigError::new(e.to_string()))?,
                "cel_expr_parsed.expr",
            )
        }
        (None, Some(ExprSpecifier::ParsedExpr(parsed))) => {
            let field = "parsed_expr.expr";
            (required(parsed.expr.as_ref(), field)?.clone(), field)
        }
        _ => return Err(ConfigError::new("a parsed expression is required")),
    };
    Expression::compile(&expression).at(field)
}

/// Whether this is a domain, `*.` and a domain, or `*`; and the first of its kind.
fn well_formed(domain: &str, first: bool) -> Result<()> {
    let name = match domain {
        "*" => "any",
        domain => domain.strip_prefix("*.").unwrap_or(domain),
    };
    match (first, name) {
        (false, _) => Err(ConfigError::new(format!("duplicate domain {domain}"))),
        (true, "") => Err(ConfigError::new("empty domain")),
        (true, name) if name.contains('*') => Err(ConfigError::new(format!(
            "{domain}: only `*` and `*.domain` are supported"
        ))),
        (true, _) => Ok(()),
    }
}
