"""TLS: the client of cases, the contexts of our upstreams, and short ways to write a proxy's contexts."""
import hashlib
import select
import ssl
from functools import cache

from .certificates import certificates
from .client import H1, H2
from .config import TYPE, listener, route

VERSIONS = {"1.0": ssl.TLSVersion.TLSv1, "1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2,
            "1.3": ssl.TLSVersion.TLSv1_3}
CONNECTION = ("connection %DOWNSTREAM_TRANSPORT_FAILURE_REASON% %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% "
              "%REQUESTED_SERVER_NAME% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_SUBJECT%\n")
DOWNSTREAM = TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
UPSTREAM = TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


def certificate(name, staple=None):
    """A `TlsCertificate`; `staple`: `current` or `outdated`."""
    c = certificates()
    made = {"certificate_chain": {"filename": c.path(name)}, "private_key": {"filename": c.path(name, "key")}}
    if staple:
        made["ocsp_staple"] = {"filename": c.path(name, staple)}
    return made


def trusting(name="ca", **fields):
    """A validation context with an authority."""
    return {"trusted_ca": {"filename": certificates().path(name)}, **fields}


def common(*names, validation=None, alpn=(), params=None, **fields):
    made = dict(fields)
    if names:
        made["tls_certificates"] = [n if isinstance(n, dict) else certificate(n) for n in names]
    if validation is not None:
        made["validation_context"] = validation
    if alpn:
        made["alpn_protocols"] = list(alpn)
    if params:
        made["tls_params"] = params
    return made


def downstream(*names, validation=None, alpn=(), params=None, common_fields=None, **fields):
    """The transport socket of a filter chain; `names`: its certificates."""
    inner = common(*names, validation=validation, alpn=alpn, params=params, **(common_fields or {}))
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": DOWNSTREAM, "common_tls_context": inner, **fields}}


def upstream(*names, validation=None, alpn=(), params=None, common_fields=None, **fields):
    """The transport socket of a cluster."""
    inner = common(*names, validation=validation, alpn=alpn, params=params, **(common_fields or {}))
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": UPSTREAM, "common_tls_context": inner, **fields}}


def known(der):
    """The name of a certificate of ours."""
    return _names().get(hashlib.sha256(der).hexdigest(), "unknown") if der else None


@cache
def _names():
    return certificates().names()


def serving(p, name, socket, routes=None, **hcm):
    """A listener with TLS, its stats under its name, and a line in the log for each connection."""
    made = listener(p, routes or [route("/", "up")], name, **hcm)
    made["stat_prefix"] = name.replace(" ", "_").replace(":", "")
    made["access_log"] = [file_log(p, CONNECTION)]
    made["filter_chains"][0]["transport_socket"] = socket
    return made


def file_log(p, text):
    return {"name": "envoy.access_loggers.file", "typed_config": {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": p.log,
        "log_format": {"text_format_source": {"inline_string": text}}}}


def ask(t, where, path="/", *headers, keep=False, **kw):
    """One connection: its handshake, a request if that was done, and the connection's line in the log."""
    conn = t.tls(path, *headers, listener=where, **kw)
    if not keep:
        conn.close()
    t.expect += 1
    return conn


def client_context(version=None, ciphers=None, curve=None, alpn=(), cert=None, ca="ca", verify=False):
    """`version`: this one only; `cert`: the client's certificate; `verify`: the server's must be of `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if ca:
        context.load_verify_locations(certificates().path(ca))
    if ciphers or version in ("1.0", "1.1"):
        context.set_ciphers((ciphers or "DEFAULT") + ":@SECLEVEL=0")
    context.minimum_version = VERSIONS[version or "1.2"]
    context.maximum_version = VERSIONS[version or "1.3"]
    if curve:
        context.set_ecdh_curve(curve)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if cert:
        c = certificates()
        context.load_cert_chain(c.path(cert), c.path(cert, "key"))
    return context


def hello(server="a.test", **kw):
    """A ClientHello's bytes; `kw`: `client_context`'s."""
    sent = ssl.MemoryBIO()
    conn = client_context(**kw).wrap_bio(ssl.MemoryBIO(), sent, server_hostname=server)
    try:
        conn.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def server_context(cert="server", ca=None, alpn=(), version=None):
    """Of an upstream; `ca`: clients must show a certificate of this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates().path(cert), certificates().path(cert, "key"))
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if ca:
        context.load_verify_locations(certificates().path(ca))
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))

    def keep(sock, name, _):
        sock.asked_for = name
    context.sni_callback = keep
    return context


def shaken(sock):
    """What a finished handshake is told as by an upstream."""
    return {"sni": getattr(sock, "asked_for", None), "alpn": sock.selected_alpn_protocol(), "version": sock.version(),
            "client": known(sock.getpeercert(True))}


def reason(error):
    """What a failed handshake is told as: the alert if there was one."""
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "reset"
    return getattr(error, "reason", None) or type(error).__name__


class Handshake:
    """Shakes hands on a socket; `told` says how that went. With TLS 1.3 a server refuses the client's certificate, or
    the lack of one, after the client is done: with `settle` what comes within a moment belongs to the handshake."""

    def __init__(self, sock, context, sni, session=None, settle=False):
        self.sock, self.told = sock, {}
        try:
            self.sock = context.wrap_socket(sock, server_hostname=sni, session=session)
            if settle and self.sock.version() == "TLSv1.3":
                self._settle()
        except (ssl.SSLError, OSError) as error:
            self.told = {"handshake": "failed", "reason": reason(error)}
            return
        self.told = {"handshake": "done", "version": self.sock.version(), "cipher": self.sock.cipher()[0],
                     "alpn": self.sock.selected_alpn_protocol(), "certificate": known(self.sock.getpeercert(True)),
                     "resumed": self.sock.session_reused}

    def _settle(self):
        """Reads tickets, or the alert."""
        timeout = self.sock.gettimeout()
        ready = select.poll()  # not select(), which knows 1,024 descriptors
        ready.register(self.sock, select.POLLIN)
        if ready.poll(150):
            self.sock.settimeout(0.02)
            try:
                if self.sock.read(1) == b"":
                    raise ConnectionResetError
            except TimeoutError:
                pass
        self.sock.settimeout(timeout)


class TlsH1(H1):
    """HTTP/1 over TLS; `first`: bytes in front of the handshake."""

    def __init__(self, to, source=None, sni="a.test", session=None, settle=None, context=None, first=b"", **kw):
        super().__init__(to, source)
        self.send(first)
        settle = settle if settle is not None else "cert" in kw
        shake = Handshake(self.sock, context or client_context(**kw), sni, session, settle)
        self.sock, self.told = shake.sock, shake.told

    def _fill(self):
        try:
            return super()._fill()
        except ssl.SSLError as error:
            self.told["alert"] = reason(error)
            return False


class TlsH2(H2):
    """HTTP/2 over TLS."""

    def __init__(self, port, sni="a.test", **kw):
        self.sni, self.kw = sni, {"alpn": ["h2"], **kw}
        super().__init__(port)

    def wrap(self, sock):
        shake = Handshake(sock, client_context(**self.kw), self.sni)
        self.told = shake.told
        return shake.sock
