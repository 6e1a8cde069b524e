"""Certificates of every kind that TLS cases need, made by openssl's command line once per run."""
import base64
import hashlib
import re
import subprocess
import tempfile
import threading
from pathlib import Path

DAYS = "800"
AUTHORITY = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
# Names that no honest authority signs, and some that it may. Kinds: 0 otherName, 1 e-mail, 2 DNS, 6 URI, 7 address.
UPN = bytes.fromhex("060a2b060104018237140203")  # the object identifier of a user principal name
ODD = {
    "nul-dns": [(2, b"a.test\0.evil.test")], "nul-first": [(2, b"\0a.test")], "nul-uri": [(6, b"spiffe://td/one\0/evil")],
    "nul-email": [(1, b"me@a.test\0@evil.test")], "nul-beside": [(2, b"evil.test\0"), (2, b"a.test")],
    "line-end": [(2, b"a.test\r\nx: y")], "not-ascii": [(2, "ä.test".encode())], "not-utf8": [(2, b"\xe4.test")],
    "empty-dns": [(2, b"")], "dot": [(2, b"a.test.")], "upper": [(2, b"A.TEST")], "spaces": [(2, b" a.test ")],
    "star": [(2, b"*")], "star-tld": [(2, b"*.test")], "star-dot": [(2, b"*.")], "star-name": [(2, b"*.w.test")],
    "star-part": [(2, b"x*.w.test")], "star-end": [(2, b"*x.w.test")], "star-inside": [(2, b"a.*.test")], "star-two": [(2, b"*.*.test")],
    "star-upper": [(2, b"*.W.TEST")], "star-uri": [(6, b"spiffe://td/*")], "short-address": [(7, b"\x0a\1\2")],
    "address": [(7, bytes([127, 0, 0, 1]))], "address-as-dns": [(2, b"127.0.0.1")], "address6": [(7, bytes(15) + b"\1")],
    "other-name": [(0, UPN + bytes.fromhex("a00c0c0a") + b"me@td.test")],
    "other-name-ascii": [(0, UPN + bytes.fromhex("a00c160a") + b"me@td.test")],
    "many": [(2, b"n%d.test" % i) for i in range(500)] + [(2, b"a.test")],
}
CONFIG = """[ca]
default_ca = own
[own]
database = {home}/{name}.index
serial = {home}/{name}.serial
new_certs_dir = {home}
certificate = {home}/{name}.pem
private_key = {home}/{name}.key
default_md = sha256
default_days = 800
default_crl_days = 800
policy = any
unique_subject = no
copy_extensions = none
crlnumber = {home}/{name}.crlnumber
crl_extensions = crl
[crl]
authorityKeyIdentifier = keyid:always
[any]
commonName = optional
organizationName = optional
"""


def general_names(names):
    """A subjectAltName's value, as openssl takes it."""
    def element(tag, body):
        size = len(body)
        length = bytes([size]) if size < 128 else bytes([129, size]) if size < 256 else bytes([130, size >> 8, size & 255])
        return bytes([tag]) + length + body
    return element(48, b"".join(element((160 if kind == 0 else 128) + kind, body) for kind, body in names)).hex(":")


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {args[0]}: {done.stderr}")
    return done.stdout


