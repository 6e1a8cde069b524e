"""TLS contexts that are loaded or refused: keys, certificates, validation contexts, parameters, sessions, staples."""
from harness.certificates import certificates
from harness.config import bootstrap, cluster, listener, route
from harness.load import Loads
from harness.tls import certificate, downstream, trusting, upstream

L = Loads()
DOWN = "static_resources.listeners[0].filter_chains[0].transport_socket.typed_config"
UP = "static_resources.clusters[4].transport_socket.typed_config"


def served(name, says=(), **context):
    """A listener's context. `says`: what our error contains after the context's path."""
    def content(p):
        made = listener(p, [route("/", "up")])
        values = {k: v() if callable(v) else v for k, v in context.items()}
        made["filter_chains"][0]["transport_socket"] = downstream(*values.pop("names", ["server"]), **values)
        return bootstrap(p, [made])
    L.load("tls load: " + name, content, says=[DOWN, *([says] if isinstance(says, str) else says)])


def asked(name, says=(), **context):
    """A cluster's context."""
    def content(p):
        values = {k: v() if callable(v) else v for k, v in context.items()}
        socket = upstream(*values.pop("names", []), **values)
        return bootstrap(p, [listener(p, [route("/", "up")])], [cluster("tls", p.up, transport_socket=socket)])
    L.load("tls load: " + name, content, says=[UP, *([says] if isinstance(says, str) else says)])


def pair(chain=None, key=None):
    """A certificate of parts; `inline:` in front of text."""
    def made():
        def source(given, kind):
            if given is None:
                return None
            if given.startswith("inline:"):
                return {"inline_string": given[7:]}
            return {"filename": given if given.startswith("/") else certificates().path(given, kind)}
        parts = {"certificate_chain": source(chain, "pem"), "private_key": source(key, "key")}
        return [{k: v for k, v in parts.items() if v}]
    return made


PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"
KEY = "common_tls_context.tls_certificates[0].private_key"
CHAIN = "common_tls_context.tls_certificates[0].certificate_chain"

# Certificates and keys
served("good")
served("RSA", names=["rsa"])
served("chain", names=["deep"])
served("expired", names=["expired"])
served("two kinds", names=["server", "rsa"])
served("no certificate", names=[], says="No TLS certificates found for server context")
served("no key", names=pair("server"), says="private_key")
served("no chain", names=pair(None, "server"), says="certificate_chain")
served("another's key", names=pair("server", "rsa"), says=KEY)
served("another's key of the same kind", names=pair("server", "b"), says=KEY)
served("empty key", names=pair("server", "inline:"), says=KEY)
served("empty chain", names=pair("inline:", "server"), says=CHAIN)
served("garbage for a key", names=pair("server", "inline:garbage"), says=KEY)
served("garbage for a chain", names=pair("inline:garbage", "server"), says=CHAIN)
served("garbage in PEM for a key", names=pair("server", "inline:" + PEM.format("PRIVATE KEY", "AAAA")), says=KEY)
served("garbage in PEM for a chain", names=pair("inline:" + PEM.format("CERTIFICATE", "AAAA"), "server"), says=CHAIN)
served("cut base64 in a chain", names=pair("inline:" + PEM.format("CERTIFICATE", "A"), "server"), says=CHAIN)
served("key for a chain", names=lambda: [{"certificate_chain": {"filename": certificates().path("server", "key")},
                                          "private_key": {"filename": certificates().path("server", "key")}}], says=CHAIN)
served("chain for a key", names=lambda: [{"certificate_chain": {"filename": certificates().path("server")},
                                          "private_key": {"filename": certificates().path("server")}}], says=KEY)
served("key file is missing", names=pair("server", "/nowhere"), says=(KEY, "/nowhere"))
served("chain file is missing", names=pair("/nowhere", "server"), says=(CHAIN, "/nowhere"))
served("second certificate is broken", names=lambda: [certificate("server"), *pair("rsa", "b")()],
       says="common_tls_context.tls_certificates[1].private_key")
served("the leaf is not the first", names=lambda: [{
    "certificate_chain": {"inline_string": certificates().text("ca") + certificates().text("server")},
    "private_key": {"filename": certificates().path("server", "key")}}], says=KEY)
served("text around PEM", names=lambda: [{
    "certificate_chain": {"inline_string": "before\n" + certificates().text("server") + "after\n"},
    "private_key": {"inline_string": "before\n" + certificates().text("server", "key")}}])

# Validation contexts
served("trusted", validation=trusting)
served("authority file is missing", validation={"trusted_ca": {"filename": "/nowhere"}}, says="validation_context.trusted_ca")
served("empty authority", validation={"trusted_ca": {"inline_string": ""}}, says="validation_context.trusted_ca")
served("garbage for an authority", validation={"trusted_ca": {"inline_string": "garbage"}}, says="validation_context.trusted_ca")
served("garbage after an authority", validation=lambda: {"trusted_ca": {"inline_string": certificates().text("ca") + "garbage"}})
served("a broken second authority", validation=lambda: {"trusted_ca": {
    "inline_string": certificates().text("ca") + PEM.format("CERTIFICATE", "AAAA")}}, says="validation_context.trusted_ca")
