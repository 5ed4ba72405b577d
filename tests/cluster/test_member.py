"""Nodes of one machine in a cluster: what they tell, and what clearing means to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mooncake_hicache import InvalidArgumentError, Store, UnavailableError
from tests.master.masters import SECRET, MasterProcess
from tests.metadata.servers import free_port
from tests.processes import wait_for

SPACE = "members"
PAGE = b"page" * 1000


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    started = MasterProcess(tmp_path / "master.log")
    yield started
    started.kill()


@contextmanager
def member(port: int, name: str, folder: Path, **options: Any) -> Iterator[Store]:
    """A store whose node, in this process, belongs to the cluster of the master at this port."""
    runtime = folder / name
    runtime.mkdir(mode=0o700)
    with Store.open(
        in_process=True,
        runtime_dir=str(runtime),
        master=f"127.0.0.1:{port}",
        node_name=name,
        pool_size="32MiB",
        call_timeout_ms=5000,
        **options,
    ) as opened:
        yield opened


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", SECRET)


def node_stats(store: Store) -> dict[str, Any]:
    found = store.stats()["node"]
    assert found is not None
    return dict(found)


def is_settled(store: Store) -> bool:
    stats = node_stats(store)
    return bool(
        stats["cluster_joined"]
        and not stats["cluster_announcing"]
        and stats["cluster_pending_pages"] == 0
    )


def pages_known(master: MasterProcess) -> dict[str, int]:
    return {one["name"]: one["pages"] for one in master.cluster()["members"]}


def test_the_master_knows_what_the_nodes_have(master: MasterProcess, tmp_path: Path) -> None:
    with member(master.port, "one", tmp_path) as one, member(master.port, "two", tmp_path) as two:
        for i in range(5):
            assert one.namespace(SPACE).put(f"one-{i}", PAGE)
        assert two.namespace(SPACE).put("two", PAGE)
        wait_for("both told", lambda: pages_known(master) == {"one": 5, "two": 1})
        assert one.namespace(SPACE).remove("one-3")
        wait_for("the removal told", lambda: pages_known(master)["one"] == 4)
        stats = node_stats(one)
        assert stats["cluster"] == {
            "name": "one",
            "masters": f"127.0.0.1:{master.port}",
            "trouble": "",
        }
        assert stats["cluster_joins"] == 1


def test_clearing_on_one_node_clears_both(master: MasterProcess, tmp_path: Path) -> None:
    with member(master.port, "one", tmp_path) as one, member(master.port, "two", tmp_path) as two:
        assert one.namespace(SPACE).put("a", PAGE)
        assert two.namespace(SPACE).put("b", PAGE)
        wait_for("both told", lambda: pages_known(master) == {"one": 1, "two": 1})
        assert one.namespace(SPACE).clear() == 1
        assert one.namespace(SPACE).put("c", PAGE)
        wait_for("the other's cleared", lambda: node_stats(two)["pages"] == 0)
        wait_for("the master knows", lambda: pages_known(master) == {"one": 1, "two": 0})
        assert one.namespace(SPACE).get("c") == PAGE


def test_without_a_master_a_node_serves_and_clearing_says_what_it_did_not(tmp_path: Path) -> None:
    with member(free_port(), "alone", tmp_path) as store:
        pages = store.namespace(SPACE)
        assert pages.put("a", PAGE)
        assert pages.get("a") == PAGE
        assert node_stats(store)["cluster_joined"] == 0
        assert pages.put("b", PAGE)
        with pytest.raises(UnavailableError, match="remove it again"):
            pages.remove("b")
        assert pages.get("b") is None
        with pytest.raises(UnavailableError, match="no master"):
            pages.clear()
        assert node_stats(store)["pages"] == 0


def test_a_new_master_is_told_everything(master: MasterProcess, tmp_path: Path) -> None:
    with member(master.port, "one", tmp_path) as one:
        for i in range(9):
            assert one.namespace(SPACE).put(str(i), PAGE)
        wait_for("all told", lambda: pages_known(master) == {"one": 9})
        master.kill()
        later = MasterProcess(tmp_path / "later.log", port=master.port)
        try:
            wait_for("all told anew", lambda: pages_known(later) == {"one": 9})
            wait_for("nothing left to tell", lambda: is_settled(one))
        finally:
            later.kill()


def test_what_is_no_master_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"127\.0\.0\.1:port"):
        Store.open(in_process=True, runtime_dir=str(tmp_path), master="127.0.0.1:port").close()


def test_status_tells_of_the_cluster(tmp_path: Path) -> None:
    """A node as a process, with a master that does not answer."""
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "MOONCAKE_HICACHE_RUNTIME_DIR": str(tmp_path),
        "MOONCAKE_HICACHE_MASTER": f"127.0.0.1:{port}",
        "MOONCAKE_HICACHE_NODE_NAME": "shown",
        "MOONCAKE_HICACHE_POOL_SIZE": "16MiB",
        "MOONCAKE_HICACHE_SSD": "off",
        "MOONCAKE_HICACHE_TRANSFER_SECRET": SECRET,
    }
    command = [sys.executable, "-m", "mooncake_hicache"]
    tmp_path.chmod(0o700)
    node = subprocess.Popen([*command, "node"], env=environment)

    def shown() -> str:
        return subprocess.run(
            [*command, "status"], env=environment, capture_output=True, text=True, check=False
        ).stdout

    try:
        wait_for("the node answers", lambda: "shown at 127.0.0.1" in shown())
        assert "no master" in shown()
    finally:
        node.terminate()
        node.wait(30)
