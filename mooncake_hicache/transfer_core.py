"""What the transfer engine's public classes share: options, addresses and ends for the core."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mooncake_hicache.buffers import spans_of
from mooncake_hicache.config import TransferOptions
from mooncake_hicache.errors import ClosedError, InvalidArgumentError
from mooncake_hicache.options_types import TOPOLOGY_AUTO
from mooncake_hicache.secret import resolve_secret
from mooncake_hicache.topology import detect, topology_of

__all__ = [
    "Gone",
    "address_of",
    "core_options",
    "host_port",
    "number_of",
    "public_host",
    "topology_text",
]


class Gone:
    """Stands where the core's engine was, once it must not be used any more."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise ClosedError(self._why)


def core_options(options: TransferOptions) -> dict[str, Any]:
    """Return the options as the core takes them.

    Raises:
        InvalidArgumentError, IoError: The secret or the topology cannot be read.
    """
    port_min, port_max = options.port_range()
    return {
        "name": options.name,
        "bind_host": options.host,
        "public_host": public_host(options.host, options.public_host),
        "port_min": port_min,
        "port_max": port_max,
        "secret": resolve_secret(options.secret),
        "tls_certificate": options.tls_certificate,
        "tls_key": options.tls_key,
        "tls_authority": options.tls_authority,
        "transports": options.transports.split(","),
        "slice_size_bytes": options.slice_size_bytes(),
        "spin_us": options.spin_us,
        "tries_max": options.tries_max,
        "batches_max": options.batches_max,
        "requests_max": options.requests_max,
        "slices_max": options.slices_max,
        "tcp_lanes": options.tcp_lane_count(),
        "tcp_io_threads": options.tcp_io_thread_count(),
        "tcp_checksum": options.tcp_checksum,
        "local_copy_threads": options.local_copy_thread_count(),
        "rdma_devices": options.rdma_devices,
        "rdma_options": options.rdma_settings,
        "topology": topology_text(options.topology),
    }


def topology_text(option: str) -> str:
    """Return the topology that an option means, as the core reads it; empty for none.

    Args:
        option: Empty, a file, or `auto`: what sysfs tells of this machine.

    Raises:
        InvalidArgumentError: The file cannot be read.
    """
    if not option:
        return ""
    if option == TOPOLOGY_AUTO:
        return json.dumps(topology_of(detect()).to_json())
    try:
        return Path(option).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the topology {option}: {error}") from None


def public_host(host: str, public: str) -> str:
    """Return the host that peers are told to connect to.

    Args:
        host: Where it listens.
        public: What was asked for; empty: `host`, or this machine's address if that means all.
    """
    if public:
        return public
    if host not in ("0.0.0.0", "::", ""):
        return host
    # Alone on this machine if there is no route anywhere.
    if host == "::":
        return own_address_towards("2001:db8::1") or "::1"
    return own_address_towards("192.0.2.1") or "127.0.0.1"


def own_address_towards(host: str) -> str:
    """Return the address by which this machine reaches a host; empty: it does not. May block for as
    long as looking up a name takes."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        # No packet is sent: this only asks which address one would come from.
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return ""


def host_port(host: str, port: int) -> str:
    """Return "host:port", "[v6]:port"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def number_of(argument: str, value: Any) -> int:
    """Return an address or a size.

    Raises:
        InvalidArgumentError: It is no integer that one can have.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not 0 <= value < 2**64
    ):
        raise InvalidArgumentError(f"{argument} is {value!r}: give an integer from 0 to 2**64 - 1")
    return int(value)


def address_of(buffer: Any) -> int:
    """Return where a buffer begins, or the address that was given for it.

    Raises:
        InvalidArgumentError: It is neither.
    """
    if isinstance(buffer, (int, np.integer)):
        return number_of("address", buffer)
    return int(spans_of([buffer], writable=False).addresses[0, 0])
