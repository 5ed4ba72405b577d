"""What this machine offers a node: memory and its limits, huge pages, NUMA nodes, CPUs.

Everything is read from files below `/proc` and `/sys`; a file that is missing or unreadable is "not
known", never an error, because containers hide any of them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MemoryOnOffer",
    "cpu_count",
    "huge_pages",
    "memory_on_offer",
    "numa_node_count",
    "shmem_huge_policy",
]

# cgroup v1 writes "no limit" as a number close to 2^63, rounded to pages.
_NO_LIMIT_MIN = 1 << 60


@dataclass(frozen=True)
class MemoryOnOffer:
    """How much memory a new process may use, and what says so."""

    size_bytes: int
    """Bytes that can be used now without swapping and without meeting a limit."""
    bound: str
    """Where the number comes from, for messages: a file's path, and a field's name if it has
    one."""


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
