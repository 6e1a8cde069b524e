"""As much of protobuf as the cases of gRPC filters need: messages out by field number, messages in by schema."""


def varint(number):
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(fields):
    """Field number -> bool, int, str, bytes, a message as a dict, or a list of these."""
    out = b""
    for field, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(field << 3) + varint(int(value))
                continue
            data = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else message(value)
            out += varint(field << 3 | 2) + varint(len(data)) + data
    return out


def fields(data):
    """(field number, value) of a message; numbers and bytes."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
        else:
            size = number() if kind == 2 else {1: 8, 5: 4}[kind]
            yield key >> 3, data[at:at + size]
            at += size


def decode(schema, data):
    """A message as a dict by a schema: field number -> (name, kind). Kinds: int, "port", str, None (its presence), a schema,
    a list with one kind (repeated), "map" (of strings, told as sorted lines)."""
    made = {}
    for field, value in fields(data):
        name, kind = schema.get(field, (f"field {field}", None))
        if kind == "map":
            pair = dict(fields(value))
            made[name] = sorted([*made.get(name, []), f"{pair.get(1, b'').decode()}={pair.get(2, b'').decode('latin-1')}"])
        elif isinstance(kind, list):
            made.setdefault(name, []).append(one(kind[0], value))
        else:
            made[name] = one(kind, value)
    return made


def one(kind, value):
    if kind is None:
        return "present"
    if kind == "port":
        return str(value)
    if kind is int:
        return value - (1 << 64) if value >> 63 else value
    return value.decode("latin-1") if kind is str else decode(kind, value)


def _peer(port):
    return {1: ("address", {1: ("socket", {2: ("ip", str), 3: ("port", port)})}), 2: ("service", str), 4: ("principal", str)}


CHECK = {1: ("attributes", {
    1: ("source", _peer(None)), 2: ("destination", _peer("port")),
    4: ("request", {1: ("time", None), 2: ("http", {
        1: ("id", None), 2: ("method", str), 3: ("header map", "map"), 4: ("path", str), 5: ("host", str), 6: ("scheme", str),
        7: ("query", str), 8: ("fragment", str), 9: ("size", int), 10: ("protocol", str), 11: ("body", str),
        12: ("raw_body", str)})}),
    10: ("context_extensions", "map"), 11: ("metadata_context", None), 13: ("route_metadata_context", None)})}

_MAP = {1: ("lines", [{1: ("name", str), 2: ("value", str), 3: ("raw", str)}])}
_HEAD = {1: ("map", _MAP), 3: ("end", int)}
_BODY = {1: ("body", str), 2: ("end", int)}
PROCESS = {2: ("request_headers", _HEAD), 3: ("response_headers", _HEAD), 4: ("request_body", _BODY),
           5: ("response_body", _BODY), 6: ("request_trailers", {1: ("map", _MAP)}),
           7: ("response_trailers", {1: ("map", _MAP)}), 8: ("metadata_context", None), 9: ("attributes", None),
           10: ("observability_mode", int), 11: ("protocol_config", {1: ("request_body_mode", int), 2: ("response_body_mode", int)})}


def _map(kind):
    """A map with messages as its values."""
    return [{1: ("key", str), 2: ("value", kind)}]


def _address(port):
    return {1: ("socket", {2: ("ip", str), 3: ("port", port)}), 2: ("pipe", {1: ("path", str)}), 3: ("internal", {1: ("name", str), 2: ("id", str)})}


_CERTIFICATE = {1: ("sans", [{1: ("uri", str), 2: ("dns", str)}]), 2: ("subject", str), 3: ("issuer", str)}
_LOGGED = {
    2: ("remote", _address(None)), 3: ("local", _address("port")), 20: ("direct remote", _address(None)),
    4: ("tls", {1: ("version", int), 2: ("cipher", {1: ("number", int)}), 3: ("sni", str), 4: ("local", _CERTIFICATE), 5: ("peer", _CERTIFICATE)}),
    5: ("start", None), 6: ("last rx", None), 7: ("first upstream tx", None), 8: ("last upstream tx", None), 9: ("first upstream rx", None),
    10: ("last upstream rx", None), 11: ("first tx", None), 12: ("last tx", None), 13: ("upstream", _address("port")),
    14: ("upstream local", _address(None)), 15: ("cluster", str), 16: ("flags", {n: (str(n), int) for n in range(1, 40) if n != 13}),
    17: ("metadata", _map(None)), 18: ("upstream failure", str), 19: ("route", str), 21: ("filter state", _map({1: ("type", str), 2: ("value", str)})),
    22: ("tags", "map"), 23: ("duration", None), 24: ("attempts", int), 25: ("termination", str), 26: ("stream id", None), 27: ("intermediate", int),
    28: ("downstream failure", str), 33: ("type", int)}
_LOGGED_REQUEST = {
    1: ("method", int), 2: ("scheme", str), 3: ("authority", str), 4: ("port", int), 5: ("path", str), 6: ("user agent", str), 7: ("referer", str),
    8: ("forwarded for", str), 9: ("request id", None), 10: ("original path", str), 11: ("header bytes", int), 12: ("body bytes", int), 13: ("headers", "map")}
_LOGGED_RESPONSE = {
    1: ("code", {1: ("number", int)}), 2: ("header bytes", int), 3: ("body bytes", int), 4: ("headers", "map"), 5: ("trailers", "map"), 6: ("details", str)}
_ENTRY = {1: ("common", _LOGGED), 2: ("version", int), 3: ("request", _LOGGED_REQUEST), 4: ("response", _LOGGED_RESPONSE)}
LOGS = {1: ("identifier", {1: ("node", {1: ("id", str), 2: ("cluster", str)}), 2: ("log", str)}),
        2: ("http", {1: ("entries", [_ENTRY])}), 3: ("tcp", {1: ("entries", [{1: ("common", _LOGGED), 2: ("connection", {1: ("received", int), 2: ("sent", int)})}])})}
# What the codecs do not count: docs/configuration.md has it.
_NOT_COUNTED = {"common": {"field 29", "field 30", "field 31", "field 32"}, "request": {"field 14", "field 15"}, "response": {"field 7", "field 8"}}


def logged(data):
    """A message of an access log: its entries, and who sends it only if it says so. Of the node what is everybody's."""
    made = decode(LOGS, data)
    if "identifier" in made:
        made["identifier"]["node"] = {k: v for k, v in made["identifier"]["node"].items() if not k.startswith("field")}
    entries = [e for kind in ("http", "tcp") for e in made.pop(kind, {}).get("entries", [])]
    for entry in entries:
        for part, hidden in _NOT_COUNTED.items():
            entry[part] = {k: v for k, v in entry.get(part, {}).items() if k not in hidden}
        tls = entry["common"].get("tls", {})
        tls.pop("field 6", None)
    return {**made, "entries": entries}


