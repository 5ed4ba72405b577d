"""The best copy this machine offers (libc, streaming stores, `rep movsb`), measured beside ours."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import statistics
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

SOURCE = Path(__file__).with_name("limits.c")
BUILD = SOURCE.parents[1] / "build" / "bench"
KINDS = {"libc": 0, "streaming": 1, "movsb": 2}

U64 = npt.NDArray[np.uint64]


class Area:
    """Anonymous memory on huge pages where the kernel gives them, touched unless `cold`."""

    def __init__(self, size: int, *, cold: bool = False) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self.memory, dtype=np.uint8)
        if not cold:
            self.fill(1)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.bytes)

    def fill(self, seed: int) -> None:
        """Write noise everywhere, which no copy can guess."""
        noise = np.random.default_rng(seed).integers(0, 256, 1 << 20, dtype=np.uint8)
        for start in range(0, self.size, len(noise)):
            piece = self.bytes[start : start + len(noise)]
            piece[:] = noise[: len(piece)]
            piece[:8] = np.frombuffer(np.uint64(start + seed).tobytes(), dtype=np.uint8)[
                : len(piece)
            ]

    def addresses(self, size: int, first: int, count: int) -> U64:
        """Return the addresses of `count` pieces of `size` bytes, from piece `first` on."""
        found: U64 = np.arange(first, first + count, dtype=np.uint64)
        found *= np.uint64(size)
        found += np.uint64(self.bytes.ctypes.data)
        return found


@functools.cache
def library() -> ctypes.CDLL:
    """Compile limits.c, once for each version of it. Raises CalledProcessError or OSError."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    path = BUILD / f"limits-{digest}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O3", "-shared", "-fPIC", "-pthread", "-o", str(partial), str(SOURCE)]
        subprocess.run(command, check=True)
        partial.rename(path)
    loaded = ctypes.CDLL(str(path))
    loaded.limits_copy.restype = ctypes.c_double
    loaded.limits_copy.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    return loaded


def kinds() -> list[str]:
    """Return the copies this machine can do."""
    streaming = bool(library().limits_has_streaming())
    return [kind for kind in KINDS if kind != "streaming" or streaming]


def copy_seconds(kind: str, threads: int, targets: U64, sources: U64, size: int) -> float:
    """Copy pieces of `size` bytes and return the seconds it took. The GIL is released."""
    seconds = library().limits_copy(
        KINDS[kind], threads, targets.ctypes.data, sources.ctypes.data, len(targets), size
    )
    if seconds < 0:
        raise OSError(f"limits_copy({kind}, {threads} threads) could not start its threads")
    return float(seconds)


def best_copy(threads: int, targets: U64, sources: U64, size: int) -> tuple[str, int]:
    """Return the fastest kind for these pieces, and with how many threads: all of them, or one."""
    choices = [(kind, count) for kind in kinds() for count in sorted({1, threads})]

    def seconds(choice: tuple[str, int]) -> float:
        kind, count = choice
        return statistics.median(
            copy_seconds(kind, count, targets, sources, size) for _ in range(5)
        )

    return min(choices, key=seconds)
