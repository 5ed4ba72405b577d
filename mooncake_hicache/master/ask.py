"""Ask the masters of a cluster, as whoever knows its secret may."""

from __future__ import annotations

from mooncake_hicache import _core
from mooncake_hicache.config import TransferOptions
from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.metadata.names import Address, parse_address
from mooncake_hicache.options_master import MASTER_PORT
from mooncake_hicache.secret import resolve_secret

__all__ = ["directory_client", "parse_masters"]

MASTERS_MAX = 16
CONNECT_TIMEOUT_MS = 2000


def parse_masters(text: str) -> list[Address]:
    """Return the masters that an option names: "host", "host:port", several with commas.

    Raises:
        InvalidArgumentError: One is no address, or there are too many.
    """
    found = [parse_address(one.strip(), what="master", port=MASTER_PORT) for one in text.split(",")]
    if len(found) > MASTERS_MAX:
        raise InvalidArgumentError(f"{len(found)} masters: at most {MASTERS_MAX}")
    return found


def directory_client(masters: str, config: str = "") -> _core.DirectoryClient:
    """Return a client of whichever master leads, with the cluster's secret and TLS files.

    It connects in the background: each call says what hindered it.

    Args:
        masters: As the option `master` names them.
        config: A file of options; empty: the one that MOONCAKE_HICACHE_CONFIG names, if any.

    Raises:
        InvalidArgumentError, IoError: An address, the secret or a file is none.
    """
    options = TransferOptions(config=config)
    return _core.DirectoryClient(
        addresses=[(one.host, one.port) for one in parse_masters(masters)],
        secret=resolve_secret(options.secret),
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        tls_authority=options.tls_authority,
        connect_timeout_ms=CONNECT_TIMEOUT_MS,
    )
