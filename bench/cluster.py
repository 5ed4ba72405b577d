"""`python -m bench cluster`: pages read from another node, beside the transfer engine alone.

A master and two nodes on this machine, over TCP: one has the pages, the other is asked for them by
a client, each page once. Beside it, in the same rounds, an engine that reads as many bytes of
another process over TCP in one batch, out of memory like a pool into memory like the client's: what
a read of pages adds is to find, lease and verify them, and the copy out of the node's pool.

All memory was touched before, as it is in a node that serves: both pools are full, and make room by
eviction.

Over plain loopback the CPUs are the limit, which both nodes and the client share. `--link 16gbit`
measures as over a network of that rate: in a network namespace whose loopback `tc` slows down (as
root, on Linux with iproute2).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.limits import Area
from bench.node import private_node
from bench.report import Bound, console, machine, show_bounds, write_json
from mooncake_hicache import Store, TransferEngine

KiB, MiB = 1 << 10, 1 << 20
SHAPES = [(4 * MiB, 32), (64 * KiB, 128)]
POOL_SIZE = 512 * MiB
DEADLINE_S = 60.0
OVER_TCP = {"MOONCAKE_HICACHE_TRANSFER_TRANSPORTS": "tcp"}


@contextmanager
def master() -> Iterator[str]:
    """A master; its address."""
    command = [sys.executable, "-m", "mooncake_hicache", "master", "--port=0", "--http-port=-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"master answers at (\S+)", process.stdout.readline())
        if found is None:
            raise RuntimeError("the master does not start")
        yield found[1]
    finally:
        process.kill()
        process.wait()


def _over_link(rate: str, argv: list[str]) -> int:
    """Run this benchmark in a network namespace whose loopback has that rate."""
    script = (
        "ip link set lo up && ip link set lo mtu 65536 && "
        'tc qdisc add dev lo root tbf rate "$0" burst 4mb limit 64mb && exec "$@"'
    )
    own = [sys.executable, "-m", "bench", "cluster", "--is-over", rate, *argv]
    return subprocess.run(
        ["unshare", "-n", "bash", "-c", script, rate, *own], check=False
    ).returncode


def run(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure everything, in rounds; bytes per second by shape."""
    seen: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(private_node(f"{POOL_SIZE // MiB}MiB"))
        os.environ.update(OVER_TCP)
        address = stack.enter_context(master())
        nodes = []
        for name in ("owner", "reader"):
            own = folder / name
            own.mkdir(mode=0o700)
            settings: dict[str, Any] = {"master": address, "node_name": name}
            store = Store.open(runtime_dir=str(own), call_timeout_ms="30s", **settings)
            stack.callback(subprocess.run, _stop(own), capture_output=True, check=False)
            stack.enter_context(store)
            _fill(store)
            nodes.append(store)
        target = Area(max(size * count for size, count in SHAPES))
        for number in range(options.rounds):
            console.print(f"round {number + 1} of {options.rounds}")
            for size, count in SHAPES:
                figures = seen.setdefault(f"{count} × {size // KiB} KiB", {})
                found = _pages(nodes[0], nodes[1], target, size, count, number)
                for name, rate in {**found, "engine": _engine(size, count)}.items():
                    figures.setdefault(name, []).append(rate)
    return seen


def _stop(folder: Path) -> list[str]:
    return [sys.executable, "-m", "mooncake_hicache", "stop", f"--runtime-dir={folder}"]


def _fill(store: Store) -> None:
    """Have the kernel give the node all the memory of its pool."""
    page = Area(4 * MiB).bytes
    name_space = store.namespace("filling")
    for number in range(POOL_SIZE // len(page)):
        name_space.put(f"filling-{number}", page)


def _pages(
    owner: Store, reader: Store, target: Area, size: int, count: int, number: int
) -> dict[str, float]:
    """Put pages at one node, read them at the other: with a look-up before, and without."""
    source = Area(size * count)
    found = {}
    for kind in ("get", "look-up and get"):
        keys = [f"{kind}-{number}-{size}-{i}" for i in range(count)]
        pieces = [source.bytes[i * size : (i + 1) * size] for i in range(count)]
        places = [target.bytes[i * size : (i + 1) * size] for i in range(count)]
        here, there = owner.namespace("bench"), reader.namespace("bench")
        for key, piece in zip(keys, pieces, strict=True):
            assert here.put(key, piece)
        until = time.monotonic() + DEADLINE_S
        while not there.exists_batch(keys).all():
            if time.monotonic() > until:
                raise RuntimeError("the reader's node does not find the owner's pages")
        began = time.perf_counter()
        if kind != "get":
            there.prefix_length(keys)
        codes = there.get_batch_into(keys, places)
        seconds = time.perf_counter() - began
        if codes.any():  # 0 is OK.
            raise RuntimeError("pages of the other node were not read")
        if not np.array_equal(target.bytes[: size * count], source.bytes):
            raise RuntimeError("wrong bytes")
        found[kind] = size * count / seconds
    return found


def _engine(size: int, count: int) -> float:
    """One batch of the engine alone, between two processes."""
    code = (
        "import sys;from mooncake_hicache import TransferEngine\n"
        f"e=TransferEngine(transports='tcp');m=e.allocate({size * count});m[:]=1\n"
        "print(e.address,m.ctypes.data,flush=True);sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address, begin = process.stdout.readline().split()
        target = Area(size * count)
        remote = [int(begin) + i * size for i in range(count)]
        local = [int(place) for place in target.addresses(size, 0, count)]
        with TransferEngine(transports="tcp") as engine:
            segment = engine.open(address)
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                segment.read_batch(local, remote, [size] * count)
                taken.append(time.perf_counter() - began)
        return size * count / statistics.median(taken)
    finally:
        process.kill()
        process.wait()


def main(argv: list[str]) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--rounds", type=int, default=9, help="how often all is measured")
    parser.add_argument("--link", metavar="RATE", help="of the network, as for tc: 16gbit")
    parser.add_argument("--is-over", metavar="RATE", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.link and not options.is_over:
        return _over_link(options.link, argv)
    about = machine()
    seen = run(options)
    over = f" over a link of {options.link}" if options.link else ""
    table = Table(title=f"GB/s{over}, median of the rounds", title_justify="left")
    table.add_column("pages")
    for name in ("get", "look-up and get", "engine"):
        table.add_column(name, justify="right")
    bounds = []
    for shape, figures in seen.items():
        middle = {name: statistics.median(rates) for name, rates in figures.items()}
        table.add_row(shape, *(f"{rate / 1e9:.2f}" for rate in middle.values()))
        best = max(middle["get"], middle["look-up and get"])
        bounds.append(
            Bound(f"{shape}: of the engine alone", best / middle["engine"], "×", 0.85, True)
        )
    console.print(table)
    holds = show_bounds(bounds)
    if options.json:
        figures_of_all = {
            "machine": about,
            "command": "python -m bench cluster" + (f" --link {options.link}" * bool(options.link)),
            "rounds": options.rounds,
            "bytes_per_s": seen,
        }
        write_json(options.json, figures_of_all, bounds)
    return 0 if holds else 1
