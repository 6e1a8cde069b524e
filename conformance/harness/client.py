"""Clients that send exactly what they are told and report exactly what came back."""
import socket
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

TIMEOUT = 8.0


class H1:
    """One HTTP/1 connection: bytes out, parsed messages in."""

    def __init__(self, to, source=None):
        """`to` is a port of 127.0.0.1, an address and port, or the path of a Unix socket; `source` an address or (address, port)."""
        if isinstance(to, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(TIMEOUT)
            self.sock.connect(to)
        else:
            to = to if isinstance(to, tuple) else ("127.0.0.1", to)
            source = (source, 0) if isinstance(source, str) else source
            self.sock = socket.create_connection(to, timeout=TIMEOUT, source_address=source)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError:
            pass  # the proxy may have answered and closed already; what it said is what counts

    def _fill(self):
        try:
            data = self.sock.recv(65536)
        except socket.timeout:
            raise TimeoutError from None
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def _until(self, mark):
        while mark not in self.buffer:
            if not self._fill():
                raise EOFError
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def _exactly(self, n):
        while len(self.buffer) < n:
            if not self._fill():
                raise EOFError
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def response(self, method="GET"):
        """Interim responses and the final one."""
        interim = []
        while True:
            try:
                head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            except EOFError:
                return {"closed without a response": True, "bytes": self.buffer.decode("latin-1"), "interim": interim}
            except TimeoutError:
                return {"no response in time": True, "interim": interim}
            answer = {"line": head[0], "headers": [list(h.split(": ", 1)) if ": " in h else [h] for h in head[1:]]}
            status = int(head[0].split()[1])
            if 100 <= status < 200 and status != 101:
                interim.append(answer)
                continue
            break
        if interim:
            answer["interim"] = interim
        low = {h[0].lower(): h[-1] for h in answer["headers"]}
        try:
            self._response_body(answer, low, status, method)
        except EOFError:
            answer["cut"] = True
            answer.setdefault("body", self.buffer.decode("latin-1"))
        except TimeoutError:
            answer["stalled"] = True
        if low.get("connection") == "close":
            answer["closes"] = self.closed()
        return answer

    def _response_body(self, answer, low, status, method):
        if method == "HEAD" or status in (101, 204, 304):
            return
        if low.get("transfer-encoding") == "chunked":
            body = b""
            answer["body"] = ""
            while (size := int(self._until(b"\r\n").split(b";")[0], 16)) > 0:
                body += self._exactly(size)
                answer["body"] = body.decode("latin-1")
                self._until(b"\r\n")
            trailers = []
            while line := self._until(b"\r\n"):
                trailers.append(line.decode("latin-1").split(": ", 1))
            answer["trailers"] = trailers
        elif "content-length" in low:
            answer["body"] = self._exactly(int(low["content-length"])).decode("latin-1")
        else:
            while self._fill():
                pass
            answer["body"], self.buffer = self.buffer.decode("latin-1"), b""

    def closed(self, within=2.0):
        """Whether the proxy closes the connection within the time without sending more."""
        self.sock.settimeout(within)
        try:
            return self.buffer == b"" and not self._fill()
        except TimeoutError:
            return False
        finally:
            self.sock.settimeout(TIMEOUT)

    def end(self, within=2.0):
        """How the connection ends within the time, and what came before: `closed`, `reset` or `open`."""
        self.sock.settimeout(within)
        data, how = self.buffer, "closed"
        try:
            while more := self.sock.recv(65536):
                data += more
        except socket.timeout:
            how = "open"
        except ConnectionResetError:
            how = "reset"
        self.sock.settimeout(TIMEOUT)
        return {"connection": how, "bytes": data.decode("latin-1")}

    def read(self, n):
        """Raw bytes after an upgrade."""
        try:
            return self._exactly(n).decode("latin-1")
        except (EOFError, TimeoutError):
            return "short: " + self.buffer.decode("latin-1")

    def close(self):
        self.sock.close()


class H2:
    """One HTTP/2 connection by prior knowledge. Headers go out as given, legal or not."""

    def __init__(self, port):
        self.sock = self.wrap(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT))
        self.state = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="latin-1", validate_inbound_headers=False,
                                      validate_outbound_headers=False, normalize_outbound_headers=False))
        self.state.initiate_connection()
        self.flush()

    def wrap(self, sock):
        """What the frames go over."""
        return sock

    def flush(self):
        try:
            self.sock.sendall(self.state.data_to_send())
        except OSError:
            pass

    def start(self, headers, body=b"", trailers=None, end=True):
        stream = self.state.get_next_available_stream_id()
        done = end and not body and trailers is None
        self.state.send_headers(stream, headers, end_stream=done)
        if body:
            self.state.send_data(stream, body, end_stream=end and trailers is None)
        if trailers is not None:
            self.state.send_headers(stream, trailers, end_stream=True)
        self.flush()
        return stream

    def finish(self, streams):
        """Reads until every stream has ended; one record each, in the order asked."""
        records = {s: {"body": ""} for s in streams}
        waiting, until = set(streams), time.monotonic() + TIMEOUT
        while waiting and time.monotonic() < until:
            try:
                data = self.sock.recv(65536)
            except (socket.timeout, ConnectionResetError):
                data = b""
            if not data:
                for s in waiting:
                    records[s]["connection ended"] = True
                break
            try:
                events = self.state.receive_data(data)
            except h2.exceptions.ProtocolError as error:
                for s in waiting:
                    records[s]["client saw"] = type(error).__name__
                break
            for event in events:
                record = records.get(getattr(event, "stream_id", None), {})
                if isinstance(event, h2.events.ResponseReceived):
                    record["headers"] = [list(h) for h in event.headers]
                elif isinstance(event, h2.events.InformationalResponseReceived):
                    record.setdefault("interim", []).append([list(h) for h in event.headers])
                elif isinstance(event, h2.events.DataReceived):
                    record["body"] = record.get("body", "") + event.data.decode("latin-1")
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    record["trailers"] = [list(h) for h in event.headers]
                elif isinstance(event, h2.events.StreamReset):
                    record["reset"] = int(event.error_code)
                    waiting.discard(event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    waiting.discard(event.stream_id)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    for s in waiting:
                        records[s]["goaway"] = int(event.error_code)
                    if int(event.error_code):
                        waiting.clear()
            self.flush()
        return [records[s] for s in streams]

    def raw(self, *frames):
        """Frames as they are, past the client's own state: (type, flags, stream, payload)."""
        data = b"".join(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
                        for kind, flags, stream, payload in frames)
        try:
            self.sock.sendall(data)
        except OSError:
            pass  # what the proxy said before it closed is what counts

    def watch(self, seconds, answer=True):
        """What the proxy says of the connection and of streams' ends within the time; `answer`: acknowledge pings."""
        told, buffer, until = [], b"", time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except socket.timeout:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                told.append("closed")
                break
            buffer += data
            while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3], "big")):
                kind, flags, stream = buffer[3], buffer[4], int.from_bytes(buffer[5:9], "big")
                payload, buffer = buffer[9:9 + length], buffer[9 + length:]
                if kind == 3:
                    told.append(f"reset {stream} with {int.from_bytes(payload, 'big')}")
                elif kind == 7:
                    told.append(f"goaway {int.from_bytes(payload[:4], 'big')} with {int.from_bytes(payload[4:8], 'big')}")
                elif kind == 6 and not flags & 1:
                    told.append("ping")
                    if answer:
                        self.raw((6, 1, 0, payload))
                elif kind in (0, 1) and flags & 1:
                    told.append(f"end of {stream}")
        self.sock.settimeout(TIMEOUT)
        return told

    def close(self):
        self.sock.close()