class Certificates:
    """A folder with `<name>.pem` (the chain, leaf first) and `<name>.key` of each."""

    def __init__(self):
        self._keep = tempfile.TemporaryDirectory(prefix="certificates-")
        self.home = Path(self._keep.name)
        for name in ("ca", "other-ca"):
            self.root(name)
        self.root("unused-ca")
        (self.home / "both-ca.pem").write_text(self.text("unused-ca") + self.text("ca"))
        # Servers
        self.leaf("server", ["DNS:a.test", "URI:spiffe://td/server"])
        self.leaf("rsa", ["DNS:a.test", "DNS:rsa.test", "URI:spiffe://td/rsa"], rsa=True)
        self.leaf("b", ["DNS:b.test", "DNS:*.b.test"])
        self.leaf("exact", ["DNS:x.b.test"])
        self.leaf("common-name", [], subject="/CN=cn.test")
        self.leaf("ip", ["IP:127.0.0.1", "DNS:localhost"])
        # Clients
        self.leaf("client", ["URI:spiffe://td/ns/one/sa/client", "DNS:client.test", "DNS:*.wild.test", "IP:10.1.2.3",
                             "email:client@example.test"], subject="/O=Org, with comma/CN=client")
        # Serial numbers with a first byte that is white space to ASCII, with the sign's zero byte, and zero.
        self.leaf("two-uris", ["URI:spiffe://td/one", "URI:spiffe://td/two"], serial="0x0adb0020")
        self.leaf("nameless", [], subject="/CN=nameless", serial="0")
        self.leaf("revoked", ["URI:spiffe://td/revoked"])
        self.leaf("server-only", ["URI:spiffe://td/server-only"], usage="serverAuth")
        self.leaf("client-only", ["DNS:a.test"], usage="clientAuth")
        self.leaf("other", ["URI:spiffe://td/ns/one/sa/client", "DNS:a.test"], by="other-ca")
        self.dated("expired", "20200101000000Z", "20210101000000Z")
        self.dated("not-yet", "20450101000000Z", "20460101000000Z")
        openssl("req", "-x509", *self.key_of("self-signed"), "-subj", "/CN=self", "-days", DAYS,
                "-addext", "subjectAltName=DNS:a.test,URI:spiffe://td/self", "-out", self.home / "self-signed.pem")
        # Chains: ca -> inter1 -> inter2 -> deep
        self.leaf("inter1", [], subject="/CN=inter1", extensions=AUTHORITY, usage=None)
        self.leaf("inter2", [], subject="/CN=inter2", extensions=AUTHORITY, usage=None, by="inter1")
        self.leaf("shallow", ["URI:spiffe://td/shallow", "DNS:a.test"], by="inter1")
        self.leaf("deep", ["URI:spiffe://td/deep", "DNS:a.test"], by="inter2", serial="0x80ff")
        self.append("inter2", "inter1")
        self.append("shallow", "inter1")
        self.append("deep", "inter2")
        # Chains that are long: of eight and of forty authorities, and one with certificates that belong to nothing.
        issuer = "ca"
        for i in range(1, 41):
            self.leaf(f"link{i}", [], subject=f"/CN=link{i}", extensions=AUTHORITY, usage=None, by=issuer)
            if i > 1:
                self.append(f"link{i}", f"link{i - 1}")
            issuer = f"link{i}"
        for name, by in (("eighth", "link8"), ("fortieth", "link40")):
            self.leaf(name, ["DNS:a.test", f"URI:spiffe://td/{name}"], by=by)
            self.append(name, by)
        for name, times in (("padded", 60), ("heavy", 400)):
            self.leaf(name, ["DNS:a.test", f"URI:spiffe://td/{name}"])
            (self.home / f"{name}.pem").write_text(self.text(name) + self.text("unused-ca") * times)
        for name, names in ODD.items():
            self.leaf(name, ["DER:" + general_names(names)], subject=f"/CN={name}")
        self.leaf("must-staple", ["DNS:a.test"], extensions=["tlsfeature=status_request"])
        for name in ("server", "rsa", "must-staple"):
            self.staple(name, "current", "-ndays", "30")
            self.staple(name, "outdated")
        self.revoke("ca", "revoked")
        self.revoke("other-ca")
        (self.home / "both.crl").write_text(self.text("ca", "crl") + self.text("other-ca", "crl"))

    def path(self, name, kind="pem"):
        return str(self.home / f"{name}.{kind}")

    def text(self, name, kind="pem"):
        return (self.home / f"{name}.{kind}").read_text()

    def key_of(self, name, rsa=False):
        kind = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        return ["-newkey", *kind, "-nodes", "-keyout", self.path(name, "key")]

    def root(self, name):
        added = [w for e in AUTHORITY for w in ("-addext", e)]
        openssl("req", "-x509", *self.key_of(name), "-subj", f"/CN={name}", "-days", DAYS, "-config", self.bare(), *added,
                "-out", self.path(name))
        (self.home / f"{name}.cnf").write_text(CONFIG.format(home=self.home, name=name))
        (self.home / f"{name}.index").write_text("")
        (self.home / f"{name}.serial").write_text("1000\n")
        (self.home / f"{name}.crlnumber").write_text("1000\n")

    def bare(self):
        path = self.home / "bare.cnf"
        path.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
        return str(path)

    def leaf(self, name, sans, subject=None, by="ca", rsa=False, usage="serverAuth,clientAuth", extensions=(), serial=None):
        wanted = [*extensions]
        if usage:
            wanted += ["basicConstraints=CA:FALSE", f"extendedKeyUsage={usage}"]
        if sans:
            wanted.append("subjectAltName=" + ",".join(sans))
        added = [w for e in wanted for w in ("-addext", e)]
        if serial:
            added += ["-set_serial", serial]
        openssl("req", "-x509", "-CA", self.path(by), "-CAkey", self.path(by, "key"), *self.key_of(name, rsa),
                "-subj", subject or f"/CN={name}", "-days", DAYS, "-config", self.bare(), *added, "-out", self.path(name))

    def dated(self, name, begin, end):
        openssl("req", "-new", *self.key_of(name), "-subj", f"/CN={name}", "-config", self.bare(), "-out", self.path(name, "csr"))
        extensions = self.home / "dated.ext"
        extensions.write_text(f"subjectAltName=DNS:a.test,URI:spiffe://td/{name}\n")
        openssl("ca", "-batch", "-notext", "-config", self.path("ca", "cnf"), "-in", self.path(name, "csr"), "-out", self.path(name),
                "-startdate", begin, "-enddate", end, "-extfile", extensions)

    def append(self, name, issuer):
        (self.home / f"{name}.pem").write_text(self.text(name) + self.text(issuer))

    def staple(self, name, kind, *validity):
        """An OCSP response in `<name>.<kind>`; without a next update it is out of date at once."""
        ca = self.path("ca")
        openssl("ocsp", "-index", self.path("ca", "index"), "-CA", ca, "-rsigner", ca, "-rkey", self.path("ca", "key"),
                "-issuer", ca, "-cert", self.path(name), "-noverify", "-respout", self.path(name, kind), *validity)

    def revoke(self, authority, *names):
        for name in names:
            openssl("ca", "-config", self.path(authority, "cnf"), "-revoke", self.path(name))
        openssl("ca", "-config", self.path(authority, "cnf"), "-gencrl", "-out", self.path(authority, "crl"))

    def der(self, name):
        first = re.search("-----BEGIN CERTIFICATE-----(.*?)-----END", self.text(name), re.S)
        return base64.b64decode(first[1])

    def hash(self, name):
        """SHA-256 of the certificate, in hex."""
        return hashlib.sha256(self.der(name)).hexdigest()

    def spki(self, name):
        """SHA-256 of its public key, in base64."""
        pem = openssl("x509", "-in", self.path(name), "-noout", "-pubkey")
        der = base64.b64decode("".join(pem.split("\n")[1:-2]))
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def names(self):
        """Hash -> name, so that a record tells which certificate it was."""
        return {self.hash(p.stem): p.stem for p in self.home.glob("*.pem")}


_LOCK, _MADE = threading.Lock(), []


def certificates():
    """The one set of this run: both proxies and all cases share it."""
    with _LOCK:
        if not _MADE:
            _MADE.append(Certificates())
        return _MADE[0]
