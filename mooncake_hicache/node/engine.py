"""Making the engine of a node from its options, for the daemon and for a store in this process."""

from __future__ import annotations

from typing import Any, cast

from mooncake_hicache import _core
from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.machine import numa_node_count

__all__ = ["engine_from_options", "engine_stats"]


def engine_from_options(options: NodeOptions, socket_path: str) -> _core.Node:
    """Make the engine: the pool, the socket and the thread that serves it.

    Raises:
        NoSpaceError: The pool is larger than the memory on offer.
        InvalidArgumentError, IoError, UnsupportedError: The engine refuses an option.
    """
    node_count = numa_node_count()
    if options.numa_node >= node_count:
        raise InvalidArgumentError(
            f"numa_node {options.numa_node}: this machine has {node_count}; set numa_node "
            f"({environment_name('numa_node')}) to -1 … {node_count - 1}"
        )
    return _core.Node(
        socket_path=socket_path,
        pool_size_bytes=options.pool_size_bytes(),
        huge_pages=options.huge_pages,
        numa_node=options.numa_node,
        eviction_policy=options.eviction_policy,
        read_lease_ttl_ms=options.read_lease_ttl_ms,
        lookup_lease_ttl_ms=options.lookup_lease_ttl_ms,
        lookup_lease_share=options.lookup_lease_share,
        hard_pin_share=options.hard_pin_share,
        reservation_ttl_ms=options.reservation_ttl_ms,
        clients_max=options.clients_max,
    )


def engine_stats(engine: _core.Node) -> dict[str, Any]:
    """Return what an engine counts, by the names of `mooncake_hicache.metrics`.

    Blocks until the engine's thread has answered.

    Raises:
        TimeoutError_: It did not within 2 s.
    """
    return cast(dict[str, Any], engine.stats())
