"""Nodes with pages on SSD: what a graceful end keeps, what a start refuses, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache import Store
from mooncake_hicache.errors import BusyError, Error, InvalidArgumentError, NoSpaceError
from mooncake_hicache.machine import file_system_of
from mooncake_hicache.node.ssd import LOG_NAME
from tests.node.conftest import NodeFolder
from tests.processes import wait_for

PAGE_COUNT = 64
PAGE_SIZE = 64 << 10


def pages(count: int = PAGE_COUNT) -> dict[str, bytes]:
    return {f"page-{n}": bytes([n % 251]) * PAGE_SIZE for n in range(count)}


@pytest.fixture
def ssd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on a disk, which nodes started in this test use."""
    path = Path(tempfile.mkdtemp(prefix="hicache-ssd-", dir="/var/tmp"))
    if file_system_of(path).kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{path} lies in memory here")
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD", f"{path / 'kv'}=128MiB")
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD_REGION_SIZE", "8MiB")
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD_FREE_MIN", "1MiB")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def store_pages(name: str = "m1") -> None:
    with Store.open() as store:
        space = store.namespace(name)
        for key, content in pages().items():
            assert space.put(key, content)


def found_pages(name: str = "m1") -> int:
    """Return how many pages are there, once what was left on SSD has been read; all are right."""
    with Store.open() as store:
        space = store.namespace(name)
        wait_for("recovery is over", lambda: not node_stats(store)["ssd_recovering"])
        count = 0
        for key, content in pages().items():
            got = space.get(key)
            assert got is None or got == content, key
            count += got is not None
        return count


def node_stats(store: Store) -> dict[str, int]:
    node = store.stats()["node"]
    assert node is not None
    return node


# ---- what outlives a node


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_pages_outlive_a_node_that_ends_gracefully(folder: NodeFolder, ssd: Path, how: str) -> None:
    store_pages()
    if how == "stop":
        assert folder.run("stop").returncode == 0
    else:
        folder.signal(signal.SIGTERM)
        wait_for("the node is gone", lambda: not folder.is_held)
    assert "flushed to SSD" in folder.log
    assert (ssd / "kv").stat().st_mode & 0o777 == 0o700
    assert (ssd / "kv" / LOG_NAME).stat().st_mode & 0o077 == 0, "prompts can be read out of pages"
    assert found_pages() == PAGE_COUNT
    assert folder.start_count == 2


def test_a_node_stopped_now_keeps_nothing_it_did_not_write(folder: NodeFolder, ssd: Path) -> None:
    store_pages()
    done = folder.run("stop", "--now")
    assert (done.returncode, done.stdout) == (0, "node stopped\n"), done.stderr
    assert "flushed to SSD" not in folder.log
    assert found_pages() < PAGE_COUNT


