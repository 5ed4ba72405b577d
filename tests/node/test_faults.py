"""Nodes that die, hang or fall idle under clients that go on: misses in time, then a new node."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mooncake_hicache import Namespace, Store
from tests.node.conftest import NodeFolder
from tests.processes import wait_for

CALL_TIMEOUT_MS = 1000
MISS_WITHIN_S = 2.0  # The call's own deadline, and as much again for a busy machine.


def is_serving(store: Store, pages: Namespace) -> bool:
    return store.is_connected and pages.put("probe", b"x")


def serving_pid(store: Store) -> int | None:
    node = store.stats()["node"]
    return None if node is None else int(node["pid"])


def test_sigkill_is_misses_and_then_a_new_node(folder: NodeFolder) -> None:
    with Store.open(call_timeout_ms=CALL_TIMEOUT_MS) as store:
        pages = store.namespace("x")
        assert pages.put("page", b"x" * 100_000)
        before = folder.pid
        folder.signal(signal.SIGKILL)
        began = time.monotonic()
        value = pages.get("page")
        assert time.monotonic() - began < MISS_WITHIN_S
        assert value in (None, b"x" * 100_000)
        wait_for("a new node serves", lambda: is_serving(store, pages))
        assert pages.get("page") is None
        assert folder.pid != before
        assert pages.put("page", b"again")
        assert pages.get("page") == b"again"
    assert folder.start_count == 2


def test_sigkill_in_the_middle_of_calls_never_gives_a_wrong_byte(folder: NodeFolder) -> None:
    """Two threads write and read; the node is killed under them, three times."""
    page = random.Random(7).randbytes(1 << 20)
    wrong: list[object] = []
    slow: list[float] = []
    done = threading.Event()

    def use(store: Store, name: str) -> None:
        pages = store.namespace("x")
        target = bytearray(len(page))
        while not done.is_set():
            began = time.monotonic()
            pages.put(name, page)
            if pages.get_into(name, target) is not None and target != page:
                wrong.append(name)
            if time.monotonic() - began > 2 * MISS_WITHIN_S:
                slow.append(time.monotonic() - began)

    with Store.open(call_timeout_ms=CALL_TIMEOUT_MS) as store:
        threads = [threading.Thread(target=use, args=(store, f"page-{n}")) for n in range(2)]
        for thread in threads:
            thread.start()
        met = {folder.pid}
        for _ in range(3):
            folder.signal(signal.SIGKILL)
            wait_for("a new node serves", lambda: serving_pid(store) not in {None, *met})
            met.add(folder.pid)
        done.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert slow == []
    assert folder.start_count == 4


def test_a_stopped_node_is_replaced_by_exactly_one_of_many_clients(folder: NodeFolder) -> None:
    stores = [
        Store.open(call_timeout_ms=CALL_TIMEOUT_MS, node_unresponsive_ms=1000) for _ in range(4)
    ]
    try:
        spaces = [store.namespace("x") for store in stores]
        assert spaces[0].put("page", b"x")
        before = folder.state
        assert before is not None
        folder.freeze()
        began = time.monotonic()
        assert spaces[0].get("page") is None
        assert time.monotonic() - began < MISS_WITHIN_S
        for store, pages in zip(stores, spaces, strict=True):
            wait_for(
                "a new node serves",
                lambda s=store, p=pages: is_serving(s, p),  # type: ignore[misc]
            )
        assert not before.is_our_living_process(), "the stopped node must not keep its memory"
        assert {store.stats()["node"]["pid"] for store in stores} == {folder.pid}
        assert folder.start_count == 2
    finally:
        for store in stores:
            store.close()


def test_a_new_client_replaces_a_stopped_node(folder: NodeFolder) -> None:
    Store.open().close()
    before = folder.state
    assert before is not None
    folder.freeze()
    with Store.open(node_unresponsive_ms=500) as store:
        assert store.namespace("x").put("page", b"x")
    assert folder.pid != before.pid
    assert not before.is_our_living_process()


def test_a_node_that_goes_on_in_time_is_kept(folder: NodeFolder) -> None:
    Store.open().close()
    before = folder.pid
    folder.freeze()
    waker = threading.Timer(0.5, os.kill, (before, signal.SIGCONT))
    waker.start()
    with Store.open(node_unresponsive_ms=10_000) as store:
        assert store.is_connected
    waker.join()
    assert folder.pid == before


CLIENT_THAT_IS_KILLED = """
import sys
from mooncake_hicache import Store
store = Store.open()
pages = store.namespace("x")
page = bytes(4 << 20)
print("ready", flush=True)
number = 0
while True:
    pages.put(f"page-{number % 8}", page, replace=True)
    pages.prefix_length([f"page-{n}" for n in range(8)])
    number += 1
"""


def test_a_killed_client_leaves_nothing_behind(folder: NodeFolder) -> None:
    """Its leases and reservations are gone within a second, and what it wrote is whole."""
    with Store.open() as store:
        pages = store.namespace("x")
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT_THAT_IS_KILLED], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        client.stdout.readline()
        wait_for("it has written", lambda: pages.exists("page-1"))
        client.kill()
        client.wait()

        def is_clean() -> bool:
            node = store.stats()["node"]
            return bool(
                node
                and node["clients"] == 1
                and node["leases"] == node["leased_bytes"] == node["pool_reserved_bytes"] == 0
            )

        wait_for("nothing is left", is_clean, deadline_s=2.0)
        for value in pages.get_batch([f"page-{n}" for n in range(8)]):
            assert value in (None, bytes(4 << 20))


def test_an_idle_node_ends_and_one_with_a_client_does_not(folder: NodeFolder) -> None:
    with Store.open(idle_timeout_s=1):
        time.sleep(2.5)  # Longer than the idle time: what must not happen takes time to not happen.
        assert folder.is_held
    took = wait_for("the idle node is gone", lambda: not folder.is_held)
    assert took < 10
    assert "idle_timeout_s" in folder.log
    assert not Path(folder.paths.socket).exists()
    assert not folder.paths.state.exists()


def test_garbage_closes_that_connection_and_no_other(folder: NodeFolder) -> None:
    with Store.open() as store:
        pages = store.namespace("x")
        assert pages.put("page", b"x")
        source = random.Random(3)
        for size in (1, 7, 64, 4096, 1 << 20):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(folder.paths.socket)
                stranger.settimeout(5)
                try:
                    stranger.sendall(source.randbytes(size))
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
            assert pages.get("page") == b"x"
        assert store.stats()["node"]["clients"] == 1
        assert store.stats()["client"]["connects"] == 1


def test_a_port_scan_of_connections_that_say_nothing_is_survived(folder: NodeFolder) -> None:
    with Store.open(clients_max=8) as store:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        try:
            for one in silent:
                one.setblocking(False)
                one.connect_ex(folder.paths.socket)
            assert store.namespace("x").put("page", b"x")
        finally:
            for one in silent:
                one.close()
        with Store.open() as other:
            assert other.namespace("x").get("page") == b"x"


def cpu_ticks(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])


def test_idle_node_and_client_use_no_cpu(folder: NodeFolder) -> None:
    with Store.open() as store:
        store.namespace("x").put("page", b"x")
        time.sleep(1.0)  # HTTP is imported after the node is ready.
        pids = [folder.pid, os.getpid()]
        before = [cpu_ticks(pid) for pid in pids]
        time.sleep(3.0)
        used = [cpu_ticks(pid) - ticks for pid, ticks in zip(pids, before, strict=True)]
    allowed = 0.01 * 3.0 * os.sysconf("SC_CLK_TCK")
    assert max(used) <= allowed, used
