"""`BufferPool`: registered memory that is lent, for programs that read and write by address.

    pool = BufferPool(store, max_bytes=1 << 30)
    with pool.acquire(4 << 20) as lease:
        store.get_into("key", lease.ptr, lease.size)

Nothing here makes reads faster: the node reads into any memory. It saves allocating anew.
"""

from __future__ import annotations

import mmap
import operator
import threading
import time
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from mooncake_hicache.compat.host_memory import new_memory
from mooncake_hicache.compat.store.writing import StoreWriting

__all__ = ["BufferLease", "BufferPool"]

_ALIGNMENT_MIN = 8


@dataclass(frozen=True)
class _Piece:
    """Memory of one size, lent or free."""

    address: int
    size: int
    area: mmap.mmap
    offset: int


class BufferPool:
    """Memory in sizes of powers of two. Any thread may call; outlives its store or is closed first.

    Args:
        store: One that was set up.
        max_bytes: Of all pieces, lent and free; 0: no limit.
        min_size_class: The smallest piece.
        max_size_class: What is larger is not rounded up to a power of two; None: all is.
        alignment: Of the addresses; a power of two.
        block_on_exhaustion: Wait, where the limit is reached, unless `acquire` says otherwise.
        default_timeout: For so many seconds, unless `acquire` says otherwise; None: until there is
            some.
        max_regions: How many pieces there are at most; None: no limit.
        prewarm_size, prewarm_count: So many free pieces to begin with.

    Raises:
        RuntimeError: A limit makes no sense, or the store was not set up.
    """

    def __init__(
        self,
        store: StoreWriting,
        max_bytes: int = 0,
        min_size_class: int = 65536,
        max_size_class: int | None = None,
        alignment: int = 8388608,
        block_on_exhaustion: bool = True,
        default_timeout: float | None = None,
        max_regions: int | None = None,
        prewarm_size: int | None = None,
        prewarm_count: int = 0,
    ) -> None:
        if not isinstance(store, StoreWriting) or store._store is None:
            raise RuntimeError("BufferPool needs a MooncakeDistributedStore that was set up")
        if min_size_class <= 0 or alignment < _ALIGNMENT_MIN or alignment & (alignment - 1):
            raise RuntimeError(
                f"min_size_class is {min_size_class}, alignment {alignment}: give a positive size "
                f"and a power of two from {_ALIGNMENT_MIN} on"
            )
        if max_bytes < 0 or (max_regions is not None and max_regions <= 0):
            raise TypeError(f"max_bytes is {max_bytes}, max_regions {max_regions}")
        self._store = store
        self._max_bytes, self._max_regions = max_bytes, max_regions
        self._min, self._max_class, self._alignment = min_size_class, max_size_class, alignment
        self._waits, self._timeout_s = block_on_exhaustion, default_timeout
        # Reentrant: a lease may end wherever Python collects garbage, also within these calls.
        self._changed = threading.Condition(threading.RLock())
        self._free: list[_Piece] = []
        self._lent = self._lent_bytes = 0
        self._is_closed = False
        if prewarm_size is not None and prewarm_count:
            self.prewarm(prewarm_size, prewarm_count)

    def acquire(
        self, size: int, block: bool | None = None, timeout: float | None = None
    ) -> BufferLease:
        """Lend memory until it is released.

        Raises:
            RuntimeError: It is larger than the pool, the pool is closed, or nothing came free.
        """
        size = operator.index(size)
        if size < 0:
            raise TypeError(f"cannot lend {size} bytes")
        wanted = self._class_of(size)
        if self._max_bytes and wanted > self._max_bytes:
            raise RuntimeError(f"{size} bytes are more than the pool's capacity: max_bytes")
        timeout_s = self._timeout_s if timeout is None else timeout
        waits = self._waits if block is None else block
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while (piece := self._take(wanted)) is None:
                left_s = None if until_s is None else until_s - time.monotonic()
                if not waits or (left_s is not None and left_s <= 0):
                    raise RuntimeError(
                        f"the buffer pool is exhausted: {self._lent} pieces are lent, "
                        f"{self._lent_bytes} bytes"
                    )
                self._changed.wait(left_s)
            self._lent += 1
            self._lent_bytes += piece.size
        return BufferLease(self, piece, size)

    buffer = acquire

    def prewarm(self, size: int, count: int) -> None:
        """Have so many pieces free for this size, as far as the limits allow."""
        wanted = self._class_of(size)
        with self._changed:
            self._check_open()
            free = sum(piece.size == wanted for piece in self._free)
            for _ in range(count - free):
                if not self._has_room(wanted):
                    break
                self._free.append(self._allocate(wanted))

    def close(self) -> None:
        """Give all memory back. May be called again.

        Raises:
            RuntimeError: Some is lent.
        """
        with self._changed:
            if self._lent:
                raise RuntimeError(
                    f"cannot close the buffer pool: there are {self._lent} active leases"
                )
            self._is_closed = True
            while self._free:
                self._drop(self._free.pop())

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the buffer pool is closed")

    def _class_of(self, size: int) -> int:
        if self._max_class is not None and size > self._max_class:
            return size
        return int(max(self._min, 1 << max(size - 1, 0).bit_length()))

    def _has_room(self, size: int) -> bool:
        held = self._lent_bytes + sum(piece.size for piece in self._free)
        count = self._lent + len(self._free)
        return (not self._max_bytes or held + size <= self._max_bytes) and (
            self._max_regions is None or count < self._max_regions
        )

    def _take(self, wanted: int) -> _Piece | None:
        self._check_open()
        for index, piece in enumerate(self._free):
            if piece.size == wanted:
                return self._free.pop(index)
        while not self._has_room(wanted):
            if not self._free:
                return None
            self._drop(self._free.pop(0))  # The one that was not used for longest.
        return self._allocate(wanted)

    def _allocate(self, size: int) -> _Piece:
        # The address space left out on both sides is never touched, and so takes no memory.
        start, area = new_memory(size + self._alignment)
        offset = -start % self._alignment
        self._store.register_buffer(start + offset, size)
        return _Piece(start + offset, size, area, offset)

    def _drop(self, piece: _Piece) -> None:
        self._store.unregister_buffer(piece.address)

    def _give_back(self, piece: _Piece) -> None:
        with self._changed:
            self._lent -= 1
            self._lent_bytes -= piece.size
            self._free.append(piece)
            self._changed.notify_all()


