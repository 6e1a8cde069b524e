"""Secrets that change while the proxy runs: from files of SDS, from files that secrets name; what is broken, what is missing."""
import json
import os
import shutil
import time
from pathlib import Path

from harness.certificates import certificates
from harness.config import TYPE, bootstrap, cluster, listener, route
from harness.runner import Group
from harness.tls import DOWNSTREAM, UPSTREAM, client_context, serving, trusting

SECRET = TYPE + "envoy.extensions.transport_sockets.tls.v3.Secret"
COUNTED = r"^(sds\.[a-z]+\.(update_[asrf]|init|key)|listener\.[a-z_]+\.ssl\.(fail|con|hand)|listener\.[a-z_]+\.server_ssl_socket_factory|cluster\.secured\.ssl\.(fail|con|hand))"


def inline(text):
    return {"inline_string": text}


def pair(name, key=None):
    c = certificates()
    return {"name": "cert", "tls_certificate": {"certificate_chain": inline(c.text(name)), "private_key": inline(c.text(key or name, "key"))}}


def authority(name="ca", **fields):
    return {"name": "ca", "validation_context": {"trusted_ca": inline(certificates().text(name)), **fields}}


def mounted(p, directory=True):
    """A certificate in files that are replaced by swapping a link, as Kubernetes does."""
    home = f"{p.home}/mount"
    made = {"certificate_chain": {"filename": home + "/tls.crt"}, "private_key": {"filename": home + "/tls.key"}}
    if directory:
        made["watched_directory"] = {"path": home}
    return {"name": "mounted", "tls_certificate": made}


def mount(p, certificate, key=None):
    c, home = certificates(), Path(p.home) / "mount"
    home.mkdir(exist_ok=True)
    mount.count += 1
    folder = home / f"..v{mount.count}"
    folder.mkdir()
    shutil.copy(c.path(certificate), folder / "tls.crt")
    shutil.copy(c.path(key or certificate, "key"), folder / "tls.key")
    fresh = home / "..new"
    fresh.symlink_to(folder.name)
    os.replace(fresh, home / "..data")
    for file in ("tls.crt", "tls.key"):
        if not (home / file).is_symlink():
            (home / file).symlink_to(f"..data/{file}")


mount.count = 0


def write(p, name, secrets, version="1"):
    text = secrets if isinstance(secrets, str) else json.dumps(
        {"version_info": version, "resources": [{"@type": SECRET, **s} for s in secrets]})
    fresh = Path(p.home) / f".{name}"
    fresh.write_text(text)
    os.replace(fresh, Path(p.home) / f"{name}.json")


def by_sds(p, name, file=None):
    return {"name": name, "sds_config": {"path_config_source": {"path": f"{p.home}/{file or name}.json"}, "initial_fetch_timeout": "0.3s"}}


def good(p):
    return {"cert": [pair("server")], "ca": [authority()], "mounted": [mounted(p)], "nowhere": []}


def socket(kind, **common):
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common}}


def config(p):
    mount(p, "server")
    for name, secrets in good(p).items():
        write(p, name, secrets, "start")
    certificate = [by_sds(p, "cert")]
    made = [
        serving(p, "main", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=certificate)),
        serving(p, "mutual", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=certificate, validation_context_sds_secret_config=by_sds(p, "ca"))),
        serving(p, "combined", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=certificate, combined_validation_context={
            "default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}]},
            "validation_context_sds_secret_config": by_sds(p, "ca")})),
        serving(p, "mounted", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=[by_sds(p, "mounted")])),
        serving(p, "nowhere", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=[by_sds(p, "nowhere")])),
        serving(p, "one of two", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=[*certificate, by_sds(p, "nowhere")])),
        listener(p, [route("/", "secured")], "up"),
    ]
    mutual = p.secure("MUTUAL", cert="server", ca="ca")
    tls = socket(UPSTREAM, tls_certificate_sds_secret_configs=certificate, validation_context_sds_secret_config=by_sds(p, "ca"),
                 tls_params={"tls_maximum_protocol_version": "TLSv1_3"})
    return bootstrap(p, made, [cluster("secured", mutual, transport_socket=tls)])


