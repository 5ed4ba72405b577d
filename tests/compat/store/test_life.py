"""A store finds its master and its node, says in time if not, and shares a node with others."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from mooncake_hicache.compat.store import ExistOptions, MooncakeDistributedStore
from mooncake_hicache.compat.store.async_store import MooncakeDistributedStoreAsync
from tests.compat.processes import Program
from tests.compat.store.stores import MiB, machine, opened, running_master
from tests.metadata.servers import free_port
from tests.processes import wait_for

SETUP_MAX_S = 5.0


def test_without_a_master_setup_says_host_port_and_cause_in_time(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens.
        port = taken.getsockname()[1]
        store = MooncakeDistributedStore()
        begun = time.monotonic()
        code = store.setup("localhost", "P2PHANDSHAKE", MiB, MiB, "tcp", "", f"127.0.0.1:{port}")
    assert code < 0
    assert time.monotonic() - begun < SETUP_MAX_S
    assert f"127.0.0.1:{port}" in store.last_error
    assert "refused" in store.last_error
    assert not list(folder.glob(f"store-127.0.0.1-{port}/node.json"))


def test_a_master_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):  # Until the queue of connections is full, so that more get no answer.
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        store = MooncakeDistributedStore()
        begun = time.monotonic()
        code = store.setup("localhost", "P2PHANDSHAKE", MiB, MiB, "tcp", "", f"127.0.0.1:{port}")
        took_s = time.monotonic() - begun
        for one in waiting:
            one.close()
    assert code < 0
    assert took_s < SETUP_MAX_S
    assert "no answer" in store.last_error


@pytest.mark.parametrize(
    "given",
    [
        {"local_hostnam": "localhost"},
        {},
        {"local_hostname": "localhost", "master_server_addr": "x:1", "global_segment_size": "50%"},
    ],
)
def test_a_dict_with_mistakes_is_refused(given: dict[str, str]) -> None:
    store = MooncakeDistributedStore()
    assert store.setup(given) == -600
    assert store.last_error


def test_the_device_may_be_left_out_and_a_dict_will_do(master: str) -> None:
    store = MooncakeDistributedStore()
    assert (
        store.setup("localhost", "http://localhost:1/metadata", 16 * MiB, MiB, "tcp", master) == 0
    )
    assert store.put("from one", b"1") == 0
    other = MooncakeDistributedStore()
    given = {
        "local_hostname": "localhost",
        "metadata_server": "P2PHANDSHAKE",
        "global_segment_size": "16MB",
        "local_buffer_size": "1MB",
        "protocol": "tcp",
        "rdma_devices": "",
        "master_server_addr": master,
    }
    assert other.setup(given) == 0
    assert other.get("from one") == b"1"
    assert store.get_hostname() != other.get_hostname()
    assert (store.close(), store.close(), store.get("from one")) == (0, 0, b"")
    assert other.remove("from one") == 0
    assert other.close() == 0


def test_arguments_that_are_missing_or_unknown_raise() -> None:
    store = MooncakeDistributedStore()
    with pytest.raises(TypeError, match="master_server_addr"):
        store.setup("localhost", "P2PHANDSHAKE", 1, 1, "tcp", "")
    with pytest.raises(TypeError, match="no_such"):
        store.setup("localhost", "P2PHANDSHAKE", 1, 1, "tcp", "", "a:1", no_such=1)


def alone(size: int = 32 * MiB, **given: object) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    where = ("localhost", "P2PHANDSHAKE", size, MiB, "tcp", "", "")
    assert store.setup(*where, enable_standalone=True, **given) == 0, store.last_error
    return store


def test_a_store_can_do_without_a_master(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine():
        store = alone()
        assert (store.put("alone", b"1"), store.upsert("alone", b"2")) == (0, 0)
        assert store.health_check() == 0
        other = MooncakeDistributedStore()
        given: dict[str, object] = {"local_hostname": "localhost", "global_segment_size": "32MB"}
        assert other.setup(given) == -600
        assert "master_server_addr" in other.last_error
        assert other.setup({**given, "master_server_addr": " "}) == -600
        assert "enable_standalone" in other.last_error
        assert other.setup({**given, "enable_standalone": "maybe"}) == -600
        assert other.setup({**given, "enable_standalone": True}) == 0
        assert other.get("alone") == b"2"
        assert other.close() == 0
        monkeypatch.setenv("MOONCAKE_ENABLE_STANDALONE", "true")
        nowhere = {**given, "master_server_addr": "127.0.0.1:1"}
        assert other.setup({**nowhere, "enable_standalone": False}) < 0
        assert other.setup(nowhere) == 0
        assert other.get_all_keys() == ["alone"]
        assert (other.remove("alone"), store.is_exist("alone")) == (0, 0)
        assert (other.close(), store.close()) == (0, 0)


def test_the_folder_on_an_ssd_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"local_hostname": "localhost", "enable_standalone": True, "enable_ssd_offload": "true"}
    store = MooncakeDistributedStore()
    assert store.setup(given) == -600
    assert "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH" in store.last_error
    monkeypatch.setenv("MOONCAKE_OFFLOAD_FILE_STORAGE_PATH", str(tmp_path))
    monkeypatch.delenv("MOONCAKE_HICACHE_SSD", raising=False)
    with machine():
        assert store.setup({**given, "global_segment_size": "32MB"}) == 0, store.last_error
        wait_for("a node's log there", lambda: any(tmp_path.iterdir()))
        assert store.close() == 0


def test_a_look_up_brings_objects_from_the_ssd_if_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD_WRITE", "through")
    monkeypatch.delenv("MOONCAKE_HICACHE_SSD", raising=False)
    options = ExistOptions()
    assert options.prefetch_to_memory is False
    options.prefetch_to_memory = True
    with machine():
        store = alone(enable_ssd_offload=True, ssd_offload_path=str(tmp_path))

        def counted(name: str) -> int:
            return int(store.stats()["node"][name])

        for number in range(64):
            assert store.put(str(number), bytes([number]) * MiB) == 0
            if number % 16 == 15:  # Or they would leave memory faster than they are written.
                wait_for("all on the SSD", lambda n=number: counted("ssd_pages") == n + 1)
        before = counted("ssd_staged_pages")
        assert store.batch_is_exist(["0", "missing"], None) == [1, 0]
        assert counted("ssd_staged_pages") == before
        assert store.batch_is_exist(["0", "missing"], options) == [1, 0]
        wait_for("it in memory", lambda: counted("ssd_staged_pages") == before + 1)
        assert store.get("0") == bytes(MiB)
        assert store.stats()["client"]["ssd_bytes"] == 0, "they came out of memory"
        with pytest.raises(TypeError, match="ExistOptions"):
            store.is_exist("missing", True)
        assert store.close() == 0


def test_a_client_that_is_not_there_leaves_a_store_as_it_is(master: str) -> None:
    with opened(master) as store:
        assert store.setup_dummy(MiB, MiB, f"127.0.0.1:{free_port()}") < 0
        assert store.health_check() == 0


def test_tenants_do_not_see_each_other(master: str) -> None:
    with opened(master) as one, opened(master, tenant_id="other") as other:
        assert one.put("same key", b"one") == 0
        assert other.is_exist("same key") == 0
        assert other.put("same key", b"other") == 0
        assert (one.get("same key"), other.get("same key")) == (b"one", b"other")
        assert other.remove_all() == 1
        assert one.get("same key") == b"one"


def test_a_full_pool_makes_room() -> None:
    value = bytes(1 * MiB)
    with machine() as folder, running_master(folder) as master, opened(master) as store:
        assert [store.put(f"fill {i}", value) for i in range(200)] == [0] * 200
        store.batch_is_exist([f"fill {i}" for i in range(200)])  # Which holds nothing back.
        assert [store.put(f"more {i}", value) for i in range(200)] == [0] * 200
        assert store.get("more 199") == value
        assert store.put("larger than the pool", bytes(65 * MiB)) == -200


def test_a_tenant_over_its_quota_is_refused_as_the_original_does(folder: Path) -> None:
    value = bytes(1 * MiB)
    with (
        machine(),
        running_master(folder) as address,
        mock.patch.dict(os.environ, {"MOONCAKE_HICACHE_QUOTAS": "flood=8MiB"}),
        opened(address) as quiet,
        opened(address, tenant_id="flood") as flood,
    ):
        assert [quiet.put(f"mine {i}", value) for i in range(40)] == [0] * 40
        # It makes room with its own, so only what can never fit is refused.
        assert [flood.put(f"flood {i}", value) for i in range(200)] == [0] * 200
        assert flood.put("larger than the quota", bytes(9 * MiB)) == -1700
        assert "OVER_QUOTA" in flood.last_error
        assert flood.put_batch(["a", "b"], [bytes(9 * MiB), b"b"]) == -1700
        assert [quiet.is_exist(f"mine {i}") for i in range(40)] == [1] * 40
        assert quiet.get("mine 0") == value
        assert flood.is_exist("flood 199") == 1


def test_objects_outlive_their_process(master: str) -> None:
    with Program(
        "from mooncake.store import MooncakeDistributedStore\n"
        "store = MooncakeDistributedStore()\n"
        f"master = {master!r}\n"
        "code = store.setup('localhost', 'P2PHANDSHAKE', 1 << 26, 1 << 24, 'tcp', '', master)\n"
        "assert code == 0\n"
        "assert store.put('from another', b'here') == 0\n"
        "say('done')\n"
    ) as program:
        assert program.hear() == ["done"]
    with opened(master) as store:
        assert store.get("from another") == b"here"


def test_health_tells_of_a_master_that_is_gone(folder: Path) -> None:
    with running_master(folder) as address:
        store = MooncakeDistributedStore()
        assert store.setup("localhost", "P2PHANDSHAKE", 16 * MiB, MiB, "tcp", "", address) == 0
        assert store.health_check() == 0
    assert store.health_check() == 2
    # What this machine has is served without one.
    assert (store.put("without a master", b"1"), store.get("without a master")) == (0, b"1")
    assert store.close() == 0


def test_a_client_is_shared_by_the_port_that_it_goes_by(folder: Path, master: str) -> None:
    store = MooncakeDistributedStore()
    port = free_port()
    assert store.setup_dummy(MiB, MiB, f"127.0.0.1:{port}") < 0
    assert str(port) in store.last_error
    command = [sys.executable, "-m", "mooncake_hicache.compat.store.client_command"]
    flags = [f"--port={port}", f"--master_server_address={master}", "--global_segment_size=64MB"]
    process = subprocess.Popen([*command, "--host=localhost", *flags, "--tenant_id=shared"])
    try:
        wait_for("it", lambda: store.setup_dummy(MiB, MiB, f"127.0.0.1:{port}") == 0)
        assert store.put("shared", b"1") == 0
        with opened(master, tenant_id="shared") as other:
            assert other.get("shared") == b"1"
    finally:
        process.terminate()
        assert process.wait(30) == 0
        store.close()
    assert store.setup_dummy(MiB, MiB, f"127.0.0.1:{port}") < 0


def test_each_method_has_a_coroutine(master: str) -> None:
    async def walk() -> None:
        store = MooncakeDistributedStoreAsync()
        code = await store.async_setup("localhost", "P", 16 * MiB, MiB, "tcp", "", master)
        assert code == 0
        assert await store.async_put("async", b"1") == 0
        assert await store.async_get("async") == b"1"
        with pytest.raises(AttributeError):
            await store.async_no_such()
        assert await store.async_close() == 0

    asyncio.run(walk())


def test_the_pool_is_what_all_stores_of_the_machine_ask_for() -> None:
    """As the workers of one engine do, each of which gives its part of the segment's size."""
    with (
        machine() as folder,
        running_master(folder) as master,
        opened(master, 16 * MiB) as first,
        opened(master, 16 * MiB) as second,
    ):
        value = bytes(MiB)
        assert all(second.put(f"key-{i}", value) == 0 for i in range(28))
        assert sum(first.batch_is_exist([f"key-{i}" for i in range(28)])) == 28
        assert first.get("key-27") == value


def test_a_pool_size_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine() as folder, running_master(folder) as master:
        monkeypatch.setenv("MOONCAKE_HICACHE_POOL_SIZE", "16MiB")
        with opened(master, 16 * MiB) as first, opened(master, 16 * MiB) as second:
            assert all(second.put(f"key-{i}", bytes(MiB)) == 0 for i in range(28))
            assert sum(first.batch_is_exist([f"key-{i}" for i in range(28)])) < 16
