"""Memory of a GPU through the transfer engine: `python3 -m bench.gpu.transfer [--out FILE]`.

Every byte is compared, whichever end is on the GPU, within one process (the local transport, which
has the CUDA driver copy) and between two (TCP, through pinned slots). Bandwidths stand beside those
of the same copies without the engine, taken in turns: torch's `copy_` between pinned memory and the
GPU within a process, the engine between two processes' host memory for TCP.

The machine needs torch with CUDA, and what `bench.gpu.prepare` collects in `.carry` (of its wheels
only pydantic's). `--oracle` compares bytes alone, in one process, for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.gpu.disk import printed
from bench.gpu.install import REPOSITORY, environment, install_core

MIB = 1 << 20
SIZE = 256 * MIB
ROUNDS = 7
ORACLE_MIB = 48
SANITIZER_MIB = 6


# ---- Memory


class Memory:
    """Bytes on the GPU or on the host, which the engine sees as an address and a size."""

    def __init__(self, place: str, size: int, seed: int = 0) -> None:
        """`place`: "cuda:0", "pinned" or "pageable"."""
        import torch

        device = place if place.startswith("cuda") else "cpu"
        generator = torch.Generator(device).manual_seed(seed)
        self.place = place
        self.tensor = torch.empty(
            size, dtype=torch.uint8, device=device, pin_memory=place == "pinned"
        )
        self.tensor.random_(0, 256, generator=generator)
        if device != "cpu":
            torch.cuda.synchronize()

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self.tensor.data_ptr())

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self.tensor.numel())

    def copy(self) -> Any:
        """Return its bytes, in a CPU tensor."""
        return self.tensor.cpu().clone()


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def median_seconds(times: int, call: Callable[..., object], *arguments: int) -> float:
    """Return the median of how long a call takes."""
    return statistics.median(seconds_of(lambda: call(*arguments)) for _ in range(times))


# ---- Bytes


def compare_bytes(segment: Any, locals_: list[Memory], remotes: list[Memory], ops: int) -> int:
    """Run random reads and writes within this process and compare all memory with plain copies.

    Returns how many bytes were moved.

    Raises:
        AssertionError: A byte is wrong.
    """
    import torch

    chance = random.Random(7)
    expected = {id(one): one.copy() for one in locals_ + remotes}
    moved = 0
    for index in range(ops):
        local, remote = chance.choice(locals_), chance.choice(remotes)
        top = min(local.size, remote.size)
        size = min(top, chance.randint(1, 1 << chance.randint(1, top.bit_length())))
        here = chance.randint(0, local.size - size)
        there = chance.randint(0, remote.size - size)
        if chance.random() < 0.5:
            segment.read(local.address + here, remote.address + there, size)
            expected[id(local)][here : here + size] = expected[id(remote)][there : there + size]
        else:
            segment.write(local.address + here, remote.address + there, size)
            expected[id(remote)][there : there + size] = expected[id(local)][here : here + size]
        moved += size
        if index % 20 == 19 or index == ops - 1:
            for one in locals_ + remotes:
                assert torch.equal(one.copy(), expected[id(one)]), (index, one.place)
    return moved


def oracle(mebibytes: int, ops: int, transports: str) -> dict[str, Any]:
    """Compare bytes between two engines of this process."""
    from mooncake_hicache import TransferEngine

    places = ("cuda:0", "pinned", "pageable")
    with (
        TransferEngine(transports=transports) as server,
        TransferEngine(transports=transports) as client,
    ):
        remotes = [Memory(place, mebibytes * MIB + 77, 10 + i) for i, place in enumerate(places)]
        locals_ = [Memory(place, mebibytes * MIB + 33, 20 + i) for i, place in enumerate(places)]
        for one in remotes:
            server.register_memory(one.address, one.size)
        moved = compare_bytes(client.open(server.address), locals_, remotes, ops)
        stats = client.stats()["transports"] | {"server": server.stats()["transports"]}
        for one in remotes:
            server.unregister(one.address)
    return {"transports": transports, "ops": ops, "bytes": moved, "equal": True, "stats": stats}


# ---- Within one process


def within_process() -> dict[str, Any]:
    """Return bandwidths between pinned memory and the GPU, the engine's and torch's in turns."""
    import torch

    from mooncake_hicache import TransferEngine

    gpu, pinned, pageable, gpu2 = (
        Memory(place, SIZE, seed)
        for seed, place in enumerate(("cuda:0", "pinned", "pageable", "cuda:0"))
    )

    def plain(target: Memory, source: Memory) -> Callable[[], None]:
        def run() -> None:
            target.tensor.copy_(source.tensor, non_blocking=True)
            torch.cuda.synchronize()

        return run

    found: dict[str, Any] = {}
    with TransferEngine() as server, TransferEngine() as client:
        server.register_memory(gpu.address, SIZE)
        segment = client.open(server.address)
        cases = {
            "pinned to GPU": (pinned, lambda: segment.write(pinned.address, gpu.address, SIZE)),
            "GPU to pinned": (pinned, lambda: segment.read(pinned.address, gpu.address, SIZE)),
            "pageable to GPU": (
                pageable,
                lambda: segment.write(pageable.address, gpu.address, SIZE),
            ),
            "GPU to pageable": (
                pageable,
                lambda: segment.read(pageable.address, gpu.address, SIZE),
            ),
            "GPU to GPU": (gpu2, lambda: segment.read(gpu2.address, gpu.address, SIZE)),
        }
        for name, (other, ours) in cases.items():
            is_in = name.endswith("to GPU") and other is not gpu2
            reference = plain(gpu, other) if is_in else plain(other, gpu)
            found[name] = in_turns({"engine": ours, "torch": reference}, SIZE)
        found["latency_us"] = {
            f"{direction} {size}": round(
                median_seconds(50, call, pinned.address, gpu.address, size) * 1e6, 1
            )
            for size in (4096, 65536, MIB)
            for direction, call in (("read", segment.read), ("write", segment.write))
        }
    return found


def in_turns(calls: dict[str, Callable[[], object]], size: int) -> dict[str, float]:
    """Return the median GB/s of each call, taken in turns, and the first's share of the last."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name].append(size / seconds_of(call) / 1e9)
    medians = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    first, last = medians.values()
    return {**medians, "ratio": round(first / last, 3)}