G = Group(config)


def ask(t, where, keep=False, **kw):
    """A handshake and a request; how it ends when it fails is a matter of time."""
    conn = t.tls(listener=where, settle=True, **kw)
    if not keep:
        conn.close()
    return conn


def update(t, name, secrets, version="2"):
    write(t.proxy.ports, name, secrets, version)
    time.sleep(0.7)  # ours looks every quarter of a second, and at files that secrets name every fifth


def case(name):
    """A case that leaves the good state behind. The log is other areas' business."""
    def keep(function):
        def run(t):
            try:
                with t.counted(COUNTED):
                    function(t)
            finally:
                p = t.proxy.ports
                for file, secrets in good(p).items():
                    if '"start"' not in (Path(p.home) / f"{file}.json").read_text():
                        update(t, file, secrets, "start")
                if function.__name__ == "swapped":
                    mount(p, "server")
                    time.sleep(0.7)
                t.proxy.read = os.path.getsize(t.proxy.log) if t.proxy.log.exists() else 0
        G.case("tls secrets: " + name, logs=0, blind=True)(run)
        return function
    return keep


@case("as started")
def _(t):
    for where in ("main", "mounted"):
        ask(t, where)
    for where in ("mutual", "combined"):
        for who in (None, "client", "other"):
            ask(t, where, cert=who)
    t.get("/", listener="up")


@case("one that never comes")
def _(t):
    for where in ("nowhere", "one of two"):
        conn = ask(t, where)
        conn.told.pop("reason", None)


@case("another certificate")
def _(t):
    old = ask(t, "main", keep=True)
    update(t, "cert", [pair("rsa")])
    ask(t, "main")
    old.send(b"GET /again HTTP/1.1\r\nhost: a.test\r\n\r\n")
    t.record.append(old.response())
    t.get("/", listener="up")


@case("another certificate, and a session of before")
def _(t):
    context = client_context(version="1.2")
    old = ask(t, "main", keep=True, context=context)
    session = old.sock.session
    update(t, "cert", [pair("rsa")])
    ask(t, "main", context=context, session=session)


def broken(name, secrets):
    @case(name)
    def _(t):
        update(t, "cert", secrets(t.proxy.ports) if callable(secrets) else secrets)
        ask(t, "main")
        t.get("/", listener="up")


PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
broken("the key of another", lambda p: [pair("b", "server")])
broken("garbage for a key", lambda p: [{"name": "cert", "tls_certificate": {
    "certificate_chain": inline(certificates().text("rsa")), "private_key": inline("garbage")}}])
broken("garbage for a chain", lambda p: [{"name": "cert", "tls_certificate": {
    "certificate_chain": inline(PEM), "private_key": inline(certificates().text("rsa", "key"))}}])
broken("no key", lambda p: [{"name": "cert", "tls_certificate": {"certificate_chain": inline(certificates().text("rsa"))}}])
broken("a file that is not there", lambda p: [{"name": "cert", "tls_certificate": {
    "certificate_chain": {"filename": "/nowhere"}, "private_key": {"filename": "/nowhere"}}}])
broken("of another kind", lambda p: [{**authority(), "name": "cert"}])
broken("of another name", lambda p: [{**pair("rsa"), "name": "other"}])
broken("without content", [{"name": "cert"}])
broken("two of the name", lambda p: [pair("rsa"), pair("b")])
broken("none any more", [])
broken("no JSON", "{")
broken("expired", lambda p: [pair("expired")])


@case("mended after it was broken")
def _(t):
    update(t, "cert", [pair("b", "server")])
    ask(t, "main")
    update(t, "cert", [pair("rsa")], "3")
    ask(t, "main")


