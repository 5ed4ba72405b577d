"""Where a node keeps pages on SSD: what the options come to on this machine, now.

Named directories are what somebody decided: what cannot be had is an error. The automatic one is a
guess of ours: what speaks against it is a notice, and the node goes without. Making a plan looks
and changes nothing; `make_directories` then makes what is missing.

Not here: the file in each directory, its lock and its format, which are the core's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import Error, InvalidArgumentError, IoError, NoSpaceError
from mooncake_hicache.machine import (
    FileSystem,
    file_system_of,
    is_spinning,
    nearest_folder,
    space_of,
)
from mooncake_hicache.options_types import SSD_SIZE_MIN_BYTES, size_bytes, ssd_places
from mooncake_hicache.ssd.inspect import LogFile
from mooncake_hicache.units import format_size, parse_percent

__all__ = [
    "LOG_NAME",
    "SsdDirectory",
    "SsdPlan",
    "automatic_directory",
    "make_directories",
    "ssd_plan",
]

LOG_NAME = "pages.log"
"""The one file in each directory."""

LOG_HEAD_BYTES = 64 << 10
REGIONS_MIN = 3
"""One that is written, one that is free for what is worth keeping of a third."""
AUTOMATIC_SHARE = 0.10
AUTOMATIC_MAX_BYTES = 100 * 10**9
NAMED_SHARE = 0.80

_AUTOMATIC_KINDS = {"ext4", "xfs", "btrfs", "f2fs"}
_MEMORY_KINDS = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"}
_LAYER_KINDS = {"overlay", "aufs"}
_NETWORK_KINDS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "virtiofs"),
    *("lustre", "gpfs", "beegfs", "glusterfs", "pvfs2", "ocfs2", "gfs2"),
}


@dataclass(frozen=True)
class SsdDirectory:
    """One directory of the tier."""

    path: str
    size_limit_bytes: int
    """What the log in it may grow to."""
    free_min_bytes: int
    """What is to stay free on its file system."""
    free_bytes: int
    """What is free there now."""
    held_bytes: int
    """What a log that is there already takes."""
    region_size_bytes: int
    file_system: FileSystem

    @property
    def size_min_bytes(self) -> int:
        """What the log has to be able to grow to."""
        return max(SSD_SIZE_MIN_BYTES, REGIONS_MIN * self.region_size_bytes + LOG_HEAD_BYTES)

    @property
    def room_bytes(self) -> int:
        """What the log could take now."""
        return max(0, self.free_bytes + self.held_bytes - self.free_min_bytes)


@dataclass(frozen=True)
class SsdPlan:
    """All directories; none: memory only."""

    directories: tuple[SsdDirectory, ...] = ()
    is_automatic: bool = False
    notices: tuple[str, ...] = ()
    """What the operator should know: why there is no automatic directory, what is unwise."""

    def without(self, reason: str) -> SsdPlan:
        """Return the plan of a node that goes without, which says why."""
        return replace(self, directories=(), notices=(*self.notices, _goes_without(reason)))


def ssd_plan(options: NodeOptions, *, allow_automatic: bool, root: Path = Path("/")) -> SsdPlan:
    """Return where the options put pages on this machine.

    Args:
        options: The node's.
        allow_automatic: Whether "auto" means the user's cache folder, or nothing.
        root: The folder that holds `proc` and `sys`; another one only in tests.

    Raises:
        InvalidArgumentError: A named directory cannot be one, or its size cannot be.
        NoSpaceError: Its file system is too small.
        IoError: It cannot be looked at or written to.
    """
    places = ssd_places(options.ssd)
    if places:
        return _named_plan(options, places, root)
    if options.ssd == "auto" and allow_automatic:
        return _automatic_plan(options, root)
    return SsdPlan()


def automatic_directory() -> Path:
    """Return the directory in this user's cache folder.

    Raises:
        InvalidArgumentError: The user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # The XDG specification: a relative one is to be ignored.
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            raise InvalidArgumentError(
                "this user has no home folder and XDG_CACHE_HOME is not set"
            ) from None
    return Path(base) / "mooncake-hicache"


