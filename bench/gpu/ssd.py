"""Hits from SSD: node and engine were stopped, so the pages are nowhere else.

The node writes to SSD as it stops. Then both start anew, and each prompt is asked for once (only
on SSD), and once more after a flush of L1 and L2 (staged into memory by the first time). The disk's
own limit is measured in the same minutes: fio on a file of its own and on ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import cases
from bench.gpu.disk import GIB, MIB, Fio, find_fio, plain_read
from bench.gpu.run import Run, node_stats
from bench.gpu.server import KV_SIZE_PER_TOKEN, Server

FIO_FILE = 2 * GIB
WARM_LENGTH = 4096


def drop_os_cache() -> bool:
    """Let the kernel forget what it keeps of files; whether it did."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        return True
    return False


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """Return by how much the counters have grown, those that have."""
    grown = {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if isinstance(value, int) and isinstance(before.get(name, 0), int)
    }
    return {name: value for name, value in grown.items() if value > 0}


def hits(
    run: Run, server: Server, samples: cases.Samples, known: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """Ask for all prompts, first from SSD and then from memory; return what the node counted."""
    counted: dict[str, Any] = {}
    before = node_stats(run)
    for name, is_first in (("L3 SSD", True), ("L3", False)):
        for length in run.lengths:
            flushed = cases.hits_l3(
                server, samples, length, 1, known[str(length)], name, flush_first=not is_first
            )
            after = node_stats(run)
            counted[f"{name}, {length}"] = {**difference(before, after), "flush_s": flushed}
            before = after
    return counted


def limits(fio: Fio, log: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Return what the disk gives to others who read what we wrote."""
    written = log.stat().st_blocks * 512
    found: dict[str, Any] = {"our file": fio.reads(log, written * 9 // 10, seconds=1.5)}
    for length in lengths:
        size = min(length * KV_SIZE_PER_TOKEN, written * 9 // 10) // (64 * MIB) * (64 * MIB)
        found[f"our file, 16 plain threads, {length} tokens"] = plain_read(log, size, 16)
    return found


def measure(
    run: Run, server: Server, samples: cases.Samples, known: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, Any]:
    """Return the disk's limits and what the node counted; the samples hold the rest."""
    assert run.ssd is not None
    found: dict[str, Any] = {"node at first": node_stats(run)}
    fio = Fio(find_fio(Path(run.options.carry)), run.ssd.parent)
    found["limit is by"] = fio.name
    try:
        found["limit: write"] = fio.write(FIO_FILE)
        found["limit: read"] = fio.reads(seconds=1.5)
        cases.warm_up(server, (WARM_LENGTH,))
        found["node"] = hits(run, server, samples, known)
        found["limit: read, again"] = fio.reads(seconds=1.5)
        found["limit: read of our file"] = limits(fio, run.ssd / "pages.log", run.lengths)
    finally:
        fio.remove()
    return found
