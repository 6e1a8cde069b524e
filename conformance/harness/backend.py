"""A recording HTTP backend under full control of the case: HTTP/1.1 on one port, h2c on another, over TLS on more.

A case scripts it with a list of actions, one per request in order of arrival (the last one repeats; none means a
plain 200). An action is a dict:

    status, headers, body, trailers   the response (HTTP/1: content-length, or chunked when there are trailers)
    raw                               bytes sent verbatim in place of a response (HTTP/1 only)
    delay                             seconds to wait before answering
    early                             answer before the request body is read
    reset                             HTTP/1: RST the connection; h2c: RST_STREAM with this error code
    close                             close without an answer
    close_after                       close the connection after the answer
    interim                           list of (status, headers) sent before the answer
    truncate                          promise this many bytes in content-length, send `body`, then close
    tunnel                            after the answer, echo bytes until the end
    says                              h2: a tunnel's bytes in answer to its first, in place of the echo
    grpc                              h2c: gRPC messages, each sent as an answer to one that came (or a function from
                                      the one that came to the answer); then, once the
                                      request has ended, the trailers with `grpc_status` (0); None in place of a
                                      message ends the call at once
    silent                            h2c: no answer ever
    decode                            h2c: the request is a gRPC message, and told as such
"""
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from . import grpc, tls


def proxy_header(conn):
    """Takes a PROXY header off a connection and tells it as text."""
    def exactly(n):
        data = b""
        while len(data) < n:
            more = conn.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data
    line = exactly(1)
    if line == b"P":
        while not line.endswith(b"\r\n"):
            line += exactly(1)
        return line.decode("latin-1")
    head = line + exactly(15)
    rest = exactly(int.from_bytes(head[14:], "big"))
    size = {1: 4, 2: 16}.get(head[13] >> 4, 0)
    kind = socket.AF_INET if size == 4 else socket.AF_INET6
    told = f"{head[:12]} {head[12]:x} {head[13]:x}"
    for i in (0, 1) if size else ():
        port = int.from_bytes(rest[2 * size + 2 * i:][:2], "big")
        told += f" {socket.inet_ntop(kind, rest[i * size:][:size])} {port}"
    return told + f" {rest[2 * size + 4 if size else 0:]}"


