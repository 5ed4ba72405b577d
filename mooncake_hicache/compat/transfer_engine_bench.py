"""`transfer_engine_bench`: one process reads or writes another one's memory, and tells how fast.

    transfer_engine_bench --mode=target --local_server_name=10.0.0.1
    transfer_engine_bench --mode=initiator --segment_id=10.0.0.1:15000 --operation=write

The flags are the original's. Its defaults that name machines of its authors are not: without a
metadata server names are host:port, and all devices are used. The latency of batches is ours.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.engine import TransferEngine
from mooncake_hicache.compat.flags import Flag, Flags
from mooncake_hicache.errors import Error, InvalidArgumentError, IoError

__all__ = ["main"]

PROGRAM = "transfer_engine_bench"
FLAGS = {
    "mode": Flag(
        "initiator", "target: has the memory. initiator: moves it", ("initiator", "target")
    ),
    "metadata_server": Flag(
        "P2PHANDSHAKE",
        "who knows the names: http://host:port/metadata, etcd://host:port, or nobody",
    ),
    "segment_id": Flag("", "the target's name, for the initiator"),
    "local_server_name": Flag(socket.gethostname(), "this machine as peers reach it, or its name"),
    "protocol": Flag("rdma", "tcp: without RDMA. Otherwise RDMA where there is a device"),
    "device_name": Flag("", "RDMA devices, separated by commas; empty: all"),
    "operation": Flag("read", "what the initiator does", ("read", "write")),
    "batch_size": Flag(128, "ranges that are moved at once by each thread"),
    "block_size": Flag(65536, "bytes of each range"),
    "buffer_size": Flag(1 << 30, "bytes of memory, at both ends"),
    "threads": Flag(12, "of the initiator"),
    "duration": Flag(10, "seconds"),
    "backend": Flag("classic", "tent is not supported", ("classic", "tent")),
    "auto_discovery": Flag(False, "without effect: devices are always found"),
    "nic_priority_matrix": Flag("", "a file with the topology; empty: as this machine tells it"),
    "report_unit": Flag(
        "GB", "of the throughput", ("GB", "GiB", "Gb", "MB", "MiB", "Mb", "KB", "KiB", "Kb")
    ),
    "report_precision": Flag(2, "digits after the point"),
    # Of the library that the original logs with, so that scripts go on to work.
    "logtostderr": Flag(False, "without effect"),
    "alsologtostderr": Flag(False, "without effect"),
    "minloglevel": Flag(0, "without effect"),
    "v": Flag(0, "without effect"),
}
_UNIT_BYTES = {"K": (1e3, 1 << 10), "M": (1e6, 1 << 20), "G": (1e9, 1 << 30)}


@dataclass(frozen=True)
class Outcome:
    """What the threads of an initiator have done."""

    seconds: float
    latencies_ns: npt.NDArray[np.int64]
    """Of every batch."""
    size_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    flags = Flags(FLAGS)
    try:
        flags.parse(sys.argv[1:] if arguments is None else arguments)
        if flags.wants_help:
            sys.stdout.write(flags.usage(PROGRAM))
            return 0
        check(flags)
        return run(flags)
    except Error as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1


def check(flags: Flags) -> None:
    """Refuse what cannot work, before anything is started.

    Raises:
        InvalidArgumentError: It says which flag, and what to give.
    """
    if flags.text("backend") == "tent":
        raise InvalidArgumentError("--backend=tent is not supported: leave it out")
    for name in ("batch_size", "block_size", "buffer_size", "threads"):
        if not flags.number(name):
            raise InvalidArgumentError(f"--{name}=0: give 1 or more")
    if flags.text("mode") == "target":
        return
    if not flags.text("segment_id"):
        raise InvalidArgumentError("--segment_id=NAME is needed: the target prints it")
    needed = flags.number("threads") * flags.number("batch_size") * flags.number("block_size")
    if needed > flags.number("buffer_size"):
        raise InvalidArgumentError(
            f"threads x batch_size x block_size is {needed}, and --buffer_size is "
            f"{flags.number('buffer_size')}: every thread needs memory of its own"
        )


def run(flags: Flags) -> int:
    """Start an engine, and be the target or the initiator; return the exit status.

    Raises:
        Error: It cannot start, or cannot go on.
    """
    if flags.text("nic_priority_matrix"):
        os.environ["MC_CUSTOM_TOPO_JSON"] = flags.text("nic_priority_matrix")
    engine = TransferEngine()
    try:
        names = ("local_server_name", "metadata_server", "protocol", "device_name")
        if engine.initialize(*(flags.text(name) for name in names)) != 0:
            raise IoError(engine.last_error)
        address = engine.allocate_managed_buffer(flags.number("buffer_size"))
        if not address:
            raise IoError(engine.last_error)
        if flags.text("mode") == "target":
            return _be_target(engine, flags)
        outcome = Initiator(engine, flags, address).measure()
        sys.stdout.write(report(flags, outcome))
        return 0
    finally:
        engine.close()


def _be_target(engine: TransferEngine, flags: Flags) -> int:
    inner = engine.get_engine()
    assert inner is not None
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    by_name = flags.text("metadata_server") != "P2PHANDSHAKE"
    name = flags.text("local_server_name") if by_name else inner.address
    sys.stdout.write(f"listening on {inner.address}; the initiator needs --segment_id={name}\n")
    sys.stdout.flush()
    stopped.wait()
    return 0


class Initiator:
    """Moves batches until the time is over, in threads of which each has its own memory."""

    def __init__(self, engine: TransferEngine, flags: Flags, address: int) -> None:
        self._flags = flags
        self._address = address
        self._segment = engine.segment_of(flags.text("segment_id"))
        self._remote = self._remote_address()
        self._latencies: list[list[int]] = []
        self._errors: list[Error] = []
        self._ending = threading.Event()

    def _remote_address(self) -> int:
        wanted = self._flags.number("buffer_size")
        sizes = {int(b["address"]): int(b["size"]) for b in self._segment.describe()["buffers"]}
        for address, size in sizes.items():
            if size >= wanted:
                return address
        raise InvalidArgumentError(
            f"{self._flags.text('segment_id')} has registered {max(sizes.values(), default=0)} "
            f"bytes, and --buffer_size is {wanted}: give both ends the same"
        )

    def measure(self) -> Outcome:
        """Run all threads for the time that the flags give.

        Raises:
            Error: A transfer failed.
        """
        threads = [
            threading.Thread(target=self._work, args=(index,), name=f"bench-{index}")
            for index in range(self._flags.number("threads"))
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        self._ending.wait(self._flags.number("duration"))
        self._ending.set()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        if self._errors:
            raise self._errors[0]
        latencies = np.array([ns for one in self._latencies for ns in one], np.int64)
        batch_bytes = self._flags.number("batch_size") * self._flags.number("block_size")
        return Outcome(seconds, latencies, latencies.size * batch_bytes)

    def _work(self, index: int) -> None:
        count, size = self._flags.number("batch_size"), self._flags.number("block_size")
        offsets = (np.arange(count, dtype=np.uint64) + np.uint64(index * count)) * np.uint64(size)
        local, remote = offsets + np.uint64(self._address), offsets + np.uint64(self._remote)
        sizes = np.full(count, size, np.uint64)
        is_read = self._flags.text("operation") == "read"
        move = self._segment.read_batch if is_read else self._segment.write_batch
        latencies: list[int] = []
        self._latencies.append(latencies)
        try:
            while not self._ending.is_set():
                began = time.perf_counter_ns()
                move(local, remote, sizes)
                latencies.append(time.perf_counter_ns() - began)
        except Error as error:
            self._errors.append(error)
            self._ending.set()


def report(flags: Flags, outcome: Outcome) -> str:
    """Return the lines that tell the outcome: the original's, and that of the latency."""
    unit, digits = flags.text("report_unit"), flags.number("report_precision")
    decimal, binary = _UNIT_BYTES[unit[0]]
    scale = binary if "i" in unit else decimal
    per_second = outcome.size_bytes * (8 if unit.endswith("b") else 1) / scale / outcome.seconds
    lines = [
        f"Test completed: duration {outcome.seconds:.2f}, batch count {outcome.latencies_ns.size}, "
        f"throughput {per_second:.{digits}f} {unit}/s"
    ]
    if outcome.latencies_ns.size:
        ranks = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
        values = np.percentile(outcome.latencies_ns, list(ranks.values())) / 1000
        told = ", ".join(f"{name} {value:.0f}" for name, value in zip(ranks, values, strict=True))
        lines.append(f"latency of a batch, microseconds: {told}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