def upper(message_seen):
    """A processor's answer to one message: all goes on, bodies in upper case."""
    numbers = {"request_headers": 1, "response_headers": 2, "request_body": 3, "response_body": 4,
               "request_trailers": 5, "response_trailers": 6}
    kind = next(k for k in message_seen if k in numbers)
    if not kind.endswith("_body"):
        return message({numbers[kind]: {}})
    part = message_seen[kind]
    streamed = {1: part.get("body", "").upper(), 2: part.get("end", 0)}
    return message({numbers[kind]: {1: {3: {3: streamed}}}})


def joined(messages):
    """A processor's view with the parts of each body put together: how they are cut is nobody's promise."""
    made = []
    for seen in messages:
        kind = next(iter(seen), None)
        if made and kind in made[-1] and kind.endswith("_body"):
            last = made[-1][kind]
            last["body"] = last.get("body", "") + seen[kind].get("body", "")
            last["end"] = seen[kind].get("end", 0)
        else:
            made.append(seen)
    return made


def decoder(path):
    """What turns the messages of a method into records."""
    if path.endswith("/StreamAccessLogs"):
        return logged
    schema = CHECK if path.endswith("/Check") else PROCESS if path.endswith("/Process") else {}

    def record(data):
        made = decode(schema, data)
        for side in made.values():
            if isinstance(side, dict) and "lines" in side.get("map", {}):
                lines = [(h.get("name", ""), h.get("raw", h.get("value", ""))) for h in side["map"]["lines"]]
                side["map"] = sorted(f"{n}={'<ms>' if n == 'x-envoy-upstream-service-time' else v}" for n, v in lines)
        return made
    return record
