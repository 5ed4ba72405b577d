"""`python -m bench store`: the Store API of `mooncake.store`, ours and the original's, in turns.

Ours over the node of this machine. The original, if an environment has it (`--original PYTHON`), in
its three forms: memory in the client's own process, in its program `mooncake_client` (pages through
shared memory), and in another process over TCP, which is what it does by default on one machine.
Beside them the best copy of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import limits
from bench.node import private_node
from bench.report import Bound, console, machine, median_of, show_bounds, write_json

END = Path(__file__).with_name("store_end.py")
DROPIN = Path(__file__).resolve().parents[1] / "dropin"
KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
CAPACITY = 2 * GiB
STORED = 256 * MiB
SIZES = [4 * KiB, 64 * KiB, MiB, 4 * MiB]
BATCHES = [1, 32, 128]
EXISTS = [1, 128, 1024]
OURS = "ours"
ORIGINALS = ["original-segment", "original-dummy", "original-tcp"]
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Cell:
    """One figure: who did what, how fast."""

    kind: str
    op: str
    size: int
    batch: int
    bytes_per_s: float
    keys_per_s: float
    p50_us: float
    p99_us: float


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Wait until somebody listens there. Raises RuntimeError."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen at port {port}")


class Side:
    """A master and the client that is measured, of one kind, in processes of their own."""

    def __init__(self, kind: str, python: str, stack: ExitStack) -> None:
        self.kind = kind
        self.stack = stack
        self.is_ours = kind == OURS
        self.python = python
        master = self._start_master()
        shape = kind.partition("-")[2] or "segment"
        rest: list[str] = []
        if shape == "tcp":
            self._start_end("storage", master)
            shape = "client"
        elif shape == "dummy":
            rest = [self._start_client_program(master)]
        self.end = self._start_end(shape, master, *rest)

    def ask(self, **command: Any) -> dict[str, Any]:
        """Have the client do something and return what came of it."""
        return ask(self.end, command)

    def measure(self, op: str, size: int, batch: int, seconds: float) -> Cell:
        """Return one figure."""
        found = self.ask(do="measure", op=op, size=size, batch=batch, seconds=seconds)
        return Cell(self.kind, op, size, batch, **found)

    def _spawn(self, command: list[str], **pipes: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "MC_LOG_LEVEL": "ERROR"}
        if self.is_ours:
            environment["PYTHONPATH"] = f"{DROPIN}{os.pathsep}{DROPIN.parent}"
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, env=environment, text=True, **pipes
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def _start_master(self) -> str:
        port = free_port()
        program = (
            [self.python, "-m", "mooncake_hicache.compat.master"]
            if self.is_ours
            else [str(Path(self.python).with_name("mooncake_master")), "--logtostderr"]
        )
        flags = ["--rpc_address=127.0.0.1", f"--rpc_port={port}", f"--metrics_port={free_port()}"]
        process = self._spawn([*program, *flags], stdout=subprocess.DEVNULL)
        wait_for_port(port, process)
        return f"127.0.0.1:{port}"

    def _start_client_program(self, master: str) -> str:
        port = free_port()
        command = [
            str(Path(self.python).with_name("mooncake_client")),
            *[f"--master_server_address={master}", "--host=127.0.0.1", f"--port={port}"],
            *["--metadata_server=P2PHANDSHAKE", "--protocol=tcp", "--threads=2", "--logtostderr"],
            f"--global_segment_size={CAPACITY // MiB} MB",
        ]
        process = self._spawn(command, stdout=subprocess.DEVNULL)
        wait_for_port(port, process)
        return f"127.0.0.1:{port}"

    def _start_end(self, shape: str, master: str, *rest: str) -> subprocess.Popen[str]:
        command = [self.python, str(END), shape, master, str(CAPACITY), *rest]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = self._spawn(command, **pipes)
        answer(process)
        return process


def ask(process: subprocess.Popen[str], command: dict[str, Any]) -> dict[str, Any]:
    """Have one end do something and return what came of it."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(command) + "\n")
    process.stdin.flush()
    return answer(process)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next thing an end says. Raises RuntimeError if it stopped."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):  # The original prints to stdout as well.
            found: dict[str, Any] = json.loads(line)
            return found
    raise RuntimeError(f"an end of the benchmark stopped with {process.wait()}")


def shapes(quick: bool) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """For each size of values what is measured: operation and batch."""
    for size in SIZES[1:3] if quick else SIZES:
        most = STORED // size
        batches = [batch for batch in BATCHES if batch <= most]
        calls = [(op, batch) for op in ("put", "get") for batch in batches]
        if size == SIZES[0] or (quick and size == SIZES[1]):
            calls += [("exists", batch) for batch in EXISTS]
        yield size, calls


