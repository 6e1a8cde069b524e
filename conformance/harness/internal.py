"""Short ways to write internal listeners, clusters that lead to them, and the filters around them."""
from .config import TYPE, bootstrap, cluster, listener
from .tls import file_log

EXT = TYPE + "envoy.extensions."
ADDRESSES = ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS% "
             "%UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %UPSTREAM_CLUSTER%")
FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% " + ADDRESSES + " %UPSTREAM_TRANSPORT_FAILURE_REASON%"
ORIGINAL_DST = {"name": "original_dst", "typed_config": {"@type": EXT + "filters.listener.original_dst.v3.OriginalDst"}}
RAW = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": EXT + "transport_sockets.raw_buffer.v3.RawBuffer"}}


def extended(p, listeners, extra=(), **fields):
    """A bootstrap with internal listeners."""
    extension = {"name": "envoy.bootstrap.internal_listener", "typed_config": {
        "@type": EXT + "bootstrap.internal_listener.v3.InternalListener", "buffer_size_kb": 64}}
    return {**bootstrap(p, listeners, extra), "bootstrap_extensions": [extension], **fields}


def inside(made, **fields):
    """The same listener, for connections from inside the process."""
    return {**{k: v for k, v in made.items() if k != "address"}, "internal_listener": {}, **fields}


def http(p, name, routes, more="", **hcm):
    """A listener with a connection manager that logs its addresses, and `more`, under its name. Not how much was sent: that depends on
    how long an inner response says that it took."""
    form = FORMAT.replace(" %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "").replace(" %BYTES_SENT%", "")
    return listener(p, routes, name, access_log=[file_log(p, name + " " + form + more + "\n")], **hcm)


def tcp(p, name, to, more="", filters=(), **fields):
    """A listener with a TCP proxy that logs likewise."""
    made = listener(p, [], name)
    proxy = {"@type": EXT + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name.replace(" ", "_"), "cluster": to,
             "access_log": [file_log(p, name + " " + FORMAT + more + "\n")], **fields}
    made["filter_chains"][0]["filters"] = [*filters, {"name": "tcp", "typed_config": proxy}]
    return made


def to_internal(name, listener_name, id="", metadata=None, socket=None, **fields):
    """A cluster with the internal listener for its endpoint."""
    made = cluster(name, **fields)
    where = {"server_listener_name": listener_name, **({"endpoint_id": id} if id else {})}
    endpoint = {"endpoint": {"address": {"envoy_internal_address": where}},
                **({"metadata": {"filter_metadata": metadata}} if metadata else {})}
    made["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint]}]
    if socket:
        made["transport_socket"] = socket
    return made


def passing(*host, cluster=(), inner=RAW):
    """The transport socket that passes on these namespaces of the host's metadata, and of the cluster's."""
    sources = [{"kind": {"host": {}}, "name": n} for n in host] + [{"kind": {"cluster": {}}, "name": n} for n in cluster]
    return {"name": "internal_upstream", "typed_config": {
        "@type": EXT + "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        "passthrough_metadata": sources, "transport_socket": inner}}
