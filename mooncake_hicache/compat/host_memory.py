"""Memory that the original's callers ask the store or the engine for."""

from __future__ import annotations

import ctypes
import mmap
import operator
import threading

__all__ = [
    "MooncakeHostMemAllocator",
    "allocate_host_buffer",
    "free_host_buffer",
    "new_memory",
]

HUGE_PAGE_SIZE = 2 << 20

# Not the allocator's: its callers keep addresses, and may let go of it before they let go of them.
_lock = threading.Lock()
_areas: dict[int, mmap.mmap] = {}


def new_memory(size: int) -> tuple[int, mmap.mmap]:
    """Return the address of new memory, shared with children, and what keeps it.

    Raises:
        MemoryError: There is none.
    """
    try:
        area = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes: {error.strerror}") from None
    if size >= HUGE_PAGE_SIZE:
        area.madvise(mmap.MADV_HUGEPAGE)
    return ctypes.addressof(ctypes.c_char.from_buffer(area)), area


def allocate_host_buffer(size: int) -> int:
    """Return the address of so many bytes, all zero, until `free_host_buffer`; 0: there are none.

    Nothing is registered: `register_memory` makes it reachable.
    """
    try:
        return MooncakeHostMemAllocator().alloc(size)
    except RuntimeError:
        return 0


def free_host_buffer(ptr: int) -> None:
    """Give it back. Nothing happens to an address that is none of them, 0 for example."""
    MooncakeHostMemAllocator().free(ptr)


class MooncakeHostMemAllocator:
    """Memory of this process by address. Any thread may call; it lives until it is freed, also
    when there is no allocator any more.

    The node needs no memory of its clients to be allocated in a certain way, so this is plain
    memory: SGLang asks for it because the original's shared-memory mode does need that.
    """

    def alloc(self, size: int) -> int:
        """Return the address of so many bytes, all zero.

        Raises:
            RuntimeError: The size is not positive, or there is no memory.
        """
        size = operator.index(size)
        if size <= 0:
            raise RuntimeError(f"cannot allocate {size} bytes: give a positive number")
        try:
            address, area = new_memory(size)
        except MemoryError as error:
            raise RuntimeError(str(error)) from None
        with _lock:
            _areas[address] = area
        return address

    def free(self, ptr: int) -> int:
        """Give memory back: 0, or -1 if it is none of ours."""
        with _lock:
            area = _areas.pop(operator.index(ptr), None)
        return -1 if area is None else 0
