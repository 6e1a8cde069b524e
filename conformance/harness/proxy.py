"""One proxy process on one bootstrap, with its backend, log and ports."""
import http.client
import json
import random
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .backend import Backend
from .client import H1, H2
from .tls import TlsH1, TlsH2, server_context


class Ports:
    """Free ports below the ephemeral range, remembered by name so that a port can be told back as its name."""
    taken = set()  # by both proxies of this run: their listeners would share a port without an error

    def __init__(self, log):
        self.log, self.home, self.names, self.secured, self.behind, self.plain = str(log), str(log.parent), {}, {}, {}, {}
        self.admin, self.up, self.up2, self.dead = (self.listener(n) for n in ("ADMIN", "UP", "UP2", "DEAD"))

    def secure(self, name, **context):
        """The port of an upstream that speaks TLS, with `tls.server_context`'s arguments."""
        port = self.listener(name)
        self.secured[port] = context
        return port

    def proxied(self, name, secure=None, h2=False):
        """The port of an upstream behind PROXY headers; `secure`: `tls.server_context`'s arguments."""
        port = self.listener(name)
        self.behind[port] = secure, h2
        return port

    def raw(self, name, serve):
        """The port of an upstream that does what `serve` does with a connection and the record of it."""
        port = self.listener(name)
        self.plain[port] = serve
        return port

    def listener(self, name):
        for number, known in self.names.items():
            if known == name:
                return number
        while True:
            number = random.randrange(15000, 31000)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", number))
                except OSError:
                    continue
            if number not in Ports.taken:
                Ports.taken.add(number)
                self.names[number] = name
                return number


