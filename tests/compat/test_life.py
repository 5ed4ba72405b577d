"""Peers that die and come back, metadata servers, addresses, threads and forks."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mooncake_hicache.compat.engine import TransferEngine, TransferNotify, Write
from mooncake_hicache.compat.host_memory import allocate_host_buffer, free_host_buffer
from mooncake_hicache.compat.settings import engine_settings, split_host, transfer_timeout_ms
from mooncake_hicache.errors import InvalidArgumentError
from tests.compat.processes import Server, content_of, environment
from tests.metadata.servers import Etcd, OurServer
from tests.processes import freeze

MiB = 1 << 20
TRANSPORTS = "MOONCAKE_HICACHE_TRANSFER_TRANSPORTS"


@pytest.fixture(params=["local,tcp", "tcp"])
def transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(TRANSPORTS, request.param)
    return str(request.param)


@pytest.fixture
def engine() -> Iterator[TransferEngine]:
    engine = started("localhost")
    yield engine
    engine.close()


def started(host: str, metadata: str = "P2PHANDSHAKE") -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize(host, metadata, "tcp", "") == 0, engine.last_error
    return engine


# ---- peers that die


def test_a_peer_that_is_killed_and_comes_back_at_its_port(
    transports: str, engine: TransferEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = np.zeros(MiB, np.uint8)
    address = here.ctypes.data
    with Server() as first:
        assert engine.transfer_sync_read(first.session, address, first.memory, MiB) == 0
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        began = time.monotonic()
        assert engine.transfer_sync_read(first.session, address, first.memory, MiB) == -1
        assert engine.send_probe(first.session) == -102
        assert time.monotonic() - began < 10
    port = str(first.port)
    again = {"MC_MIN_RPC_PORT": port, "MC_MAX_RPC_PORT": port}
    with Server(extra=again) as second:
        assert second.session == first.session
        here[:] = 0
        assert engine.send_probe(second.session) == 0
        assert engine.transfer_sync_read(second.session, address, second.memory, MiB) == 0
        assert here.tobytes() == content_of(MiB)


def test_a_peer_that_dies_in_the_middle_of_a_batch(transports: str, engine: TransferEngine) -> None:
    size = 128 * MiB
    here = np.zeros(size, np.uint8)
    step = size // 32
    offsets = range(0, size, step)
    with Server(size) as server:
        where = (
            [here.ctypes.data + offset for offset in offsets],
            [server.memory + offset for offset in offsets],
            [step] * 32,
        )
        numbers = [engine.batch_transfer_async_read(server.session, *where) for _ in range(8)]
        assert all(numbers)
        server.process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        assert engine.get_batch_transfer_status(numbers) == -1
        assert time.monotonic() - began < 10
        assert -1 in {engine.transfer_check_status(number) for number in numbers}


def test_a_peer_that_hangs_is_given_up_after_the_time_of_the_environment(
    engine: TransferEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "1")  # At least 5.
    here = np.zeros(100, np.uint8)
    with Server(extra={TRANSPORTS: "tcp"}) as server:
        assert engine.transfer_sync_read(server.session, here.ctypes.data, server.memory, 9) == 0
        freeze(server.process.pid)
        try:
            began = time.monotonic()
            number = engine.transfer_submit_write(
                server.session, here.ctypes.data, server.memory, 100
            )
            assert engine.transfer_check_status(number) == 0
            assert engine.get_batch_transfer_status([number]) == -1
            assert 4.5 < time.monotonic() - began < 20
            assert engine.transfer_check_status(number) == -2
        finally:
            server.process.send_signal(signal.SIGCONT)


def test_connections_are_kept_warm(engine: TransferEngine) -> None:
    assert engine.enable_intelligent_prefetching() == 0
    with Server() as first:
        assert engine.warmup_efa_segment(first.session) == 0
        old = engine.segment_of(first.session)
        first.process.send_signal(signal.SIGKILL)
    port = str(first.port)
    with Server(extra={"MC_MIN_RPC_PORT": port, "MC_MAX_RPC_PORT": port}) as second:
        # The newcomer is connected to though nobody asks for it here.
        deadline = time.monotonic() + 30
        while not second.ask("engine.get_engine().stats()['control']['connections']"):
            assert time.monotonic() < deadline
        assert engine.segment_of(second.session) is not old


# ---- metadata


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[OurServer]:
    server = OurServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ["http_server", "etcd"])
def test_names_at_a_metadata_server(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind)
    here = np.zeros(1000, np.uint8)
    with Server(host="localhost:12345", metadata=found.where) as server:
        engine = TransferEngine()
        where = found.where.partition("://")[2] if kind == "etcd" else found.where
        assert engine.initialize_ext("localhost:12346", where, "tcp", "", kind[:4]) == 0, (
            engine.last_error
        )
        name = "localhost:12345"
        assert engine.transfer_sync_read(name, here.ctypes.data, server.memory, 1000) == 0
        assert here.tobytes() == content_of(1000)
        assert engine.get_first_buffer_address(name) == server.memory
        assert engine.send_probe("nobody") == -102
        assert "nobody" in engine.last_error
        engine.close()


def test_a_name_is_taken_over_by_a_restarted_peer(http_server: OurServer) -> None:
    here = np.zeros(1000, np.uint8)
    engine = started("client", http_server.where)
    for size in (2000, 4000):
        with Server(size, host="localhost:1", metadata=http_server.where) as server:
            code = engine.transfer_sync_read(
                "localhost:1", here.ctypes.data, server.memory + size - 1000, 1000
            )
            assert code == 0, engine.last_error
            assert here.tobytes() == content_of(size)[-1000:]
    engine.close()


# ---- addresses


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    here = np.zeros(1000, np.uint8)
    engine = started("::1")
    for host in ("::1", "[::1]:9"):
        with Server(host=host) as server:
            session = f"[::1]:{server.port}"
            assert engine.transfer_sync_read(session, here.ctypes.data, server.memory, 1000) == 0
            assert here.tobytes() == content_of(1000)
    engine.close()


def test_where_an_engine_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_host("node7:12345") == "node7"
    assert split_host("fd00::7") == "fd00::7"
    assert split_host("[fd00::7]:12345") == "fd00::7"
    with pytest.raises(InvalidArgumentError):
        split_host(":12345")
    assert engine_settings("localhost:1", "tcp", "", {}).host == "localhost"
    assert engine_settings("127.0.0.1", "tcp", "", {}).host == "127.0.0.1"
    # No address of this machine: peers may reach it through a translation.
    far = engine_settings("192.0.2.1", "tcp", "", {})
    assert (far.host, far.public_host) == ("0.0.0.0", "192.0.2.1")
    assert far.notices
    assert engine_settings("2001:db8::1", "tcp", "", {}).host == "::"
    assert engine_settings("x", "tcp", "", {"MC_TCP_BIND_ADDRESS": "10.0.0.7"}).host == "10.0.0.7"
    # A name that only this machine looks up as loopback is of no use to others.
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))],
    )
    assert engine_settings("node7", "tcp", "", {}).host == "0.0.0.0"


def test_what_the_environment_of_the_original_means() -> None:
    assert engine_settings("::1", "rdma", "mlx5_0, mlx5_1", {}).rdma_devices == "mlx5_0,mlx5_1"
    assert engine_settings("::1", "rdma", "", {}).transports == "local,rdma,tcp"
    assert engine_settings("::1", "rdma", "x", {"MC_FORCE_TCP": "1"}).transports == "local,tcp"
    assert engine_settings("::1", "rdma", "x", {"MC_FORCE_TCP": "1"}).rdma_devices == ""
    assert engine_settings("::1", "tcp", "", {TRANSPORTS: "tcp"}).transports == "tcp"
    assert "efa" in engine_settings("::1", "efa", "", {}).notices[0]
    assert engine_settings("::1", "shm", "", {}).transports == "local,tcp"
    for between_gpus in ("nvlink", "nvlink_intra", "hip"):
        with pytest.raises(InvalidArgumentError, match=between_gpus):
            engine_settings("::1", between_gpus, "", {})
    ports = {"MC_MIN_RPC_PORT": "20000", "MC_MAX_RPC_PORT": "20010"}
    assert engine_settings("::1", "tcp", "", ports).ports == "20000-20010"
    with pytest.raises(InvalidArgumentError, match="MC_MIN_RPC_PORT"):
        engine_settings("::1", "tcp", "", {"MC_MIN_RPC_PORT": "many"})
    assert transfer_timeout_ms(0, {}) == 30_000
    assert transfer_timeout_ms(10**9, {"MC_TRANSFER_TIMEOUT": "2"}) == 6000


# ---- threads and forks


def test_many_threads_that_begin_at_once(transports: str) -> None:
    engine = started("localhost")
    count, size = 16, 64 * 1024
    here = np.zeros(count * size, np.uint8)
    wrong: list[str] = []
    gate = threading.Barrier(count)
    with Server(count * size) as server:

        def work(index: int) -> None:
            offset = index * size
            there, local = server.memory + offset, here.ctypes.data + offset
            gate.wait()  # All of them open the peer in the same moment.
            for turn in range(20):
                here[offset : offset + size] = index + turn
                note = TransferNotify(str(index), str(turn))
                if engine.transfer_sync(server.session, local, there, size, Write, note) != 0:
                    wrong.append(engine.last_error)
                number = engine.batch_transfer_async_read(server.session, [local], [there], [size])
                here[offset : offset + size] = 0
                if engine.get_batch_transfer_status([number]) != 0:
                    wrong.append(engine.last_error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        expected = np.repeat(np.arange(count) + 19, size).astype(np.uint8).tobytes()
        assert server.content() == expected
        told = server.ask("[(n.name, n.msg) for n in engine.get_notifies()]")
        for index in range(count):
            assert [m for n, m in told if n == str(index)] == [str(turn) for turn in range(20)]
    engine.close()


def test_a_forked_child_makes_its_own() -> None:
    code = """
