"""What a store tells of itself over HTTP, if its set-up asks for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.metrics import CLIENT_METRICS, CLIENT_PREFIX, NODE_METRICS
from tests.compat.processes import environment
from tests.compat.store.stores import MiB, opened, running_master
from tests.metadata.servers import ask, free_port
from tests.processes import wait_for


def page(port: int, path: str) -> tuple[int, str]:
    status, body, _ = ask(f"http://127.0.0.1:{port}{path}")
    return status, body.decode()


def is_taken(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def values_of(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def test_a_store_tells_what_it_has_done_and_what_its_node_has(master: str) -> None:
    port = free_port()
    with opened(master, enable_client_http_server=True, client_http_port=port) as store:
        assert store.put("one", b"x" * 5000) == 0
        assert store.get("one") == b"x" * 5000
        assert store.get("two") == b""
        assert page(port, "/health") == (200, '{"status": "healthy"}')
        status, text = page(port, "/metrics")
        assert status == 200
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {metric.name for metric in NODE_METRICS if metric.kind != "info"} <= families
        assert {CLIENT_PREFIX + stat for stat in CLIENT_METRICS} <= families
        values = values_of(text)
        assert values["mooncake_hicache_client_connected"] == 1
        assert values["mooncake_hicache_client_put_pages_total"] == 1
        assert values["mooncake_hicache_client_get_hit_pages_total"] == 1
        assert values["mooncake_hicache_node_pages"] >= 1
        assert values["mooncake_hicache_node_pool_size_bytes"] == 64 * MiB
        status, text = page(port, "/metrics/summary")
        assert status == 200
        assert "Client Metrics Summary" in text
        assert "read: 1 objects of " in text
        assert "of 64 MiB" in text
        assert json.loads(page(port, "/version")[1])["version"]
        assert page(port, "/api/get/one")[0] == 404
        assert ask(f"http://127.0.0.1:{port}/metrics", "DELETE")[0] == 405
    assert not is_taken(port)


def test_it_is_not_there_unless_it_is_asked_for(master: str) -> None:
    port = free_port()
    threads = threading.active_count()
    with opened(master, client_http_port=port) as store:
        assert store.is_exist("x") == 0
        assert not is_taken(port)
    assert threading.active_count() <= threads


def test_a_port_that_is_taken_is_told_and_the_store_works_without(master: str) -> None:
    given = {"enable_client_http_server": True, "client_http_port": free_port()}
    with opened(master, **given) as first, opened(master, **given) as second:
        assert str(given["client_http_port"]) in second.last_error
        assert "client_http_port" in second.last_error
        assert second.put("of the second", b"1") == 0
        assert first.get("of the second") == b"1"
        second.close()
        assert page(int(given["client_http_port"]), "/health")[0] == 200


@pytest.mark.parametrize("port", ["9300x", "", "-1", "65536", "99999999999", 65536, -1])
def test_a_port_that_is_none_is_refused(master: str, port: object) -> None:
    store = MooncakeDistributedStore()
    given = {"local_hostname": "localhost", "master_server_addr": master}
    given |= {"enable_client_http_server": "true", "client_http_port": port}
    assert store.setup(given) == -600
    assert "client_http_port" in store.last_error


def test_texts_of_a_dict_are_understood(master: str) -> None:
    port = free_port()
    store = MooncakeDistributedStore()
    given = {"local_hostname": "localhost", "master_server_addr": master}
    given |= {"enable_client_http_server": " true ", "client_http_port": f" {port} "}
    assert store.setup(given) == 0
    assert page(port, "/health")[0] == 200
    assert store.setup(given) == 0  # It ends what was, the port included.
    assert store.last_error == ""
    assert page(port, "/health")[0] == 200
    assert store.close() == 0
    assert not is_taken(port)


def test_a_store_that_is_forgotten_gives_its_port_back(master: str) -> None:
    port = free_port()
    store = MooncakeDistributedStore()
    given = {"local_hostname": "localhost", "master_server_addr": master}
    code = store.setup(given | {"enable_client_http_server": "1", "client_http_port": str(port)})
    assert (code, is_taken(port)) == (0, True)
    del store
    assert not is_taken(port)


def test_it_can_be_set_up_by_a_program_that_runs_an_event_loop(master: str) -> None:
    async def walk() -> None:
        port = free_port()
        with opened(master, enable_client_http_server=True, client_http_port=port):
            assert (await asyncio.to_thread(page, port, "/health"))[0] == 200

    asyncio.run(walk())


def test_health_tells_of_a_master_that_is_gone(folder: Path) -> None:
    port = free_port()
    with running_master(folder) as address:
        store = MooncakeDistributedStore()
        given = {"enable_client_http_server": True, "client_http_port": port}
        flags = ("localhost", "P2PHANDSHAKE", 16 * MiB, MiB, "tcp", "", address)
        assert store.setup(*flags, **given) == 0
        assert page(port, "/health")[0] == 200
    status, text = page(port, "/health")
    assert (status, json.loads(text)["status"]) == (503, "unhealthy")
    assert address in json.loads(text)["error"]
    assert page(port, "/metrics")[0] == 200  # Figures there are all the same.
    assert store.close() == 0


def test_a_forked_child_keeps_no_port_open_and_ends_nothing(master: str) -> None:
    port = free_port()
    reading, writing = os.pipe()
    with opened(master, enable_client_http_server=True, client_http_port=port) as store:
        child = os.fork()
        if child == 0:
            try:
                os.close(writing)
                store.close()
                os.read(reading, 1)  # Until the parent has looked.
            finally:
                os._exit(0)
        try:
            assert page(port, "/health")[0] == 200
            store.close()
            assert not is_taken(port)
        finally:
            os.kill(child, signal.SIGCONT)
            os.close(writing)
            assert os.waitpid(child, 0)[1] == 0
            os.close(reading)


def test_a_client_program_answers_and_those_who_share_it_do_not(folder: Path, master: str) -> None:
    port, http_port = free_port(), free_port()
    command = [sys.executable, "-m", "mooncake.client", f"--port={port}", "--host=localhost"]
    flags = [f"--master_server_address={master}", "--global_segment_size=64MB"]
    flags += ["--enable_http_server=true", f"--http_port={http_port}"]
    process = subprocess.Popen([*command, *flags], env=environment())
    store = MooncakeDistributedStore()
    try:
        wait_for("its HTTP", lambda: is_taken(http_port))
        assert page(http_port, "/health")[0] == 200
        assert store.setup_dummy(MiB, MiB, f"127.0.0.1:{port}") == 0
        assert store.last_error == ""  # Not even tried.
    finally:
        process.terminate()
        assert process.wait(30) == 0
        store.close()
    assert not is_taken(http_port)
