"""How a store finds its master and its node.

One node serves all stores of a machine that name the same master: the first of them starts it, and
it outlives them all by `idle_timeout_s`. Its folder lies beside that of the node which serves
engines without a master.
"""

from __future__ import annotations

import errno
import re
import socket
import time
from pathlib import Path
from typing import Any

from mooncake_hicache.compat.settings import engine_settings
from mooncake_hicache.compat.store.settings import Setup
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.errors import InvalidArgumentError, UnavailableError
from mooncake_hicache.metadata import parse_address
from mooncake_hicache.metadata.names import is_loopback
from mooncake_hicache.node.paths import default_runtime_dir
from mooncake_hicache.options_master import MASTER_PORT
from mooncake_hicache.options_types import POOL_SIZE_MIN_BYTES
from mooncake_hicache.store import Store

__all__ = ["SETUP_TIMEOUT_S", "check_master", "check_reached", "open_store"]

SETUP_TIMEOUT_S = 4.5
"""Seconds that finding out may take that there is no master; a caller is told within 5."""
REACH_TIMEOUT_S = 1.0
"""The same for a look at a master that was there."""
POOL_SHARE_MAX = "80%"
"""Of the memory that is available when the node starts: what its stores may ask for together."""
LAST_LOOK_S = 0.05
"""Seconds for an address that others have left no time for."""


def check_master(master: str, timeout_s: float) -> None:
    """Check that something takes connections where the master should be. Blocks that long at most.

    Args:
        master: "host:port", or several with commas, of which one leads.
        timeout_s: Seconds in all.

    Raises:
        UnavailableError: Nothing does; the message names host, port and cause.
        InvalidArgumentError: It is no address.
    """
    until = time.monotonic() + timeout_s
    causes = []
    for text in addresses_of(master):
        address = parse_address(text, what="master", port=MASTER_PORT)
        try:
            places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            causes.append(f"{address.host}:{address.port}: the name is not known ({error})")
            continue
        for family, kind, protocol, _, place in places:
            where = ":".join(map(str, place[:2]))
            left_s = max(LAST_LOOK_S, until - time.monotonic())
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(left_s)
                try:
                    probe.connect(place)
                    if probe.getsockname() == place:  # It has met itself on a port nobody has.
                        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
                except TimeoutError:
                    causes.append(f"{where}: no answer within {left_s:.1f} s")
                except OSError as error:
                    causes.append(f"{where}: {error.strerror}")
                else:
                    return
    raise UnavailableError(
        f"cannot reach the master at {master}: {'; '.join(causes)}. Start it (mooncake_master), or "
        "correct master_server_addr"
    )


def check_reached(store: Store, setup: Setup) -> None:
    """Check that the master, if any, and the node of a store are there. Blocks for a second at
    most.

    Raises:
        UnavailableError: One of them is not; the message says which.
    """
    if setup.master:
        check_master(setup.master, REACH_TIMEOUT_S)
    if not store.is_connected:
        raise UnavailableError(
            "no node of this machine is connected; one is looked for, and its log says more"
        )


def addresses_of(master: str) -> list[str]:
    """Return the masters' addresses.

    Raises:
        InvalidArgumentError: It is the address of what elects a master.
    """
    if "://" in master:
        raise InvalidArgumentError(
            f"master_server_addr is {master!r}: give host:port, or those of all masters with "
            "commas between"
        )
    return [text.strip() for text in re.split("[;,]", master)]


def open_store(setup: Setup, *, timeout_s: float) -> Store:
    """Connect to this machine's node for a master, or to the one that has none, and start it if it
    does not run.

    What the node's options say in the environment or in the options file counts more than what the
    store was set up with.

    Args:
        setup: The master, by which the node's folder goes; and of a node that has to be started the
            size of its pool, where other nodes reach it, and its folder on an SSD, if any.
        timeout_s: Seconds to wait for a node.

    Raises:
        Error: There is none, and it cannot be started; the message says why.
    """
    options = StoreOptions()
    wanted: dict[str, Any] = {
        "pool_size": max(setup.segment_size, POOL_SIZE_MIN_BYTES),
        "pool_size_max": POOL_SHARE_MAX,
        "ssd": setup.ssd or "off",
    }
    if setup.master:
        reached = engine_settings(setup.hostname, setup.protocol, setup.devices)
        wanted["master"] = ",".join(addresses_of(setup.master))
        wanted["node_host"] = reached.host
        wanted["node_public_host"] = reached.public_host
    given = {name: value for name, value in wanted.items() if options.source_of(name) == "default"}
    if "pool_size" not in given:
        given.pop("pool_size_max", None)  # Whoever chose a size has it.
    if not options.socket:
        base = Path(options.runtime_dir) if options.runtime_dir else default_runtime_dir()
        given["runtime_dir"] = str(base / f"store-{_folder_name(setup.master)}")
    return Store.open(options.replaced(**given), wait_ms=int(timeout_s * 1000))


def _folder_name(master: str) -> str:
    """Return the same name for all addresses of a master that runs on this machine."""
    if not master:
        return "alone"
    host, colon, port = master.rpartition(":")
    if is_loopback(host.strip("[]")):
        host = "127.0.0.1"
    return re.sub("[^A-Za-z0-9.]+", "-", f"{host}{colon}{port}")
