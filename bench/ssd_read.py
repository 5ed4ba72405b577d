"""Reading pages that are only on SSD, beside fio on the same file, in alternation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import ssd_fio
from bench.limits import Area
from bench.pages_copy import KiB, MiB, keys_of
from bench.pages_index import node_stats
from bench.ssd_node import (
    OK,
    Scale,
    process_seconds,
    put_pages,
    ssd_node,
    stop_node,
    wait_recovered,
    wait_written,
)
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.ssd.format import FILE_NAME
from mooncake_hicache.store import Store

IN_FLIGHT = 32 * MiB
"""Bytes that a client has in flight: 32 reads of 1 MiB (csrc/store/client.cc)."""
REQUESTS_IN_FLIGHT = 32
COUNTED = ("get_hit_bytes", "ssd_hit_bytes", "ssd_staged_bytes")
PUT_BYTES = 32 * MiB
"""Put at once while filling: less than the pool keeps free ahead of puts."""


@dataclass(frozen=True)
class Case:
    """One way of reading."""

    size: int
    batch: int
    is_random: bool = True
    staging: bool = False
    verify: bool = True

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.size // MiB} MiB" if self.size >= MiB else f"{self.size // KiB} KiB"
        more = [] if self.verify else ["unverified"]
        more += ["staging"] if self.staging else []
        order = "random" if self.is_random else "sequential"
        return ", ".join([f"{self.batch} × {size}", order, *more])


CASES = (
    Case(4 * MiB, 32, is_random=False),
    Case(4 * MiB, 32),
    Case(4 * MiB, 32, is_random=False, verify=False),
    Case(4 * MiB, 32, is_random=False, staging=True),
    Case(4 * MiB, 32, staging=True),
    Case(1 * MiB, 128),
    Case(64 * KiB, 128),
)


def measure(folder: Path, scale: Scale, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure every case; the pages of one size are written once."""
    rows: list[dict[str, Any]] = []
    for size in dict.fromkeys(case.size for case in CASES):
        place = folder / f"read-{size}"
        keys = keys_of(f"read/{size}", scale.read_bytes // size)
        tell(f"writing {len(keys)} pages to read")
        with ssd_node(place, 1024 * MiB):
            _fill(keys, size)
        for staging in (False, True):
            cases = [case for case in CASES if (case.size, case.staging) == (size, staging)]
            if not cases:
                continue
            # So small a pool that what was staged in one round is gone in the next.
            pool = max(64 * MiB, scale.read_bytes // 6)
            with ssd_node(place, pool, ssd_staging=str(staging).lower(), flush_timeout_s="0"):
                for case in cases:
                    tell(f"reading {case.name}")
                    rows.append(_measure(case, place / FILE_NAME, keys, scale))
        (place / FILE_NAME).unlink()
    return rows


def _fill(keys: list[str], size: int) -> None:
    area = Area(64 * MiB)
    with Store.open() as store:
        pages = store.namespace({"bench": "ssd", "size": size})
        step = max(1, PUT_BYTES // size)
        for first in range(0, len(keys), step):
            put_pages(pages, area, keys[first : first + step], size, first)
            wait_written(store)
    stop_node()


class _Reader:
    """Reads batch after batch, round and round."""

    def __init__(self, case: Case, store: Store, pages: Namespace, keys: list[str]) -> None:
        self._case = case
        self._pages = pages
        self._pid = int(node_stats(store)["pid"])
        batch = min(case.batch, len(keys))
        order = np.arange(len(keys))
        if case.is_random:
            np.random.default_rng(3).shuffle(order)
        starts = range(0, len(keys) - batch + 1, batch)
        self._batches = [[keys[n] for n in order[s : s + batch]] for s in starts]
        self._area = Area(batch * case.size)
        self._addresses = self._area.addresses(case.size, 0, batch).reshape(-1, 1)
        self._sizes = np.array([case.size], dtype=np.uint64)
        self._next = 0
        self.call_s: list[float] = []

    def turn(self, seconds: float) -> ssd_fio.DiskSpeed:
        """Read for so long."""
        moved = 0
        cpu = time.process_time() + process_seconds(self._pid)
        began = now = time.perf_counter()
        while moved == 0 or now - began < seconds:
            keys = self._batches[self._next % len(self._batches)]
            self._next += 1
            if self._case.staging:  # As an engine does; here it reads at once.
                self._pages.prefix_length(keys)
            codes = np.asarray(self._pages.get_into_addresses(keys, self._addresses, self._sizes))
            if (codes != OK).any():
                raise RuntimeError(f"get of {self._case.name}: codes {np.unique(codes)}")
            moved += len(keys) * self._case.size
            before, now = now, time.perf_counter()
            self.call_s.append(now - before)
        cpu = time.process_time() + process_seconds(self._pid) - cpu
        return ssd_fio.DiskSpeed(moved / (now - began), cpu / (moved / 1e9))


def _measure(case: Case, file: Path, keys: list[str], scale: Scale) -> dict[str, Any]:
    depths = sorted({max(1, IN_FLIGHT // case.size), REQUESTS_IN_FLIGHT})
    ours: list[ssd_fio.DiskSpeed] = []
    fio: dict[int, list[ssd_fio.DiskSpeed]] = {depth: [] for depth in depths}
    with Store.open(verify=case.verify) as store:
        wait_recovered(store)
        pages = store.namespace({"bench": "ssd", "size": case.size})
        reader = _Reader(case, store, pages, keys)
        reader.turn(scale.seconds / 4)
        reader.call_s.clear()
        before = node_stats(store)
        for _ in range(scale.turns):
            for depth in depths:
                turn = ssd_fio.read(
                    file,
                    is_random=case.is_random,
                    size=case.size,
                    depth=depth,
                    seconds=scale.seconds,
                )
                fio[depth].append(turn)
            ours.append(reader.turn(scale.seconds))
        after = node_stats(store)
    delta = {name: after[name] - before[name] for name in COUNTED}
    from_ssd, staged = delta["ssd_hit_bytes"], delta["ssd_staged_bytes"]
    speed = _median(ours)
    by_depth = {depth: _median(turns) for depth, turns in fio.items()}
    best_depth = max(by_depth, key=lambda depth: by_depth[depth])
    return {
        "case": case.name,
        "size": case.size,
        "batch": case.batch,
        "is_random": case.is_random,
        "staging": case.staging,
        "verify": case.verify,
        "speed": speed,
        "speed_best": max(turn.bytes_per_s for turn in ours),
        "fio": {str(depth): value for depth, value in by_depth.items()},
        "fio_best": max(turn.bytes_per_s for turns in fio.values() for turn in turns),
        "ratio": speed / by_depth[best_depth],
        "ratio_same_bytes_in_flight": speed / by_depth[max(1, IN_FLIGHT // case.size)],
        "cpu_s_per_gb": statistics.median(turn.cpu_s_per_gb for turn in ours),
        "fio_cpu_s_per_gb": statistics.median(turn.cpu_s_per_gb for turn in fio[best_depth]),
        "call_p50_ms": 1000 * statistics.median(reader.call_s),
        "from_ssd": from_ssd / delta["get_hit_bytes"],
        "read_from_disk": (from_ssd + staged) / delta["get_hit_bytes"],
        "turns": [turn.bytes_per_s for turn in ours],
        "fio_turns": {str(d): [turn.bytes_per_s for turn in turns] for d, turns in fio.items()},
    }


def _median(turns: list[ssd_fio.DiskSpeed]) -> float:
    return statistics.median(turn.bytes_per_s for turn in turns)
