"""Where a node keeps pages on SSD: which directories, how large, and what is said against one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import xxhash

from mooncake_hicache.config import NodeOptions
from mooncake_hicache.errors import Error, InvalidArgumentError, IoError, NoSpaceError
from mooncake_hicache.machine import (
    FileSystem,
    file_system_of,
    is_spinning,
    nearest_folder,
    space_of,
    takes_direct_io,
)
from mooncake_hicache.node.ssd import LOG_NAME, SsdPlan, make_directories, ssd_plan

MIB = 1 << 20
GB = 10**9
SMALL_REGIONS = "1MiB"

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
28 27 0:30 / /mnt rw - tmpfs tmpfs rw
29 27 0:31 / /mnt rw master:2 propagate_from:1 - nfs4 host:/export rw
30 27 259:1 / /mnt/two\040words rw - xfs /dev/nvme0n1p2 rw
garbage
31 27 0:40 / /mnt/fuse rw - fuse.sshfs host: rw
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mounted(root: Path, kind: str, source: str = "/dev/vdb") -> Path:
    """Return a root whose kernel says that everything lies on one file system."""
    write(root / "proc/self/mountinfo", f"27 1 254:0 / / rw - {kind} {source} rw\n")
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the automatic directory is, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mooncake-hicache"


def plan_of(root: Path = Path("/"), **options: object) -> SsdPlan:
    values = {"ssd": "auto", "ssd_region_size": SMALL_REGIONS, **options}
    return ssd_plan(NodeOptions(**values), allow_automatic=True, root=root)


# ---- file systems


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nowhere/at/all", FileSystem("ext4", "/dev/vda1", "/")),
        ("/mnt", FileSystem("nfs4", "host:/export", "/mnt")),
        ("/proc/self", FileSystem("proc", "proc", "/proc")),
    ],
)
def test_the_file_system_of_a_path_is_the_last_of_the_longest_mounts(
    path: str, expected: FileSystem, tmp_path: Path
) -> None:
    write(tmp_path / "proc/self/mountinfo", MOUNTS)
    assert file_system_of(Path(path), tmp_path) == expected


def test_a_mount_point_may_have_spaces(tmp_path: Path) -> None:
    place = tmp_path / "two words"
    place.mkdir()
    escaped = str(place).replace(" ", r"\040")
    write(tmp_path / "proc/self/mountinfo", f"30 27 259:1 / {escaped} rw - xfs /dev/sda1 rw\n")
    assert file_system_of(place / "below", tmp_path).kind == "xfs"
    assert file_system_of(tmp_path, tmp_path) == FileSystem("", "", "")


def test_a_machine_without_mountinfo_is_not_known(tmp_path: Path) -> None:
    assert file_system_of(tmp_path, tmp_path) == FileSystem("", "", "")


def test_a_disk_spins_if_it_or_the_disk_of_its_partition_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "sys/devices/pci/sda"
    write(disk / "queue/rotational", "1\n")
    write(disk / "sda1/partition", "1\n")
    write(tmp_path / "sys/devices/pci/nvme0n1/queue/rotational", "0\n")
    folder = tmp_path / "sys/class/block"
    folder.mkdir(parents=True)
    (folder / "sda").symlink_to(disk)
    (folder / "sda1").symlink_to(disk / "sda1")
    (folder / "nvme0n1").symlink_to(tmp_path / "sys/devices/pci/nvme0n1")

    def spins(source: str) -> bool | None:
        return is_spinning(FileSystem("ext4", source, "/"), tmp_path)

    assert (spins("/dev/sda"), spins("/dev/sda1"), spins("/dev/nvme0n1")) == (True, True, False)
    assert spins("/dev/vda") is spins("tmpfs") is spins("/dev/mapper/x") is None


def test_direct_io_is_tried_without_leaving_anything(tmp_path: Path) -> None:
    assert takes_direct_io(tmp_path) is not None
    assert list(tmp_path.iterdir()) == []
    assert takes_direct_io(tmp_path / "missing") is None


# ---- the automatic directory


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_the_automatic_directory_takes_little_of_a_local_disk(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    plan = plan_of(mounted(tmp_path, kind))
    assert plan.is_automatic
    assert plan.notices == ()
    [one] = plan.directories
    assert one.path == str(cache)
    _, free = space_of(tmp_path)
    assert one.size_limit_bytes <= min(100 * GB, 0.11 * free)
    assert one.size_limit_bytes >= min(100 * GB, 0.09 * free)
    assert not cache.exists(), "making a plan changes nothing"
    make_directories(plan)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert cache.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("tmpfs", "tmpfs", "lies in memory"),
        ("nfs4", "host:/x", "not on a disk of this machine"),
        ("fuse.sshfs", "host:", "not on a disk of this machine"),
        ("overlay", "overlay", "container's own layer"),
        ("zfs", "tank", "lies on zfs"),
    ],
)
def test_the_automatic_directory_is_left_out_where_it_makes_no_sense(
    kind: str, source: str, told: str, tmp_path: Path, cache: Path
) -> None:
    plan = plan_of(mounted(tmp_path, kind, source))
    assert plan.directories == ()
    [notice] = plan.notices
    for part in (told, str(cache), "MOONCAKE_HICACHE_SSD", "off"):
        assert part in notice


def test_a_disk_that_spins_is_used_only_when_named(tmp_path: Path, cache: Path) -> None:
    root = mounted(tmp_path, "ext4", "/dev/sda1")
    write(tmp_path / "sys/class/block/sda1/queue/rotational", "1\n")
    plan = plan_of(root)
    assert plan.directories == ()
    assert "spins" in plan.notices[0]
    named = plan_of(root, ssd=str(tmp_path), ssd_size="64MiB")
    assert len(named.directories) == 1
    assert "spins" in named.notices[0]


def test_a_full_disk_is_left_alone(tmp_path: Path, cache: Path) -> None:
    size, _ = space_of(tmp_path)
    plan = plan_of(mounted(tmp_path, "ext4"), ssd_free_min=str(size))
    assert plan.directories == ()
    assert "too little" in plan.notices[0]
    big_regions = plan_of(mounted(tmp_path, "ext4"), ssd_size="65MiB", ssd_region_size="64MiB")
    assert "too little for 192.1 MiB" in big_regions.notices[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_of_somebody_else_is_left_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/usr")
    assert "may not write" in plan_of(mounted(tmp_path, "ext4")).notices[0]


def test_a_cache_folder_that_is_a_file_is_left_alone(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_text("")
    assert "is no directory" in plan_of(mounted(tmp_path, "ext4")).notices[0]


def test_nothing_is_on_ssd_when_off_or_inside_a_process(tmp_path: Path, cache: Path) -> None:
    assert plan_of(mounted(tmp_path, "ext4"), ssd="off") == SsdPlan()
    assert ssd_plan(NodeOptions(ssd="auto"), allow_automatic=False) == SsdPlan()


# ---- named directories


def test_a_named_directory_takes_most_of_what_is_free_and_held(tmp_path: Path) -> None:
    place = tmp_path / "kv"
    root = mounted(tmp_path, "xfs")
    _, free = space_of(tmp_path)
    [one] = plan_of(root, ssd=str(place), ssd_free_min="1MiB").directories
    assert one.size_limit_bytes == pytest.approx(0.8 * free, rel=0.05)
    [one] = plan_of(root, ssd=f"{place}=1GiB", ssd_size="2GiB").directories
    assert one.size_limit_bytes == 1 << 30
    [one] = plan_of(root, ssd=str(place), ssd_size="10%").directories
    assert one.size_limit_bytes == pytest.approx(0.1 * free, rel=0.05)
    place.mkdir()
    (place / LOG_NAME).write_bytes(b"x" * (8 * MIB))
    [one] = plan_of(root, ssd=str(place)).directories
    assert one.held_bytes == pytest.approx(8 * MIB, rel=0.1)
    assert one.room_bytes == one.free_bytes + one.held_bytes - one.free_min_bytes


def test_a_log_keeps_its_regions_and_needs_room_for_three_of_them(tmp_path: Path) -> None:
    place = tmp_path / "kv"
    place.mkdir()
    head = struct.pack("<8sII16sQQ", b"HICACHE1", 1, 4096, b"\1" * 16, 128 * MIB, 1_700_000_000)
    head += xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
    (place / LOG_NAME).write_bytes(head.ljust(64 << 10, b"\0"))
    limits = {"ssd_region_size": "8MiB", "ssd_free_min": "1MiB"}
    [one] = plan_of(ssd=f"{place}=400MiB", **limits).directories
    assert one.region_size_bytes == 128 * MIB
    with pytest.raises(NoSpaceError, match=f"3 regions of 128 MiB.*delete {place}/pages.log"):
        plan_of(ssd=f"{place}=300MiB", **limits)
    with pytest.raises(NoSpaceError, match="3 regions of 512 MiB.*less in ssd_region_size"):
        plan_of(ssd=f"{tmp_path}/new=1GiB", ssd_region_size="512MiB")


def test_a_directory_that_is_too_full_to_write_to_is_said(tmp_path: Path) -> None:
    size, _ = space_of(tmp_path)
    plan = plan_of(ssd=f"{tmp_path}=64MiB", ssd_free_min=str(size))
    assert any("little or nothing is written" in notice for notice in plan.notices)


def test_directories_on_one_disk_share_it(tmp_path: Path) -> None:
    root = mounted(tmp_path, "xfs")
    both = plan_of(root, ssd=[str(tmp_path / "a"), str(tmp_path / "b")], ssd_free_min="1MiB")
    [alone] = plan_of(root, ssd=str(tmp_path / "a"), ssd_free_min="1MiB").directories
    for one in both.directories:
        assert one.size_limit_bytes == pytest.approx(alone.size_limit_bytes / 2, rel=0.05)


def test_what_stays_free_is_a_share_of_the_disk_or_a_size(tmp_path: Path) -> None:
    size, _ = space_of(tmp_path)
    for text, expected in (("10%", int(size * 0.1)), ("3MiB", 3 * MIB)):
        [one] = plan_of(ssd=f"{tmp_path}=64MiB", ssd_free_min=text).directories
        assert one.free_min_bytes == expected


def test_a_limit_beyond_what_is_free_now_is_said(tmp_path: Path) -> None:
    size, _ = space_of(tmp_path)
    plan = plan_of(mounted(tmp_path, "ext4"), ssd=f"{tmp_path}={size}")
    assert plan.directories[0].size_limit_bytes == size
    assert "can be had now" in plan.notices[0]


def test_memory_is_no_ssd() -> None:
    """Really: today's kernels take direct I/O there, so nothing else would refuse it."""
    if file_system_of(Path("/dev/shm")).kind != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    with pytest.raises(InvalidArgumentError) as caught:
        plan_of(ssd="/dev/shm/kv")
    for part in ("/dev/shm/kv", "memory (tmpfs)", "MOONCAKE_HICACHE_SSD", "pool_size"):
        assert part in str(caught.value)
    assert not Path("/dev/shm/kv").exists()