served("names without an authority", validation={"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]},
       says="without trusted CA is insecure")
served("names without a type", validation=lambda: trusting(match_typed_subject_alt_names=[{"matcher": {"exact": "a"}}]), says="san_type")
served("names without a matcher", validation=lambda: trusting(match_typed_subject_alt_names=[{"san_type": "DNS"}]), says="matcher")
served("a bad regex", validation=lambda: trusting(match_typed_subject_alt_names=[
    {"san_type": "DNS", "matcher": {"safe_regex": {"regex": "("}}}]), says="match_typed_subject_alt_names[0]")
served("hash too short", validation={"verify_certificate_hash": ["ab"]}, says="verify_certificate_hash[0]")
served("hash not hex", validation={"verify_certificate_hash": ["x" * 64]}, says="verify_certificate_hash[0]")
served("key hash not base64", validation={"verify_certificate_spki": ["!" * 44]}, says="verify_certificate_spki[0]")
served("key hash too short", validation={"verify_certificate_spki": ["AAAA"]}, says="verify_certificate_spki[0]")
served("CRL", validation=lambda: trusting(crl={"filename": certificates().path("ca", "crl")}))
served("CRL is garbage", validation=lambda: trusting(crl={"inline_string": "garbage"}), says="validation_context.crl")
served("CRL is empty", validation=lambda: trusting(crl={"inline_string": ""}))
served("CRL is white space", validation=lambda: trusting(crl={"inline_string": "\n"}), says="validation_context.crl")
served("CRL is empty, without an authority", validation=lambda: {"crl": {"inline_string": ""}})
served("CRL without an authority", validation=lambda: {"crl": {"filename": certificates().path("ca", "crl")}}, says="crl")
served("CRL file is missing", validation=lambda: trusting(crl={"filename": "/nowhere"}), says="validation_context.crl")

# Parameters
for name, params, says in (
        ("unknown suite", {"cipher_suites": ["NO-SUCH-SUITE"]}, "tls_params.cipher_suites[0]"),
        ("unknown suite among others", {"cipher_suites": ["ECDHE-ECDSA-AES128-GCM-SHA256", "NO-SUCH-SUITE"]}, "cipher_suites[1]"),
        ("empty suite", {"cipher_suites": [""]}, "cipher_suites[0]"),
        ("suite of TLS 1.3", {"cipher_suites": ["TLS_AES_128_GCM_SHA256"]}, "cipher_suites[0]"),
        ("suites in an open group", {"cipher_suites": ["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-RSA-AES128-GCM-SHA256"]}, "cipher_suites[0]"),
        ("unknown curve", {"ecdh_curves": ["P-999"]}, "tls_params.ecdh_curves[0]"),
        ("unknown curve among others", {"ecdh_curves": ["P-256", "P-999"]}, "ecdh_curves[1]"),
        ("all curves", {"ecdh_curves": ["X25519MLKEM768", "X25519", "P-256", "P-384"]}, ""),
        ("versions the wrong way", {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"}, "tls_minimum_protocol_version"),
        ("unknown version", {"tls_minimum_protocol_version": "TLSv9"}, "tls_minimum_protocol_version"),
        ("unknown policy", {"compliance_policies": ["NONE"]}, "compliance_policies"),
        ("fips", {"compliance_policies": ["FIPS_202205"]}, "")):
    served(name, params=params, says=says)
    asked(name + ", cluster", params=params, says=says)
served("empty ALPN", alpn=[""], says="alpn_protocols")
served("long ALPN", alpn=["x" * 256], says="alpn_protocols")

# Sessions
LONG, SHORT = {"inline_bytes": "QUFB" * 26 + "QUE="}, {"inline_bytes": "QUFB"}
served("ticket keys", session_ticket_keys={"keys": [LONG]})
served("two ticket keys", session_ticket_keys={"keys": [LONG, LONG]})
served("no ticket keys", session_ticket_keys={"keys": []}, says="session_ticket_keys.keys")
served("short ticket key", session_ticket_keys={"keys": [SHORT]}, says="session_ticket_keys.keys[0]")
served("second ticket key is short", session_ticket_keys={"keys": [LONG, SHORT]}, says="session_ticket_keys.keys[1]")
served("ticket key file is missing", session_ticket_keys={"keys": [{"filename": "/nowhere"}]}, says="session_ticket_keys.keys[0]")
served("ticket keys of a secret that is not there", session_ticket_keys_sds_secret_config={"name": "nowhere"},
       says="session_ticket_keys_sds_secret_config")
served("session timeout", session_timeout="60s")
served("negative session timeout", session_timeout="-1s", says="session_timeout")
served("session timeout of 2^32 s", session_timeout="4294967296s", says="session_timeout")
served("session timeout of 0", session_timeout="0s")

# Clusters
asked("cluster without anything")
asked("cluster with a certificate", names=["client"])
asked("cluster with two certificates", names=["client", "rsa"], says="common_tls_context")
asked("cluster with another's key", names=pair("client", "rsa"), says=KEY)
asked("cluster, long SNI", sni="x" * 256, says="sni")
asked("cluster, names without an authority", validation={"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]},
      says="without trusted CA is insecure")

# Staples
served("staple", names=lambda: [certificate("server", "current")])
served("outdated staple", names=lambda: [certificate("server", "outdated")])
served("staple of another", names=lambda: [{**certificate("server"), "ocsp_staple": {"filename": certificates().path("rsa", "current")}}],
       says="tls_certificates[0].ocsp_staple")
served("garbage for a staple", names=lambda: [{**certificate("server"), "ocsp_staple": {"inline_bytes": "QUFB"}}], says="ocsp_staple")
served("staple as text", names=lambda: [{**certificate("server"), "ocsp_staple": {"inline_string": "staple"}}], says="ocsp_staple")
served("no staple where one must be", ocsp_staple_policy="MUST_STAPLE", says="Required OCSP response is missing")
served("no staple for a certificate that wants one", names=["must-staple"], says="required for must-staple certificate")
