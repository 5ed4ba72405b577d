"""The doctor's checks of the directories on SSD, and of how they would be read and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mooncake_hicache import machine
from mooncake_hicache.cli.finding import Check
from mooncake_hicache.config import StoreOptions, environment_name
from mooncake_hicache.node.ssd import LOG_NAME, SsdDirectory, ssd_plan
from mooncake_hicache.units import format_size

__all__ = ["ssd_checks"]


def ssd_checks(options: StoreOptions) -> Iterator[Check]:
    """Yield what is found of each directory, and of io_uring if there is any.

    Raises:
        InvalidArgumentError, NoSpaceError, IoError: A directory that was named cannot be had.
    """
    if options.ssd == "off":
        yield Check("ssd", "note", "turned off by the option ssd: pages are in memory only")
        return
    plan = ssd_plan(options, allow_automatic=not options.in_process)
    for notice in plan.notices:
        yield Check("ssd", "note" if plan.is_automatic else "warning", notice)
    for one in plan.directories:
        yield _directory(one, is_automatic=plan.is_automatic)
    if plan.directories:
        yield _io(options)


def _directory(one: SsdDirectory, *, is_automatic: bool) -> Check:
    system = one.file_system
    finding = (
        f"{one.path} on {system.source or '?'} ({system.kind or 'not known'}): "
        f"{format_size(one.free_bytes)} free, at most {format_size(one.size_limit_bytes)} for "
        f"pages, of which {format_size(one.held_bytes)} are in use"
    )
    remedy = f"name a directory on ext4 or xfs in ssd ({environment_name('ssd')}), or set it to off"
    folder = machine.nearest_folder(Path(one.path))
    if machine.takes_direct_io(folder) is False:
        return Check(
            "ssd",
            "warning" if is_automatic else "error",
            f"{finding}; its file system takes no direct I/O",
            remedy,
        )
    if one.free_bytes < one.free_min_bytes:
        return Check(
            "ssd",
            "warning",
            f"{finding}; less is free than the {format_size(one.free_min_bytes)} that are left to "
            "others, so the pages give way",
            f"free space there, or set less in ssd_free_min ({environment_name('ssd_free_min')})",
        )
    if _is_locked(Path(one.path) / LOG_NAME):
        finding += "; a node uses it now"
    return Check("ssd", "ok", finding)


def _is_locked(path: Path) -> bool:
    # Read and not tried: even a lock that is held for a moment could keep a node from starting.
    try:
        status = path.stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return f" {device} " in locks


def _io(options: StoreOptions) -> Check:
    refusal = machine.io_uring_refusal()
    if options.ssd_io == "threads":
        return Check("ssd io", "note", "threads, as the option ssd_io says")
    if refusal is None:
        return Check("ssd io", "ok", "io_uring is permitted")
    remedy = (
        "permit io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp "
        "profile, and set sysctl kernel.io_uring_disabled=0"
    )
    if options.ssd_io == "io_uring":
        return Check(
            "ssd io", "error", f"io_uring: {refusal}", f"{remedy}; or set ssd_io to threads"
        )
    return Check(
        "ssd io", "note", f"io_uring: {refusal}; threads are used, which take more CPU", remedy
    )
