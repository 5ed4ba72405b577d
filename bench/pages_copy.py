"""Speed of put and get: each call right after the best copy of as many bytes."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from rich.progress import Progress

from bench.limits import Area, best_copy, copy_seconds
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.store import Store

KiB, MiB = 1 << 10, 1 << 20
SIZES = (4 * KiB, 64 * KiB, 512 * KiB, 1 * MiB, 4 * MiB, 9 * MiB)
BATCHES = (1, 32, 128)
WORKING_SET = 512 * MiB
"""Bytes that a case goes round, far more than a CPU caches."""
SETS_MAX = 256
ROUNDS_MIN, ROUNDS_MAX = 9, 400
OK = 0


@dataclass(frozen=True)
class Speed:
    """One case; speeds in bytes per second, medians over the rounds."""

    operation: str
    size: int
    batch: int
    verify: bool
    speed: float
    copy_speed: float
    copy_kind: str
    copy_threads: int
    rounds: int
    call_p50_us: float

    @property
    def ratio(self) -> float:
        """The case's speed in units of the best copy."""
        return self.speed / self.copy_speed

    def row(self) -> dict[str, object]:
        """Return it for the JSON file."""
        return {**asdict(self), "ratio": round(self.ratio, 4)}


def keys_of(label: str, count: int) -> list[str]:
    """Return distinct page keys, in the form that SGLang's hashes have."""
    return [hashlib.sha256(f"{label}/{number}".encode()).hexdigest() for number in range(count)]


@dataclass
class Bench:
    """The memory and the store that all cases share."""

    store: Store
    unverified: Store
    threads: int
    ours: Area
    other: Area
    seconds: float
    """How long each case is measured."""

    def batches_of(self, size: int, batch: int) -> int:
        """Return how many batches a case goes round; 0 if not even one fits."""
        return min(SETS_MAX, WORKING_SET // (size * batch))

    def warm(self, pool_size: int) -> None:
        """Touch the whole pool, through both clients, so that no case pays for fresh memory."""
        size, batch = 4 * MiB, 16
        sizes = np.array([size], dtype=np.uint64)
        address = self.ours.addresses(size, 0, batch).reshape(batch, 1)
        description = {"bench": "pages", "case": "warm"}
        pages, unverified = (s.namespace(description) for s in (self.store, self.unverified))
        for number in range(pool_size // (size * batch) + 1):
            keys = keys_of(f"warm/{number}", batch)
            pages.put_from(keys, address, sizes)
            unverified.get_into_addresses(keys, address, sizes)
        pages.clear()

    def transfers(self, progress: Progress) -> list[Speed]:
        """Measure every case that fits the working set."""
        cases = [(s, b) for s in SIZES for b in BATCHES if self.batches_of(s, b)]
        speeds: list[Speed] = []
        task = progress.add_task("put and get", total=len(cases))
        for size, batch in cases:
            progress.update(task, description=f"put and get, {batch} × {size // KiB} KiB")
            speeds += self.transfer(size, batch)
            progress.advance(task)
        return speeds

    def transfer(self, size: int, batch: int) -> Iterator[Speed]:
        """Measure put, then get with and without verification, of one size and batch."""
        label = f"{size}x{batch}"
        pages = self.store.namespace({"bench": "pages", "case": label})
        unverified = self.unverified.namespace({"bench": "pages", "case": label})
        sets = self.batches_of(size, batch)
        fresh = itertools.count()

        def put(number: int) -> float:
            keys = keys_of(f"{label}/{next(fresh)}", batch)
            return self._timed(pages.put_from, keys, size, batch, number)

        yield self._measure("put", size, batch, True, sets, put)
        pages.clear()
        stored = [keys_of(f"{label}/stored/{number}", batch) for number in range(sets)]
        for number, keys in enumerate(stored):
            self._timed(pages.put_from, keys, size, batch, number)
        self.ours.fill(2)  # What a get must bring back is no longer there.
        for space, verify in ((pages, True), (unverified, False)):

            def get(number: int, space: Namespace = space) -> float:
                return self._timed(space.get_into_addresses, stored[number], size, batch, number)

            yield self._measure("get", size, batch, verify, sets, get)
        pages.clear()

    def _timed(
        self, call: Callable[..., object], keys: list[str], size: int, batch: int, number: int
    ) -> float:
        addresses = self.ours.addresses(size, number * batch, batch).reshape(batch, 1)
        sizes = np.array([size], dtype=np.uint64)
        began = time.perf_counter()
        codes = np.asarray(call(keys, addresses, sizes))
        seconds = time.perf_counter() - began
        if (codes != OK).any():
            raise RuntimeError(f"{call} of {batch} × {size} bytes: codes {np.unique(codes)}")
        return seconds

    def _measure(
        self,
        operation: str,
        size: int,
        batch: int,
        verify: bool,
        sets: int,
        call: Callable[[int], float],
    ) -> Speed:
        def pieces(number: int) -> tuple[np.ndarray, np.ndarray]:
            first = number * batch
            targets = self.ours.addresses(size, first, batch)
            sources = self.other.addresses(size, first, batch)
            return (targets, sources) if operation == "get" else (sources, targets)

        kind, threads = best_copy(self.threads, *pieces(0), size)
        for number in range(
            sets
        ):  # Each place once: who touches memory first pays for its mapping.
            call(number)
        ours: list[float] = []
        best: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(ours) < ROUNDS_MIN or (time.perf_counter() < end and len(ours) < ROUNDS_MAX):
            # Not the bytes that were copied just now: they may still be in a cache.
            number, distant = len(ours) % sets, (len(ours) + sets // 2) % sets
            best.append(copy_seconds(kind, threads, *pieces(distant), size))
            ours.append(call(number))
        median = statistics.median(ours)
        return Speed(
            operation=operation,
            size=size,
            batch=batch,
            verify=verify,
            speed=size * batch / median,
            copy_speed=size * batch / statistics.median(best),
            copy_kind=kind,
            copy_threads=threads,
            rounds=len(ours),
            call_p50_us=median * 1e6,
        )

    def cold(self) -> dict[str, float]:
        """Return what the first touch of memory costs: bytes per second, apart from all others."""
        size, batch = 4 * MiB, 32
        pages = self.store.namespace({"bench": "pages", "case": "cold"})
        sizes = np.array([size], dtype=np.uint64)
        keys = keys_of("cold", batch)
        source = self.ours.addresses(size, 0, batch).reshape(batch, 1)
        began = time.perf_counter()
        pages.put_from(keys, source, sizes)
        put_seconds = time.perf_counter() - began
        area = Area(size * batch, cold=True)
        began = time.perf_counter()
        pages.get_into_addresses(keys, area.addresses(size, 0, batch).reshape(batch, 1), sizes)
        get_seconds = time.perf_counter() - began
        pages.clear()
        return {
            "put_into_untouched_pool": size * batch / put_seconds,
            "get_into_untouched_memory": size * batch / get_seconds,
        }
