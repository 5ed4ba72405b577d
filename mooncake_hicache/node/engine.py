"""Making the engine of a node from its options, for the daemon and for a store in this process;
and saving what it holds before it ends."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from mooncake_hicache import _core
from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import Error, InvalidArgumentError
from mooncake_hicache.machine import numa_node_count
from mooncake_hicache.node.cluster import cluster_options
from mooncake_hicache.node.ssd import SsdPlan, make_directories, ssd_plan

__all__ = [
    "StartedEngine",
    "drain_engine",
    "engine_from_options",
    "engine_stats",
    "flush_engine",
]


class StartedEngine(NamedTuple):
    """An engine that serves, and where it keeps pages on SSD."""

    engine: _core.Node
    ssd: SsdPlan


def engine_from_options(
    options: NodeOptions, socket_path: str, *, automatic_ssd: bool
) -> StartedEngine:
    """Make the engine: the pool, the socket, the files on SSD and the thread that serves it.

    Without the automatic directory on SSD, if that cannot be had: the plan's notices say why.

    Args:
        options: The node's.
        socket_path: Where it listens; a leading "@" means no file.
        automatic_ssd: Whether `ssd = "auto"` means the user's cache folder, or none.

    Raises:
        BusyError: Another node keeps its pages in a directory that was named.
        NoSpaceError: The pool is larger than the memory on offer, or a directory has no room.
        InvalidArgumentError, IoError, UnsupportedError: The engine refuses an option.
    """
    node_count = numa_node_count()
    if options.numa_node >= node_count:
        raise InvalidArgumentError(
            f"numa_node {options.numa_node}: this machine has {node_count}; set numa_node "
            f"({environment_name('numa_node')}) to -1 … {node_count - 1}"
        )
    plan = ssd_plan(options, allow_automatic=automatic_ssd)
    try:
        make_directories(plan)
        return StartedEngine(_started(options, socket_path, plan), plan)
    except Error as error:
        if not plan.is_automatic or not plan.directories:
            raise
        # What it is that fails decides whether it fails again.
        plan = plan.without(str(error))
    return StartedEngine(_started(options, socket_path, plan), plan)


def drain_engine(started: StartedEngine, timeout_s: int) -> bool:
    """Give what is in memory to other nodes of the cluster. Blocks until each page is there or
    nobody wants it, the time is over, or the engine is stopped; it serves meanwhile.

    Returns:
        Whether that is done; False also when there is no other node, or no master.
    """
    return started.engine.drain(timeout_s * 1000)


def flush_engine(started: StartedEngine, timeout_s: int) -> bool:
    """Write to SSD what is only in memory. Blocks until that is done, the time is over, it fails,
    or the engine is stopped; it serves meanwhile.

    Returns:
        Whether all is there; True also when there is no SSD, or no time for it.
    """
    if not started.ssd.directories or timeout_s == 0:
        return True
    return started.engine.flush(timeout_s * 1000)


def _started(options: NodeOptions, socket_path: str, plan: SsdPlan) -> _core.Node:
    pool_size_bytes = options.pool_size_bytes()
    return _core.Node(
        socket_path=socket_path,
        pool_size_bytes=pool_size_bytes,
        pool_size_max_bytes=options.pool_size_max_bytes(),
        huge_pages=options.huge_pages,
        numa_node=options.numa_node,
        eviction_policy=options.eviction_policy,
        read_lease_ttl_ms=options.read_lease_ttl_ms,
        lookup_lease_ttl_ms=options.lookup_lease_ttl_ms,
        lookup_lease_share=options.lookup_lease_share,
        hard_pin_share=options.hard_pin_share,
        reservation_ttl_ms=options.reservation_ttl_ms,
        clients_max=options.clients_max,
        ssd_directories=[
            (one.path, one.size_limit_bytes, one.free_min_bytes) for one in plan.directories
        ],
        ssd_region_size_bytes=options.ssd_region_size_bytes(),
        ssd_write_through=options.ssd_write == "through",
        ssd_write_budget_bytes=options.ssd_write_budget_bytes(),
        ssd_io=options.ssd_io,
        ssd_staging=options.ssd_staging,
        quotas=options.quota_bytes(pool_size_bytes),
        cluster=cluster_options(options),
    )


def engine_stats(engine: _core.Node) -> dict[str, Any]:
    """Return what an engine counts, by the names of `mooncake_hicache.metrics`.

    Blocks until the engine's thread has answered.

    Raises:
        TimeoutError_: It did not within 2 s.
    """
    return cast(dict[str, Any], engine.stats())
