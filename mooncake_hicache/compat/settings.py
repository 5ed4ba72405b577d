"""The original's arguments and environment names, as options of ours.

Of the original's environment these count here; all others have no meaning in our engine:

    MC_FORCE_TCP            no RDMA
    MC_MIN_RPC_PORT, MC_MAX_RPC_PORT      the range of ports to listen on (15000 to 17000)
    MC_TCP_BIND_ADDRESS     where to listen, if not at the address of the given host name
    MC_TRANSFER_TIMEOUT     seconds that a transfer may take (30, at least 5)
    MC_CUSTOM_TOPO_JSON     a file with the topology

Our own environment names count as well (MOONCAKE_HICACHE_TRANSFER_...), for what is not given here;
of them the transports come before what the original's names say.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mooncake_hicache.config import environment_name
from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.metadata.names import is_loopback

__all__ = ["EngineSettings", "engine_settings", "split_host", "transfer_timeout_ms"]

_PORT_MIN, _PORT_MAX = 15000, 17000
_TIMEOUT_S, _TIMEOUT_MIN_S = 30, 5
_PROTOCOLS_WITH_RDMA = {"rdma", ""}
_PROTOCOLS_WITHOUT = {"tcp", "shm"}
# What the original refuses in a build without them; SUPPORT_HIP and so on say that ours is one.
_PROTOCOLS_NOT_BUILT = {"hip", "nvlink", "nvlink_intra"}


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with."""

    host: str
    """Where it listens."""
    public_host: str
    """What peers are told."""
    ports: str
    transports: str
    rdma_devices: str
    topology: str
    notices: tuple[str, ...] = ()
    """What was asked for and is done otherwise."""


def split_host(local_hostname: str) -> str:
    """Return the host of "host", "host:port", "[v6]:port" or "v6", without brackets.

    Raises:
        InvalidArgumentError: There is none.
    """
    text = local_hostname.strip()
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    else:
        host = text
    if not host:
        raise InvalidArgumentError(
            f"local_hostname is {local_hostname!r}: give a host, or host:port"
        )
    return host


def engine_settings(
    local_hostname: str,
    protocol: str,
    device_name: str,
    environment: Mapping[str, str] = os.environ,
) -> EngineSettings:
    """Work out how to start an engine that the original would have started like this.

    Raises:
        InvalidArgumentError: The host is none, a number in the environment is none, or the protocol
            is one between GPUs.
    """
    notices = []
    host = split_host(local_hostname)
    protocol = protocol.strip().lower()
    if protocol in _PROTOCOLS_NOT_BUILT:
        raise InvalidArgumentError(
            f"protocol {protocol!r} is between GPUs and not part of mooncake-hicache: "
            "give tcp or rdma"
        )
    if protocol not in _PROTOCOLS_WITH_RDMA | _PROTOCOLS_WITHOUT:
        notices.append(
            f"protocol {protocol!r} is not supported: RDMA is used where there is a device, "
            "otherwise TCP, and shared memory within this machine"
        )
    without_rdma = protocol in _PROTOCOLS_WITHOUT or environment.get("MC_FORCE_TCP", "0") in (
        "1",
        "true",
        "True",
    )
    first = _number(environment, "MC_MIN_RPC_PORT", _PORT_MIN)
    last = max(first, _number(environment, "MC_MAX_RPC_PORT", _PORT_MAX))
    bind = environment.get("MC_TCP_BIND_ADDRESS", "") or _where_to_listen(host)
    if not bind:
        bind = "::" if ":" in host else "0.0.0.0"
        notices.append(f"listening on every address of this machine: {host} is none that is its")
    return EngineSettings(
        host=bind,
        public_host=host,
        ports=f"{first}-{last}",
        transports=environment.get(environment_name("transfer_transports"), "")
        or ("local,tcp" if without_rdma else "local,rdma,tcp"),
        rdma_devices="" if without_rdma else device_name.replace(" ", ""),
        topology=environment.get("MC_CUSTOM_TOPO_JSON", ""),
        notices=tuple(notices),
    )


def transfer_timeout_ms(size_bytes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how long a transfer of so many bytes may take: a nanosecond a byte is added."""
    seconds = _number(environment, "MC_TRANSFER_TIMEOUT", _TIMEOUT_S)
    return max(seconds, _TIMEOUT_MIN_S) * 1000 + size_bytes // 1_000_000


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit():
        raise InvalidArgumentError(f"{name} is {text!r} in the environment: give a number")
    return int(text)


def _where_to_listen(host: str) -> str:
    """Return the host if peers that look it up find what listens there, otherwise nothing."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    is_name = host != "localhost" and not _is_address(host)
    for family, kind, protocol, _, place in found:
        # Many machines look their own name up as 127.0.1.1, which others do not.
        if is_name and is_loopback(str(place[0])):
            continue
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(place)
            except OSError:
                continue
            return host
    return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
