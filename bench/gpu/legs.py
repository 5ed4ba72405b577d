"""Bandwidth of each leg of a page's way beside the machine's limits: `python -m bench.gpu.legs`.

Prints one line of JSON, the last one, in bytes per second unless a name says otherwise. Runs in a
process of its own. Takes half a minute, 12 GiB of memory and as much of the pool.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.server import KV_SIZE_PER_TOKEN, PAGE_TOKENS
from bench.limits import copy_seconds, kinds
from bench.node import private_node

PAGE_SIZE = KV_SIZE_PER_TOKEN * PAGE_TOKENS  # 9 MiB, K and V in a range each.
PAGES_PER_CALL = 128
GIB = 1 << 30
KERNEL_SETTINGS = {
    "transparent_huge_pages": "/sys/kernel/mm/transparent_hugepage/enabled",
    "transparent_huge_pages_shared": "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "huge_pages_reserved": "/proc/sys/vm/nr_hugepages",
}


def median_seconds(call: Callable[[], object], times: int = 5) -> float:
    """Return the median of the seconds that a call takes, one warm-up aside."""
    call()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def settings() -> dict[str, object]:
    """Return what decides how memory is backed here."""
    found: dict[str, object] = {}
    for name, path in KERNEL_SETTINGS.items():
        with contextlib.suppress(OSError):
            found[name] = Path(path).read_text(encoding="utf-8").strip()
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("MemTotal", "MemAvailable", "Shmem:")):
            found[line.split(":")[0]] = line.split(":")[1].strip()
    return found


def touch_all(gibibytes: int, threads: int = 16) -> float:
    """Touch memory with many threads and give it back; return the bytes per second.

    A virtual machine may get its memory from the host as it is touched; after this it has it.
    """
    size = gibibytes * GIB // threads

    def touch() -> None:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(area, dtype=np.uint8)[::4096] = 1

    workers = [threading.Thread(target=touch) for _ in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return gibibytes * GIB / (time.perf_counter() - begun)


def gpu_copies() -> dict[str, float]:
    """Return the rates of pinned copies between host and GPU."""
    import torch

    host = torch.empty(GIB, dtype=torch.uint8, pin_memory=True).fill_(1)
    device = torch.empty(GIB, dtype=torch.uint8, device="cuda")

    def copy(target: Any, source: Any) -> Callable[[], None]:
        def run() -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        return run

    return {
        "host_to_gpu": GIB / median_seconds(copy(device, host)),
        "gpu_to_host": GIB / median_seconds(copy(host, device)),
    }


def pinned_pages(count: int) -> tuple[Any, npt.NDArray[np.uint64]]:
    """Return host memory as SGLang's host pool has it, registered with CUDA, and the two ranges
    (K and V) of each page in it."""
    import torch
    from sglang.srt.mem_cache.pool_host.common import HostTensorAllocator, _cuda_host_register

    memory = HostTensorAllocator().allocate((2, count, PAGE_SIZE // 2), torch.uint8, "cpu")
    memory.random_(0, 255)
    _cuda_host_register(memory)
    first = np.uint64(memory.data_ptr()) + np.arange(count, dtype=np.uint64) * np.uint64(
        PAGE_SIZE // 2
    )
    return memory, np.stack([first, first + np.uint64(count * PAGE_SIZE // 2)], axis=1)


def memory_copies(ranges: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> dict[str, Any]:
    """Return the rates of plain copies between the two halves of pinned memory, by threads."""
    found: dict[str, Any] = {}
    sources, targets = ranges.reshape(-1).copy(), other.reshape(-1).copy()
    size = PAGE_SIZE // 2
    for threads in (1, 4, 8, 16):
        for kind in kinds():
            seconds = min(copy_seconds(kind, threads, targets, sources, size) for _ in range(3))
            found[f"{kind}, {threads} threads"] = len(sources) * size / seconds
    return found


def store_copies(ranges: npt.NDArray[np.uint64]) -> dict[str, Any]:
    """Return what our store makes of the same memory, as the adapter uses it: 128 pages a call."""
    from mooncake_hicache import Store

    found: dict[str, Any] = {}
    sizes = np.array([PAGE_SIZE // 2] * 2, dtype=np.uint64)
    count = len(ranges)
    keys = [number.to_bytes(32, "little") for number in range(1, 4 * count + 1)]

    def calls(method: Callable[..., Any], first: int, **more: Any) -> float:
        begun = time.perf_counter()
        for start in range(0, count, PAGES_PER_CALL):
            part = slice(start, start + PAGES_PER_CALL)
            codes = method(keys[first:][part], ranges[part], sizes, **more)
            if np.any(codes != 0):
                raise RuntimeError(f"the store answers {codes[codes != 0][0]}")
        return count * PAGE_SIZE / (time.perf_counter() - begun)

    put = {"parent": None, "chained": True}
    with Store.open() as store:
        pages = store.namespace("legs")
        found["put, new memory"] = calls(pages.put_from, 0, **put)
        found["put, new memory, again"] = calls(pages.put_from, count, **put)
        found["get, mapped"] = calls(pages.get_into_addresses, 0)
        pages.clear()
        found["put, backed memory"] = calls(pages.put_from, 0, **put)
        found["look-up of 512 keys, seconds"] = median_seconds(
            lambda: pages.lookup(keys[:512], lease=True, prefix=True), 50
        )
        node = store.stats()["node"] or {}
        found["node"] = {name: value for name, value in node.items() if isinstance(value, int)}
    with Store.open() as store:  # What a restarted engine sees: nothing is mapped yet.
        pages = store.namespace("legs")
        found["get, first after connecting"] = calls(pages.get_into_addresses, 0)
    for threads in (1, 4, 8, 12, 16, 24, 32):
        with Store.open(copy_threads=threads) as store:
            pages = store.namespace("legs")
            calls(pages.get_into_addresses, 0)
            rates = [calls(pages.get_into_addresses, 0) for _ in range(4)]
            found[f"get, {threads} threads"] = statistics.median(rates)
    with Store.open(verify=False) as store:
        pages = store.namespace("legs")
        calls(pages.get_into_addresses, 0)
        rates = [calls(pages.get_into_addresses, 0) for _ in range(4)]
        found["get, 16 threads, unverified"] = statistics.median(rates)
    return found


def main() -> int:
    """Measure and print."""
    found: dict[str, Any] = {"settings_before": settings()}
    found["touch, 1 thread"] = touch_all(4, 1)
    found["touch, 16 threads"] = touch_all(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
    found["touch again, 16 threads"] = touch_all(32)
    found["settings"] = settings()
    found["gpu"] = gpu_copies()
    memory, ranges = pinned_pages(4 * PAGES_PER_CALL)
    half = len(ranges) // 2
    found["plain"] = memory_copies(ranges[:half], ranges[half:])
    with private_node("12GiB"):
        found["store"] = store_copies(ranges)
    del memory
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
