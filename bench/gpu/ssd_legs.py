"""What our tier makes of a disk beside fio: `python -m bench.gpu.ssd_legs FOLDER [FIO]`.

Prints one line of JSON, the last one, in bytes per second unless a name says otherwise. Pages of
4 MiB, 128 a call, moved by our `Store` through a node of its own; fio reads and writes a file of
its own in the same folder, before and after. Needs 12 GiB of memory and as much of the disk.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.disk import GIB, MIB, Fio, facts
from bench.limits import Area
from bench.node import PREFIX, command_line, private_node

PAGE_SIZE = 4 * MIB
PAGES_PER_CALL = 128
STATS = (
    *("ssd_hit_bytes", "ssd_staged_bytes", "ssd_written_bytes", "get_hit_bytes", "get_miss_pages"),
    *("ssd_recovery_ms", "ssd_pages"),
)


def size_to_try(free: int, write_rate: float) -> int:
    """Return how many bytes to write: what takes about 6 s, and fits."""
    wanted = int(write_rate * 6) // GIB * GIB
    return max(GIB, min(wanted, 4 * GIB, free // 4 // GIB * GIB))


class Pages:
    """So many pages in memory, and the calls that move them."""

    def __init__(self, size: int, *, huge: bool) -> None:
        self.count = size // PAGE_SIZE
        self.area = Area(size, cold=True)
        if not huge:
            self.area.memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.area.fill(7)
        self.ranges = self.area.addresses(PAGE_SIZE, 0, self.count).reshape(-1, 1)
        self.sizes = np.array([PAGE_SIZE], dtype=np.uint64)
        self.keys = [number.to_bytes(32, "little") for number in range(1, self.count + 1)]

    def move(
        self, method: Callable[..., Any], lookup: Callable[..., Any] | None = None, **more: Any
    ) -> float:
        """Move all pages, after a look-up of each call's if there is one; return bytes per s."""
        begun = time.perf_counter()
        for start in range(0, self.count, PAGES_PER_CALL):
            part = slice(start, start + PAGES_PER_CALL)
            if lookup is not None:
                lookup(self.keys[part], lease=True, prefix=True)
            codes = method(self.keys[part], self.ranges[part], self.sizes, **more)
            if np.any(codes != 0):
                raise RuntimeError(f"the store answers {codes[codes != 0][0]}")
        return self.count * PAGE_SIZE / (time.perf_counter() - begun)

    def some(self) -> npt.NDArray[np.uint8]:
        """Return a copy of some bytes of every OS page."""
        return np.array(self.area.bytes[:: 4096 + 64], dtype=np.uint8)


def our_gets(pages: Pages, found: dict[str, Any], memory: str) -> None:
    """Note the rates of gets from a node that has the pages on SSD only."""
    from mooncake_hicache import Store

    expected = pages.some()
    for staging in (True, False):
        os.environ[PREFIX + "SSD_STAGING"] = str(int(staging))
        begun = time.perf_counter()
        with Store.open() as store:
            space = store.namespace("ssd legs")
            deadline = time.monotonic() + 20
            while store.stats()["node"].get("ssd_recovering") and time.monotonic() < deadline:
                time.sleep(0.02)
            name = f"{'staging' if staging else 'no staging'}, {memory}"
            found[f"{name}: open and recover, seconds"] = time.perf_counter() - begun
            for number in range(2):
                pages.area.bytes[:] = 0
                rate = pages.move(space.get_into_addresses, space.lookup)
                found[f"{name}: get {number + 1}"] = rate
                same = np.array_equal(pages.some(), expected)
                found[f"{name}: get {number + 1}, same bytes"] = bool(same)
                node = store.stats()["node"] or {}
                found[f"{name}: node after get {number + 1}"] = {
                    key: node[key] for key in STATS if key in node
                }
        begun = time.perf_counter()
        command_line("stop")
        found[f"{name}: stop, seconds"] = time.perf_counter() - begun


def measure(folder: Path, fio: Fio) -> dict[str, Any]:
    """Return all rates."""
    from mooncake_hicache import Store

    found: dict[str, Any] = {"facts": facts(), "limit is by": fio.name}
    first = fio.write(GIB)
    size = size_to_try(shutil.disk_usage(folder).free, first)
    found["limit: write"] = fio.write(size)
    found["limit: read"] = fio.reads(seconds=2)
    pages = Pages(size, huge=False)
    with private_node("8GiB", ssd=str(folder / "store"), ssd_write_budget="0"):
        with Store.open() as store:
            space = store.namespace("ssd legs")
            found["put"] = pages.move(space.put_from, parent=None, chained=True)
        begun = time.perf_counter()
        command_line("stop")
        seconds = time.perf_counter() - begun
        found["flush, by the whole stop"] = size / seconds
        our_gets(pages, found, "4 KiB OS pages")
        del pages
        our_gets(Pages(size, huge=True), found, "huge pages")
        found["limit: read, again"] = fio.reads(seconds=2)
        log = folder / "store" / "pages.log"
        if log.exists():
            found["limit: read of our file"] = fio.reads(log, size * 9 // 10, seconds=2)
    return found


def main() -> int:
    """Measure and print."""
    program = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="hicache-ssd-", dir=sys.argv[1]) as name:
        found = measure(Path(name), Fio(program, Path(name)))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