# ---- Two processes


def serve(size: int) -> None:
    """The other process: registers a buffer on the GPU and one on the host, until stdin ends."""
    from mooncake_hicache import TransferEngine

    with TransferEngine() as server:
        buffers = {place: Memory(place, size, 5) for place in ("cuda:0", "pageable")}
        for one in buffers.values():
            server.register_memory(one.address, size)
        told = {"address": server.address, **{k: one.address for k, one in buffers.items()}}
        print(json.dumps(told), flush=True)
        for line in sys.stdin:  # What it holds, as a number of its own making.
            one = buffers[line.strip()]
            print(json.dumps(fingerprint(one.tensor)), flush=True)


def fingerprint(tensor: Any) -> str:
    """Return a number that other bytes do not have."""
    import hashlib

    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()


@contextlib.contextmanager
def other_process(size: int) -> Iterator[tuple[dict[str, Any], Callable[[str], str]]]:
    """Start it; yields what it told and how it is asked."""
    command = [sys.executable, "-m", "bench.gpu.transfer", "--serve", str(size)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None

    def ask(place: str) -> str:
        assert child.stdin is not None and child.stdout is not None
        print(place, file=child.stdin, flush=True)
        return str(json.loads(child.stdout.readline()))

    try:
        yield json.loads(child.stdout.readline()), ask
    finally:
        child.stdin.close()
        child.wait(20)


def between_processes() -> dict[str, Any]:
    """Compare bytes and measure bandwidth to another process of this machine."""
    from mooncake_hicache import TransferEngine

    found: dict[str, Any] = {}
    with other_process(SIZE) as (told, ask):
        for transports in ("local,tcp", "tcp"):
            with TransferEngine(transports=transports) as client:
                found[transports] = one_client(client, told, ask, 9 + len(found))
    return found


def one_client(
    client: Any, told: dict[str, Any], ask: Callable[[str], str], seed: int
) -> dict[str, Any]:
    """Move memory of both kinds to and from both kinds of the other process."""
    import torch

    segment = client.open(told["address"])
    places = {"cuda:0": "cuda:0", "host": "pageable"}
    locals_ = {name: Memory(place, SIZE, seed) for name, place in places.items()}
    found: dict[str, Any] = {}
    for local_name, local in locals_.items():
        for remote_name, place in places.items():
            remote = told[place]
            # Odd sizes at odd places: written, found by the other process, and read again.
            segment.write(local.address + 3, remote + 12345, SIZE - 20000)
            back = Memory(local.place, SIZE, 99)
            segment.read(back.address + 3, remote + 12345, SIZE - 20000)
            end = 3 + SIZE - 20000
            assert torch.equal(back.tensor[3:end], local.tensor[3:end]), (local_name, remote_name)
            found[f"{local_name} to {remote_name}"] = round(
                SIZE / median_seconds(3, segment.write, local.address, remote, SIZE) / 1e9, 2
            )
            assert ask(place) == fingerprint(local.tensor), (local_name, remote_name)
            found[f"{local_name} from {remote_name}"] = round(
                SIZE / median_seconds(3, segment.read, back.address, remote, SIZE) / 1e9, 2
            )
            assert torch.equal(back.tensor, local.tensor), (local_name, remote_name)
    found["equal"] = True
    found["stats"] = client.stats()["transports"]
    return found


# ---- All of it


def sanitized(site: Path) -> dict[str, Any]:
    """Compare bytes under compute-sanitizer, if there is one."""
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "bench.gpu.transfer", "--oracle"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment(site), check=False
        )
    except FileNotFoundError:
        return {"skipped": "there is no compute-sanitizer"}
    except subprocess.TimeoutExpired:
        return {"skipped": "not done within 60 s"}
    return {"status": done.returncode, "output": (done.stdout + done.stderr)[-1500:]}