class BufferLease:
    """Lent memory, until `release`, the end of its `with` statement, or nobody has it any more.

    One thread may call.
    """

    def __init__(self, pool: BufferPool, piece: _Piece, size: int) -> None:
        self._size, self._address = size, piece.address
        self._array: Any = np.frombuffer(piece.area, np.uint8, size, piece.offset)
        # When the last view is gone, and not before, somebody else may have the memory.
        weakref.finalize(self._array, pool._give_back, piece).atexit = False

    @property
    def ptr(self) -> int:
        """The address."""
        self._need()
        return self._address

    @property
    def size(self) -> int:
        """How many bytes were asked for."""
        return self._size

    @property
    def buffer(self) -> memoryview:
        """The memory; may be written. Each time another view, all of which end before `release`."""
        return memoryview(self._need())

    def release(self) -> None:
        """Give the memory back. May be called again.

        Raises:
            RuntimeError: There are views of it; end those first.
        """
        if self._array is None:
            return
        kept = weakref.ref(self._array)
        self._array = None
        self._array = kept()
        if self._array is not None:
            raise RuntimeError("cannot release a buffer of which there are exported views")

    def _need(self) -> Any:
        if self._array is None:
            raise RuntimeError("the buffer lease was released")
        return self._array

    def __enter__(self) -> BufferLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
