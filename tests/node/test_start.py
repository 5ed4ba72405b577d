"""Finding and starting a node: exactly one, detached, ready soon, its errors told to the caller."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mooncake_hicache import Store
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.errors import (
    BusyError,
    Error,
    InvalidArgumentError,
    NoSpaceError,
    TransientError,
    UnavailableError,
)
from mooncake_hicache.node.paths import node_paths
from mooncake_hicache.node.state import NodeState, hold_lock, process_start_time
from mooncake_hicache.supervisor import JOIN_TIMEOUT_S
from tests.node.conftest import NodeFolder
from tests.processes import wait_for

OPEN_AND_TELL = """
import sys
from mooncake_hicache import Store
sys.stdin.readline()
with Store.open() as store:
    pages = store.namespace("shared")
    assert pages.put(sys.argv[1], b"x")
    print(store.stats()["node"]["pid"], flush=True)
    sys.stdin.readline()
"""


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


def open_pipes_and_sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith(("pipe:", "socket:"))}


def test_the_first_client_starts_a_node_that_outlives_it(folder: NodeFolder) -> None:
    with Store.open() as store:
        assert store.namespace("x").put("page", b"kept")
        pid = folder.pid
    assert folder.is_held
    with Store.open() as store:
        assert store.namespace("x").get("page") == b"kept"
    assert folder.pid == pid
    assert folder.start_count == 1


def test_a_node_is_detached_from_whoever_started_it(folder: NodeFolder) -> None:
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        Store.open().close()
    finally:
        os.sched_setaffinity(0, everywhere)
    pid = folder.pid
    assert parent_of(pid) != os.getpid(), "an engine that kills its children would kill the node"
    assert os.getsid(pid) != os.getsid(0)
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/fd/2").readlink() == folder.paths.log
    assert os.sched_getaffinity(pid) == everywhere
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert Path(f"/proc/{pid}/cwd").readlink() == folder.path
    shared = open_pipes_and_sockets(os.getpid()) & open_pipes_and_sockets(pid)
    assert shared == set()


def test_its_files_are_private(folder: NodeFolder) -> None:
    Store.open().close()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    for path in folder.path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_eight_processes_at_once_start_one_node(folder: NodeFolder) -> None:
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_TELL, f"page-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        pids = {int(client.stdout.readline()) for client in clients if client.stdout}
        assert pids == {folder.pid}
        with Store.open() as store:
            assert store.namespace("shared").exists_batch([f"page-{n}" for n in range(8)]).all()
    finally:
        for client in clients:
            client.communicate("end\n", timeout=30)
    assert [client.returncode for client in clients] == [0] * 8
    assert folder.start_count == 1


def test_what_an_earlier_node_left_behind_is_no_obstacle(folder: NodeFolder) -> None:
    Store.open().close()
    folder.end()
    assert folder.paths.state.exists()
    assert Path(folder.paths.socket).exists()
    with Store.open() as store:
        assert store.is_connected
    assert folder.start_count == 2


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"pool_size": "900TB"}, NoSpaceError, "MOONCAKE_HICACHE_POOL_SIZE"),
        ({"numa_node": 900}, Error, "900"),
        ({"http_host": "192.0.2.1"}, InvalidArgumentError, "192.0.2.1"),
        ({"huge_pages": "always", "pool_size": "1GiB"}, Error, "huge"),
    ],
)
def test_a_node_that_refuses_its_options_tells_the_caller(
    folder: NodeFolder, options: dict[str, object], kind: type[Error], told: str
) -> None:
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        Store.open(**options)
    assert told in str(caught.value)
    assert time.monotonic() - began < 10
    wait_for("the node is gone", lambda: not folder.is_held)
    assert told in folder.log


def test_a_port_in_use_is_named(folder: NodeFolder) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=f"{port}.*MOONCAKE_HICACHE_HTTP_PORT"):
            Store.open(http_port=port)


def test_without_autostart_the_remedy_is_named_at_once(folder: NodeFolder) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="mooncake-hicache node"):
        Store.open(autostart=False)
    assert time.monotonic() - began < 10
    assert not folder.paths.node_lock.exists()


def test_with_a_time_to_wait_a_node_that_comes_late_is_found(folder: NodeFolder) -> None:
    starter = threading.Timer(0.5, lambda: Store.open().close())
    starter.start()
    with Store.open(autostart=False, wait_ms=20_000) as store:
        assert store.is_connected
    starter.join()


def test_a_lazy_store_misses_until_the_node_is_there(folder: NodeFolder) -> None:
    start_lock = node_paths(StoreOptions(), create=True).start_lock
    with contextlib.ExitStack() as stack:
        with hold_lock(start_lock) as is_ours:  # So that nobody can start one.
            assert is_ours
            store = stack.enter_context(Store.open(wait_ms=0))
            pages = store.namespace("x")
            assert pages.get("page") is None
            assert not store.is_connected
        wait_for("connected", lambda: store.is_connected)
        assert pages.put("page", b"x")


def test_waiting_ends_when_it_should(folder: NodeFolder) -> None:
    began = time.monotonic()
    with pytest.raises(TransientError):
        Store.open(autostart=False, wait_ms=300)
    assert 0.25 < time.monotonic() - began < 10


def test_closing_during_a_start_does_not_wait_for_it(folder: NodeFolder) -> None:
    store = Store.open(wait_ms=0)
    wait_for("the start is under way", folder.paths.log.exists)
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < JOIN_TIMEOUT_S, "it was told, and not given up"
    wait_for("the node comes up all the same", lambda: "node ready:" in folder.log)


def test_a_process_that_is_not_ours_is_never_killed(folder: NodeFolder) -> None:
    """The lock is held by us, and the state file names a process that wrote no such file."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            start_time = process_start_time(bystander.pid)
            assert start_time is not None
            state = NodeState(
                pid=bystander.pid,
                start_time=start_time + 1,
                phase="ready",
                version="1",
                socket=folder.paths.socket,
                log=str(folder.paths.log),
                started_at=0.0,
            )
            state.write(folder.paths.state)
            with (
                hold_lock(folder.paths.node_lock) as is_ours,
                pytest.raises(UnavailableError, match="fuser"),
            ):
                assert is_ours
                Store.open(node_unresponsive_ms=200)
            assert bystander.poll() is None
        finally:
            bystander.kill()
            folder.paths.state.unlink()


def test_a_node_that_is_full_is_not_taken_for_stuck(folder: NodeFolder) -> None:
    with Store.open(clients_max=1) as store:
        with pytest.raises(BusyError, match="MOONCAKE_HICACHE_CLIENTS_MAX"):
            Store.open(node_unresponsive_ms=200)
        assert store.namespace("x").put("page", b"x")
    with Store.open(wait_ms=10_000) as store:
        assert store.namespace("x").get("page") == b"x"
    assert folder.start_count == 1


def test_a_holder_without_a_state_is_waited_for_and_then_named(folder: NodeFolder) -> None:
    with hold_lock(folder.paths.node_lock), pytest.raises(TransientError) as caught:
        Store.open(start_timeout_ms=400)
    assert str(folder.path) in str(caught.value)


def test_a_python_that_cannot_be_run_is_named(
    folder: NodeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(UnavailableError, match="/nonexistent/python"):
        Store.open()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(Error, match="mooncake-hicache node"):
        Store.open()


def test_a_node_that_ends_while_starting_is_told_with_its_log(
    folder: NodeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UnavailableError, match="ended while starting"):
        Store.open()
