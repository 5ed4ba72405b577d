"""`python -m bench transfer`: moving memory between two processes, by size, batch and transport.

Beside it, in the same run and in turns: a bare TCP stream and ping-pong over loopback
(loopback.c), the best copy of this machine (limits.c), and the original's engine if an environment
has it (`--original PYTHON`), with its connection pool off and on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import limits
from bench.report import Bound, console, machine, median_of, show_bounds, write_json

END = Path(__file__).with_name("transfer_end.py")
LOOPBACK = Path(__file__).with_name("loopback.c")
AREA_SIZE = 256 << 20
KiB, MiB = 1 << 10, 1 << 20
SIZES = [4 * KiB, 64 * KiB, MiB, 16 * MiB, 64 * MiB]
OURS = ["tcp", "tcp-unchecked", "local", "local-shared"]
ORIGINALS = {"original": {}, "original-pool": {"MC_TCP_ENABLE_CONNECTION_POOL": "1"}}


@dataclass(frozen=True)
class Cell:
    """One figure: who moved what, how, and how fast."""

    kind: str
    op: str
    size: int
    batch: int
    threads: int
    bytes_per_s: float
    cpu_s_per_gb: float
    p50_us: float
    p99_us: float


class Process:
    """One end in a process of its own."""

    def __init__(self, python: str, kind: str, *peer: str, **environment: str) -> None:
        name = "original" if kind.startswith("original") else kind
        self.process = subprocess.Popen(
            [python, str(END), name, str(AREA_SIZE), *peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if name != "original" else subprocess.DEVNULL,
            env={**os.environ, "MC_LOG_LEVEL": "ERROR", **environment},
            text=True,
        )
        self.ready = self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Have it do something and return what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # The original prints to stdout as well.
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"an end of the benchmark stopped with {self.process.wait()}")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Pair:
    """Two ends of one kind."""

    def __init__(self, kind: str, python: str, stack: ExitStack) -> None:
        self.kind = kind
        environment = ORIGINALS.get(kind, {})
        self.target = Process(python, kind, **environment)
        stack.callback(self.target.close)
        ready = self.target.ready
        self.mover = Process(python, kind, ready["session"], str(ready["address"]), **environment)
        stack.callback(self.mover.close)

    def measure(self, op: str, size: int, batch: int, threads: int, seconds: float) -> Cell:
        """Return one figure."""
        before_s = self.target.ask(do="cpu")["cpu_s"]
        found = self.mover.ask(
            do="move", op=op, size=size, batch=batch, threads=threads, seconds=seconds
        )
        used_s = found["cpu_s"] + self.target.ask(do="cpu")["cpu_s"] - before_s
        return Cell(
            self.kind,
            op,
            size,
            batch,
            threads,
            found["bytes_per_s"],
            used_s / (found["bytes"] / 1e9),
            found["p50_us"],
            found["p99_us"],
        )


class Limits:
    """What the machine can do, measured in turns with the rest."""

    def __init__(self) -> None:
        limits.BUILD.mkdir(parents=True, exist_ok=True)
        self.program = limits.BUILD / "loopback"
        command = ["cc", "-O2", "-pthread", "-o", str(self.program), str(LOOPBACK)]
        subprocess.run(command, check=True)
        self.areas = [limits.Area(AREA_SIZE), limits.Area(AREA_SIZE)]

    def _run(self, *arguments: object) -> list[float]:
        command = [str(self.program), *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [float(word) for word in done.stdout.split()]

    def stream(self, seconds: float) -> tuple[float, float]:
        """Bytes per second and CPU seconds per GB of the best bare stream."""
        found = [self._run("stream", lanes, MiB, AREA_SIZE, seconds / 4) for lanes in (1, 2, 4, 8)]
        best = max(found, key=lambda one: one[0])
        return best[0], best[1]

    def ping_pong_us(self, reply_size: int, seconds: float) -> float:
        """Median round trip."""
        return self._run("pingpong", reply_size, seconds)[0] / 1e3

    def copy(self, size: int) -> float:
        """Bytes per second of the best copy of the whole area, with as many threads as ours."""
        count = AREA_SIZE // size
        target = self.areas[0].addresses(size, 0, count)
        source = self.areas[1].addresses(size, 0, count)
        threads = min(4, len(os.sched_getaffinity(0)))
        kind, used = limits.best_copy(threads, target, source, size)
        seconds = statistics.median(
            limits.copy_seconds(kind, used, target, source, size) for _ in range(5)
        )
        return count * size / seconds


def shapes(quick: bool) -> Iterator[tuple[str, int, int, int]]:
    """What is measured: operation, size, batch, threads."""
    for op in ("read",) if quick else ("read", "write"):
        for size in (64 * KiB, MiB) if quick else SIZES:
            yield op, size, 1, 1
            if size <= 16 * MiB:
                yield op, size, min(32, AREA_SIZE // size), 1
        # A bare stream never waits for an answer; nor does who has a second batch under way.
        yield op, 64 * KiB, 32, 2
        yield op, MiB, 32, 2
        if not quick:
            yield op, 64 * KiB, 32, 4


def run(options: argparse.Namespace) -> tuple[list[Cell], dict[str, Any]]:
    """Measure everything, in rounds; return the cells and the limits of all rounds."""
    cells: list[Cell] = []
    seen: dict[str, Any] = {"stream": [], "stream_cpu": [], "ping_pong_us": [], "copy": {}}
    bare = Limits()
    kinds = OURS + (list(ORIGINALS) if options.original else [])
    with ExitStack() as stack:
        pairs = [
            Pair(kind, options.original if kind in ORIGINALS else sys.executable, stack)
            for kind in kinds
        ]
        for number in range(options.rounds):
            console.print(f"round {number + 1} of {options.rounds}")
            rate, cpu = bare.stream(4 * options.seconds)
            seen["stream"].append(rate)
            seen["stream_cpu"].append(cpu)
            seen["ping_pong_us"].append(bare.ping_pong_us(4 * KiB, options.seconds))
            for size in SIZES[2:4]:
                seen["copy"].setdefault(size, []).append(bare.copy(size))
            for shape in shapes(options.quick):
                cells += [pair.measure(*shape, options.seconds) for pair in pairs]
    return cells, seen


def bounds_of(cells: list[Cell], seen: dict[str, Any]) -> list[Bound]:
    """What must hold."""
    bounds: list[Bound] = []

    def add(
        what: str, figure: float | None, base: float | None, limit: float, at_least: bool
    ) -> None:
        if figure is not None and base:
            bounds.append(Bound(what, figure / base, "×", limit, at_least))

    stream = statistics.median(seen["stream"])
    for op in ("read", "write"):
        for size in SIZES[1:]:
            for batch, threads in ((32, 2), (AREA_SIZE // size, 1), (1, 1)):
                shape = {"op": op, "size": size, "batch": batch, "threads": threads}
                rate = median_of(cells, "bytes_per_s", kind="tcp", **shape)
                if rate is not None:
                    name = label_of(op, size, batch, threads)
                    add(f"tcp {name}: of the best bare stream", rate, stream, 0.9, True)
                    if size in (64 * KiB, MiB):
                        for kind in ORIGINALS:
                            other = median_of(cells, "bytes_per_s", kind=kind, **shape)
                            add(f"tcp {name}: of the {kind}", rate, other, 2.0, True)
                    break
    shape = {"op": "read", "size": 4 * KiB, "batch": 1, "threads": 1}
    ping_us = statistics.median(seen["ping_pong_us"])
    p50_us = median_of(cells, "p50_us", kind="tcp", **shape)
    add("tcp read 4 KiB, p50: of a bare ping-pong", p50_us, ping_us, 2.0, False)
    for size, rates in seen["copy"].items():
        for kind in ("local", "local-shared"):
            batch = min(32, AREA_SIZE // size)
            shape = {"op": "read", "size": size, "batch": batch, "threads": 1}
            rate = median_of(cells, "bytes_per_s", kind=kind, **shape)
            what = f"{kind} read {name_of(size)} × {batch}: of the best copy"
            add(what, rate, statistics.median(rates), 0.9, True)
    return bounds


def name_of(size: int) -> str:
    """A size as people write it."""
    return f"{size // MiB} MiB" if size >= MiB else f"{size // KiB} KiB"


def label_of(op: str, size: int, batch: int, threads: int) -> str:
    """A shape as the table names it."""
    return f"{op} {name_of(size)} × {batch}" + (f", {threads} threads" if threads > 1 else "")


def show(cells: list[Cell], seen: dict[str, Any]) -> None:
    """Print the table: GB/s, p50 and p99 of a call in µs, CPU seconds per GB."""
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    keys = list(dict.fromkeys((cell.op, cell.size, cell.batch, cell.threads) for cell in cells))
    table = Table(title="GB/s · p50/p99 of a call in µs · CPU s per GB", title_justify="left")
    table.add_column("what")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for op, size, batch, threads in keys:
        shape: dict[str, object] = {"op": op, "size": size, "batch": batch, "threads": threads}
        row = []
        for kind in kinds:
            rate, p50, p99, cpu = (
                median_of(cells, field, kind=kind, **shape) or 0.0
                for field in ("bytes_per_s", "p50_us", "p99_us", "cpu_s_per_gb")
            )
            row.append(f"{rate / 1e9:.2f} · {p50:.0f}/{p99:.0f} · {cpu:.2f}")
        table.add_row(label_of(op, size, batch, threads), *row)
    console.print(table)
    console.print(
        f"bare stream {statistics.median(seen['stream']) / 1e9:.2f} GB/s at "
        f"{statistics.median(seen['stream_cpu']):.2f} CPU s per GB; ping-pong of 4 KiB "
        f"{statistics.median(seen['ping_pong_us']):.1f} µs; copies "
        + ", ".join(
            f"{name_of(size)} {statistics.median(rates) / 1e9:.2f} GB/s"
            for size, rates in seen["copy"].items()
        )
    )


def main(argv: list[str]) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench transfer", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--rounds", type=int, default=3, help="how often all is measured")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--original", help="a Python that has the original Mooncake installed")
    parser.add_argument("--quick", action="store_true", help="two sizes, reads alone")
    options = parser.parse_args(argv)
    about = machine()
    cells, seen = run(options)
    show(cells, seen)
    bounds = bounds_of(cells, seen)
    holds = show_bounds(bounds)
    if options.json:
        figures = {
            "machine": about,
            "command": "python -m bench transfer",
            "rounds": options.rounds,
            "limits": {**seen, "copy": {name_of(k): v for k, v in seen["copy"].items()}},
            "cells": [asdict(cell) for cell in cells],
        }
        write_json(options.json, figures, bounds)
    return 0 if holds else 1
