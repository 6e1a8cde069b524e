"""What a route matches and rewrites beside plain fields: URI templates, cookies."""
from harness.config import TYPE, bootstrap, listener, route
from harness.runner import Group

MATCH, REWRITE = ("envoy.path.%s.uri_template.uri_template_%s" % names for names in (("match", "matcher"), ("rewrite", "rewriter")))


def template(text, **fields):
    return {"path_match_policy": {"name": MATCH, "typed_config": {
        "@type": TYPE + "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": text}}, **fields}


def rewritten(text, **fields):
    return {"path_rewrite_policy": {"name": REWRITE, "typed_config": {
        "@type": TYPE + "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig", "path_template_rewrite": text}}, **fields}


def said(text, match):
    return route(match, direct_response={"status": 200, "body": {"inline_string": text}})


def cookie(name, value, **fields):
    return {"name": name, "string_match": value, **fields}


TEMPLATES = [
    route(template("/swap/{one}/{two}"), rewritten("/{two}/{one}")),
    route(template("/videos/{language=lang/*}/*"), rewritten("/v/{language}")),
    route(template("/content/{format}/{lang}/{id}/{file}.vtt"), rewritten("/{lang}/{format}/{file}.vtt")),
    route(template("/rest/{a}/{rest=**}"), rewritten("/r/{rest}/{a}{a}")),
    route(template("/plain/*"), rewritten("/none")),
    route(template("/regex/{a}"), {"regex_rewrite": {"pattern": {"regex": "^/regex/(.*)$"}, "substitution": "/x/\\1"}}),
    route(template("/case/{a}", case_sensitive=False), rewritten("/{a}")),
    said("method", template("/only/{a}", headers=[{"name": ":method", "string_match": {"exact": "POST"}}])),
    said("deep", template("/deep/**")), said("suffix", template("/files/*.js")),
]
COOKIES = [
    said("exact", {"prefix": "/c", "cookies": [cookie("a", {"exact": "1"})]}),
    said("two", {"prefix": "/c", "cookies": [cookie("b", {"prefix": "x"}), cookie("c", {"safe_regex": {"regex": "[0-9]+"}})]}),
    said("quoted", {"prefix": "/c", "cookies": [cookie("q", {"exact": "in quotes"})]}),
    said("empty", {"prefix": "/c", "cookies": [cookie("e", {"exact": ""})]}),
    said("inverted", {"prefix": "/i", "cookies": [cookie("a", {"exact": "1"}, invert_match=True)]}),
]


def config(p):
    return bootstrap(p, [listener(p, [*TEMPLATES, *COOKIES])])


G = Group(config)


def get(path, *headers, name="", upstream=({},)):
    G.case(f"routes: {name or path}", upstream)(lambda t: t.get(path, *headers))


for path in ("/swap/cat/dog", "/swap/cat/dog?q=/a/b", "/swap/cat", "/swap/cat/", "/swap/cat/dog/", "/swap/c%2Ft/d.g~",
             "/videos/lang/en/video.m4s", "/videos/lang/en", "/content/hls/en-us/12345/en_193913.vtt", "/content/hls/en-us/12345/x.txt",
             "/rest/1/2/3", "/rest/1/", "/rest/1", "/plain/x?y", "/plain/", "/regex/abc?d", "/CASE/x", "/case/x",
             "/swap/a*/b", "/swap/a|b/c"):
    get(path)
for path in ("/deep/", "/deep", "/deep/a/b/c", "/files/x.js", "/files/.js", "/files/x/y.js", "/only/x"):
    get(path, upstream=())
for name, value in {"exact": "a=1", "later": "x=y; a=1", "of another name": "aa=1", "twice, first counts": "a=1; a=2",
                    "twice, second is ignored": "a=2; a=1", "both": "c=12; b=xyz", "one of both": "b=xyz", "in quotes": 'q="in quotes"',
                    "half in quotes": 'q="in quotes', "empty": "e=", "without value": "e", "spaces": "  a = 1 ", "space before its value": "a= 1", "space behind its name": "a =1", "space behind its value": "a=1 ; x=y",
                    "space in quotes": 'q=" in quotes"', "space around quotes": 'q= "in quotes" ', "tab before its name": "x=y;\ta=1", "nothing": ""}.items():
    get("/c", f"cookie: {value}", name=f"cookie {name}", upstream=())
get("/c", "cookie: x=1", "cookie: a=1", name="cookie in the second line", upstream=())
get("/c", name="no cookie", upstream=())
for name, headers in {"missing": (), "other": ("cookie: a=2",), "there": ("cookie: a=1",)}.items():
    get("/i", *headers, name=f"inverted cookie, {name}", upstream=())
