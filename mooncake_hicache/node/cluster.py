"""What the core is told of the cluster that a node belongs to."""

from __future__ import annotations

import socket
from typing import Any

from mooncake_hicache.config import NodeOptions, TransferOptions
from mooncake_hicache.node.paths import node_paths
from mooncake_hicache.options_types import port_range

__all__ = ["cluster_options", "listening_host", "node_name"]

CONNECT_TIMEOUT_MS = 2000
BACK_OFF_MIN_MS = 50
BACK_OFF_MAX_MS = 1000
CALL_TIMEOUT_MS = 2000
PEER_CALL_TIMEOUT_MS = 500
"""Of one question to a node: short, so that within one call another one can be asked."""
STALL_TIMEOUT_MS = 900
"""A read of pages of other nodes for which nothing has come for so long is given up: calls return
within a second of a node's loss."""
FETCH_TIMEOUT_MS = 5000
"""Of one page, from its lease to its last byte."""
PEERS_MAX = 1024
STAGING_SHARE = 0.25
"""Of the pool, that pages on their way from other nodes may take."""


def node_name(options: NodeOptions) -> str:
    """Return the name by which the master knows a node."""
    return options.node_name or f"{socket.gethostname()}:{node_paths(options).folder}"


def listening_host(options: NodeOptions) -> str:
    """Return the address at which a node of a cluster listens for others. May block for as long as
    looking up the first master's name takes.

    Raises:
        InvalidArgumentError: A master is no address.
    """
    from mooncake_hicache.master.ask import parse_masters
    from mooncake_hicache.metadata.names import is_loopback
    from mooncake_hicache.transfer_core import own_address_towards, public_host

    if options.node_host:
        return options.node_host
    far = [one.host for one in parse_masters(options.master) if not is_loopback(one.host)]
    if not far:
        return "127.0.0.1"
    return own_address_towards(far[0]) or public_host("0.0.0.0", "")


def cluster_options(options: NodeOptions) -> dict[str, Any] | None:
    """Return what `_core.Node` takes as `cluster`: None for a node that is alone.

    How pages move (transports, lanes, devices, secret, TLS) is what the options of the transfer
    engine say.

    Raises:
        InvalidArgumentError, IoError: A master is no address, or the secret cannot be read.
    """
    if not options.master:
        return None
    # Imported here: a node that is alone starts sooner without them.
    from mooncake_hicache.master.ask import parse_masters
    from mooncake_hicache.secret import resolve_secret
    from mooncake_hicache.transfer_core import public_host

    transfer = TransferOptions(config=options.config)
    port_min, port_max = port_range(options.node_ports)
    host = listening_host(options)
    host_name = socket.gethostname()
    return {
        "masters": [(one.host, one.port) for one in parse_masters(options.master)],
        "name": node_name(options),
        "bind_host": host,
        "public_host": public_host(host, options.node_public_host),
        "port_min": port_min,
        "port_max": port_max,
        "failure_domain": options.failure_domain or host_name,
        "secret": resolve_secret(transfer.secret),
        "tls_certificate": transfer.tls_certificate,
        "tls_key": transfer.tls_key,
        "tls_authority": transfer.tls_authority,
        "connect_timeout_ms": CONNECT_TIMEOUT_MS,
        "back_off_min_ms": BACK_OFF_MIN_MS,
        "back_off_max_ms": BACK_OFF_MAX_MS,
        "call_timeout_ms": CALL_TIMEOUT_MS,
        "transports": transfer.transports.split(","),
        "tcp_lanes": transfer.tcp_lane_count(),
        "tcp_io_threads": transfer.tcp_io_thread_count(),
        "tcp_checksum": transfer.tcp_checksum,
        "local_copy_threads": transfer.local_copy_thread_count(),
        "rdma_devices": transfer.rdma_devices,
        "peers_max": PEERS_MAX,
        "lookup_timeout_ms": options.remote_lookup_timeout_ms,
        "stall_timeout_ms": STALL_TIMEOUT_MS,
        "fetch_timeout_ms": FETCH_TIMEOUT_MS,
        "peer_call_timeout_ms": PEER_CALL_TIMEOUT_MS,
        "staging_share": STAGING_SHARE,
    }
