"""What every method returns: measured with the original's wheel 0.3.13, but where it says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mooncake_hicache import UnsupportedError
from mooncake_hicache.compat import engine as module
from mooncake_hicache.compat.engine import TransferEngine, TransferNotify, TransferOpcode
from tests.compat.processes import Server, content_of

MiB = 1 << 20
NOBODY = "localhost:1"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(4 * MiB) as server:
        yield server


@pytest.fixture
def engine() -> Iterator[TransferEngine]:
    engine = TransferEngine()
    assert engine.initialize("localhost", "P2PHANDSHAKE", "tcp", "") == 0
    yield engine
    engine.close()


@pytest.fixture
def memory(engine: TransferEngine) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    memory = np.zeros(MiB, np.uint8)
    assert engine.register_memory(memory.ctypes.data, memory.nbytes) == 0
    return memory


def test_before_initialize_everything_fails_and_says_why() -> None:
    engine = TransferEngine()
    assert engine.get_rpc_port() == 0
    assert engine.get_engine() is None
    assert engine.get_notifies() == []
    assert engine.register_memory(4096, 4096) == -1
    assert engine.unregister_memory(4096) == -1
    assert engine.batch_register_memory([4096], [4096]) == -1
    assert engine.batch_unregister_memory([4096]) == -1
    assert engine.allocate_managed_buffer(4096) == 0
    assert engine.transfer_sync_write(NOBODY, 1, 2, 3) == -1
    assert engine.batch_transfer_sync_read(NOBODY, [1], [2], [3]) == -1
    assert engine.batch_transfer_async_read(NOBODY, [1], [2], [3]) == 0
    assert engine.transfer_submit_write(NOBODY, 1, 2, 3) == -1
    assert engine.transfer_check_status(1) == -1
    assert engine.get_batch_transfer_status([1]) == -1
    assert engine.get_first_buffer_address(NOBODY) == 0
    assert engine.send_probe(NOBODY) == -102
    assert engine.warmup_efa_segment(NOBODY) == -1
    assert "initialize()" in engine.last_error
    engine.close()


def test_initialize_says_what_is_wrong() -> None:
    engine = TransferEngine()
    assert engine.initialize("", "P2PHANDSHAKE", "tcp", "") == -1
    assert "local_hostname" in engine.last_error
    assert engine.initialize("localhost", "redis://localhost", "tcp", "") == -1
    assert "Redis" in engine.last_error
    assert engine.initialize("localhost", "http://127.0.0.1:1/metadata", "tcp", "") == -1
    assert "127.0.0.1:1" in engine.last_error
    assert engine.initialize_ext("localhost:7", "", "tcp", "", "p2p") == 0
    port = engine.get_rpc_port()
    assert 15000 <= port <= 17000
    assert engine.initialize("localhost", "P2PHANDSHAKE", "tcp", "") == 0  # Starts anew.
    engine.close()
    assert engine.get_rpc_port() == 0


def test_memory_that_is_registered(engine: TransferEngine) -> None:
    memory, other = np.zeros(MiB, np.uint8), np.zeros(MiB, np.uint8)
    address, size = memory.ctypes.data, memory.nbytes
    assert engine.register_memory(address, size, "cpu:0") == 0
    assert engine.register_memory(address, size) == -7
    assert engine.register_memory(address + 100, 10) == -7
    assert engine.register_memory(other.ctypes.data, 0) == -1
    assert engine.unregister_memory(12345) == -3
    assert engine.batch_register_memory([other.ctypes.data, address], [size, size]) == -7
    # None of them, so the first can be registered now.
    assert engine.batch_register_memory([other.ctypes.data], [size]) == 0
    assert engine.batch_register_memory([1, 2], [3]) == -1
    assert engine.batch_register_memory([], []) == 0
    assert engine.batch_unregister_memory([address, other.ctypes.data]) == 0
    assert engine.batch_unregister_memory([address]) == -3
    assert engine.unregister_memory(address) == -3


def test_addresses_are_integers_and_nothing_else(
    engine: TransferEngine, server: Server, memory: np.ndarray
) -> None:
    anything: Any = engine
    session, here, there = server.session, memory.ctypes.data, server.memory
    with pytest.raises(TypeError):
        anything.register_memory("here", 10)
    with pytest.raises(TypeError):
        anything.transfer_sync_write(session, 1.5, there, 3)
    with pytest.raises(TypeError):
        anything.transfer_sync_write(session, memory, there, 3)
    assert anything.transfer_sync_read(session, -1, there, 3) == -1
    assert anything.transfer_sync_read(session, np.uint64(here), there, np.int32(3)) == 0


def test_managed_buffers(engine: TransferEngine, server: Server) -> None:
    address = engine.allocate_managed_buffer(4096)
    assert address != 0
    assert engine.write_bytes_to_buffer(address, b"hello", 5) == 0
    assert engine.write_bytes_to_buffer(address + 5, " you", 4) == 0
    assert engine.read_bytes_from_buffer(address, 9) == b"hello you"
    # The original copies from and to wherever it is told.
    assert engine.write_bytes_to_buffer(address + 4095, b"hello", 5) == -1
    assert engine.write_bytes_to_buffer(address, b"hello", 6) == -1
    assert engine.read_bytes_from_buffer(address + 4090, 7) == b""
    assert engine.read_bytes_from_buffer(1 << 20, 7) == b""
    assert engine.transfer_sync_read(server.session, address, server.memory, 4096) == 0
    assert engine.read_bytes_from_buffer(address, 4096) == content_of(4096)
    assert engine.free_managed_buffer(address, 4096) == 0
    assert engine.free_managed_buffer(address, 4096) == -1  # The original: 0.
    assert engine.read_bytes_from_buffer(address, 1) == b""
    assert engine.allocate_managed_buffer(1 << 44) == 0
    empty = engine.allocate_managed_buffer(0)
    assert empty != 0
    assert engine.free_managed_buffer(empty, 0) == 0


def test_transfers_that_wait(engine: TransferEngine, server: Server, memory: np.ndarray) -> None:
    here, there = memory.ctypes.data, server.memory + MiB
    assert engine.transfer_sync_read(server.session, here, server.memory, MiB) == 0
    assert memory.tobytes() == content_of(MiB)
    memory[:] = 7
    assert engine.transfer_sync_write(server.session, here, there, MiB) == 0
    assert server.ask(f"bool((memory[{MiB}:{2 * MiB}] == 7).all())")
    assert engine.transfer_sync(server.session, here, there, 10, TransferOpcode.Read) == 0
    assert engine.transfer_sync(server.session, here, there, 10, module.Write) == 0
    assert engine.transfer_sync_write(server.session, here, there, 0) == 0
    assert engine.transfer_sync_write(server.session, here, there + (1 << 40), 10) == -1
    assert "registered" in engine.last_error
    # On both sides of the end of what is registered.
    assert engine.transfer_sync_read(server.session, here, server.memory + 4 * MiB - 1, 2) == -1
    assert engine.transfer_sync_write(NOBODY, here, there, 10) == -1
    assert engine.transfer_sync_write("nosuchhost.invalid:77", here, there, 10) == -1
    assert engine.transfer_sync_write("no address", here, there, 10) == -1
    # It still works after all that.
    assert engine.transfer_sync_write(server.session, here, there, 10, transport_hint="tcp") == 0


def test_batches_that_wait(engine: TransferEngine, server: Server, memory: np.ndarray) -> None:
    here = [memory.ctypes.data + offset for offset in range(0, MiB, 4096)]
    there = [server.memory + 4096 * index for index in reversed(range(len(here)))]
    sizes = [4096] * len(here)
    assert engine.batch_transfer_sync_read(server.session, here, there, sizes) == 0
    expected = np.frombuffer(content_of(MiB), np.uint8).reshape(-1, 4096)[::-1]
    assert np.array_equal(memory.reshape(-1, 4096), expected)
    assert engine.batch_transfer_sync_write(server.session, here, there, sizes) == 0
    assert engine.batch_transfer_sync(server.session, here, there, sizes, module.Read) == 0
    assert engine.batch_transfer_sync_write(server.session, [], [], []) == 0
    assert engine.batch_transfer_sync_write(server.session, here, there, sizes[1:]) == -1
    assert engine.batch_transfer_sync_write(server.session, here, [1] * len(here), sizes) == -1
    assert engine.batch_transfer_sync_write(NOBODY, here, there, sizes) == -1


def test_batches_that_do_not_wait(
    engine: TransferEngine, server: Server, memory: np.ndarray
) -> None:
    here, there = [memory.ctypes.data], [server.memory]
    numbers = [
        engine.batch_transfer_async_read(server.session, here, there, [MiB]),
        engine.batch_transfer_async_write(server.session, here, there, [0]),
        engine.batch_transfer_async(server.session, here, there, [10], module.Read),
    ]
    assert all(number > 0 for number in numbers)
    assert engine.get_batch_transfer_status(numbers) == 0
    assert memory.tobytes() == content_of(MiB)
    # The original crashes when one is asked for again.
    assert engine.get_batch_transfer_status(numbers) == 0
    assert engine.transfer_check_status(numbers[0]) == 1
    assert engine.get_batch_transfer_status([]) == 0
    assert engine.batch_transfer_async_read(NOBODY, here, there, [1]) == 0
    assert engine.batch_transfer_async_read(server.session, here, there, [1, 2]) == 0
    failing = engine.batch_transfer_async_read(server.session, here, [1], [10])
    # Told at once or at its end, as the engine finds it out.
    assert failing == 0 or engine.get_batch_transfer_status([failing]) == -1
    number = engine.transfer_submit_write(server.session, here[0], there[0], 100)
    assert number > 0
    assert engine.get_batch_transfer_status([number]) == 0
    assert engine.transfer_check_status(number) == 1
    # The original returns 0, and documents a negative number.
    assert engine.transfer_submit_write(NOBODY, here[0], there[0], 100) == -1


def test_numbers_that_are_no_batches_are_refused(engine: TransferEngine) -> None:
    for number in (0, 1, -1, 0xDEAD, 1 << 63, (1 << 64) - 1, 1 << 70):
        assert engine.transfer_check_status(number) == -1
        assert engine.get_batch_transfer_status([number]) == -1


def test_batches_that_nobody_asks_for_do_not_pile_up(
    engine: TransferEngine, server: Server, memory: np.ndarray
) -> None:
    number = 0
    for _ in range(6000):  # More than the engine keeps open.
        number = engine.transfer_submit_write(
            server.session, memory.ctypes.data, server.memory + 2 * MiB, 1
        )
        assert number > 0, engine.last_error
    assert engine.get_batch_transfer_status([number]) == 0


def test_messages_arrive_after_what_they_follow(
    engine: TransferEngine, server: Server, memory: np.ndarray
) -> None:
    there = server.memory + 3 * MiB
    memory[:] = 0xAB
    here, notify = memory.ctypes.data, TransferNotify("request 7", "the pages are there: é")
    assert engine.transfer_sync(server.session, here, there, MiB, module.Write, notify) == 0
    batch = ([here], [there], [10])
    again = TransferNotify("request 8", "")
    assert engine.batch_transfer_sync(server.session, *batch, module.Write, again) == 0
    told = server.ask("[(n.name, n.msg) for n in engine.get_notifies()]")
    assert told == [["request 7", "the pages are there: é"], ["request 8", ""]]
    assert server.ask(f"bool((memory[{3 * MiB}:] == 0xAB).all())")
    assert server.ask("engine.get_notifies()") == []
    # Nothing is told of a transfer that has failed.
    assert engine.transfer_sync(server.session, here, 1, 10, module.Write, notify) == -1
    assert server.ask("len(engine.get_notifies())") == 0


def test_peers_are_asked(engine: TransferEngine, server: Server) -> None:
    assert engine.send_probe(server.session) == 0
    assert engine.send_probe(NOBODY) == -102
    assert engine.send_probe("no address") == -102
    assert engine.warmup_efa_segment(server.session) == 0
    assert engine.get_first_buffer_address(server.session) == server.memory
    assert engine.get_first_buffer_address(NOBODY) == 0


def test_an_engine_is_its_own_peer(engine: TransferEngine, memory: np.ndarray) -> None:
    session = f"localhost:{engine.get_rpc_port()}"
    other = np.arange(100, dtype=np.uint8)
    here = memory.ctypes.data
    assert engine.transfer_sync_write(session, other.ctypes.data, here, 100) == 0
    assert memory[:100].tobytes() == other.tobytes()
    assert engine.get_first_buffer_address(session) == here


def test_topology_is_json(engine: TransferEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    places = json.loads(engine.get_local_topology())
    assert all(len(lists) == 2 for lists in places.values())
    assert json.loads(engine.get_local_topology("no_such_device,other"))
    assert engine.enable_topology_awareness() == 0
    assert engine.enable_intelligent_prefetching() == 0
    monkeypatch.setenv("MC_CUSTOM_TOPO_JSON", "/nowhere/at/all")
    fresh = TransferEngine()
    assert fresh.enable_topology_awareness() == 0
    assert fresh.enable_intelligent_prefetching() == 0
    assert fresh.initialize("localhost", "P2PHANDSHAKE", "tcp") == -1
    assert "/nowhere/at/all" in fresh.last_error
    monkeypatch.delenv("MC_CUSTOM_TOPO_JSON")
    assert fresh.initialize("localhost", "P2PHANDSHAKE", "tcp") == 0
    fresh.close()


def test_the_rest_of_the_module(engine: TransferEngine) -> None:
    assert isinstance(engine.get_engine(), module.InnerTransferEngine)
    with pytest.raises(UnsupportedError, match="get_engine"):
        engine.get_engine_ptr()
    assert engine.TransferOpcode is TransferOpcode
    assert (module.Read, module.Write) == (TransferOpcode.Read, TransferOpcode.Write)
    assert TransferOpcode(1).name == "Write"
    assert not module.SUPPORT_CUDA
    assert not module.SharedSegment.supported()
    for unsupported in (
        module.CoroRPCInterface,
        module.RpcInterface,
        module.SharedSegment,
        module.create_rpc_client,
        module.create_rpc_server,
        module.SharedSegment.create,
    ):
        with pytest.raises(UnsupportedError, match=r"mooncake\.engine\."):
            unsupported()


def test_a_failure_that_repeats_is_logged_once(
    engine: TransferEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            assert engine.unregister_memory(12345) == -3
    said = [record for record in caplog.records if "unregister_memory" in record.message]
    assert len(said) == 1