@case("another authority")
def _(t):
    update(t, "ca", [authority("other-ca")])
    for where in ("mutual", "combined"):
        for who in ("client", "other"):
            ask(t, where, cert=who)
    t.get("/", listener="up")


@case("another authority, and a session of before")
def _(t):
    context = client_context(version="1.2", cert="client")
    old = ask(t, "mutual", keep=True, context=context)
    session = old.sock.session
    update(t, "ca", [authority("other-ca")])
    ask(t, "mutual", context=context, session=session)


@case("a broken authority")
def _(t):
    update(t, "ca", [{"name": "ca", "validation_context": {"trusted_ca": inline(PEM)}}])
    for who in ("client", "other"):
        ask(t, "mutual", cert=who)


@case("names beside the authority")
def _(t):
    update(t, "ca", [authority(match_typed_subject_alt_names=[{"san_type": "DNS", "matcher": {"exact": "none.test"}}])])
    for where in ("mutual", "combined"):
        ask(t, where, cert="client")


@case("files swapped")
def swapped(t):
    ask(t, "mounted")
    mount(t.proxy.ports, "rsa")
    time.sleep(0.7)
    ask(t, "mounted")


@case("files swapped, the key of another")
def swapped(t):
    mount(t.proxy.ports, "b", "server")
    time.sleep(0.7)
    ask(t, "mounted")
    mount(t.proxy.ports, "rsa")
    time.sleep(0.7)
    ask(t, "mounted")


@case("a chain that was missing comes")
def _(t):
    update(t, "nowhere", [{**pair("rsa"), "name": "nowhere"}])
    ask(t, "nowhere")
    ask(t, "one of two")


def dumped(t, kind):
    """Names and keys as the dump has them."""
    found = []
    for one in json.loads(t.proxy.admin("/config_dump?resource=" + kind)["body"]).get("configs", []):
        secret = one.get("secret", {})
        key = secret.get("tls_certificate", {}).get("private_key")
        found.append([one["name"], sorted(secret.keys() - {"name"}), key])
    t.note(**{kind: sorted(found, key=str)})


@case("in the dump")
def _(t):
    for kind in ("dynamic_active_secrets", "dynamic_warming_secrets", "static_secrets"):
        dumped(t, kind)
    whole = t.proxy.admin("/config_dump?include_eds")["body"]
    t.note(keys=whole.count("PRIVATE KEY"))


def inlined(p):
    """Keys wherever they can stand in a bootstrap."""
    c = certificates()
    ticket = {"keys": [{"inline_bytes": TICKET}]}
    held = socket(DOWNSTREAM, tls_certificates=[pair("server")["tls_certificate"]])
    held["typed_config"]["session_ticket_keys"] = ticket
    named = serving(p, "named", socket(DOWNSTREAM, tls_certificate_sds_secret_configs=[{"name": "cert"}]))
    named["filter_chains"][0]["transport_socket"]["typed_config"]["session_ticket_keys_sds_secret_config"] = {"name": "tickets"}
    tls = socket(UPSTREAM, tls_certificates=[{"certificate_chain": inline(c.text("client")), "private_key": inline(c.text("client", "key"))}])
    made = bootstrap(p, [serving(p, "main", held), named], [cluster("secured", p.up, transport_socket=tls)])
    made["static_resources"]["secrets"] = [pair("server"), {"name": "tickets", "session_ticket_keys": ticket}]
    return made


TICKET = "QUFB" * 26 + "QUE="
INLINE = Group(inlined)
for path in ("", "?include_eds", "?resource=static_listeners", "?resource=static_clusters", "?resource=static_secrets", "?resource=bootstrap"):
    @INLINE.case("tls secrets: inline keys in the dump" + path)
    def _(t, path=path):
        body = t.proxy.admin("/config_dump" + path)["body"]
        t.note(keys=body.count("PRIVATE KEY"), tickets=body.count(TICKET), hidden=body.count("[redacted]"), hidden_bytes=body.count("W3JlZGFjdGVkXQ=="))