import os, sys
import numpy as np
from mooncake.engine import TransferEngine
memory = np.zeros(4096, np.uint8)
engine = TransferEngine()
assert engine.initialize("localhost", "P2PHANDSHAKE", "tcp", "") == 0
assert engine.register_memory(memory.ctypes.data, 4096) == 0
session = f"localhost:{engine.get_rpc_port()}"
child = os.fork()
if child == 0:
    assert engine.transfer_sync_write(session, memory.ctypes.data, memory.ctypes.data, 1) == -1
    assert "fork" in engine.last_error, engine.last_error
    assert engine.get_notifies() == []
    own = TransferEngine()
    assert own.initialize("localhost", "P2PHANDSHAKE", "tcp", "") == 0
    ones = np.ones(4096, np.uint8)
    assert own.transfer_sync_write(session, ones.ctypes.data, memory.ctypes.data, 4096) == 0
    own.close()
    engine.close()
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert memory.min() == 1
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60, check=False)
    assert done.returncode == 7


def test_a_forked_child_does_not_withdraw_its_parents_name(http_server: OurServer) -> None:
    code = """
import gc, os, sys
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("localhost:1", sys.argv[1], "tcp", "") == 0, engine.last_error
child = os.fork()
if child == 0:
    engine.close()
    del engine
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
other = TransferEngine()
assert other.initialize("localhost:2", sys.argv[1], "tcp", "") == 0
assert other.send_probe("localhost:1") == 0, other.last_error
"""
    command = [sys.executable, "-c", code, http_server.where]
    assert subprocess.run(command, env=environment(), timeout=60, check=False).returncode == 0