class Backend:
    """Both servers of one proxy's side; what they saw is in `seen` until the next `begin`."""

    def __init__(self, h1_port, h2_port):
        self.lock = threading.Lock()
        self.headers = {}  # PROXY headers by descriptor
        self.begin([])
        for port, serve in ((h1_port, self._serve_h1), (h2_port, self._serve_h2)):
            listening = socket.create_server(("127.0.0.1", port), backlog=128)
            threading.Thread(target=self._accept, args=(listening, serve), daemon=True).start()

    def secure(self, port, context):
        """One more server, over TLS: HTTP/2 if ALPN says so. Failed handshakes are seen too."""
        listening = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listening, self._over_tls(context)), daemon=True).start()

    def proxied(self, port, context=None, h2=False):
        """One more server, behind PROXY headers, which are seen with every request; over TLS with a context."""
        inner = self._over_tls(context) if context else self._serve_h2 if h2 else self._serve_h1

        def serve(conn):
            number = conn.fileno()
            try:
                self.headers[number] = proxy_header(conn)
                inner(conn)
            finally:
                self.headers.pop(number, None)
        listening = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listening, serve), daemon=True).start()

    def raw(self, port, serve):
        """One more server, for bytes: `serve` gets every connection and its record, which begins with no `bytes`."""
        def record(conn):
            with self.lock:
                self.seen.append(record := {"bytes": ""})
            serve(conn, record)
        listening = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listening, record), daemon=True).start()

    def _over_tls(self, context):
        def serve(conn):
            try:
                conn = context.wrap_socket(conn, server_side=True)
            except (ssl.SSLError, OSError) as error:
                with self.lock:
                    self.seen.append({"handshake": "failed", "reason": tls.reason(error), "body": ""})
                return
            try:
                (self._serve_h2 if conn.selected_alpn_protocol() == "h2" else self._serve_h1)(conn)
            finally:
                conn.close()
        return serve

    def begin(self, script):
        with self.lock:
            self.script, self.seen, self.arrived = list(script), [], 0

    def settled(self):
        """What was seen, once every body has arrived or was given a moment to: a response can overtake its request."""
        until = time.monotonic() + 0.3
        while time.monotonic() < until and not all("body" in record for record in list(self.seen)):
            time.sleep(0.005)
        with self.lock:
            return list(self.seen)

    def _action(self):
        """The action of the request that has just arrived, and the case's record it belongs to."""
        with self.lock:
            number, self.arrived = self.arrived, self.arrived + 1
            action = self.script[min(number, len(self.script) - 1)] if self.script else {}
            return dict(action), self.seen

    def _accept(self, listening, serve):
        while True:
            conn, _ = listening.accept()
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._guard, args=(serve, conn), daemon=True).start()

    @staticmethod
    def _guard(serve, conn):
        try:
            serve(conn)
        except (OSError, EOFError, h2.exceptions.ProtocolError):
            pass
        finally:
            conn.close()

    def _facts(self, conn):
        """What is told of a request's connection."""
        facts = {"tls": tls.shaken(conn)} if isinstance(conn, ssl.SSLSocket) else {}
        header = self.headers.get(conn.fileno())
        return {**facts, "proxy": header} if header else facts

    # HTTP/1.1

    def _serve_h1(self, conn):
        f = conn.makefile("rb")
        while True:
            line = f.readline()
            if not line:
                return
            head = []
            while (h := f.readline().rstrip(b"\r\n")) != b"":
                name, _, value = h.decode("latin-1").partition(":")
                head.append([name, value.strip()])
            action, seen = self._action()
            record = {"line": line.decode("latin-1").rstrip("\r\n"), "headers": head, **self._facts(conn)}
            seen.append(record)
            if not action.get("early"):
                self._body(f, conn, head, record)
            if not self._answer(conn, action, record):
                return
            if action.get("tunnel"):
                while data := f.read1(65536):
                    conn.sendall(data)
                return
            if action.get("early"):
                self._body(f, conn, head, record)

    @staticmethod
    def _body(f, conn, head, record):
        low = {n.lower(): v for n, v in head}
        if "100-continue" in low.get("expect", ""):
            conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if low.get("transfer-encoding", "").lower() == "chunked":
            body, trailers = b"", []
            while True:
                size = f.readline()
                if not size:
                    record["body"], record["cut"] = body.decode("latin-1"), True
                    raise EOFError
                if int(size, 16) == 0:
                    break
                body += f.read(int(size, 16))
                f.readline()
            while (t := f.readline().rstrip(b"\r\n")) != b"":
                name, _, value = t.decode("latin-1").partition(":")
                trailers.append([name, value.strip()])
            record["body"], record["trailers"] = body.decode("latin-1"), trailers
        else:
            length = int(low.get("content-length", 0))
            body = f.read(length)
            record["body"] = body.decode("latin-1")
            if len(body) < length:
                record["cut"] = True
                raise EOFError

    @staticmethod
    def _answer(conn, action, record):
        """Sends the answer; false when the connection is finished."""
        if "delay" in action:
            time.sleep(action["delay"])
        if action.get("reset"):
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if action.get("close"):
            conn.shutdown(socket.SHUT_RDWR)
            return False
        out = b""
        for status, headers in action.get("interim", []):
            out += b"HTTP/1.1 %d Interim\r\n" % status
            out += b"".join(f"{n}: {v}\r\n".encode("latin-1") for n, v in headers) + b"\r\n"
        if "raw" in action:
            conn.sendall(out + action["raw"])
        else:
            status, body = action.get("status", 200), action.get("body", b"ok")
            headers = list(action.get("headers", [("content-type", "text/plain")]))
            bare = status in (101, 204, 304) or record["line"].startswith("HEAD ")
            chunked = "trailers" in action
            if chunked:
                headers.append(("transfer-encoding", "chunked"))
            elif status not in (101, 204, 304):
                headers.append(("content-length", str(action.get("truncate", len(body)))))
            out += b"HTTP/1.1 %d Said\r\n" % status
            out += b"".join(f"{n}: {v}\r\n".encode("latin-1") for n, v in headers) + b"\r\n"
            if chunked:
                out += (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n"
                out += b"".join(f"{n}: {v}\r\n".encode("latin-1") for n, v in action["trailers"]) + b"\r\n"
            elif not bare:
                out += body
            conn.sendall(out)
        if action.get("close_after") or "truncate" in action:
            conn.shutdown(socket.SHUT_WR)
            return False
        return True

    # h2c

    def _serve_h2(self, conn):
        state = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="latin-1", validate_inbound_headers=False,
                                      validate_outbound_headers=False, normalize_outbound_headers=False))
        state.initiate_connection()
        conn.sendall(state.data_to_send())
        live = {}
        while data := conn.recv(65536):
            for event in state.receive_data(data):
                stream = getattr(event, "stream_id", None)
                if isinstance(event, h2.events.RequestReceived):
                    action, seen = self._action()
                    record = {"h2": True, "headers": [list(h) for h in event.headers], "body": "", **self._facts(conn)}
                    seen.append(record)
                    live[stream] = (action, record)
                    if "grpc" in action:
                        record["messages"], answers = [], action["grpc"]
                        action["answers"] = answers if callable(answers) else lambda _, left=iter(answers): next(left, b"")
                        action["decode"] = grpc.decoder(dict(event.headers)[":path"])
                        state.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
                    elif action.get("early"):
                        self._answer_h2(state, stream, action)
                    elif "tunnel" in action:
                        if "delay" in action:
                            time.sleep(action["delay"])
                        state.send_headers(stream, [(":status", "200"), *action.get("headers", ())])
                    if action.get("decode") is True:
                        record["messages"], action["decode"] = [], grpc.decoder(dict(event.headers)[":path"])
                elif isinstance(event, h2.events.DataReceived):
                    live[stream][1]["body"] += event.data.decode("latin-1")
                    state.acknowledge_received_data(event.flow_controlled_length, stream)
                    if "decode" in live[stream][0]:
                        self._answer_grpc(state, stream, *live[stream])
                    if "tunnel" in live[stream][0]:
                        self._carry(state, stream, event.data, *live[stream])
                elif isinstance(event, h2.events.TrailersReceived):
                    live[stream][1]["trailers"] = [list(h) for h in event.headers]
                elif isinstance(event, h2.events.StreamReset):
                    # With which code a call is ended that nobody needs any more is not compared, nor how soon a tunnel is.
                    tunnel = [":method", "CONNECT"] in live[stream][1]["headers"]
                    if not tunnel and not {"grpc", "silent"} & set(live[stream][0]):
                        live[stream][1]["reset"] = int(event.error_code)
                elif isinstance(event, h2.events.StreamEnded) and not live[stream][0].get("early"):
                    if live[stream][0].get("close"):
                        return
                    if live[stream][0].get("silent"):
                        continue
                    if "tunnel" in live[stream][0]:
                        state.end_stream(stream)
                        continue
                    if "grpc" in live[stream][0]:
                        self._end_grpc(state, stream, live[stream][0])
                        continue
                    self._answer_h2(state, stream, live[stream][0])
            conn.sendall(state.data_to_send())

    @staticmethod
    def _carry(state, stream, data, action, record):
        """Bytes in a tunnel."""
        if "says" not in action:
            state.send_data(stream, data)
        elif b"\r\n\r\n" in record["body"].encode("latin-1"):
            state.send_data(stream, action["says"], end_stream=action.get("close_after", False))

    def _answer_grpc(self, state, stream, action, record):
        """Answers every message that is complete."""
        while len(data := record["body"]) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[1:5].encode("latin-1"), "big")):
            seen = action["decode"](data[5:5 + size].encode("latin-1"))
            answer = action["answers"](seen) if "grpc" in action else b""
            record["messages"] = grpc.joined([*record["messages"], seen])
            record["body"] = data[5 + size:]
            if answer is None:
                self._end_grpc(state, stream, action)
            elif answer and not action.get("over"):
                if "delay" in action:
                    time.sleep(action["delay"])
                state.send_data(stream, b"\0" + len(answer).to_bytes(4, "big") + answer)

    @staticmethod
    def _end_grpc(state, stream, action):
        if not action.get("over"):
            action["over"] = True
            state.send_headers(stream, [("grpc-status", str(action.get("grpc_status", 0)))], end_stream=True)

    @staticmethod
    def _answer_h2(state, stream, action):
        if "delay" in action:
            time.sleep(action["delay"])
        if "reset" in action:
            state.reset_stream(stream, action["reset"])
            return
        for status, headers in action.get("interim", []):
            state.send_headers(stream, [(":status", str(status)), *headers])
        body, trailers = action.get("body", b"ok"), action.get("trailers")
        head = [(":status", str(action.get("status", 200))), *action.get("headers", [("content-type", "text/plain")])]
        state.send_headers(stream, head, end_stream=not body and trailers is None)
        if body:
            state.send_data(stream, body, end_stream=trailers is None)
        if "reset_after" in action:
            state.reset_stream(stream, action["reset_after"])
        elif trailers is not None:
            state.send_headers(stream, trailers, end_stream=True)
