"""Stores under test: a master, a folder for nodes of its own, and memory by address."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.master.masters import SECRET, MasterProcess
from tests.processes import end_all_with

MiB = 1 << 20
RUNTIME_DIR = "MOONCAKE_HICACHE_RUNTIME_DIR"
TRANSFER_SECRET = "MOONCAKE_HICACHE_TRANSFER_SECRET"


@contextlib.contextmanager
def machine() -> Iterator[Path]:
    """A folder in which no node runs; those that are started there end with it."""
    with (
        tempfile.TemporaryDirectory(prefix="hicache-store-") as name,
        mock.patch.dict(os.environ, {RUNTIME_DIR: name, TRANSFER_SECRET: SECRET}),
    ):
        try:
            yield Path(name)
        finally:
            end_all_with(name)


@contextlib.contextmanager
def running_master(folder: Path) -> Iterator[str]:
    """A master; its address."""
    master = MasterProcess(folder / f"master-{len(list(folder.glob('*.log')))}.log")
    try:
        yield f"127.0.0.1:{master.port}"
    finally:
        master.stop()


@contextlib.contextmanager
def opened(
    master: str, size: int = 64 * MiB, **given: object
) -> Iterator[MooncakeDistributedStore]:
    """A store that was set up."""
    store = MooncakeDistributedStore()
    code = store.setup("localhost", "P2PHANDSHAKE", size, 16 * MiB, "tcp", "", master, **given)
    assert code == 0, store.last_error
    try:
        yield store
    finally:
        assert store.close() == 0


def noise(size: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    """Bytes to store."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def address_of(array: npt.NDArray[np.uint8]) -> int:
    """Where they lie."""
    return int(array.ctypes.data)
