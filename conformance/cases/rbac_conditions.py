"""Conditions of policies, in the Common Expression Language: as syntax trees, for there is no other form in the API."""
from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group

from .http_rbac import FORMAT, RBAC
from .network_filters import policy, rules


def v(value):
    """A constant."""
    kinds = {bool: "bool_value", int: "int64_value", float: "double_value", str: "string_value", bytes: "bytes_value", type(None): "null_value"}
    made = {"bytes_value": __import__("base64").b64encode(value).decode()} if isinstance(value, bytes) else {kinds[type(value)]: value}
    return {"const_expr": made if value is not None else {"null_value": "NULL_VALUE"}}


def u(value):
    return {"const_expr": {"uint64_value": value}}


def at(path):
    """`request.path` and the like."""
    first, *rest = path.split(".")
    made = {"ident_expr": {"name": first}}
    for field in rest:
        made = {"select_expr": {"operand": made, "field": field}}
    return made


def has(path):
    made = at(path)
    made["select_expr"]["test_only"] = True
    return made


def f(function, *args, of=None):
    return {"call_expr": {"function": function, "args": list(args), **({"target": of} if of else {})}}


def eq(a, b):
    return f("_==_", a, b)


def many(*elements):
    return {"list_expr": {"elements": list(elements)}}


def pairs(*entries):
    return {"struct_expr": {"entries": [{"map_key": key, "value": value} for key, value in entries]}}


