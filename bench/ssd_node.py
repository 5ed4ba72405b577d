"""A private node with pages on SSD: started, stopped and started again on the same directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.limits import Area
from bench.node import command_line, private_node
from bench.pages_copy import MiB
from bench.pages_index import node_stats
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.store import Store

FLUSH_S = 120
WAIT_S = 90.0
OK = 0


@dataclass(frozen=True)
class Scale:
    """How much is measured; in all at most 12 GB on the disk at once."""

    read_bytes: int
    """On SSD, to be read."""
    write_bytes: int
    """Written in one turn."""
    turns: int
    """Of fio and us, in alternation."""
    seconds: float
    """Of one turn of reading."""
    regions: int
    """Of the log that is recovered."""
    trace_pages_max: int
    """Distinct ones."""
    turn_pages: int
    """That each turn of a conversation adds."""


FULL = Scale(3 << 30, 2 << 30, 6, 1.2, 10_000, 60_000, 64)
QUICK = Scale(96 << 20, 96 << 20, 1, 0.1, 64, 1500, 8)


@contextlib.contextmanager
def ssd_folder(directory: Path) -> Iterator[Path]:
    """Make a folder on the disk that is measured; gone at the end with all that is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="ssd-", dir=directory.resolve()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def ssd_node(place: Path | str, pool_bytes: int, **settings: str) -> Iterator[None]:
    """Let this process start a private node with pages at this place, without a write budget."""
    own = {
        "ssd": str(place),
        "ssd_free_min": "1GB",
        "ssd_write_budget": "0",
        "flush_timeout_s": str(FLUSH_S),
        **settings,
    }
    with private_node(f"{pool_bytes // MiB}MiB", **own):
        yield


def stop_node() -> None:
    """Stop it, its pages on SSD. No store may be open: it would start another one."""
    told = command_line("stop", "--timeout", str(FLUSH_S + 30))
    if "node stopped" not in told:
        raise RuntimeError(f"the node did not stop: {told!r}")


def wait_until(what: str, is_so: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait for a condition. Raises RuntimeError after the time-out."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.002)


def wait_recovered(store: Store) -> None:
    """Wait until the node knows all that its directories hold."""
    wait_until("recovery", lambda: node_stats(store)["ssd_recovering"] == 0)


def wait_written(store: Store, left_max: int = 32 * MiB) -> None:
    """Wait until little is on its way to the disk, so that no page leaves memory unwritten."""
    wait_until("write-out", lambda: node_stats(store)["ssd_writing_bytes"] <= left_max)


def process_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def put_pages(
    pages: Namespace, area: Area, keys: list[str], size: int, first: int, *, chained: bool = False
) -> None:
    """Store pages out of the area, going round in it. Raises RuntimeError unless all are stored."""
    room = area.size // size
    numbers = (first + np.arange(len(keys), dtype=np.uint64)) % room
    addresses = np.uint64(area.bytes.ctypes.data) + numbers * np.uint64(size)
    codes = np.asarray(
        pages.put_from(
            keys, addresses.reshape(-1, 1), np.array([size], dtype=np.uint64), chained=chained
        )
    )
    if (codes != OK).any():
        raise RuntimeError(f"put of {len(keys)} × {size} bytes: codes {np.unique(codes)}")