def test_no_time_to_flush_means_no_flush(
    folder: NodeFolder, ssd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_FLUSH_TIMEOUT_S", "0")
    store_pages()
    assert folder.run("stop").returncode == 0
    assert "flush" not in folder.log


def test_pages_written_through_outlive_a_killed_node(
    folder: NodeFolder, ssd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD_WRITE", "through")
    store_pages()
    with Store.open() as store:
        wait_for("all is written", lambda: node_stats(store)["ssd_pages"] == PAGE_COUNT)
    folder.signal(signal.SIGKILL)
    wait_for("the node is gone", lambda: not folder.is_held)
    assert found_pages() == PAGE_COUNT


def test_what_was_removed_or_cleared_stays_so_after_a_restart(
    folder: NodeFolder, ssd: Path
) -> None:
    store_pages("kept")
    store_pages("cleared")
    folder.run("stop")
    with Store.open() as store:
        wait_for("recovery is over", lambda: not node_stats(store)["ssd_recovering"])
        store.namespace("cleared").clear()
        assert store.namespace("kept").remove("page-0")
    folder.run("stop")
    assert found_pages("cleared") == 0
    assert found_pages("kept") == PAGE_COUNT - 1


def test_an_idle_node_keeps_its_pages_too(folder: NodeFolder, ssd: Path) -> None:
    with Store.open(idle_timeout_s=1) as store:
        for key, content in pages().items():
            store.namespace("m1").put(key, content)
    wait_for("the node is gone", lambda: not folder.is_held)
    assert "idle_timeout_s" in folder.log
    assert found_pages() == PAGE_COUNT


def test_a_node_inside_a_process_flushes_when_its_store_is_closed(ssd: Path) -> None:
    for expected in (False, True):
        with Store.open(in_process=True, pool_size="64MiB") as store:
            wait_for("recovery is over", lambda: not node_stats(store)["ssd_recovering"])
            space = store.namespace("m1")
            assert (space.get("page") is not None) == expected
            space.put("page", b"x" * PAGE_SIZE)


# ---- what is refused, and what is gone without


def test_a_named_directory_that_another_node_uses_is_refused(
    folder: NodeFolder, ssd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_pages()
    with pytest.raises(BusyError, match=str(ssd)):
        Store.open(in_process=True, pool_size="64MiB")
    other = folder.path / "other"
    done = folder.run("node", env={"MOONCAKE_HICACHE_RUNTIME_DIR": str(other)})
    assert done.returncode == 1
    assert str(ssd / "kv") in done.stderr


def test_the_automatic_directory_that_another_node_uses_is_done_without(
    folder: NodeFolder, ssd: Path
) -> None:
    if file_system_of(ssd).kind not in ("ext4", "xfs", "btrfs", "f2fs"):
        pytest.skip(f"{ssd} is on no file system that is used unasked")
    env = {
        **os.environ,
        "MOONCAKE_HICACHE_SSD": "auto",
        "MOONCAKE_HICACHE_SSD_SIZE": "128MiB",
        "XDG_CACHE_HOME": str(ssd / "cache"),
    }
    assert folder.run("node", "--detach", env=env).returncode == 0
    assert (ssd / "cache/mooncake-hicache" / LOG_NAME).exists()
    other = NodeFolder(folder.path / "other")
    env["MOONCAKE_HICACHE_RUNTIME_DIR"] = str(other.path)
    try:
        assert folder.run("node", "--detach", env=env).returncode == 0
        wait_for("it says so", lambda: "no pages on SSD" in other.log)
        stats = json.loads(folder.run("status", "--json", env=env).stdout)["stats"]
        assert stats["ssd_directories"] == 0
    finally:
        folder.run("stop", env=env)
    assert not other.is_held


@pytest.mark.parametrize(
    ("place", "kind", "told"),
    [
        ("/dev/shm/hicache-test", InvalidArgumentError, "memory"),
        ("{ssd}/kv=900TB", NoSpaceError, "whole file system"),
        ("{ssd}/foreign=128MiB", Error, "foreign"),
    ],
)
def test_a_named_directory_that_cannot_be_had_keeps_the_node_from_starting(
    place: str, kind: type[Error], told: str, folder: NodeFolder, ssd: Path
) -> None:
    (ssd / "foreign").mkdir()
    (ssd / "foreign" / LOG_NAME).write_bytes(b"somebody else's\n" * 8192)
    if place.startswith("/dev/shm") and file_system_of(Path("/dev/shm")).kind != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    with pytest.raises(kind, match=told):
        Store.open(ssd=place.format(ssd=ssd))
    content = (ssd / "foreign" / LOG_NAME).read_bytes()
    assert content == b"somebody else's\n" * 8192, "what is not ours is not touched"


# ---- what is said


def test_status_and_doctor_show_the_ssd(folder: NodeFolder, ssd: Path) -> None:
    store_pages()
    shown = folder.run("status").stdout
    for part in (str(ssd / "kv"), "128 MiB", "hits by tier", "in 24 h of 1.819 TiB"):
        assert part in shown, part
    report = json.loads(folder.run("doctor", "--json").stdout)
    found = {check["name"]: check for check in report["checks"]}
    assert found["ssd"]["verdict"] == "ok", found["ssd"]
    assert "a node uses it now" in found["ssd"]["finding"]
    assert "ssd io" in found


@pytest.mark.parametrize(
    ("setting", "verdict", "told"),
    [
        ({"MOONCAKE_HICACHE_SSD": "off"}, "note", "memory only"),
        ({"MOONCAKE_HICACHE_SSD": "/nowhere/at/all"}, "error", "mount its disk"),
        ({"MOONCAKE_HICACHE_SSD_SIZE": "65MiB", "MOONCAKE_HICACHE_SSD": "{ssd}"}, "ok", "65 MiB"),
    ],
)
def test_doctor_examines_directories_and_makes_none(
    setting: dict[str, str], verdict: str, told: str, folder: NodeFolder, ssd: Path
) -> None:
    env = {name: value.format(ssd=ssd / "kv") for name, value in setting.items()}
    report = json.loads(folder.run("doctor", "--json", env=env).stdout)
    check = next(check for check in report["checks"] if check["name"] == "ssd")
    assert check["verdict"] == verdict, check
    assert told in check["finding"]
    assert list(ssd.iterdir()) == []


def test_two_signals_at_once_end_a_node_in_order(folder: NodeFolder, ssd: Path) -> None:
    """Whether the second one meets a flush or its end."""
    store_pages()
    folder.signal(signal.SIGTERM)
    folder.signal(signal.SIGINT)
    wait_for("the node is gone", lambda: not folder.is_held)
    assert "got SIGTERM" in folder.log
    assert "node stopped" in folder.log


def test_the_command_line_names_the_option(folder: NodeFolder) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", "node", "--ssd", "yes"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "/nvme0/kv=2TB" in done.stderr


def test_a_pipe_in_the_place_of_the_names_is_not_waited_for(folder: NodeFolder, ssd: Path) -> None:
    (ssd / "kv").mkdir(mode=0o700)
    os.mkfifo(ssd / "kv" / "namespaces.tsv")
    with Store.open(start_timeout_ms="20s") as store:
        assert store.namespace("piped").put("page", b"x")
        assert store.namespace("piped").get("page") == b"x"


def test_pages_larger_than_a_region_are_counted_and_told(folder: NodeFolder, ssd: Path) -> None:
    with Store.open() as store:
        pages = store.namespace("large")
        assert pages.put("page", bytes(9 << 20))
        assert pages.put("small", bytes(1 << 20))
        assert pages.get("page") == bytes(9 << 20)
        stats = store.stats()["node"]
        assert stats is not None
        assert stats["ssd_oversize_pages"] == 1
        assert stats["ssd_directories"] == 1
    wait_for("it is told", lambda: "ssd_region_size" in folder.log)
    assert folder.run("stop").returncode == 0