def measure(out: Path, site: Path) -> None:
    """Run everything; what is done is in the file even if a later part fails."""
    import torch

    results: dict[str, Any] = {
        "command": "python3 -m bench.gpu.transfer",
        "machine": {
            "gpu": printed(
                "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"
            ),
            "cpu_count": os.cpu_count(),
            "kernel": platform.release(),
            "torch": torch.__version__,
        },
        "size_bytes": SIZE,
        "unit": "GB/s",
    }
    parts: dict[str, Callable[[], Any]] = {
        "within a process": within_process,
        "bytes, local": lambda: oracle(ORACLE_MIB, 60, "local"),
        "bytes, tcp": lambda: oracle(ORACLE_MIB, 60, "tcp"),
        "between processes": between_processes,
        "compute-sanitizer": lambda: sanitized(site),
    }
    for name, part in parts.items():
        begun = time.monotonic()
        try:
            results[name] = part()
        except Exception as error:  # noqa: BLE001  The others are worth having.
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(
            f"{name}: {time.monotonic() - begun:.1f} s: {json.dumps(results[name])[:1500]}",
            flush=True,
        )
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu.transfer")
    parser.add_argument("--out", type=Path, default=Path("gpu_transfer.json"))
    parser.add_argument("--carry", type=Path, default=REPOSITORY / ".carry")
    parser.add_argument("--site", type=Path, default=Path("/tmp/hicache-site"))
    parser.add_argument("--oracle", action="store_true", help="compare bytes, and no more")
    parser.add_argument("--serve", type=int, metavar="BYTES", help="be the other process")
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    elif given.oracle:
        print(json.dumps([oracle(SANITIZER_MIB, 20, name) for name in ("local", "tcp")]))
    elif os.environ.get("HICACHE_BENCH_SITE") == str(given.site):
        measure(given.out, given.site)
    else:
        begun = time.monotonic()
        install_core(given.carry.resolve(), given.site)
        print(f"installed: {time.monotonic() - begun:.1f} s", flush=True)
        variables = {**environment(given.site), "HICACHE_BENCH_SITE": str(given.site)}
        command = [sys.executable, "-m", "bench.gpu.transfer", "--site", str(given.site)]
        command += ["--out", str(given.out.resolve())]
        # Not here, where a package without its core would be found first.
        sys.exit(subprocess.run(command, env=variables, cwd=given.site, check=False).returncode)


if __name__ == "__main__":
    main()
