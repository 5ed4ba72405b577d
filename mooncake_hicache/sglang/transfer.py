"""Moving batches of pages between the engine's host pools and the store, in bounded time.

Every call here returns within its budget and copies nothing after it has returned: after a success,
a failure or a timeout, the caller may give the memory to another request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mooncake_hicache._core import Code, LoadStages
from mooncake_hicache.errors import Error
from mooncake_hicache.pages.geometry import Addresses
from mooncake_hicache.sglang.lookup import leading
from mooncake_hicache.sglang.pools import Pool, Share
from mooncake_hicache.sglang.stats import OccasionalLog, TrafficLog
from mooncake_hicache.store import Store

__all__ = ["BYTES_PER_CALL", "PAGES_PER_CALL", "Budget", "Mover"]

logger = logging.getLogger(__name__)

PAGES_PER_CALL = 128
"""One call into the store moves at most this many pages, so that one deadline fits all spans."""
BYTES_PER_CALL = 256 << 20
"""Nor does it move more bytes, unless one page is larger: copying has no deadline of its own."""

# The engine waits 10 s for its storage threads before it gives up. A call of it starts nothing more
# after this, and what it started last ends within `STORE_CALL_MAX_MS`: under 5 s in all.
_CALL_BUDGET_S = 2.9
_RETRY_WAIT_S = (0.01, 0.03, 0.1, 0.3, 0.6)

_STORED = np.array([Code.OK, Code.ALREADY_EXISTS], dtype=np.uint8)
_RETRIED = np.array([Code.BUSY, Code.TIMEOUT, Code.UNAVAILABLE], dtype=np.uint8)

Codes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class Budget:
    """The time that one call of the engine may take."""

    def __init__(self, seconds: float = _CALL_BUDGET_S) -> None:
        self._end_s = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left; zero or less when there are none."""
        return self._end_s - time.monotonic()