@pytest.mark.parametrize("kind", ["nfs4", "overlay", "fuse.x"])
def test_what_is_unwise_is_done_and_said_when_it_was_named(kind: str, tmp_path: Path) -> None:
    plan = plan_of(mounted(tmp_path, kind), ssd=f"{tmp_path}=64MiB")
    assert len(plan.directories) == 1
    assert kind in plan.notices[0]


@pytest.mark.parametrize(
    ("place", "kind", "told"),
    [
        ("{tmp}/missing/kv", IoError, "{tmp}/missing is missing: mount its disk"),
        ("{tmp}/file", InvalidArgumentError, "no directory"),
        ("{tmp}/file/kv", InvalidArgumentError, "no directory"),
        ("{tmp}/kv=900TB", NoSpaceError, "its whole file system has"),
        ("{tmp}/kv=64MiB", NoSpaceError, "MOONCAKE_HICACHE_SSD_REGION_SIZE"),
        pytest.param(
            "/proc/kv",
            Error,
            "/proc",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may try to write there"),
        ),
    ],
)
def test_a_named_directory_that_cannot_be_is_an_error_with_a_remedy(
    place: str, kind: type[Error], told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kind, match=told.format(tmp=tmp_path)) as caught:
        plan_of(ssd=place.format(tmp=tmp_path), ssd_region_size="32MiB")
    assert place.format(tmp=tmp_path).split("=")[0] in str(caught.value)


def test_only_the_last_folder_of_a_named_directory_is_made(tmp_path: Path) -> None:
    plan = plan_of(ssd=f"{tmp_path / 'kv'}=64MiB")
    make_directories(plan)
    make_directories(plan)
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    (tmp_path / "kv").rmdir()
    tmp_path.rmdir()
    with pytest.raises(IoError, match=str(tmp_path)):
        make_directories(plan)
    tmp_path.mkdir()


def test_a_plan_without_says_why() -> None:
    plan = SsdPlan(is_automatic=True).without("another node holds it")
    assert plan.directories == ()
    assert "another node holds it" in plan.notices[0]


def test_the_nearest_folder_may_be_the_path_itself(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path) == tmp_path
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
