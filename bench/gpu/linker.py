"""Pages between the node's memory and the GPU: `python3 -m bench.gpu.linker [--out FILE]`.

What the external linker does, without SGLang: pages of a pool of the shape of Qwen3-8B (36 layers,
K and V, 128 KiB each for 64 tokens) are stored from the GPU and loaded into other slots, layer
by layer. Every byte is compared, also of pages of other shapes. Bandwidths stand beside one plain
copy of as many bytes from pinned memory, taken in turns.

The machine needs torch with CUDA, and what `bench.gpu.prepare` collects in `.carry` (of its wheels
only pydantic's). `--oracle` compares bytes alone, for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu.disk import printed
from bench.gpu.install import REPOSITORY, environment, install_core

LAYERS = 36
PAGE_TOKENS = 64
TOKEN_BYTES = 8 * 128 * 2
PAGES = (64, 256, 512)
ROUNDS = 5


class Pool:
    """Tensors of all layers on the GPU, and where the pages at given slots lie."""

    def __init__(self, pages: int, pieces: list[int]) -> None:
        """`pieces`: bytes of a page in each tensor."""
        import numpy as np
        import torch

        self.pages = pages
        self.sizes = np.array(pieces, dtype=np.uint64)
        self.tensors = [
            torch.zeros((pages, size), dtype=torch.uint8, device="cuda") for size in pieces
        ]

    def addresses(self, slots: list[int]) -> Any:
        """Return the addresses of the pieces, shape [slots, tensors]."""
        import numpy as np

        bases = np.array([t.data_ptr() for t in self.tensors], dtype=np.uint64)
        return bases + np.array(slots, dtype=np.uint64)[:, None] * self.sizes

    def fill(self, seed: int) -> None:
        """Fill everything with random bytes."""
        import torch

        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in self.tensors:
            tensor.random_(0, 256, generator=generator)
        torch.cuda.synchronize()


def check(codes: Any, what: str) -> None:
    """Raise unless all went well."""
    from mooncake_hicache._core import Code

    if not (codes == Code.OK).all():
        raise AssertionError(f"{what}: {sorted({Code(int(code)).name for code in codes})}")


def same(one: Pool, slots: list[int], other: Pool, others: list[int]) -> bool:
    """Whether the pages at these slots of two pools are equal."""
    import torch

    return all(
        torch.equal(a[slots], b[others]) for a, b in zip(one.tensors, other.tensors, strict=True)
    )


def load(space: Any, keys: list[str], pool: Pool, slots: list[int], layer_of: list[int]) -> Any:
    """Load pages in stages, and say when which had arrived.

    Returns seconds until the first and the last layer had been copied, and until the call returned.
    """
    import threading

    import torch

    from mooncake_hicache._core import LoadStages

    stages = LoadStages(max(layer_of) + 1, 1)
    ended: dict[str, float] = {}

    def read() -> None:
        codes = space.get_into_addresses(
            keys,
            pool.addresses(slots),
            pool.sizes,
            device=0,
            stages=stages,
            stage_of_segment=layer_of,
        )
        ended["checked"] = time.perf_counter()
        check(codes, "load")

    stream = torch.cuda.Stream()
    begun = time.perf_counter()
    reader = threading.Thread(target=read)
    reader.start()
    for name, layer in (("first layer", 0), ("last layer", max(layer_of))):
        assert stages.wait(layer, stream.cuda_stream, 30_000)
        stream.synchronize()
        ended[name] = time.perf_counter()
    reader.join()
    return {name: at - begun for name, at in ended.items()}


def oracle(store: Any, pages_of: int) -> int:
    """Move pages of many shapes and compare all bytes. Returns how many were moved."""
    chance = random.Random(11)
    moved = 0
    for shape in range(6):
        space = store.namespace(f"oracle {shape}")
        pieces = [chance.randint(1, 300_000) for _ in range(chance.randint(1, 9))]
        pages = chance.randint(1, pages_of)
        source, target = Pool(pages, pieces), Pool(pages, pieces)
        source.fill(shape)
        keys = [f"{shape} {page}" for page in range(pages)]
        slots = list(range(pages))
        chance.shuffle(slots)
        check(space.put_from(keys, source.addresses(slots), source.sizes, device=0), "put")
        layer_of = [chance.randint(0, 3) for _ in pieces]
        others = list(range(pages))
        chance.shuffle(others)
        load(space, keys, target, others, [*layer_of[:-1], 3])
        assert same(source, slots, target, others), f"shape {shape}: bytes differ"
        moved += 2 * pages * sum(pieces)
    return moved


def rates(store: Any) -> dict[str, Any]:
    """Measure loads and stores beside a plain copy of as many bytes."""
    import torch

    pieces = [PAGE_TOKENS * TOKEN_BYTES] * (2 * LAYERS)
    layer_of = [*range(LAYERS), *range(LAYERS)]
    source, target = Pool(max(PAGES), pieces), Pool(max(PAGES), pieces)
    source.fill(1)
    space = store.namespace("rates")
    chance = random.Random(5)
    found: dict[str, Any] = {}
    for pages in PAGES:
        size = pages * sum(pieces)
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        on_gpu = torch.empty(size, dtype=torch.uint8, device="cuda")
        slots = list(range(max(PAGES)))
        chance.shuffle(slots)
        slots = slots[:pages]
        rows: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            keys = [f"{pages} {number} {page}" for page in range(pages)]
            begun = time.perf_counter()
            check(space.put_from(keys, source.addresses(slots), source.sizes, device=0), "put")
            rows.setdefault("store", []).append(time.perf_counter() - begun)
            for name, seconds in load(space, keys, target, slots, layer_of).items():
                rows.setdefault(name, []).append(seconds)
            assert same(source, slots, target, slots), "bytes differ"
            torch.cuda.synchronize()
            begun = time.perf_counter()
            on_gpu.copy_(pinned, non_blocking=True)
            torch.cuda.synchronize()
            rows.setdefault("plain copy", []).append(time.perf_counter() - begun)
            space.remove_batch(keys)
        medians = {name: statistics.median(seconds) for name, seconds in rows.items()}
        first = {f"first {name}": seconds[0] for name, seconds in rows.items()}
        found[str(pages * PAGE_TOKENS)] = {
            "bytes": size,
            "ms": {name: round(s * 1e3, 2) for name, s in {**medians, **first}.items()},
            "GB/s": {name: round(size / s / 1e9, 1) for name, s in medians.items()},
            "last layer / plain copy": round(medians["last layer"] / medians["plain copy"], 2),
        }
        del pinned, on_gpu
    return found


def sanitized(site: Path) -> dict[str, Any]:
    """Compare bytes under compute-sanitizer, if there is one."""
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "bench.gpu.linker", "--oracle"]
    try:
        done = subprocess.run(
            command,
            env=environment(site),
            cwd=site,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return {"skipped": "there is no compute-sanitizer"}
    lines = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    return {"exit": done.returncode, "summary": lines[-1:], "output": done.stdout[-300:]}


def measure(out: Path | None, site: Path, wanted: str) -> None:
    """Run everything in this process, which must see what is installed in `site`."""
    import torch

    from mooncake_hicache import Store

    result: dict[str, Any] = {}
    torch.cuda.init()
    with Store.open(in_process=True, pool_size="24GiB") as store:
        store.pin_pool(0)
        result["bytes compared"] = oracle(store, 12 if wanted == "oracle" else 60)
        if wanted != "oracle":
            result["rates"] = rates(store)
    if wanted != "oracle":
        result["compute-sanitizer"] = sanitized(site)
        result["machine"] = {
            "gpu": torch.cuda.get_device_name(0),
            "driver": printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        result["command"] = "python3 -m bench.gpu.linker"
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Install the core, then measure in a process that sees it."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu.linker")
    parser.add_argument("--carry", type=Path, default=REPOSITORY / ".carry")
    parser.add_argument("--site", type=Path, default=Path("/tmp/hicache-site-core"))
    parser.add_argument("--out", type=Path, help="where the result goes")
    parser.add_argument("--oracle", action="store_true", help="compare bytes alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside or options.oracle:
        return measure(options.out, options.site, "oracle" if options.oracle else "all")
    install_core(options.carry, options.site)
    command = [sys.executable, "-m", "bench.gpu.linker", "--inside", "--site", str(options.site)]
    command += ["--out", str(options.out.resolve())] if options.out else []
    # Not here, where a package without its core would be found first.
    done = subprocess.run(command, env=environment(options.site), cwd=options.site, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