def test_a_program_that_closes_nothing_ends_and_its_name_with_it(http_server: OurServer) -> None:
    code = """
import sys
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("localhost:1", sys.argv[1], "tcp", "") == 0, engine.last_error
assert engine.enable_intelligent_prefetching() == 0
"""
    command = [sys.executable, "-c", code, http_server.where]
    assert subprocess.run(command, env=environment(), timeout=60, check=False).returncode == 0
    engine = started("localhost:2", http_server.where)
    assert engine.send_probe("localhost:1") == -102
    assert "localhost:1" in engine.last_error
    engine.close()


def test_an_engine_that_is_dropped_ends_by_itself() -> None:
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    engine = started("localhost")
    assert set(tasks.iterdir()) - before
    del engine
    deadline = time.monotonic() + 10
    while set(tasks.iterdir()) - before:
        assert time.monotonic() < deadline, "threads are left"


def test_host_buffers_live_until_they_are_freed() -> None:
    address = allocate_host_buffer(4 << 20)
    assert address != 0
    assert ctypes.string_at(address, 4 << 20) == bytes(4 << 20)
    ctypes.memset(address, 1, 4 << 20)
    other = allocate_host_buffer(1)
    assert other not in (0, address)
    for freed in (address, other, 0, address):
        free_host_buffer(freed)
    assert [allocate_host_buffer(size) for size in (0, -1, 1 << 60)] == [0, 0, 0]
