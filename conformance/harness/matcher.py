"""Pieces of generic matchers (xds.type.matcher.v3.Matcher)."""
from .config import TYPE

NETWORK = "envoy.extensions.matching.common_inputs.network.v3."
SSL = "envoy.extensions.matching.common_inputs.ssl.v3."
HEADER = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"


def extension(kind, /, **config):
    return {"name": kind.rsplit(".", 1)[-1], "typed_config": {"@type": TYPE + kind, **config}}


def network(kind, /, **config):
    return extension(NETWORK + kind, **config)


def follow(what):
    """An action as it is, or a matcher to go on with."""
    return {"matcher": what} if {"matcher_tree", "matcher_list", "on_no_match"} & set(what) or not what else what


def tree(given, kind, branches, on_no_match=None):
    return {"matcher_tree": {"input": given, kind: branches}, **({"on_no_match": follow(on_no_match)} if on_no_match else {})}


def exact(given, keys, on_no_match=None):
    return tree(given, "exact_match_map", {"map": {key: follow(what) for key, what in keys.items()}}, on_no_match)


def prefix(given, keys, on_no_match=None):
    return tree(given, "prefix_match_map", {"map": {key: follow(what) for key, what in keys.items()}}, on_no_match)


def ranges(given, *branches, on_no_match=None):
    """Branches of ranges, what follows, and whether they are exclusive."""
    matchers = [{"ranges": [{"address_prefix": c.split("/")[0], "prefix_len": int(c.split("/")[1])} for c in cidrs],
                 "on_match": follow(what), "exclusive": exclusive} for cidrs, what, exclusive in branches]
    return tree(given, "custom_match", extension("xds.type.matcher.v3.IPMatcher", range_matchers=matchers), on_no_match)


def domains(given, *branches, on_no_match=None):
    matchers = [{"domains": names, "on_match": follow(what)} for names, what in branches]
    return tree(given, "custom_match", extension("xds.type.matcher.v3.ServerNameMatcher", domain_matchers=matchers), on_no_match)


def one(given, custom=None, **value):
    """A predicate about one input."""
    return {"single_predicate": {"input": given, **({"custom_match": custom} if custom else {"value_match": value})}}


def both(*predicates):
    return {"and_matcher": {"predicate": list(predicates)}}


def either(*predicates):
    return {"or_matcher": {"predicate": list(predicates)}}


def first(*branches, on_no_match=None):
    """The first of these predicates that holds, with what follows."""
    made = {"matcher_list": {"matchers": [{"predicate": predicate, "on_match": follow(what)} for predicate, what in branches]}}
    return {**made, **({"on_no_match": follow(on_no_match)} if on_no_match else {})}


def always(what):
    return {"on_no_match": follow(what)}