def best_copy(size: int) -> float:
    """Bytes per second of the best copy of pieces of that size, with as many threads as cores."""
    areas = [limits.Area(STORED), limits.Area(STORED)]
    target, source = (area.addresses(size, 0, STORED // size) for area in areas)
    kind, threads = limits.best_copy(len(os.sched_getaffinity(0)), target, source, size)
    seconds = statistics.median(
        limits.copy_seconds(kind, threads, target, source, size) for _ in range(5)
    )
    return STORED / seconds


def run(options: argparse.Namespace) -> tuple[list[Cell], dict[int, list[float]]]:
    """Measure everything, in rounds; return the cells and the best copies by size."""
    cells: list[Cell] = []
    copies: dict[int, list[float]] = {}
    with ExitStack() as stack:
        stack.enter_context(private_node(str(CAPACITY)))
        sides = [Side(OURS, sys.executable, stack)]
        if options.original:
            sides += [Side(kind, options.original, stack) for kind in ORIGINALS]
        for number in range(options.rounds):
            console.print(f"round {number + 1} of {options.rounds}")
            for size, calls in shapes(options.quick):
                copies.setdefault(size, []).append(best_copy(size))
                puts = [call for call in calls if call[0] == "put"]
                for op, batch in puts:
                    cells += [side.measure(op, size, batch, options.seconds) for side in sides]
                for side in sides:
                    side.ask(do="fill", size=size, total=STORED)
                for op, batch in calls[len(puts) :]:
                    cells += [side.measure(op, size, batch, options.seconds) for side in sides]
    return cells, copies


def bounds_of(cells: list[Cell]) -> list[Bound]:
    """What must hold: ahead of the original's best form, thrice its TCP."""
    bounds: list[Bound] = []
    for op, size, batch in dict.fromkeys((cell.op, cell.size, cell.batch) for cell in cells):
        shape: dict[str, object] = {"op": op, "size": size, "batch": batch}
        rate = median_of(cells, "keys_per_s", kind=OURS, **shape)
        others = {
            kind: median_of(cells, "keys_per_s", kind=kind, **shape) or 0 for kind in ORIGINALS
        }
        if rate is None or not any(others.values()):
            continue
        name = label_of(op, size, batch)
        best = max(others.values())
        bounds.append(Bound(f"{name}: of the original's best", rate / best, "×", 1.0, True))
        tcp = others["original-tcp"]
        if tcp and op != "exists":
            bounds.append(Bound(f"{name}: of the original's TCP", rate / tcp, "×", 3.0, True))
    return bounds


def label_of(op: str, size: int, batch: int) -> str:
    """A shape as the table names it."""
    if op == "exists":
        return f"exists × {batch}"
    unit = f"{size // MiB} MiB" if size >= MiB else f"{size // KiB} KiB"
    return f"{op} {unit} × {batch}"


def show(cells: list[Cell], copies: dict[int, list[float]]) -> None:
    """Print the table: GB/s (or million keys/s), p50 and p99 of a call in µs."""
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    table = Table(title="GB/s (exists: M keys/s) · p50/p99 of a call in µs", title_justify="left")
    for column in ("what", "copy", *kinds):
        table.add_column(column, justify="left" if column == "what" else "right")
    for op, size, batch in dict.fromkeys((cell.op, cell.size, cell.batch) for cell in cells):
        shape: dict[str, object] = {"op": op, "size": size, "batch": batch}
        field, unit = ("keys_per_s", 1e6) if op == "exists" else ("bytes_per_s", 1e9)
        copy = "" if op == "exists" else f"{statistics.median(copies[size]) / 1e9:.2f}"
        row = []
        for kind in kinds:
            rate, p50, p99 = (
                median_of(cells, name, kind=kind, **shape) or 0.0
                for name in (field, "p50_us", "p99_us")
            )
            row.append(f"{rate / unit:.2f} · {p50:.0f}/{p99:.0f}")
        table.add_row(label_of(op, size, batch), copy, *row)
    console.print(table)


def main(argv: list[str]) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench store", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--rounds", type=int, default=3, help="how often all is measured")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--original", help="a Python that has the original Mooncake installed")
    parser.add_argument("--quick", action="store_true", help="two sizes alone")
    options = parser.parse_args(argv)
    about = machine()
    cells, copies = run(options)
    show(cells, copies)
    bounds = bounds_of(cells)
    holds = show_bounds(bounds)
    if options.json:
        figures = {
            "machine": about,
            "command": "python -m bench store --original PYTHON",
            "rounds": options.rounds,
            "copies": {str(size): rates for size, rates in copies.items()},
            "cells": [asdict(cell) for cell in cells],
        }
        write_json(options.json, figures, bounds)
    return 0 if holds else 1
