"""The doctor's checks of what pages travel over between machines: RDMA devices, locked memory,
ports."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator

from mooncake_hicache.cli.finding import Check
from mooncake_hicache.config import StoreOptions, TransferOptions, environment_name
from mooncake_hicache.options_types import port_range
from mooncake_hicache.topology import detect, examine
from mooncake_hicache.topology.distance import is_usable
from mooncake_hicache.units import format_size

__all__ = ["network_checks"]

NAMED_MAX = 4
"""Findings that are told in full; `mooncake-hicache topology` tells all."""


def network_checks(options: StoreOptions, host: str) -> Iterator[Check]:
    """Yield what is found of a machine whose node belongs to a cluster.

    Args:
        options: Those of the node.
        host: Where it listens for other nodes.
    """
    transfer = TransferOptions(config=options.config)
    if "rdma" in transfer.transports.split(","):
        yield from _rdma(options)
    yield from _ports(options, host)


def _rdma(options: StoreOptions) -> Iterator[Check]:
    machine = detect()
    findings = [one for one in examine(machine) if one.verdict != "note"]
    for finding in findings[:NAMED_MAX]:
        # Without RDMA pages go over TCP: slower, and no less right.
        yield Check("RDMA", "warning", f"{finding.about}: {finding.text}", finding.remedy)
    usable = [device.name for device in machine.rdma if is_usable(device)]
    if not usable:
        if not findings:
            yield Check("RDMA", "note", "there is no RDMA device: pages go over TCP")
        return
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    pool = options.pool_size_bytes()
    # Whoever may lock as much as it likes is not asked for the limit.
    if limit != resource.RLIM_INFINITY and limit < pool and os.geteuid() != 0:
        yield Check(
            "RDMA",
            "warning",
            f"{', '.join(usable)} cannot read the pool of {format_size(pool)}: only "
            f"{format_size(limit)} may be locked in memory, so pages go over TCP",
            "memlock unlimited in limits.conf, LimitMEMLOCK=infinity (systemd), or "
            "--ulimit memlock=-1 (docker)",
        )
    elif not findings:
        yield Check("RDMA", "ok", f"{', '.join(usable)} can be used")


def _ports(options: StoreOptions, host: str) -> Iterator[Check]:
    first, last = port_range(options.node_ports)
    if first == 0:
        return
    taken = []
    for port in range(first, last + 1):
        failure = _why_not_listened(host, port)
        if failure == errno.EADDRINUSE:
            taken.append(port)
        elif failure:
            yield Check(
                "node ports",
                "error",
                f"cannot listen at {host}, port {port}: {os.strerror(failure)}",
                f"set node_host ({environment_name('node_host')}) to an address of this machine, "
                f"and node_ports ({environment_name('node_ports')}) to ports that it may use",
            )
            return
    free = last - first + 1 - len(taken)
    # The node that runs here, if it does, has two of them.
    finding = f"{free} of {options.node_ports} at {host} are free, a node needs two"
    if free >= 2 or len(taken) == 2:
        yield Check("node ports", "ok", finding)
    else:
        yield Check(
            "node ports",
            "error",
            finding,
            f"name more of them, node_ports ({environment_name('node_ports')}), or 0 for any",
        )


def _why_not_listened(host: str, port: int) -> int:
    """Return the error of an attempt to listen there; 0: none."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            # As the node does: a port on which connections of an earlier one linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        # A host that is not known has a negative number of its own.
        return error.errno if error.errno and error.errno > 0 else errno.EADDRNOTAVAIL
    return 0
