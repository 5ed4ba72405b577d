"""Two real processes: bytes, batches, and what happens when the peer dies or hangs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooncake_hicache import (
    AlreadyExistsError,
    BusyError,
    ClosedError,
    InvalidArgumentError,
    NotFoundError,
    TimeoutError_,
    TransferEngine,
    UnavailableError,
)
from mooncake_hicache.config import TransferOptions
from tests.processes import freeze
from tests.transfer.peer import Peer, content_of, digest_of

MiB = 1 << 20
TLS_OPTIONS = ["tls_certificate", "tls_key", "tls_authority"]
TRANSPORTS = ["tcp", "local,tcp"]


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("kind", ["plain", "allocated"])
def test_bytes_come_and_go(transports: str, kind: str) -> None:
    with (
        Peer(transports, 8 * MiB, kind) as peer,
        TransferEngine(transports=transports) as engine,
        engine.open(peer.address) as segment,
    ):
        here = np.zeros(8 * MiB, np.uint8)
        segment.read(here, peer.memory)
        assert here.tobytes() == peer.content()
        mine = content_of(7, 8 * MiB)
        segment.write(mine, peer.memory)
        assert peer.ask("sum") == digest_of(mine.tobytes())
        part = bytearray(1000)
        segment.read(part, peer.memory + 4321)
        assert part == mine[4321:5321].tobytes()


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_batches_of_arrays_and_lists(transports: str) -> None:
    with (
        Peer(transports, 4 * MiB) as peer,
        TransferEngine(transports=transports) as engine,
        engine.open(peer.address) as segment,
    ):
        here = np.zeros(4 * MiB, np.uint8)
        size = 4096
        # Page i of here is page n-1-i of the peer's.
        local = here.ctypes.data + np.arange(1024, dtype=np.uint64) * np.uint64(size)
        remote = peer.memory + np.arange(1023, -1, -1, dtype=np.uint64) * np.uint64(size)
        sizes = np.full(1024, size, np.uint64)
        segment.read_batch(local, remote, sizes)
        expected = np.frombuffer(peer.content(), np.uint8).reshape(1024, size)[::-1]
        assert np.array_equal(here.reshape(1024, size), expected)
        here[:] = 0
        batch = segment.submit_read(local.tolist(), remote.tolist(), sizes.tolist(), keep=here)
        with batch:
            assert batch.wait()
            assert batch.poll()
            assert batch.bytes_done == 4 * MiB
        assert batch.bytes_done == 4 * MiB
        assert np.array_equal(here.reshape(1024, size), expected)
        with pytest.raises(NotFoundError):
            batch.wait()
        batch.release()
        with pytest.raises(InvalidArgumentError, match="as many of each"):
            segment.read_batch([1], [2, 3], [4])


def test_what_is_not_registered_cannot_be_touched() -> None:
    with (
        Peer("tcp", MiB, "read_only") as peer,
        TransferEngine(transports="tcp") as engine,
        engine.open(peer.address) as segment,
    ):
        here = bytearray(100)
        with pytest.raises(InvalidArgumentError, match="no memory that it has registered"):
            segment.read(here, peer.memory + MiB - 99)
        with pytest.raises(InvalidArgumentError, match="for reading only"):
            segment.write(here, peer.memory)
        segment.read(here, peer.memory)
        assert here == peer.content()[:100]
        described = segment.describe()
        (buffer,) = described["buffers"]
        assert (buffer["address"], buffer["size"]) == (peer.memory, MiB)
        assert (buffer["location"], buffer["writable"]) == ("*", False)


def test_bogus_numbers_are_refused() -> None:
    with Peer() as peer, TransferEngine(transports="tcp") as engine:
        engine.open(peer.address)
        core = engine._core
        for bogus in (0, 1, 2**32, 2**63, 2**64 - 1):
            for call in (core.poll, core.release, lambda n: core.wait(n, 10)):
                with pytest.raises(NotFoundError):
                    call(bogus)
            with pytest.raises(NotFoundError):
                core.transfer_one(bogus, False, 4096, 4096, 1, False, 100)
        with pytest.raises(InvalidArgumentError):
            engine.open("nowhere")
        with pytest.raises(UnavailableError, match="127.0.0.1"):
            engine.open("127.0.0.1:1", timeout_ms=2000)


def test_registration_is_checked() -> None:
    with TransferEngine(transports="tcp") as engine:
        memory = np.zeros(MiB, np.uint8)
        address = engine.register(memory)
        assert address == memory.ctypes.data
        with pytest.raises(AlreadyExistsError):
            engine.register(memory[100:200])
        engine.unregister(memory)
        with pytest.raises(NotFoundError):
            engine.unregister(address)
        with pytest.raises(InvalidArgumentError):
            engine.register(b"cannot be written to")
        engine.register(b"but read", writable=False)


def test_strangers_are_refused() -> None:
    with (
        Peer() as peer,
        TransferEngine(transports="tcp", secret="another") as engine,
        pytest.raises(UnavailableError, match="secret"),
    ):
        engine.open(peer.address)


def test_notices_and_probes() -> None:
    with (
        Peer() as peer,
        TransferEngine(transports="tcp", name="sender") as engine,
        engine.open(peer.address) as segment,
    ):
        segment.probe()
        segment.notify("done", "page 7 ü")
        assert json.loads(peer.ask("notices")) == [["sender", "done", "page 7 ü"]]


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_a_peer_killed_in_mid_batch_ends_it_within_a_second(transports: str) -> None:
    size = 256 * MiB
    with (
        Peer(transports, size) as peer,
        TransferEngine(transports=transports) as engine,
        engine.open(peer.address) as segment,
    ):
        here = np.zeros(size, np.uint8)
        requests = 64
        step = size // requests
        offsets = np.arange(requests, dtype=np.uint64) * np.uint64(step)
        batches = [
            segment.submit_read(
                here.ctypes.data + offsets, peer.memory + offsets, [step] * requests, keep=here
            )
            for _ in range(8)
        ]
        peer.process.send_signal(signal.SIGKILL)
        start = time.monotonic()
        for batch in batches:
            with contextlib.suppress(UnavailableError):
                assert batch.wait(timeout_ms=10_000)
        took = time.monotonic() - start
        failed = sum(batch.bytes_done < size for batch in batches)
        for batch in batches:
            batch.release()
        assert failed, "all was over before the peer was dead: make the batches larger"
        assert took < 8  # Not until the deadline of its batches.
        with pytest.raises(UnavailableError, match="open it again"):
            segment.read(bytearray(10), peer.memory)
        before = digest_of(here.tobytes())
        here_again = threading.Event()
        here_again.wait(0.3)
        assert digest_of(here.tobytes()) == before, "memory was touched after its batches"


def test_a_hung_peer_is_given_up_at_the_deadline_and_touches_nothing_later() -> None:
    with (
        Peer("tcp", 64 * MiB) as peer,
        TransferEngine(transports="tcp") as engine,
        engine.open(peer.address) as segment,
    ):
        here = np.full(64 * MiB, 0xEE, np.uint8)
        segment.read(bytearray(10), peer.memory)
        freeze(peer.process.pid)
        try:
            start = time.monotonic()
            with pytest.raises(TimeoutError_):
                segment.read(here, peer.memory, timeout_ms=500)
            took = time.monotonic() - start
            before = digest_of(here.tobytes())
        finally:
            os.kill(peer.process.pid, signal.SIGCONT)
        assert 0.45 < took < 10
        # It lives, and what it still had to send must not arrive in memory that was given up.
        small = bytearray(1000)
        deadline = time.monotonic() + 10
        while True:
            try:
                segment.read(small, peer.memory, timeout_ms=1000)
                break
            except (TimeoutError_, UnavailableError):
                assert time.monotonic() < deadline
        assert small == peer.content()[:1000]
        assert digest_of(here.tobytes()) == before


def test_many_threads_share_a_segment() -> None:
    with (
        Peer("tcp", 4 * MiB) as peer,
        TransferEngine(transports="tcp") as engine,
        engine.open(peer.address) as segment,
    ):
        content = peer.content()
        wrong: list[str] = []

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(100):
                size = int(random.integers(1, 20_000))
                offset = int(random.integers(0, 4 * MiB - size))
                here = bytearray(size)
                segment.read(here, peer.memory + offset)
                if here != content[offset : offset + size]:
                    wrong.append(f"{size} bytes at {offset}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_limits_are_told_as_busy() -> None:
    with (
        Peer() as peer,
        TransferEngine(transports="tcp", batches_max=2, requests_max=10) as engine,
        engine.open(peer.address) as segment,
    ):
        here = np.zeros(100, np.uint8)
        with pytest.raises(BusyError):
            segment.read_batch([here.ctypes.data] * 11, [peer.memory] * 11, [1] * 11)
        batches = [segment.submit_read([here.ctypes.data], [peer.memory], [100]) for _ in "ab"]
        with pytest.raises(BusyError):
            segment.read(here, peer.memory)
        del batches
        gc.collect()
        segment.read(here, peer.memory)
        assert here.tobytes() == peer.content()[:100]


def test_a_closed_engine_says_so() -> None:
    with Peer() as peer:
        engine = TransferEngine(transports="tcp")
        segment = engine.open(peer.address)
        memory = engine.allocate(4096)
        batch = segment.submit_read([memory.ctypes.data], [peer.memory], [4096])
        engine.close()
        engine.close()
        with pytest.raises(ClosedError):
            segment.read(bytearray(1), peer.memory)
        with pytest.raises(ClosedError):
            batch.poll()
        batch.release()
        segment.close()
        memory[:] = 1  # Still there, though the engine has ended.


@pytest.mark.parametrize("transports", ["tcp", "local"])
def test_whoever_finds_an_engine_closed_has_no_byte_in_flight(transports: str) -> None:
    size, requests = 64 * MiB, 64
    step = size // requests
    offsets = np.arange(requests, dtype=np.uint64) * np.uint64(step)
    with Peer(transports, size) as peer:
        for _ in range(8):
            engine = TransferEngine(transports=transports)
            segment = engine.open(peer.address)
            here = np.full(size, 0xEE, np.uint8)
            batch = segment.submit_read(
                here.ctypes.data + offsets, peer.memory + offsets, [step] * requests, keep=here
            )
            closing = threading.Thread(target=engine.close)
            closing.start()
            while "closed" not in repr(engine):
                pass
            batch.release()
            seen = here[::1024].copy()
            closing.join()
            with Peer("tcp"):  # Takes longer than what would still be on its way.
                assert np.array_equal(here[::1024], seen), "bytes came after release()"


def test_the_secret_is_shown_to_nobody() -> None:
    options = TransferOptions(secret="hunter2hunter2", transports="tcp")
    shown = [repr(options), str(options), repr(options.replaced(name="other"))]
    with TransferEngine(options) as engine:
        shown += [repr(engine), str(engine.stats()), repr(engine.options)]
    assert not [text for text in shown if "hunter2" in text]


def test_tls_without_a_secret_is_refused(tmp_path: Path) -> None:
    files: dict[str, Any] = {name: tmp_path / name for name in TLS_OPTIONS}
    with pytest.raises(InvalidArgumentError, match="set the option secret"):
        TransferEngine(transports="tcp", secret="none", **files)


def test_a_forked_child_is_told_to_start_its_own() -> None:
    code = (
        "import os, sys\n"
        "from mooncake_hicache import TransferEngine, ClosedError\n"
        "engine = TransferEngine(transports='tcp')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        engine.stats()\n"
        "    except ClosedError as error:\n"
        "        sys.exit(7 if 'fork' in str(error) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 7


def test_a_hundred_idle_peers_cost_no_cpu() -> None:
    with TransferEngine(transports="tcp") as hub:
        engines = [TransferEngine(transports="tcp", tcp_lanes=1) for _ in range(100)]
        segments = [hub.open(engine.address) for engine in engines]
        for segment in segments:
            segment.probe()
        before = time.process_time()
        start = time.monotonic()
        threading.Event().wait(3)
        used = (time.process_time() - before) / (time.monotonic() - start)
        for engine in engines:
            engine.close()
        assert used < 0.01, f"{used:.2%} of a core, by both ends of 100 connections"