def make_directories(plan: SsdPlan) -> None:
    """Make what is missing, closed to others: prompts can be read out of pages.

    Of a named directory only the last folder is made: where the one above is missing, a disk is
    probably not mounted.

    Raises:
        IoError: One cannot be made.
    """
    for one in plan.directories:
        try:
            if plan.is_automatic:
                Path(one.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            Path(one.path).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise IoError(f"cannot make the directory {one.path}: {error.strerror}") from None


def _goes_without(reason: str) -> str:
    return (
        f"no pages on SSD: {reason}; name a directory in ssd ({environment_name('ssd')}), or set "
        "it to off"
    )


def _automatic_plan(options: NodeOptions, root: Path) -> SsdPlan:
    plan = SsdPlan(is_automatic=True)
    try:
        path = automatic_directory()
        found = file_system_of(path, root)
        if reason := _why_not(found):
            return plan.without(f"{path} {reason}")
        if found.kind not in _AUTOMATIC_KINDS:
            kind = found.kind or "a file system that is not known"
            return plan.without(f"{path} lies on {kind}, and unasked only {_kinds()} are used")
        if is_spinning(found, root):
            return plan.without(f"{path} lies on a disk that spins ({found.source})")
        _check_place(path, any_depth=True)
        directory = _sized(options, path, options.ssd_size, found, AUTOMATIC_SHARE)
    except (InvalidArgumentError, IoError, NoSpaceError) as error:
        return plan.without(str(error))
    limit = min(directory.size_limit_bytes, directory.room_bytes)  # Also where ssd_size is a size.
    if options.ssd_size == "auto":
        limit = min(limit, AUTOMATIC_MAX_BYTES)
    if limit < directory.size_min_bytes:
        return plan.without(
            f"{path} may take {format_size(max(limit, 0))} of the "
            f"{format_size(directory.free_bytes)} that are free, too little for "
            f"{format_size(directory.size_min_bytes)}"
        )
    return replace(plan, directories=(replace(directory, size_limit_bytes=limit),))


def _named_plan(options: NodeOptions, places: list[tuple[str, str]], root: Path) -> SsdPlan:
    for path, _ in places:
        _check_place(Path(path), any_depth=False)
    systems = [file_system_of(Path(path), root) for path, _ in places]
    disks = [nearest_folder(Path(path)).stat().st_dev for path, _ in places]
    directories = []
    for (path, limit), system, disk in zip(places, systems, disks, strict=True):
        if system.kind in _MEMORY_KINDS:
            raise InvalidArgumentError(
                f"the SSD directory {path} {_why_not(system)}: name one on an SSD in ssd "
                f"({environment_name('ssd')}), and give more memory with pool_size"
            )
        # Those on one disk share what it has.
        share = NAMED_SHARE / disks.count(disk)
        directory = _sized(options, Path(path), limit or options.ssd_size, system, share)
        _check_size(options, directory)
        directories.append(directory)
    plan = SsdPlan(tuple(directories))
    return replace(plan, notices=tuple(_doubts(plan, root)))


def _why_not(system: FileSystem) -> str:
    """Say what speaks against a kind of file system; nothing if nothing is known to."""
    if system.kind in _MEMORY_KINDS:
        return f"lies in memory ({system.kind}) and not on a disk"
    if system.kind in _NETWORK_KINDS or system.kind.startswith("fuse"):
        return f"is not on a disk of this machine ({system.kind})"
    if system.kind in _LAYER_KINDS:
        return f"lies in a container's own layer ({system.kind}), which goes with the container"
    return ""


def _doubts(plan: SsdPlan, root: Path) -> Iterator[str]:
    for one in plan.directories:
        if reason := _why_not(one.file_system):
            yield f"the SSD directory {one.path} {reason}: it is used because it was named"
        if is_spinning(one.file_system, root):
            yield (
                f"the SSD directory {one.path} lies on a disk that spins "
                f"({one.file_system.source}): reading pages may take longer than computing them"
            )
        if one.room_bytes < one.size_min_bytes:
            yield (
                f"the SSD directory {one.path} has room for {format_size(max(0, one.room_bytes))}: "
                f"little or nothing is written before there is room for {REGIONS_MIN} regions of "
                f"{format_size(one.region_size_bytes)} beside {format_size(one.free_min_bytes)} "
                "that are left to others (ssd_free_min)"
            )
        elif one.size_limit_bytes > one.room_bytes:
            yield (
                f"the SSD directory {one.path} may take {format_size(one.size_limit_bytes)}, and "
                f"only {format_size(one.room_bytes)} can be had now: "
                f"{format_size(one.free_bytes)} are free, of which "
                f"{format_size(one.free_min_bytes)} are left to others (ssd_free_min)"
            )


def _kinds() -> str:
    return ", ".join(sorted(_AUTOMATIC_KINDS))


def _check_place(path: Path, *, any_depth: bool) -> None:
    """Check that a directory is there or can be made, and may be written to.

    Args:
        path: The directory.
        any_depth: Whether the folders above may be missing too.
    """
    remedy = f"or name another in ssd ({environment_name('ssd')})"
    try:
        folder = nearest_folder(path)
    except OSError as error:
        raise IoError(f"cannot look at the SSD directory {path}: {error.strerror}") from None
    if not folder.is_dir():
        raise InvalidArgumentError(f"the SSD directory {path}: {folder} is no directory")
    if folder not in (path, path.parent) and not any_depth:
        raise IoError(
            f"the SSD directory {path} cannot be made because {path.parent} is missing: mount its "
            f"disk or make the folder, {remedy}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise IoError(
            f"the SSD directory {path}: user {os.geteuid()} may not write to {folder}: "
            f"`chown {os.geteuid()} {folder}`, {remedy}"
        )


def _sized(
    options: NodeOptions, path: Path, limit: str, system: FileSystem, share: float
) -> SsdDirectory:
    try:
        size, free = space_of(path)
    except OSError as error:
        raise IoError(f"cannot ask how much is free at {path}: {error.strerror}") from None
    try:
        held = (path / LOG_NAME).stat().st_blocks * 512
    except OSError:
        held = 0
    free_min_percent = parse_percent(options.ssd_free_min)
    free_min = (
        size_bytes(options.ssd_free_min)
        if free_min_percent is None
        else int(size * free_min_percent / 100)
    )
    region_size = _region_size(options, path)
    directory = SsdDirectory(str(path), 0, free_min, free, held, region_size, system)
    percent = parse_percent(limit)
    if limit == "auto" or percent is not None:
        wanted = int((free + held) * (share if percent is None else percent / 100))
        return replace(directory, size_limit_bytes=min(wanted, directory.room_bytes))
    limit_bytes = size_bytes(limit)
    if limit_bytes > size:
        raise NoSpaceError(
            f"the SSD directory {path} may take {limit} ({format_size(limit_bytes)}), and its "
            f"whole file system has {format_size(size)}: give it less, as in {path}=80%, in ssd "
            f"({environment_name('ssd')}) or ssd_size"
        )
    return replace(directory, size_limit_bytes=limit_bytes)


def _region_size(options: NodeOptions, path: Path) -> int:
    """Return the size of regions there: a file that exists keeps its own."""
    if not (path / LOG_NAME).is_file():
        return options.ssd_region_size_bytes()
    try:
        with LogFile(path) as log:
            return log.superblock.region_size
    except Error:  # What is wrong with it is said when the node opens it.
        return options.ssd_region_size_bytes()


def _check_size(options: NodeOptions, directory: SsdDirectory) -> None:
    if directory.size_limit_bytes >= directory.size_min_bytes:
        return
    region_size = directory.region_size_bytes
    remedy = (
        f"or less in ssd_region_size ({environment_name('ssd_region_size')})"
        if region_size == options.ssd_region_size_bytes()
        else f"or delete {directory.path}/{LOG_NAME}, which was made with such regions"
    )
    raise NoSpaceError(
        f"the SSD directory {directory.path} may take {format_size(directory.size_limit_bytes)} "
        f"({format_size(directory.free_bytes)} are free), and the least is "
        f"{format_size(directory.size_min_bytes)}, of which {REGIONS_MIN} regions of "
        f"{format_size(region_size)}: free space, set more in ssd_size "
        f"({environment_name('ssd_size')}), {remedy}"
    )
