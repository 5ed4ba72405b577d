"""A client of `mooncake.store`, driven over stdin and stdout with a JSON object a line.

    python store_end.py KIND MASTER CAPACITY [CLIENT]

Ours or the original's, whichever `mooncake` the Python that runs this has: the calls are the same.
Needs NumPy only.

    segment   memory and client in one process
    storage   only memory, for others: answers nothing but that it is there
    client    no memory of its own: what it stores lies in a `storage`
    dummy     no memory of its own: what it stores lies in the program at CLIENT
"""

from __future__ import annotations

import json
import mmap
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mooncake.store import MooncakeDistributedStore  # type: ignore[import-not-found,unused-ignore]

AREA_SIZE = 512 << 20
BUFFER_SIZE = 16 << 20
RUNS_MIN = 3


class Area:
    """Memory that is registered; of the store's own allocator where that is needed."""

    def __init__(self, *, is_shared: bool) -> None:
        if is_shared:
            import ctypes

            from mooncake.store import MooncakeHostMemAllocator

            self.allocator = MooncakeHostMemAllocator()
            self.address = self.allocator.alloc(AREA_SIZE)
            memory: Any = (ctypes.c_uint8 * AREA_SIZE).from_address(self.address)
        else:
            memory = mmap.mmap(-1, AREA_SIZE)
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(memory, dtype=np.uint8)
        self.address = self.bytes.ctypes.data
        noise = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)
        self.bytes.reshape(-1, 1 << 20)[:] = noise


class End:
    """One client and what it does for the benchmark."""

    def __init__(self, kind: str, master: str, capacity: int, client: str) -> None:
        self.store = MooncakeDistributedStore()
        if kind == "dummy":
            code = self.store.setup_dummy(2 * AREA_SIZE + (64 << 20), BUFFER_SIZE, client)
        else:
            own = 0 if kind == "client" else capacity
            code = self.store.setup(
                "127.0.0.1", "P2PHANDSHAKE", own, BUFFER_SIZE, "tcp", "", master
            )
        if code != 0:
            raise RuntimeError(f"setup as {kind} came to {code}")
        if kind == "storage":
            return
        self.capacity = capacity
        self.source = Area(is_shared=kind == "dummy")
        self.target = Area(is_shared=kind == "dummy")
        for area in (self.source, self.target):
            if self.store.register_buffer(area.address, AREA_SIZE) != 0:
                raise RuntimeError("the store does not register memory")
        self.kept: list[str] = []
        self.batches = 0

    def fill(self, size: int, total: int) -> dict[str, Any]:
        """Begin anew with `total` bytes of values of `size` bytes."""
        self.empty()
        count = total // size
        keys = [f"k{size}-{i}" for i in range(count)]
        for first in range(0, count, 32):
            self.put(keys[first : first + 32], size)
        self.kept = keys
        return {"stored": sum(code == 1 for code in self.store.batch_is_exist(keys))}

    def empty(self) -> None:
        """Remove everything."""
        self.store.remove_all(True)
        self.kept = []

    def put(self, keys: list[str], size: int) -> None:
        """Store a batch."""
        codes = self.store.batch_put_from(
            keys, self._places(self.source, keys, size), [size] * len(keys)
        )
        if any(codes):
            raise RuntimeError(f"put came to {sorted(set(codes))}")

    def get(self, keys: list[str], size: int) -> None:
        """Read a batch."""
        found = self.store.batch_get_into(
            keys, self._places(self.target, keys, size), [size] * len(keys)
        )
        if any(one != size for one in found):
            raise RuntimeError(f"get came to {sorted(set(found))}")

    def exists(self, keys: list[str]) -> None:
        """Ask for a batch."""
        if any(one != 1 for one in self.store.batch_is_exist(keys)):
            raise RuntimeError("a key that was stored is not there")

    def measure(self, op: str, size: int, batch: int, seconds: float) -> dict[str, Any]:
        """Repeat one call; return its rate and how long it took."""
        draw = random.Random(size * batch)
        step: Callable[[], float] = {
            "put": lambda: self._timed_put(size, batch),
            "get": lambda: timed(self.get, draw.sample(self.kept, batch), size),
            "exists": lambda: timed(self.exists, draw.sample(self.kept, batch)),
        }[op]
        if op == "put":
            self.empty()
            self.room = 0
        step()
        taken: list[float] = []
        until = time.monotonic() + seconds
        while len(taken) < RUNS_MIN or time.monotonic() < until:
            taken.append(step())
        taken.sort()
        return {
            "bytes_per_s": batch * size * len(taken) / sum(taken),
            "keys_per_s": batch * len(taken) / sum(taken),
            "p50_us": 1e6 * taken[len(taken) // 2],
            "p99_us": 1e6 * taken[len(taken) * 99 // 100],
        }

    def _timed_put(self, size: int, batch: int) -> float:
        self.room += size * batch
        if self.room > self.capacity // 2:  # What makes room is not what is measured.
            self.empty()
            self.room = size * batch
        self.batches += 1
        return timed(self.put, [f"p{self.batches}-{i}" for i in range(batch)], size)

    def _places(self, area: Area, keys: list[str], size: int) -> list[int]:
        places = AREA_SIZE // size
        first = (self.batches * len(keys)) % places
        return [area.address + (first + i) % places * size for i in range(len(keys))]


def timed(call: Callable[..., None], *arguments: Any) -> float:
    """Return how many seconds a call takes."""
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def main() -> None:
    """Serve until stdin ends."""
    kind, master, capacity, *rest = sys.argv[1:]
    end = End(kind, master, int(capacity), rest[0] if rest else "")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(end, asked.pop("do"))(**asked)
        print(json.dumps(answer or {}), flush=True)
    end.store.close()


if __name__ == "__main__":
    main()
