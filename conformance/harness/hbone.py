"""A small HBONE client: CONNECT over HTTP/2 and mutual TLS, each tunnel a connection. It stands in for ztunnel, and is a test tool."""
import time

import h2.events
import h2.exceptions

from .client import H1, TIMEOUT
from .tls import TlsH2


class Hbone:
    """One outer connection."""

    def __init__(self, t, listener, cert="client", **kw):
        self.outer = TlsH2(t.proxy.ports.listener(listener), cert=cert, version="1.3", **kw)
        t.open.append(self.outer)
        self.told = self.outer.told
        self.tunnels = {}

    def ask(self, authority, *headers, method="CONNECT", more=()):
        """Asks for a tunnel, and waits for the answer."""
        head = [(":method", method), *more, (":authority", authority), *headers]
        number = self.outer.start(head, end=False)
        tunnel = self.tunnels[number] = Tunnel(self, number)
        tunnel.wait(lambda: tunnel.head or tunnel.over)
        return tunnel

    def step(self):
        """Takes what has come; false when there is no more."""
        try:
            data = self.outer.sock.recv(65536)
            events = self.outer.state.receive_data(data) if data else []
        except (TimeoutError, OSError, h2.exceptions.ProtocolError):
            data, events = b"", []
        if not data:
            for tunnel in self.tunnels.values():
                tunnel.over = tunnel.over or "connection ended"
            return False
        for event in events:
            tunnel = self.tunnels.get(getattr(event, "stream_id", None))
            if tunnel is None:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                tunnel.head = [list(h) for h in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                tunnel.came += event.data
                self.outer.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                tunnel.over = f"reset {int(event.error_code)}"
            elif isinstance(event, h2.events.StreamEnded):
                tunnel.over = tunnel.over or "ended"
        self.outer.flush()
        return True


class Tunnel(H1):
    """One stream, read and written like a connection."""

    def __init__(self, hbone, number):
        self.hbone, self.number = hbone, number
        self.head, self.came, self.over, self.buffer = None, b"", None, b""

    def wait(self, done, within=TIMEOUT):
        until = time.monotonic() + within
        while not done() and time.monotonic() < until:
            self.hbone.outer.sock.settimeout(max(0.01, until - time.monotonic()))
            if not self.hbone.step():
                break
        self.hbone.outer.sock.settimeout(TIMEOUT)
        return done()

    def send(self, data):
        while data:
            state = self.hbone.outer.state
            if not self.wait(lambda: self.over or state.local_flow_control_window(self.number) > 0) or self.over:
                return
            part = data[:min(state.local_flow_control_window(self.number), state.max_outbound_frame_size)]
            state.send_data(self.number, part)
            self.hbone.outer.flush()
            data = data[len(part):]

    def finish(self):
        """Ends our half."""
        self.hbone.outer.state.end_stream(self.number)
        self.hbone.outer.flush()

    def reset(self):
        self.hbone.outer.state.reset_stream(self.number, 8)
        self.hbone.outer.flush()
        self.over = "reset by us"

    def _fill(self):
        self.wait(lambda: self.came or self.over)
        data, self.came = self.came, b""
        self.buffer += data
        return bool(data)

    def ends(self, within=2.0):
        """How the tunnel ends, and what came before."""
        self.wait(lambda: self.over, within)
        self.buffer += self.came
        self.came = b""
        return {"tunnel": self.over or "open", "bytes": len(self.buffer)}

    def close(self):
        self.reset()
