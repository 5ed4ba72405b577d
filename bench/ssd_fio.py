"""fio, what a disk is measured by: same file system, sizes and bytes in flight, no page cache."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINES = ("io_uring", "libaio")
TIMEOUT_S = 120.0
# On small pages a disk gets its requests in many more pieces, which makes some disks half as fast:
# fio has its buffers on the same pages as we have ours.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MISSING = (
    "this benchmark compares with fio, and there is none: `apt install fio` (Debian, Ubuntu) or "
    "`dnf install fio` (Fedora); the other parts go without it: --only memory,recovery,trace,loop"
)


@dataclass(frozen=True)
class DiskSpeed:
    """What one turn moved."""

    bytes_per_s: float
    cpu_s_per_gb: float


def program() -> str | None:
    """Return fio's path, None where it is not installed."""
    return shutil.which("fio")


@functools.cache
def engine() -> str:
    """Return the best way to do I/O that fio has here. Raises RuntimeError if it has none."""
    for name in ENGINES:
        try:
            _run(["--name=probe", f"--ioengine={name}", "--filename=/dev/zero", "--rw=read",
                  "--bs=4k", "--size=4k", "--iodepth=1"], {})  # fmt: skip
        except RuntimeError:
            continue
        return name
    raise RuntimeError(f"fio can do none of {', '.join(ENGINES)} here")


def read(path: Path, *, is_random: bool, size: int, depth: int, seconds: float) -> DiskSpeed:
    """Read a file that is full of written bytes, for so long."""
    return _job(
        "read", path, "randread" if is_random else "read", size, depth,
        "--readonly", "--time_based", f"--runtime={seconds:g}", f"--size={path.stat().st_size}",
    )  # fmt: skip


def write(folder: Path, *, total: int, size: int, depth: int, huge_pages: bool) -> DiskSpeed:
    """Write a new file once from start to end, its space set aside before as the node does it."""
    path = folder / "fio.bytes"
    try:
        return _job(
            "write", path, "write", size, depth, f"--size={total}", "--fallocate=native",
            huge_pages=huge_pages,
        )  # fmt: skip
    finally:
        path.unlink(missing_ok=True)


def _job(
    direction: str,
    path: Path,
    kind: str,
    size: int,
    depth: int,
    *more: str,
    huge_pages: bool = True,
) -> DiskSpeed:
    found = _run([
        "--name=job", f"--filename={path}", f"--rw={kind}", f"--bs={size}", f"--iodepth={depth}",
        f"--ioengine={engine()}", "--direct=1", "--thread", *more,
    ], HUGE_PAGES if huge_pages else {})  # fmt: skip
    speed = float(found[direction]["bw_bytes"])
    cpu_s = (found["usr_cpu"] + found["sys_cpu"]) / 100 * found["job_runtime"] / 1000
    moved = float(found[direction]["io_bytes"])
    return DiskSpeed(speed, cpu_s / (moved / 1e9))


def _run(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    path = program()
    if path is None:
        raise RuntimeError(MISSING)
    done = subprocess.run(
        [path, "--output-format=json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        raise RuntimeError(f"fio {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    # Notes of fio stand before the JSON.
    return dict(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0])
