"""One end of the transfer benchmark, driven over stdin and stdout with a JSON object a line.

    python transfer_end.py KIND AREA_SIZE [SESSION ADDRESS]

With SESSION and ADDRESS it moves, otherwise it only has memory. Runs under any Python with NumPy,
so that the original can be measured from the environment that it is installed in:

    tcp, tcp-unchecked    ours over TCP, with and without checksums
    local, local-shared   ours on one machine: plain memory, and memory that both ends map
    original              the original over TCP (its environment decides the rest)
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

OURS: dict[str, dict[str, Any]] = {
    "tcp": {"transports": "tcp"},
    "tcp-unchecked": {"transports": "tcp", "tcp_checksum": False},
    "local": {"transports": "local"},
    "local-shared": {"transports": "local"},
}
TIMEOUT_MS = 60_000

Move = Callable[[str, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"], None]


class OurEnd:
    """An end with our engine."""

    def __init__(self, kind: str, size: int) -> None:
        from mooncake_hicache import TransferEngine

        self.engine = TransferEngine(**OURS[kind])
        if kind == "local-shared":
            self.area = self.engine.allocate(size)
        else:
            self.area = np.zeros(size, dtype=np.uint8)
            self.engine.register(self.area)

    def session(self) -> str:
        """Where peers find it."""
        return self.engine.address

    def mover(self, session: str) -> Move:
        """Return what moves a batch to or from a peer."""
        segment = self.engine.open(session)

        def move(op: str, local: Any, remote: Any, sizes: Any) -> None:
            if len(sizes) == 1:
                one = segment.write if op == "write" else segment.read
                one(int(local[0]), int(remote[0]), int(sizes[0]), timeout_ms=TIMEOUT_MS)
            else:
                many = segment.write_batch if op == "write" else segment.read_batch
                many(local, remote, sizes, timeout_ms=TIMEOUT_MS)

        return move


class OriginalEnd:
    """An end with the original's engine."""

    def __init__(self, kind: str, size: int) -> None:
        del kind
        from mooncake.engine import TransferEngine  # type: ignore[import-not-found]

        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("the original does not start")
        self.area = np.zeros(size, dtype=np.uint8)
        if self.engine.register_memory(self.area.ctypes.data, size) != 0:
            raise RuntimeError("the original does not register memory")

    def session(self) -> str:
        """Where peers find it."""
        return f"127.0.0.1:{self.engine.get_rpc_port()}"

    def mover(self, session: str) -> Move:
        """Return what moves a batch to or from a peer."""

        def move(op: str, local: Any, remote: Any, sizes: Any) -> None:
            if len(sizes) == 1:
                one = getattr(self.engine, f"transfer_sync_{op}")
                code = one(session, int(local[0]), int(remote[0]), int(sizes[0]))
            else:
                many = getattr(self.engine, f"batch_transfer_sync_{op}")
                code = many(session, local.tolist(), remote.tolist(), sizes.tolist())
            if code != 0:
                raise RuntimeError(f"the original answers {code}")

        return move


def cpu_s() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def batches(area: Any, remote: int, size: int, batch: int, share: range) -> list[tuple[Any, ...]]:
    """Return batches that walk through a share of the area, at the same places of both ends."""
    places = np.arange(share.start, share.stop, size, dtype=np.uint64)
    places = places[places + np.uint64(size) <= share.stop]
    if len(places) < batch:
        places = np.resize(places, batch)
    sizes = np.full(batch, size, dtype=np.uint64)
    made = []
    for first in range(0, len(places) - batch + 1, batch):
        part = places[first : first + batch]
        made.append((part + np.uint64(area.ctypes.data), part + np.uint64(remote), sizes))
    return made


def measure(move: Move, area: Any, remote: int, command: dict[str, Any]) -> dict[str, float]:
    """Move for some seconds with some threads; return what came of it."""
    count, size, batch = command["threads"], command["size"], command["batch"]
    shares = [range(i * area.nbytes // count, (i + 1) * area.nbytes // count) for i in range(count)]
    times_ns: list[list[int]] = [[] for _ in range(count)]
    stop = threading.Event()

    def run(index: int) -> None:
        work = batches(area, remote, size, batch, shares[index])
        own = times_ns[index]
        while not stop.is_set():
            for local, away, sizes in work:
                start_ns = time.perf_counter_ns()
                move(command["op"], local, away, sizes)
                own.append(time.perf_counter_ns() - start_ns)
                if stop.is_set():
                    return

    for work in batches(area, remote, size, batch, shares[0])[:4]:
        move(command["op"], *work)
    start_s, start_cpu_s = time.perf_counter(), cpu_s()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    stop.wait(command["seconds"])
    stop.set()
    for thread in threads:
        thread.join()
    took_s, used_s = time.perf_counter() - start_s, cpu_s() - start_cpu_s
    calls = np.sort(np.concatenate([np.array(own, dtype=np.int64) for own in times_ns]))
    moved = len(calls) * batch * size
    return {
        "bytes_per_s": moved / took_s,
        "bytes": moved,
        "cpu_s": used_s,
        "calls": len(calls),
        "p50_us": float(calls[len(calls) // 2]) / 1e3,
        "p99_us": float(calls[len(calls) * 99 // 100]) / 1e3,
    }


def main(arguments: list[str]) -> None:
    """Serve commands until stdin ends."""
    kind, size = arguments[0], int(arguments[1])
    end = OriginalEnd(kind, size) if kind == "original" else OurEnd(kind, size)
    end.area[:] = np.arange(size, dtype=np.uint8)
    move = end.mover(arguments[2]) if len(arguments) > 2 else None
    remote = int(arguments[3]) if len(arguments) > 3 else 0
    ready = {"session": end.session(), "address": int(end.area.ctypes.data)}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "cpu":
            answer = {"cpu_s": cpu_s()}
        else:
            assert move is not None
            answer = measure(move, end.area, remote, command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
