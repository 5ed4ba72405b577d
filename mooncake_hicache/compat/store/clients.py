"""Which `mooncake_client` runs on this machine, for `setup_dummy`.

Each leaves a file in the private folder of this user, `client-<port>.json`, and holds a lock on it
as long as it lives. Nothing is asked over the network.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from mooncake_hicache.compat.store.settings import Setup
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError
from mooncake_hicache.node.paths import default_runtime_dir

__all__ = ["announced", "find_client"]

TEXT_SIZE_MAX = 65536


def find_client(server_address: str) -> Setup:
    """Return what the `mooncake_client` with this "host:port" was started with.

    Raises:
        UnavailableError: None runs here.
        InvalidArgumentError: It is no address.
    """
    path = _path(_port_of(server_address))
    try:
        with path.open(encoding="utf-8") as file:
            if _lock(file.fileno(), fcntl.LOCK_SH):
                raise FileNotFoundError
            known = json.loads(file.read(TEXT_SIZE_MAX))
            return Setup(**known)
    except (OSError, ValueError, TypeError):
        raise UnavailableError(
            f"no mooncake_client of this user runs on this machine for {server_address} (looked "
            f"at {path}): start `mooncake_client --port={_port_of(server_address)}`"
        ) from None


@contextlib.contextmanager
def announced(port: int, setup: Setup) -> Iterator[None]:
    """Let `find_client` find this process.

    Raises:
        AlreadyExistsError: Another one has the port.
    """
    path = _path(port)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        if not _lock(file.fileno(), fcntl.LOCK_EX):
            raise AlreadyExistsError(
                f"another mooncake_client has port {port}: end it, or choose another --port"
            )
        file.truncate()
        # The port is that of the one that has it; the others answer nowhere.
        file.write(json.dumps(asdict(replace(setup, http_port=None))))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _path(port: int) -> Path:
    options = StoreOptions()
    base = Path(options.runtime_dir) if options.runtime_dir else default_runtime_dir()
    return base / f"client-{port}.json"


def _port_of(server_address: str) -> int:
    port = server_address.rpartition(":")[2]
    if not port.isdigit():
        raise InvalidArgumentError(f"{server_address!r} is not host:port")
    return int(port)