class Proxy:
    def __init__(self, binary, build, files=None):
        """`files`: how many descriptors it may have."""
        def limit():
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        self.home = tempfile.TemporaryDirectory(prefix="conformance-")
        home = Path(self.home.name)
        self.binary = binary
        self.log, self.read = home / "access.log", 0
        self.ports = Ports(self.log)
        self.backend = Backend(self.ports.up, self.ports.up2)
        config = home / "bootstrap.json"
        config.write_text(json.dumps(build(self.ports)))
        for port, context in self.ports.secured.items():
            self.backend.secure(port, server_context(**context))
        for port, (context, h2) in self.ports.behind.items():
            self.backend.proxied(port, None if context is None else server_context(**context), h2)
        for port, serve in self.ports.plain.items():
            self.backend.raw(port, serve)
        self.errors = home / "stderr"
        self.process = subprocess.Popen(
            [binary, "-c", str(config), "--concurrency", "1", "--disable-hot-restart",
             "--file-flush-interval-msec", "20", "-l", "warning"],
            stdout=subprocess.DEVNULL, stderr=self.errors.open("wb"), preexec_fn=limit if files else None)
        until = time.monotonic() + 20
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{binary} left at start: {self.said()}")
            try:
                if self.admin("/ready")["status"] == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"{binary} not ready in 20 s: {self.said()}")
            time.sleep(0.05)

    def said(self):
        return self.errors.read_text(errors="replace")[-1500:]

    def admin(self, path, method="GET"):
        conn = http.client.HTTPConnection("127.0.0.1", self.ports.admin, timeout=5)
        conn.request(method, path)
        answer = conn.getresponse()
        return {"status": answer.status, "headers": [list(h) for h in answer.getheaders()],
                "body": answer.read().decode("latin-1")}

    def lines(self, count):
        """The next `count` access log lines, or those that came within two seconds."""
        until = time.monotonic() + 2
        while True:
            data = self.log.read_bytes()[self.read:] if self.log.exists() else b""
            if data.count(b"\n") >= count or time.monotonic() > until:
                whole = data[:data.rfind(b"\n") + 1]
                self.read += len(whole)
                return whole.decode("latin-1").splitlines()
            time.sleep(0.01)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Talk:
    """What a case has in its hands: clients to this proxy; everything they see is recorded."""

    def __init__(self, proxy):
        self.proxy, self.record, self.expect, self.open = proxy, [], 0, []
        self.unsure = False  # whether a stream ended without a response

    def connect(self, listener="main", to=None, source=None):
        """A connection to a listener's port; `to`: to another address with that port, or to a path below the proxy's
        folder or an abstract name (@)."""
        port = self.proxy.ports.listener(listener)
        if to is None:
            to = port
        elif to.startswith("/"):
            to = self.proxy.ports.home + to
        elif to.startswith("@"):
            to = "\0" + to[1:]
        else:
            to = (to, port)
        return self.reach(to, source)

    def reach(self, to, source=None):
        """A connection to somewhere, as H1 says."""
        conn = H1(to, source)
        self.open.append(conn)
        return conn

    def h1(self, data, listener="main", count=1, after=None):
        """Sends bytes on a fresh connection and reads `count` responses; `after`: also whether it then closes."""
        data = data.encode("latin-1") if isinstance(data, str) else data
        conn = self.connect(listener)
        conn.send(data)
        for _ in range(count):
            answer = conn.response("HEAD" if data.startswith(b"HEAD ") else "GET")
            self.record.append(answer)
            self.expect += 1 if "line" in answer else 0
            self.unsure |= "line" not in answer
        if after is not None:
            self.record.append({"closed afterwards": conn.closed(after)})
        conn.close()

    def tls(self, path="/", *headers, listener="main", host="a.test", ask=True, method="GET", h2=False, **kw):
        """A handshake, told as it went, and (`ask`) a request over it. `kw`: `tls.client_context`'s, `sni`."""
        port = self.proxy.ports.listener(listener)
        conn = TlsH2(port, **kw) if h2 else TlsH1(port, **kw)
        self.open.append(conn)
        self.record.append(conn.told)
        if not ask or conn.told["handshake"] != "done":
            return conn
        if h2:
            pairs = [tuple(h.split(": ", 1)) for h in headers]
            head = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *pairs]
            answer, = conn.finish([conn.start(head)])
        else:
            conn.send("\r\n".join([f"{method} {path} HTTP/1.1", f"host: {host}", *headers, "\r\n"]).encode("latin-1"))
            answer = conn.response(method)
        self.record.append(answer)
        answered = "headers" in answer
        self.expect += answered
        self.unsure |= not answered
        return conn

    def stats(self, pattern):
        """Stats by name whose names match, without those that are zero."""
        found = self.proxy.admin("/stats?usedonly&filter=" + quote(pattern))["body"]
        return {name: int(value) for name, value in re.findall(r"^(\S+): (\d+)$", found, re.M) if value != "0"}

    @contextmanager
    def counted(self, pattern):
        """Records by how much counters grew."""
        before = self.stats(pattern)
        yield
        time.sleep(0.05)  # a peer may know of a failure before it is counted
        after = self.stats(pattern)
        self.note(counted={n: v - before.get(n, 0) for n, v in after.items() if v != before.get(n, 0)})

    def get(self, path="/", *headers, listener="main", method="GET", host="a.test", body=None):
        """A well-formed HTTP/1.1 request."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *headers]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        self.h1("\r\n".join(lines) + "\r\n\r\n" + (body or ""), listener)

    def h2(self, path="/", headers=(), body=b"", trailers=None, method="GET", listener="main", host="a.test", head=None):
        """One request on a fresh HTTP/2 connection; `head` replaces the whole header list."""
        conn = H2(self.proxy.ports.listener(listener))
        self.open.append(conn)
        given = head or [(":method", method), (":scheme", "http"), (":authority", host), (":path", path), *headers]
        answer, = conn.finish([conn.start(given, body, trailers)])
        self.record.append(answer)
        self.expect += 1 if "headers" in answer else 0
        self.unsure |= "headers" not in answer
        conn.close()

    def admin(self, path, method="GET", keep=None):
        """An admin request; `keep` limits the body to the lines that match, sorted."""
        answer = self.proxy.admin(path, method)
        if keep:
            answer["body"] = sorted(line for line in answer["body"].splitlines() if re.search(keep, line))
        self.record.append(answer)

    def upstream(self, count):
        """Waits until the backend has seen `count` requests, which come in any order, and puts them in one."""
        backend, until = self.proxy.backend, time.monotonic() + 2
        while len(backend.seen) < count and time.monotonic() < until:
            time.sleep(0.005)
        backend.settled()
        with backend.lock:
            backend.seen.sort(key=lambda record: json.dumps(sorted(record["headers"])))

    def note(self, **facts):
        self.record.append(facts)
