"""Buffers of the caller as one row of bytes: where each byte is, checksums, and registration."""

from __future__ import annotations

import bisect
import ctypes
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from mooncake_hicache.buffers import spans_of
from mooncake_hicache.errors import ClosedError, Error, InvalidArgumentError, TimeoutError_
from mooncake_hicache.machine import cpu_count
from mooncake_hicache.transfer import TransferEngine

__all__ = [
    "Layout",
    "ReadableMemory",
    "layout_of",
    "new_array",
    "overlay",
    "piece_checksums",
]

_log = logging.getLogger(__name__)

Span = tuple[int, int]
"""Address and size."""

CHECKSUM_THREADS_MAX = 8
ALIGNMENT = 64


class Layout:
    """Spans of memory, one after the other. `held` keeps them in place."""

    def __init__(self, spans: Iterable[Span], held: object = None) -> None:
        self.spans = tuple(spans)
        self.held = held
        self._ends: list[int] = []
        end = 0
        for _, size in self.spans:
            end += size
            self._ends.append(end)
        self.size_bytes = end

    def parts(self, start: int, end: int) -> Iterator[Span]:
        """Yield the memory of the bytes from `start` to before `end`."""
        index = bisect.bisect_right(self._ends, start)
        while start < end:
            address, size = self.spans[index]
            offset = start - (self._ends[index] - size)
            length = min(size - offset, end - start)
            yield address + offset, length
            start += length
            index += 1

    def checksum(self, start: int, end: int) -> int:
        """Return the XXH3 of the bytes from `start` to before `end`. Releases the GIL."""
        digest = xxhash.xxh3_64()
        for address, size in self.parts(start, end):
            digest.update(memoryview((ctypes.c_ubyte * size).from_address(address)))
        return int(digest.intdigest())

    def overlaps(self, other: Layout) -> bool:
        """Return whether a byte belongs to both."""
        return any(
            mine < theirs + their_size and theirs < mine + my_size
            for mine, my_size in self.spans
            for theirs, their_size in other.spans
        )


def layout_of(buffers: Any, *, writable: bool) -> Layout:
    """Return where the bytes of a buffer, or of a list of buffers, are. Empty ones are left out.

    Raises:
        InvalidArgumentError: One is no contiguous memory of this process's CPU, or is read-only
            though it is to be written to; or two that are to be written to overlap.
    """
    rows = list(buffers) if isinstance(buffers, (list, tuple)) else [buffers]
    filled = [one for one in rows if not _is_empty(one)]
    if not filled:
        return Layout((), rows)
    spans = spans_of(filled, writable=writable)
    pairs = zip(spans.addresses[:, 0].tolist(), spans.sizes[:, 0].tolist(), strict=True)
    layout = Layout(pairs, spans.held)
    if writable:
        ordered = sorted(layout.spans)
        for (address, size), (following, _) in itertools.pairwise(ordered):
            if address + size > following:
                raise InvalidArgumentError("two of the buffers overlap: give memory of its own")
    return layout


def _is_empty(buffer: Any) -> bool:
    if isinstance(buffer, (list, tuple, str)):
        raise InvalidArgumentError(
            f"a {type(buffer).__name__} is no buffer: give bytes, arrays or CPU tensors, or a flat "
            "list of them"
        )
    if hasattr(buffer, "numel"):
        return int(buffer.numel()) == 0
    try:
        return memoryview(buffer).nbytes == 0
    except (TypeError, ValueError):
        return False  # What it is instead, and why it cannot be taken, is said later.


def overlay(
    local: Layout, remote: Layout, start: int, end: int
) -> tuple[list[int], list[int], list[int]]:
    """Return local addresses, remote addresses and sizes that make up the bytes from `start` to
    before `end` in both."""
    locals_, remotes, sizes = [], [], []
    there = remote.parts(start, end)
    address, left = 0, 0
    for here, size in local.parts(start, end):
        done = 0
        while done < size:
            if left == 0:
                address, left = next(there)
            length = min(left, size - done)
            locals_.append(here + done)
            remotes.append(address)
            sizes.append(length)
            done, address, left = done + length, address + length, left - length
    return locals_, remotes, sizes


def new_array(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Return new memory that begins where any type of number may begin.

    Raises:
        MemoryError: There is not so much.
    """
    array = np.empty(size_bytes + ALIGNMENT, np.uint8)
    skip = -array.ctypes.data % ALIGNMENT
    return array[skip : skip + size_bytes]


def piece_checksums(layout: Layout, piece_size_bytes: int) -> npt.NDArray[np.uint64]:
    """Return the checksum of each piece, by several threads."""
    size_bytes = layout.size_bytes
    starts = range(0, size_bytes, piece_size_bytes)

    def of_piece(start: int) -> int:
        return layout.checksum(start, min(start + piece_size_bytes, size_bytes))

    if len(starts) < 2:
        return np.array([of_piece(start) for start in starts], np.uint64)
    threads = min(CHECKSUM_THREADS_MAX, cpu_count(), len(starts))
    with ThreadPoolExecutor(threads, thread_name_prefix="hicache-p2p-sum") as pool:
        return np.array(list(pool.map(of_piece, starts)), np.uint64)


class ReadableMemory:
    """Memory that peers may read, registered once however often it is asked for.

    Any thread may call.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._counts: dict[Span, int] = {}
        # What could not be unregistered because a stopped process is in the middle of reading it,
        # with what keeps it in place: registered still.
        self._stuck: dict[Span, object] = {}

    def hold(self, layout: Layout) -> None:
        """Let peers read it, until `release`. Blocks while it is pinned, where there is RDMA.

        Raises:
            AlreadyExistsError: It overlaps other registered memory without being the same.
            NoSpaceError: It cannot be pinned, or too many buffers are registered.
        """
        with self._lock:
            held: list[Span] = []
            try:
                for span in layout.spans:
                    if self._counts.get(span, 0) == 0 and self._stuck.pop(span, None) is None:
                        self._engine.register_memory(*span, writable=False)
                    self._counts[span] = self._counts.get(span, 0) + 1
                    held.append(span)
            except Error:
                self._let_go(held, layout)
                raise

    def release(self, layout: Layout) -> None:
        """End that. Once this returns no peer begins to read what nobody else holds.

        Nor does any go on, but for a process of this machine that is stopped in the middle of it:
        then a warning names it, and the memory is kept.
        """
        with self._lock:
            self._let_go(layout.spans, layout)

    def _let_go(self, spans: Iterable[Span], layout: Layout) -> None:
        for span in spans:
            self._counts[span] -= 1
            if self._counts[span] == 0:
                del self._counts[span]
                try:
                    self._engine.unregister(span[0])
                except TimeoutError_ as error:
                    self._stuck[span] = layout
                    _log.warning("memory of the P2P store stays readable: %s", error)
                except ClosedError:
                    pass  # Nobody reads anything.
