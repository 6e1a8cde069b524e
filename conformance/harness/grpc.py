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
    """A message as a dict by a schema: field number -> (name, kind). Kinds: int, str, None (its presence), a schema,
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
    if kind is int:
        return value - (1 << 64) if value >> 63 else value
    return value.decode("latin-1") if kind is str else decode(kind, value)


def _peer(port):
    return {1: ("address", {1: ("socket", {2: ("ip", str), 3: ("port", port)})}), 2: ("service", str), 4: ("principal", str)}


CHECK = {1: ("attributes", {
    1: ("source", _peer(None)), 2: ("destination", _peer(int)),
    4: ("request", {1: ("time", None), 2: ("http", {
        1: ("id", str), 2: ("method", str), 3: ("header map", "map"), 4: ("path", str), 5: ("host", str), 6: ("scheme", str),
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


def decoder(path):
    """What turns the messages of a method into records."""
    schema = CHECK if path.endswith("/Check") else PROCESS if path.endswith("/Process") else {}

    def record(data):
        made = decode(schema, data)
        for side in made.values():
            if isinstance(side, dict) and "lines" in side.get("map", {}):
                side["map"] = sorted(f"{h.get('name', '')}={h.get('raw', h.get('value', ''))}" for h in side["map"]["lines"])
        return made
    return record
