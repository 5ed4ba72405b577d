"""The directory with the bounds that a master gives it."""

from __future__ import annotations

from mooncake_hicache import _core

__all__ = ["start_directory"]

NODES_MAX = 4096
HOLDINGS_MAX = 1_000_000
"""Different sets of nodes that have a page."""
CONNECTIONS_MAX = 4 * NODES_MAX
STALL_TIMEOUT_MS = 10_000
HEARTBEAT_INTERVAL_MS = 250
SILENCE_MAX_MS = 1000
"""A node that says nothing for so long is looked after as if its connection were lost."""
PROBE_INTERVAL_MS = 500
PROBE_TIMEOUT_MS = 800


def start_directory(
    *,
    host: str,
    secret: str,
    port: int = 0,
    tls: tuple[str, str, str] = ("", "", ""),
    pages_max: int,
    is_elected: bool = False,
) -> _core.Directory:
    """Return a directory that listens and leads nobody yet.

    Args:
        host: Where to listen.
        secret: What whoever connects has to know.
        port: 0: any free one.
        tls: Files: certificate, its key, the authority. All empty: no TLS.
        pages_max: Pages it keeps in mind, of all nodes.
        is_elected: Its epochs come from an election. Otherwise it is the only one, and takes an
            epoch above what it hears.

    Raises:
        InvalidArgumentError: The host or a file is none.
        IoError: It cannot listen there.
    """
    certificate, key, authority = tls
    return _core.Directory(
        {
            "host": host,
            "port_min": port,
            "port_max": port,
            "secret": secret,
            "tls_certificate": certificate,
            "tls_key": key,
            "tls_authority": authority,
            "connections_max": CONNECTIONS_MAX,
            "stall_timeout_ms": STALL_TIMEOUT_MS,
            "nodes_max": NODES_MAX,
            "pages_max": pages_max,
            "holdings_max": HOLDINGS_MAX,
            "heartbeat_interval_ms": HEARTBEAT_INTERVAL_MS,
            "silence_max_ms": SILENCE_MAX_MS,
            "probe_interval_ms": PROBE_INTERVAL_MS,
            "probe_timeout_ms": PROBE_TIMEOUT_MS,
            "is_elected": is_elected,
        }
    )
