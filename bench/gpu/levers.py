"""What could make a hit from storage cheaper, each measured alone: `python -m bench.gpu.levers`.

Prints one line of JSON, the last one, in bytes per second. Needs 20 GiB of memory; reserves huge
pages of this machine for a moment, when it may, and gives them back.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.legs import GIB, PAGE_SIZE, PAGES_PER_CALL
from bench.node import private_node

MADV_POPULATE_WRITE = 23
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
POOL_GIB = 6
PAGES = 4 * PAGES_PER_CALL
HALF = PAGE_SIZE // 2

Ranges = npt.NDArray[np.uint64]
_libc = ctypes.CDLL(None, use_errno=True)


def populate(address: int, size: int, threads: int) -> float:
    """Back memory for writing, each thread a part of it; return the bytes per second."""
    part = size // threads

    def one(number: int) -> None:
        start = ctypes.c_void_p(address + number * part)
        if _libc.madvise(start, ctypes.c_size_t(part), MADV_POPULATE_WRITE) != 0:
            raise OSError(ctypes.get_errno(), "madvise(MADV_POPULATE_WRITE)")

    workers = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return size / (time.perf_counter() - begun)


def populate_by_threads() -> dict[str, float]:
    """Return how fast new shared memory is backed, as the node does it, by threads."""
    found = {}
    for threads in (1, 2, 4, 8, 16):
        file = os.memfd_create("levers")
        os.ftruncate(file, 4 * GIB)
        area = mmap.mmap(file, 4 * GIB)
        view = np.frombuffer(area, dtype=np.uint8)
        found[f"{threads} threads"] = populate(view.ctypes.data, 4 * GIB, threads)
        del view
        area.close()
        os.close(file)
    return found


def touch(memory: Any) -> float:
    """Write a byte of each OS page, with 16 threads; return the seconds it took.

    SGLang maps its host pool with MAP_SHARED and MAP_POPULATE, which leaves the pages clean: the
    processor marks each as dirty at its first write. That costs no fault, but in a virtual machine
    it halves the speed of the first copy.
    """
    view = np.frombuffer((ctypes.c_uint8 * memory.numel()).from_address(memory.data_ptr()), "u1")
    part = len(view) // 16

    def one(number: int) -> None:
        view[number * part : (number + 1) * part : 4096] = 0

    workers = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begun


def host_pool(touched: bool) -> tuple[Any, Ranges]:
    """Return memory as SGLang allocates and registers its host pool, never written by a CPU."""
    import torch
    from sglang.srt.mem_cache.pool_host.common import HostTensorAllocator, _cuda_host_register

    memory = HostTensorAllocator().allocate((2, PAGES, HALF), torch.uint8, "cpu")
    _cuda_host_register(memory)
    if touched:
        touch(memory)
    first = np.uint64(memory.data_ptr()) + np.arange(PAGES, dtype=np.uint64) * np.uint64(HALF)
    return memory, np.stack([first, first + np.uint64(PAGES * HALF)], axis=1)


def release(memory: Any) -> None:
    """Unpin memory of `host_pool`."""
    from sglang.srt.mem_cache.pool_host.common import _cuda_host_unregister

    _cuda_host_unregister(memory)


def call_all(method: Callable[..., Any], ranges: Ranges, **more: Any) -> float:
    """Move all pages, 128 a call; return the bytes per second."""
    sizes = np.array([HALF, HALF], dtype=np.uint64)
    keys = [number.to_bytes(32, "little") for number in range(1, PAGES + 1)]
    begun = time.perf_counter()
    for start in range(0, PAGES, PAGES_PER_CALL):
        part = slice(start, start + PAGES_PER_CALL)
        codes = method(keys[part], ranges[part], sizes, **more)
        if np.any(codes != 0):
            raise RuntimeError(f"the store answers {codes[codes != 0][0]}")
    return PAGES * PAGE_SIZE / (time.perf_counter() - begun)


class Bounce:
    """Copies host memory to host memory through the GPU, in the background, both ways at once."""

    def __init__(self) -> None:
        import torch

        self._source = torch.empty(GIB // 2, dtype=torch.uint8, pin_memory=True)
        self._target = torch.empty(GIB // 2, dtype=torch.uint8, pin_memory=True)
        self._stop = threading.Event()
        self.rate = 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Bounce:
        self._thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import torch

        piece = 32 << 20
        streams = [torch.cuda.Stream() for _ in range(2)]
        rooms = [torch.empty(piece, dtype=torch.uint8, device="cuda") for _ in range(2)]
        moved, begun = 0, time.perf_counter()
        while not self._stop.is_set():
            for number, start in enumerate(range(0, GIB // 2, piece)):
                with torch.cuda.stream(streams[number % 2]):
                    room = rooms[number % 2]
                    room.copy_(self._source[start : start + piece], non_blocking=True)
                    self._target[start : start + piece].copy_(room, non_blocking=True)
            torch.cuda.synchronize()
            moved += GIB // 2
        self.rate = moved / (time.perf_counter() - begun)


def first_gets(touched: bool) -> dict[str, Any]:
    """Return the rates of the first gets into a fresh host pool."""
    from mooncake_hicache import Store

    found: dict[str, Any] = {}
    memory, ranges = host_pool(touched)
    with Store.open() as store:
        pages = store.namespace("levers")
        found["put"] = call_all(pages.put_from, ranges, parent=None, chained=True)
        release(memory)
        memory, ranges = host_pool(touched)
        found["gets"] = [call_all(pages.get_into_addresses, ranges) for _ in range(4)]
        if touched:
            with Bounce() as bounce:
                rates = [call_all(pages.get_into_addresses, ranges) for _ in range(4)]
            found["get beside a copy through the GPU"] = statistics.median(rates)
            found["copy through the GPU beside it"] = bounce.rate
            with Bounce() as bounce:
                time.sleep(0.5)
            found["copy through the GPU alone"] = bounce.rate
        pages.clear()
        again = [call_all(pages.put_from, ranges, parent=None, chained=True)]
        found["put into memory that is backed"] = again
    release(memory)
    return found


def huge_pages() -> dict[str, Any]:
    """Return the same with huge pages under the pool, and under pool and host memory."""
    from mooncake_hicache import Store

    before = HUGE_PAGES.read_text(encoding="ascii")
    wanted = (POOL_GIB + 1 + 6) * 512
    begun = time.perf_counter()
    HUGE_PAGES.write_text(str(wanted), encoding="ascii")
    found: dict[str, Any] = {
        "reserving, seconds": time.perf_counter() - begun,
        "reserved": int(HUGE_PAGES.read_text(encoding="ascii")),
    }
    try:
        with private_node(f"{POOL_GIB}GiB"), Store.open(huge_pages="always") as store:
            pages = store.namespace("levers")
            memory, ranges = host_pool(True)
            found["put, new memory"] = call_all(pages.put_from, ranges, parent=None, chained=True)
            rates = [call_all(pages.get_into_addresses, ranges) for _ in range(4)]
            found["get, pool on huge pages"] = rates
            release(memory)
            os.environ["SGLANG_HUGEPAGE_SIZE"] = "2MB"
            memory, ranges = host_pool(True)
            rates = [call_all(pages.get_into_addresses, ranges) for _ in range(4)]
            found["get, pool and host pool on huge pages"] = rates
            release(memory)
            del memory
            found["notices"] = str((store.stats()["node"] or {}).get("notices", ""))
    finally:
        os.environ.pop("SGLANG_HUGEPAGE_SIZE", None)
        HUGE_PAGES.write_text(before, encoding="ascii")
    return found


def main() -> int:
    """Measure and print."""
    found: dict[str, Any] = {"populate": populate_by_threads()}
    for name, touched in (("fresh host pool", False), ("touched host pool", True)):
        with private_node(f"{POOL_GIB}GiB"):
            found[name] = first_gets(touched)
    try:
        found["huge pages"] = huge_pages()
    except Exception as error:  # noqa: BLE001 - not every machine has them to give
        found["huge pages"] = {"failed": str(error)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