class Mover:
    """Looks up, reads and writes pages of registered pools. Thread-safe; never raises for trouble
    of the environment: what did not work is False."""

    def __init__(
        self,
        store: Store,
        traffic: TrafficLog,
        *,
        device: int | None = None,
        resident: bool = False,
    ) -> None:
        """Move pages of a store.

        Args:
            store: where they are.
            traffic: what is told of the moves.
            device: the CUDA device whose memory the pools are in; None: host pools.
            resident: only pages in the memory of this machine are found.
        """
        self._store = store
        self._traffic = traffic
        self._device = device
        self._resident = resident
        self._log = OccasionalLog(logger)

    def pin_pool(self) -> None:
        """Spare the first copies between the node's memory and the device of this mover a wait."""
        if self._device is None:
            return
        try:
            self._store.pin_pool(self._device)
        except Error as error:
            self._log.warning("pin", "the node's memory cannot be pinned for the GPU: %s", error)

    def prefix_length(self, pool: Pool, keys: Sequence[str], budget: Budget, *, lease: bool) -> int:
        """Return how many pages from the start are whole. One look-up per object of a page."""
        if pool.is_logical:
            return len(keys)
        length = len(keys) if pool.shares else 0
        for share in pool.shares:
            if length == 0 or self._is_over(budget, "look-up", pool):
                return 0
            codes = share.namespace.lookup(
                keys[:length], lease=lease, prefix=True, resident=self._resident
            )
            length = leading(codes == Code.OK)
        return length

    def found(self, pool: Pool, keys: Sequence[str], budget: Budget, *, lease: bool) -> Flags:
        """Return for each page whether it is stored whole."""
        there = np.full(len(keys), pool.is_logical or bool(pool.shares))
        for share in pool.shares:
            if not there.any() or self._is_over(budget, "look-up", pool):
                return np.zeros(len(keys), dtype=bool)
            codes = share.namespace.lookup(keys, lease=lease, prefix=False, resident=self._resident)
            there &= codes == Code.OK
        return there

    def read(
        self, pool: Pool, keys: Sequence[str], host_indices: object, budget: Budget
    ) -> list[bool]:
        """Read pages into the pool. After the first page that is not there nothing more is read."""
        count = len(keys)
        if pool.is_logical or not count:
            return [True] * count
        ranges = self._ranges(pool, keys, host_indices)
        if ranges is None or not pool.shares:
            return [False] * count
        begun_s = time.monotonic()
        done = np.zeros(count, dtype=bool)
        step = _pages_per_call(ranges[1], len(pool.shares))
        for start in range(0, count, step):
            batch = slice(start, start + step)
            done[batch] = self._read_batch(pool, keys[batch], *_rows(ranges, batch), budget)
            if not done[batch].all():
                break
        self._record(False, done, ranges[1], begun_s)
        return [bool(flag) for flag in done]

    def _read_batch(
        self,
        pool: Pool,
        keys: Sequence[str],
        addresses: Addresses,
        sizes: Addresses,
        budget: Budget,
    ) -> Flags:
        done = np.ones(len(keys), dtype=bool)
        for share in pool.shares:
            if self._is_over(budget, "read", pool):
                return np.zeros(len(keys), dtype=bool)
            codes = share.namespace.get_into_addresses(
                keys, *Pool.part(share, addresses, sizes), device=self._device
            )
            done &= codes == Code.OK
        return done

    def write(
        self,
        pool: Pool,
        keys: Sequence[str],
        host_indices: object,
        budget: Budget,
        *,
        parent: str | None,
        chained: bool,
    ) -> list[bool]:
        """Write pages from the pool. A page that is stored already counts as written.

        Args:
            pool: the pool.
            keys: names of the pages.
            host_indices: token slots of the pages.
            budget: the call's time.
            parent: the page before the first, if it is known.
            chained: each page follows the one before it.
        """
        count = len(keys)
        if pool.is_logical or not count:
            return [True] * count
        ranges = self._ranges(pool, keys, host_indices)
        if ranges is None or not pool.shares:
            return [False] * count
        begun_s = time.monotonic()
        done = np.zeros(count, dtype=bool)
        step = _pages_per_call(ranges[1], len(pool.shares))
        for start in range(0, count, step):
            batch = slice(start, start + step)
            before = parent if start == 0 or not chained else keys[start - 1]
            addresses, sizes = _rows(ranges, batch)
            done[batch] = True
            for share in pool.shares:
                if self._is_over(budget, "write", pool):
                    done[batch] = False
                    break
                done[batch] &= self._write_share(
                    share, keys[batch], *Pool.part(share, addresses, sizes), before, chained, budget
                )
            if budget.left_s() <= 0:
                break
        self._record(True, done, ranges[1], begun_s)
        return [bool(flag) for flag in done]

    def _write_share(
        self,
        share: Share,
        keys: Sequence[str],
        addresses: Addresses,
        sizes: Addresses,
        parent: str | None,
        chained: bool,
        budget: Budget,
    ) -> Flags:
        # With no node to talk to the store answers at once, and so do we. A node that goes away
        # during the call is different: a new one takes its place within moments, and the engine
        # never repeats a write.
        may_retry = self._store.is_connected
        codes = share.namespace.put_from(
            keys, addresses, sizes, parent=parent, chained=chained, device=self._device
        )
        for wait_s in _RETRY_WAIT_S if may_retry else ():
            again = np.flatnonzero(np.isin(codes, _RETRIED))
            if not len(again) or budget.left_s() <= wait_s:
                break
            time.sleep(wait_s)
            first = int(again[0])
            codes[again] = share.namespace.put_from(
                [keys[int(i)] for i in again],
                addresses[again],
                sizes if sizes.ndim == 1 else sizes[again],
                parent=keys[first - 1] if chained and first else parent,
                # Where pages between these are stored already, neighbours are not parents.
                chained=chained and int(again[-1]) - first + 1 == len(again),
                device=self._device,
            )
        stored: Flags = np.isin(codes, _STORED)
        if not stored.all():
            self._explain(codes[~stored])
        return stored

    def load(
        self,
        pool: Pool,
        keys: Sequence[str],
        indices: object,
        stages: LoadStages,
        part: int,
        stage_of_range: npt.NDArray[np.uint64],
    ) -> bool:
        """Read pages in stages: one call of the store, whatever its size. Returns whether all came.

        Args:
            pool: the pool, of one share and on the device of this mover.
            keys: names of the pages.
            indices: token slots of the pages.
            stages: told as stages arrive, and that this part has ended.
            part: which of its parts this is.
            stage_of_range: the stage of each memory range of a page.
        """
        try:
            ranges = self._ranges(pool, keys, indices)
            if ranges is None or len(pool.shares) != 1:
                return False
            begun_s = time.monotonic()
            codes = pool.shares[0].namespace.get_into_addresses(
                keys,
                *ranges,
                device=self._device,
                stages=stages,
                part=part,
                stage_of_segment=stage_of_range,
            )
            self._record(False, codes == Code.OK, ranges[1], begun_s)
            if not (codes == Code.OK).all():
                self._explain_load(codes[codes != Code.OK], len(keys))
            return bool((codes == Code.OK).all())
        finally:
            stages.end(part)

    def _explain_load(self, codes: Codes, count: int) -> None:
        names = ", ".join(Code(int(number)).name for number in np.unique(codes))
        self._log.warning("load", "%d of %d pages did not come: %s", len(codes), count, names)

    def _is_over(self, budget: Budget, what: str, pool: Pool) -> bool:
        if budget.left_s() > 0:
            return False
        self._log.warning(what, "%s: pool %s took too long, gave up", what, pool.name)
        return True

    def _explain(self, codes: Codes) -> None:
        for number, count in zip(*np.unique(codes, return_counts=True), strict=True):
            name = Code(int(number)).name
            self._log.warning(
                f"put {name}", "%d pages were not stored: %s", int(count), _REASONS.get(name, name)
            )

    def _ranges(
        self, pool: Pool, keys: Sequence[str], host_indices: object
    ) -> tuple[Addresses, Addresses] | None:
        ranges = pool.ranges(host_indices, len(keys))
        if ranges is None:
            self._log.warning(
                f"indices {pool.name}",
                "pool %s: the %s slots given are not those of %d pages of %d tokens in it",
                pool.name,
                "no" if host_indices is None else len(host_indices),  # type: ignore[arg-type]
                len(keys),
                pool.page_tokens,
            )
        return ranges

    def _record(self, is_write: bool, done: Flags, sizes: Addresses, begun_s: float) -> None:
        pages = int(done.sum())
        size_bytes = int(sizes.sum()) * pages if sizes.ndim == 1 else int(sizes[done].sum())
        self._traffic.record(
            is_write=is_write,
            pages=pages,
            size_bytes=size_bytes,
            seconds=time.monotonic() - begun_s,
        )


_REASONS = {
    "NO_SPACE": "the node's memory is full of pages in use; raise its pool_size",
    "OVER_QUOTA": "the tenant's quota is full of pages in use; raise it (option quotas, or master)",
    "UNAVAILABLE": "no node answers; `mooncake-hicache status` and its log say why",
    "TIMEOUT": "the node did not answer in time",
    "BUSY": "the node is busy",
}


def _pages_per_call(sizes: Addresses, shares: int) -> int:
    """Return how many pages one call into the store moves."""
    page_size = int(sizes.sum() if sizes.ndim == 1 else sizes.sum(axis=1).max()) // shares
    return max(1, min(PAGES_PER_CALL, BYTES_PER_CALL // max(1, page_size)))


def _rows(ranges: tuple[Addresses, Addresses], batch: slice) -> tuple[Addresses, Addresses]:
    addresses, sizes = ranges
    return addresses[batch], sizes if sizes.ndim == 1 else sizes[batch]