PATH, HEADERS = at("request.path"), at("request.headers")
ERROR = eq(at("request.nosuch"), v(1))
ONE = eq(v(1), v(1))
CONDITIONS = {
    "path": eq(PATH, v("/a?b=c")), "url path": eq(at("request.url_path"), v("/a")), "query": eq(at("request.query"), v("b=c")),
    "host": eq(at("request.host"), v("a.test")), "method": eq(at("request.method"), v("GET")), "scheme": eq(at("request.scheme"), v("http")),
    "protocol": eq(at("request.protocol"), v("HTTP/1.1")), "referer": eq(at("request.referer"), v("r")), "agent": eq(at("request.useragent"), v("me")),
    "id": f("_>_", f("size", at("request.id")), v(10)), "size": eq(at("request.size"), v(0)),
    "header": eq(f("_[_]", HEADERS, v("x-user")), v("me")), "header, upper case": eq(f("_[_]", HEADERS, v("X-User")), v("me")),
    "header, selected": eq(at("request.headers.accept"), v("none")), "header, joined": eq(f("_[_]", HEADERS, v("x-two")), v("1,2")),
    "header, pseudo": eq(f("_[_]", HEADERS, v(":path")), v("/a?b=c")), "header, host": eq(f("_[_]", HEADERS, v("host")), v("a.test")),
    "header in": f("@in", v("x-user"), HEADERS), "header not in": f("!_", f("@in", v("x-none"), HEADERS)), "header, none": eq(f("_[_]", HEADERS, v("x-none")), v("")),
    "has": has("request.headers.accept"), "has not": f("!_", has("request.headers.nosuch")), "has attribute": has("request.path"),
    "has no attribute": f("!_", has("request.nosuch")), "has metadata": has("metadata.filter_metadata"),
    "source": f("startsWith", v("127.0.0.1:"), of=at("source.address")), "source port": f("_>_", at("source.port"), v(1)),
    "destination": eq(at("destination.address"), v("x")), "destination port": f("_>_", at("destination.port"), v(0)),
    "mtls": eq(at("connection.mtls"), v(False)), "server name": eq(at("connection.requested_server_name"), v("")),
    "tls version": eq(at("connection.tls_version"), v("")), "connection id": f("_>=_", at("connection.id"), u(0)), "peer": eq(at("connection.subject_peer_certificate"), v("")),
    "metadata": eq(f("_[_]", f("_[_]", at("metadata.filter_metadata"), v("ns")), v("k")), v("v")), "metadata in": f("@in", v("ns"), at("metadata.filter_metadata")),
    "filter state": f("@in", v("nosuch"), at("filter_state")), "filter state not": f("!_", f("@in", v("nosuch"), at("filter_state"))),
    "unknown name": eq(at("nosuch"), v(1)), "unknown attribute": ERROR, "not of an error": f("!_", ERROR), "no boolean": v("x"), "true": v(True), "false": v(False),
    "error or true": f("_||_", ERROR, ONE), "true or error": f("_||_", ONE, ERROR), "error or false": f("_||_", ERROR, v(False)),
    "error and true": f("_&&_", ERROR, ONE), "not: error and false": f("!_", f("_&&_", ERROR, v(False))), "not: false and error": f("!_", f("_&&_", v(False), ERROR)),
    "text and true": f("_&&_", v("x"), v(True)), "text or true": f("_||_", v("x"), v(True)), "true or text": f("_||_", v(True), v("x")),
    "if": f("_?_:_", eq(at("request.method"), v("GET")), v(True), ERROR), "if not": f("_?_:_", eq(at("request.method"), v("POST")), ERROR, v(True)), "if error": f("_?_:_", ERROR, v(True), v(True)),
    "int and uint": eq(v(1), u(1)), "int and double": eq(v(1), v(1.0)), "int and text": eq(v(1), v("1")), "int not text": f("_!=_", v(1), v("1")), "null": eq(v(None), v(None)), "null and text": eq(v(None), v("")),
    "bytes and text": eq(v(b"a"), v("a")), "less": f("_<_", v(1), v(2)), "less, mixed": f("_<_", v(1), v(1.5)), "less, int and uint": f("_<_", v(-1), u(0)), "less, text": f("_<_", v("a"), v("b")),
    "less, text and int": f("_<_", v("a"), v(1)), "less, booleans": f("_<_", v(False), v(True)), "less, bytes": f("_<_", v(b"a"), v(b"b")), "less, null": f("_<_", v(None), v(None)), "not less, text and int": f("!_", f("_<_", v("a"), v(1))),
    "sum": eq(f("_+_", v(1), v(2)), v(3)), "sum, mixed": eq(f("_+_", v(1), u(2)), v(3)), "sum, text": eq(f("_+_", v("a"), v("b")), v("ab")), "sum, overflow": f("_>_", f("_+_", v(2**63 - 1), v(1)), v(0)),
    "sum, lists": eq(f("size", f("_+_", many(v(1)), many(v(2)))), v(2)), "difference": eq(f("_-_", u(3), u(2)), u(1)), "difference below": f("_>=_", f("_-_", u(2), u(3)), u(0)), "product": eq(f("_*_", v(1.5), v(2.0)), v(3.0)),
    "quotient": eq(f("_/_", v(7), v(2)), v(3)), "quotient by 0": eq(f("_/_", v(7), v(0)), v(0)), "quotient of doubles by 0": f("_>_", f("_/_", v(1.0), v(0.0)), v(1.0)), "rest": eq(f("_%_", v(-7), v(2)), v(-1)),
    "rest by 0": eq(f("_%_", v(7), v(0)), v(0)), "negative": eq(f("-_", v(1)), v(-1)), "negative text": eq(f("-_", v("1")), v(-1)), "negative uint": eq(f("-_", u(1)), v(-1)),
    "in": f("@in", at("request.method"), many(v("GET"), v("PUT"))), "in, old": f("in", at("request.method"), many(v("GET"))), "in, older": f("_in_", at("request.method"), many(v("GET"))), "in, other types": f("@in", v("1"), many(v(1), v("1"))),
    "in, numbers": f("@in", v(1), many(u(1))), "in, map": f("@in", v("a"), pairs((v("a"), v(1)))), "in, no list": f("@in", v("a"), v("abc")), "in, int keys": f("@in", v(1), pairs((v(1), v(1)))),
    "list": eq(f("_[_]", many(v(1), v(2)), v(1)), v(2)), "list, beyond": eq(f("_[_]", many(v(1)), v(1)), v(1)), "list, below": eq(f("_[_]", many(v(1)), v(-1)), v(1)), "list, uint": eq(f("_[_]", many(v(1)), u(0)), v(1)),
    "list, double": eq(f("_[_]", many(v(1)), v(0.0)), v(1)), "lists": eq(many(v(1), v("a")), many(v(1.0), v("a"))), "lists, longer": eq(many(v(1)), many(v(1), v(2))), "map": eq(f("_[_]", pairs((v("a"), v(1))), v("a")), v(1)),
    "map, selected": eq({"select_expr": {"operand": pairs((v("a"), v(1))), "field": "a"}}, v(1)), "map, none": eq(f("_[_]", pairs((v("a"), v(1))), v("b")), v(1)), "map, int": eq(f("_[_]", pairs((v(1), v(2))), v(1)), v(2)),
    "size of text": eq(f("size", v("h\u00e9")), v(2)), "size of bytes": eq(f("size", v(b"abc")), v(3)), "size of list": eq(f("size", many(v(1))), v(1)), "size of map": eq(f("size", pairs((v("a"), v(1)))), v(1)),
    "size, receiver": eq(f("size", of=v("abc")), v(3)), "size of int": eq(f("size", v(1)), v(1)), "contains": f("contains", v("?b"), of=PATH), "starts": f("startsWith", v("/a"), of=PATH), "ends": f("endsWith", v("=c"), of=PATH),
    "contains, plain": f("contains", PATH, v("?b")), "starts with int": f("startsWith", v(1), of=PATH), "matches": f("matches", v("a.b"), of=PATH), "matches whole": f("matches", v("^/a.*c$"), of=PATH), "matches not": f("matches", v("^a"), of=PATH),
    "matches, plain": f("matches", PATH, v("b=")), "matches int": f("matches", v(1), v("1")),
    "int of text": eq(f("int", v("12")), v(12)), "int of no number": eq(f("int", v("x")), v(0)), "int of double": eq(f("int", v(1.9)), v(1)), "int of a large double": eq(f("int", v(1e300)), v(1)), "int of uint": eq(f("int", u(1)), v(1)),
    "uint of int": eq(f("uint", v(1)), u(1)), "uint of negative": eq(f("uint", v(-1)), u(1)), "uint of text": eq(f("uint", v("1")), u(1)), "double of int": eq(f("double", v(1)), v(1.0)), "double of text": eq(f("double", v("1.5")), v(1.5)),
    "bytes of text": eq(f("bytes", v("a")), v(b"a")), "dyn": eq(f("dyn", v("a")), v("a")),
}


def config(p):
    log = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]
    made = {name: {"condition": condition} for name, condition in CONDITIONS.items()}
    made |= {"and rules": {**made["path"], "permissions": [{"url_path": {"path": {"exact": "/b"}}}]}}
    # One listener: a header chooses the condition.
    routes = [route({"prefix": "/", "headers": [{"name": "x-case", "string_match": {"exact": name}}]}, "up", typed_per_filter_config={
        "rbac": {"@type": RBAC + "RBACPerRoute", "rbac": {"rules": rules("ALLOW", it={**policy(), **fields})}}}) for name, fields in made.items()]
    return bootstrap(p, [listener(p, routes, "main", [{"name": "rbac", "typed_config": {"@type": RBAC + "RBAC"}}], access_log=log)])


G = Group(config)


def ask(name):
    @G.case(f"rbac condition: {name}")
    def _(t):
        t.get("/a?b=c", f"x-case: {name}", "x-user: me", "x-two: 1", "x-two: 2", "user-agent: me", "referer: r")


for name in [*CONDITIONS, "and rules"]:
    ask(name)
