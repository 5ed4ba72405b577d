"""The machine's disk: where it takes O_DIRECT, and how fast it reads and writes by itself.

The limit is fio's figure, where there is a fio. Without one, plain threads that read with O_DIRECT
take its place; they are called so in the results.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
PLACES = ("/root", "/var/tmp", "/tmp", "/home", "/mnt", "/opt")
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"}
LAYERED = {"overlay", "aufs"}
# Name: engine, size of a request, requests under way in each job, jobs.
READS = {
    "4 MiB, 4 jobs × 8": ("io_uring", "4M", 8, 4),
    "1 MiB, 1 job × 32": ("io_uring", "1M", 32, 1),
}
WITHOUT_URING = {"4 MiB, 16 jobs": ("psync", "4M", 1, 16)}
# A request to a disk names at most so many stretches of memory, in a virtual machine often 254. So
# one that goes to OS pages of 4 KiB is cut to 1 MiB, and a disk may be three times as fast with
# huge pages. Both are measured: our pages lie in either.
MEMORY = {"": "0", ", huge pages": "1"}


def printed(*command: str) -> str:
    """Return what a command prints, empty if it cannot be run."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def takes_direct(folder: Path) -> bool:
    """Whether a file in a folder can be written to with O_DIRECT."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder) as file:
        opened = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4096) as page:
                return os.pwrite(opened, page, 0) == 4096
        finally:
            os.close(opened)
    return False


def places() -> list[dict[str, Any]]:
    """Return the folders that pages could be put in, and what they lie on."""
    found = []
    for path in PLACES:
        if Path(path).is_dir():
            kind = printed("findmnt", "-no", "FSTYPE", "-T", path)
            source = printed("findmnt", "-no", "SOURCE", "-T", path)
            free = shutil.disk_usage(path).free
            direct = takes_direct(Path(path))
            found.append(
                {"path": path, "kind": kind, "source": source, "free": free, "direct": direct}
            )
    return found


def best_place(found: list[dict[str, Any]]) -> Path | None:
    """Return the folder on a real disk that takes O_DIRECT and has most room, None without one."""
    usable = [one for one in found if one["direct"] and one["kind"] not in IN_MEMORY]
    if not usable:
        return None
    best = max(usable, key=lambda one: (one["kind"] not in LAYERED, one["free"]))
    return Path(best["path"])


def facts() -> dict[str, Any]:
    """Return what disks and file systems there are."""
    return {
        "places": places(),
        "findmnt": printed("findmnt", "-D", "--real"),
        "lsblk": printed("lsblk", "-o", "NAME,TYPE,SIZE,ROTA,SCHED,RQ-SIZE,MOUNTPOINT"),
    }


class Fio:
    """A fio and one file of its own to read, beside which ours is measured.

    Args:
        program: Path of fio, None if there is none.
        folder: Where its file lies; the disk that is measured.
    """

    def __init__(self, program: str | None, folder: Path) -> None:
        self.program = program
        self.file = folder / "fio.bin"

    @property
    def name(self) -> str:
        """What reads."""
        if self.program is None:
            return "plain threads with O_DIRECT"
        return printed(self.program, "--version") or self.program

    def _run(self, *args: str, huge: str = "0") -> dict[str, Any]:
        assert self.program is not None
        command = [self.program, "--output-format=json", "--group_reporting", "--direct=1", *args]
        own = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={huge}"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd="/tmp", env=own
        )
        job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        if job["error"]:
            raise OSError(job["error"], f"fio: {os.strerror(job['error'])}")
        return job

    def write(self, size: int) -> float:
        """Write its file; return the bytes per second."""
        if self.program is None:
            return _plain_write(self.file, size)
        what = ("--name=write", "--rw=write", "--bs=4M", "--iodepth=8", "--end_fsync=1")
        job = self._run(*what, "--ioengine=io_uring", f"--size={size}", f"--filename={self.file}")
        return float(job["write"]["bw_bytes"])

    def reads(self, file: Path | None = None, size: int = 0, seconds: float = 3) -> dict[str, Any]:
        """Return the rates of reading a file in several ways, its own unless another is named.

        Args:
            file: What is read.
            size: So many bytes from its begin; 0: all.
            seconds: How long each way is tried.
        """
        file = file or self.file
        size = (size or file.stat().st_size) // (64 * MIB) * (64 * MIB)
        if self.program is None:
            return {"16 threads, 4 MiB": plain_read(file, size, 16)}
        found: dict[str, Any] = {}
        for ways in (READS, WITHOUT_URING):
            for way, memory in itertools.product(ways, MEMORY):
                engine, piece, depth, jobs = ways[way]
                with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
                    job = self._run(
                        *("--name=read", "--rw=read", "--readonly", "--allow_file_create=0"),
                        *(f"--ioengine={engine}", f"--bs={piece}", f"--iodepth={depth}"),
                        *(f"--numjobs={jobs}", f"--size={size // jobs}", f"--filename={file}"),
                        *(f"--offset_increment={size // jobs}", "--time_based"),
                        f"--runtime={seconds}",
                        huge=MEMORY[memory],
                    )
                    found[way + memory] = float(job["read"]["bw_bytes"])
            if found:
                break
        return found

    def remove(self) -> None:
        """Remove its file."""
        self.file.unlink(missing_ok=True)


def _plain_write(file: Path, size: int) -> float:
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    begun = time.perf_counter()
    try:
        with mmap.mmap(-1, 16 * MIB) as piece:
            piece.write(os.urandom(16 * MIB))
            for offset in range(0, size, 16 * MIB):
                os.pwrite(opened, piece, offset)
        os.fsync(opened)
    finally:
        os.close(opened)
    return size / (time.perf_counter() - begun)


def plain_read(file: Path, size: int, threads: int) -> float:
    """Read a file once with O_DIRECT, each thread its share; return the bytes per second."""
    opened = os.open(file, os.O_RDONLY | os.O_DIRECT)
    piece = 4 * MIB
    moved = [0] * threads

    def one(number: int) -> None:
        with mmap.mmap(-1, piece) as room:
            for offset in range(number * piece, size, threads * piece):
                moved[number] += os.preadv(opened, [room], offset)

    workers = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    begun = time.perf_counter()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        os.close(opened)
    return sum(moved) / (time.perf_counter() - begun)


def find_fio(carry: Path) -> str | None:
    """Return the fio that was carried, else the machine's, else None."""
    carried = carry / "fio"
    if carried.is_file():
        carried.chmod(0o755)
        return str(carried.resolve())
    return shutil.which("fio")
