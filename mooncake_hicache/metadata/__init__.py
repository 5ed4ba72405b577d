"""How the name of an engine's segment becomes the address of its control socket.

metadata = open_metadata("http://10.0.0.1:8080/metadata")
metadata.publish("trainer-0", Entry("10.0.0.7:15001", epoch))   # at one end
metadata.resolve("trainer-0").address                           # at the other
"""

from __future__ import annotations

from mooncake_hicache.errors import InvalidArgumentError, UnsupportedError
from mooncake_hicache.metadata.entry import Entry, owner_here
from mooncake_hicache.metadata.handshake import HANDSHAKE, HandshakeMetadata
from mooncake_hicache.metadata.names import Address, parse_address
from mooncake_hicache.metadata.protocol import TIMEOUT_S, TTL_S, Metadata

__all__ = [
    "HANDSHAKE",
    "TIMEOUT_S",
    "TTL_S",
    "Address",
    "Entry",
    "Metadata",
    "open_metadata",
    "owner_here",
    "parse_address",
]


def open_metadata(
    where: str, *, timeout_s: float = TIMEOUT_S, cluster: str = "", token: str = ""
) -> Metadata:
    """Return the way of finding engines that an address means. Connects to nothing yet.

    Args:
        where: `P2PHANDSHAKE`: no server, names are `host:port`. `http://host:port/metadata`: a
            server of ours or of the original. `etcd://host:port[,host:port]`, or the same without
            `etcd://`: etcd.
        timeout_s: Seconds that one call may take.
        cluster: Separates those who share a server.
        token: For servers that want one.

    Raises:
        InvalidArgumentError: It means none of these.
        UnsupportedError: It means Redis.
    """
    if where == HANDSHAKE:
        return HandshakeMetadata()
    scheme, separator, rest = where.partition("://")
    if not separator:
        scheme, rest = "etcd", where  # As in the original.
    # Each with its own library, which takes its time to import: only what is used.
    if scheme in ("http", "https"):
        from mooncake_hicache.metadata.http import HttpMetadata

        return HttpMetadata(where, timeout_s=timeout_s, cluster=cluster, token=token)
    if scheme == "etcd":
        from mooncake_hicache.metadata.etcd import EtcdMetadata

        return EtcdMetadata(rest, timeout_s=timeout_s, cluster=cluster)
    if scheme == "redis":
        raise UnsupportedError(
            f"{where:.200}: names are not kept in Redis; use P2PHANDSHAKE, which needs no server, "
            "http:// (`mooncake-hicache metadata` is one) or etcd://"
        )
    raise InvalidArgumentError(
        f"{where!r:.200} is no metadata server: P2PHANDSHAKE, http://host:port/metadata and "
        "etcd://host:port are"
    )
