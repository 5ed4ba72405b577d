"""What this machine offers a node: memory and its limits, huge pages, NUMA nodes, CPUs, disks.

Nearly everything is read from files below `/proc` and `/sys`; a file that is missing or unreadable
is "not known", never an error, because containers hide any of them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "FileSystem",
    "MemoryOnOffer",
    "cpu_count",
    "file_system_of",
    "huge_pages",
    "io_uring_refusal",
    "is_spinning",
    "memory_on_offer",
    "nearest_folder",
    "numa_node_count",
    "shmem_huge_policy",
    "space_of",
    "takes_direct_io",
]

# cgroup v1 writes "no limit" as a number close to 2^63, rounded to pages.
_NO_LIMIT_MIN = 1 << 60

_IO_URING_SETUP = 425
_IO_URING_PARAMS_SIZE = 120


@dataclass(frozen=True)
class MemoryOnOffer:
    """How much memory a new process may use, and what says so."""

    size_bytes: int
    """Bytes that can be used now without swapping and without meeting a limit."""
    bound: str
    """Where the number comes from, for messages: a file's path, and a field's name if it has
    one."""


@dataclass(frozen=True)
class FileSystem:
    """What a folder lies on. All empty when that is not known."""

    kind: str
    """As the kernel names it: ext4, xfs, tmpfs, nfs4, fuse.sshfs."""
    source: str
    """What is mounted: /dev/nvme0n1p1, host:/export."""
    mount_point: str


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _read_number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.strip().isdigit() else None


def _meminfo_bytes(root: Path, field: str) -> int | None:
    match = re.search(rf"^{field}:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _cgroup_folders(root: Path) -> list[tuple[int, Path]]:
    """Return (version, folder) of the memory cgroups over this process, the innermost first."""
    folders: list[tuple[int, Path]] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, base = 2, root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            version, base = 1, root / "sys/fs/cgroup/memory"
        else:
            continue
        # Inside a container the path may name a folder that only the host can see; then the limits
        # are those of the mount's own root, which the walk to the top reads in any case.
        folder = base / path.strip("/")
        while True:
            folders.append((version, folder))
            if folder == base:
                break
            folder = folder.parent
    return folders


def _cgroup_room(version: int, folder: Path) -> tuple[int, Path] | None:
    limit_name, usage_name = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    limit = _read_number(folder / limit_name)
    usage = _read_number(folder / usage_name)
    if limit is None or limit >= _NO_LIMIT_MIN or usage is None:
        return None
    # The kernel gives back clean cache of files before it meets the limit.
    cache = re.search(
        r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat") or "", re.MULTILINE
    )
    reclaimable = min(int(cache.group(1)), usage) if cache else 0
    return max(0, limit - usage + reclaimable), folder / limit_name


def memory_on_offer(root: Path = Path("/")) -> MemoryOnOffer:
    """Return the memory a new process may use: the least of the machine's and every cgroup's room.

    Args:
        root: The folder that holds `proc` and `sys`; another one only in tests.
    """
    available = _meminfo_bytes(root, "MemAvailable")
    if available is None:
        available = _meminfo_bytes(root, "MemFree") or 0
    offer = MemoryOnOffer(available, str(root / "proc/meminfo") + " MemAvailable")
    for version, folder in _cgroup_folders(root):
        room = _cgroup_room(version, folder)
        if room is not None and room[0] < offer.size_bytes:
            offer = MemoryOnOffer(room[0], str(room[1]))
    return offer


def huge_pages(root: Path = Path("/")) -> tuple[int, int, int]:
    """Return (reserved, free, size in bytes) of the default huge pages; zeros if there are none."""
    text = _read(root / "proc/meminfo") or ""

    def field(name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        return int(match.group(1)) if match else 0

    return field("HugePages_Total"), field("HugePages_Free"), field("Hugepagesize") * 1024


def shmem_huge_policy(root: Path = Path("/")) -> str | None:
    """Return the kernel's policy of transparent huge pages in shared memory, None if not known."""
    text = _read(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")
    match = re.search(r"\[(\w+)\]", text or "")
    return match.group(1) if match else None


def numa_node_count(root: Path = Path("/")) -> int:
    """Return how many NUMA nodes have memory; 1 if that is not known."""
    folder = root / "sys/devices/system/node"
    try:
        return max(1, sum(1 for entry in folder.iterdir() if re.fullmatch(r"node\d+", entry.name)))
    except OSError:
        return 1


def cpu_count() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def nearest_folder(path: Path) -> Path:
    """Return the folder that is there, on the way up from a path that may not be."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def file_system_of(path: Path, root: Path = Path("/")) -> FileSystem:
    """Return what a path lies on, or would lie on if it were made."""
    place = nearest_folder(path).resolve()
    found = FileSystem("", "", "")
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        mount, _, file_system = line.partition(" - ")
        if len(mount.split()) < 5 or len(file_system.split()) < 2:
            continue
        kind, source = file_system.split()[:2]
        mount_point = _without_escapes(mount.split()[4])
        # The longest wins, and of several at one place the last, which covers the others.
        is_above = place.is_relative_to(mount_point)
        if is_above and len(mount_point) >= len(found.mount_point):
            found = FileSystem(kind, _without_escapes(source), mount_point)
    return found


def _without_escapes(text: str) -> str:
    # The kernel writes space, tab, line feed and backslash as three octal digits.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def space_of(path: Path) -> tuple[int, int]:
    """Return (size, free) in bytes of the file system a path lies on, free for this user.

    Raises:
        OSError: It cannot be asked.
    """
    status = os.statvfs(nearest_folder(path))
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def is_spinning(file_system: FileSystem, root: Path = Path("/")) -> bool | None:
    """Return whether the disk below a file system is said to spin; None if that is not known."""
    name = Path(file_system.source).name
    # What virtual machines say of their disks means nothing.
    if not file_system.source.startswith("/dev/") or name.startswith(("vd", "xvd")):
        return None
    folder = root / "sys/class/block" / name
    # A partition has no queue of its own; the folder above, of the disk, has.
    for place in (folder.resolve(), folder.resolve().parent):
        text = _read(place / "queue/rotational")
        if text is not None:
            return text.strip() == "1"
    return None


def takes_direct_io(folder: Path) -> bool | None:
    """Return whether files in a folder can be read and written past the kernel's cache.

    Leaves nothing behind. None: the folder cannot be written to, or has no files without a name.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        # Opened anew: some file systems take the flag later and then do not keep to it.
        path = f"/proc/self/fd/{descriptor}"
        direct = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            # Memory of an OS page, which lies where direct I/O wants it.
            with mmap.mmap(-1, mmap.PAGESIZE) as memory:
                return os.pwritev(direct, [memory], 0) == mmap.PAGESIZE
        finally:
            os.close(direct)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def io_uring_refusal() -> str | None:
    """Return why this process may not use io_uring; None if it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(_IO_URING_PARAMS_SIZE)
    descriptor = libc.syscall(_IO_URING_SETUP, 1, params)
    if descriptor >= 0:
        os.close(descriptor)
        return None
    return os.strerror(ctypes.get_errno())
