"""`mooncake-hicache doctor` of a node in a cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_hicache.cli import checks_cluster
from mooncake_hicache.cli.checks_cluster import cluster_checks
from mooncake_hicache.cli.finding import Check
from mooncake_hicache.config import StoreOptions
from tests.master.masters import SECRET, MasterProcess
from tests.metadata.servers import free_port
from tests.processes import wait_for


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    started = MasterProcess(tmp_path / "log")
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def _own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", SECRET)


def found(**options: str) -> dict[str, Check]:
    return {check.name: check for check in cluster_checks(StoreOptions(**options))}


def test_a_node_that_is_alone_is_told_so() -> None:
    checks = found()
    assert [check.verdict for check in checks.values()] == ["note"]


def test_a_node_is_told_its_place_and_whether_others_are_reached(
    master: MasterProcess, tmp_path: Path
) -> None:
    at = f"127.0.0.1:{master.port}"
    checks = found(master=at, node_name="a")
    assert checks["cluster"].verdict == "note"
    assert "not among them" in checks["cluster"].finding
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    options = {"runtime_dir": str(runtime), "master": at, "node_name": "a", "pool_size": "64MiB"}
    environment = {f"MOONCAKE_HICACHE_{name.upper()}": value for name, value in options.items()}
    with (tmp_path / "node.log").open("wb") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "mooncake_hicache", "node"],
            env={**os.environ, **environment, "MOONCAKE_HICACHE_SSD": "off"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(
            "the node is live",
            lambda: [one["state"] for one in master.cluster()["members"]] == ["live"],
        )
        assert found(master=at, node_name="a")["cluster"].verdict == "ok"
        other = found(master=at, node_name="b")
        assert other["other nodes"].verdict == "ok"
        assert "1 of 1" in other["other nodes"].finding
    finally:
        node.terminate()
        node.wait(30)


def test_without_a_master_it_says_where_none_leads_and_why() -> None:
    at = f"127.0.0.1:{free_port()}"
    check = found(master=at)["cluster"]
    assert check.verdict == "error"
    assert at in check.finding
    assert "refused" in check.finding


def test_what_keeps_machines_apart_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", "")
    checks = found(master="192.0.2.1:50051", node_host="127.0.0.1")
    assert "127.0.0.1" in checks["cluster"].finding
    assert "node_host" in checks["cluster"].remedy
    assert "TRANSFER_SECRET" in checks["cluster secret"].remedy
    assert checks["cluster"].verdict == checks["cluster secret"].verdict == "error"
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", "none")
    checks = found(master=f"127.0.0.1:{free_port()}")
    assert checks["cluster secret"].verdict == "warning"


def test_ports_that_are_taken_are_counted() -> None:
    at = f"127.0.0.1:{free_port()}"
    assert "node ports" not in found(master=at)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        check = found(master=at, node_ports=f"{port}-{port}")["node ports"]
        assert check.verdict == "error"
        assert "0 of" in check.finding
    check = found(master=at, node_ports="20000-20001", node_host="192.0.2.1")["node ports"]
    assert check.verdict == "error"
    assert "192.0.2.1" in check.finding
    assert "NODE_HOST" in check.remedy


def test_without_an_rdma_device_it_says_what_pages_go_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = f"127.0.0.1:{free_port()}"
    check = found(master=at)["RDMA"]
    assert check.verdict in {"note", "ok", "warning"}
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_TRANSPORTS", "local,tcp")
    assert "RDMA" not in found(master=at)


def test_no_secret_is_made_for_a_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_TRANSFER_SECRET", "")
    monkeypatch.setenv("MOONCAKE_HICACHE_RUNTIME_DIR", str(tmp_path / "run"))
    checks = found(master=f"127.0.0.1:{free_port()}")
    assert checks["cluster secret"].verdict == "error"
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_cannot_be_reached_are_named() -> None:
    closed = f"127.0.0.1:{free_port()}"
    members = [
        {"name": "a", "state": "suspect", "addresses": ["127.0.0.1:1"]},
        {"name": "b", "state": "live", "addresses": [closed]},
        {"name": "c", "state": "live", "addresses": ["?"]},
        {"name": "d", "state": "gone", "addresses": []},
    ]
    own, others = checks_cluster._members("a", members)
    assert own.verdict == "warning"
    assert others.verdict == "error"
    assert f"b at {closed}" in others.finding
    assert "c at ?" in others.finding
    assert "d at" not in others.finding


def test_the_command_shows_it(master: MasterProcess) -> None:
    environment = {**os.environ, "MOONCAKE_HICACHE_MASTER": f"127.0.0.1:{master.port}"}
    done = subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    names = {check["name"] for check in json.loads(done.stdout)["checks"]}
    assert {"cluster", "cluster secret"} <= names
