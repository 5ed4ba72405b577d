"""Names, sizes, generations and arguments: what the store does when nothing goes wrong."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mooncake_hicache import (
    AlreadyExistsError,
    ClosedError,
    InvalidArgumentError,
    NotFoundError,
    TransferEngine,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.p2p import P2PStore
from mooncake_hicache.p2p.memory import Layout, layout_of, overlay
from mooncake_hicache.p2p.records import PIECES_MAX, SIZE_MAX, piece_size_for
from tests.metadata.servers import Etcd, OurServer, free_port
from tests.p2p.peer import content_of

KiB, MiB = 1 << 10, 1 << 20


@pytest.fixture
def pair(etcd: Etcd) -> Iterator[tuple[P2PStore, P2PStore]]:
    with P2PStore(etcd.where, transports="tcp") as one, P2PStore(etcd.where) as other:
        yield one, other


@pytest.mark.parametrize("size", [0, 1, 63, 4095, 4096, 4097, 3 * 4096, 100_001, 9 * MiB + 7])
def test_bytes_of_any_size_arrive(pair: tuple[P2PStore, P2PStore], size: int) -> None:
    source, reader = pair
    content = content_of(size, size)
    seen: list[tuple[int, int]] = []
    source.register(f"size {size}", content, piece_size=4096 if size < MiB else MiB)
    replica = reader.get_replica(f"size {size}", progress=lambda *told: seen.append(told))
    assert replica.array is not None
    assert replica.array.tobytes() == content.tobytes()
    assert replica.is_shared
    assert sum(replica.bytes_by_source.values()) == size == replica.size_bytes
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
    described = source.describe(f"size {size}")
    assert (described.whole_count, described.partial_count) == (2, 0)
    assert described.size_bytes == size


def test_overlays_of_random_layouts_match_plain_slices() -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        size = int(random.integers(1, 3000))
        here, there = (_random_layout(random, size) for _ in range(2))
        for _ in range(5):
            start, end = sorted(int(n) for n in random.integers(0, size + 1, 2))
            places = overlay(here[0], there[0], start, end)
            want = list(zip(here[1][start:end], there[1][start:end], strict=True))
            pairs = [
                (local + i, remote + i)
                for local, remote, length in zip(*places, strict=True)
                for i in range(length)
            ]
            assert pairs == want


def _random_layout(random: np.random.Generator, size: int) -> tuple[Layout, list[int]]:
    """A layout of so many bytes, and the address of each of them."""
    cuts = sorted({0, size, *(int(n) for n in random.integers(0, size + 1, 5))})
    lengths = [b - a for a, b in itertools.pairwise(cuts)]
    spans, address = [], 1000
    for length in lengths:
        spans.append((address, length))
        address += length + int(random.integers(0, 3))
    random.shuffle(spans)
    return Layout(spans), [a + i for a, length in spans for i in range(length)]


def test_lists_of_buffers_go_into_lists_of_buffers(pair: tuple[P2PStore, P2PStore]) -> None:
    source, reader = pair
    parts: list[Any] = [b"abc", content_of(1, 70_000), b"", np.arange(1000, dtype=np.float64)]
    whole = b"".join(memoryview(part).cast("B").tobytes() for part in parts)
    source.register("parts", parts, piece_size=4096)
    into = [bytearray(50_000), bytearray(1), np.zeros(len(whole) - 50_001, np.uint8)]
    replica = reader.get_replica("parts", into)
    assert replica.array is None
    assert b"".join(bytes(one) for one in into) == whole
    # The reader alone is enough from now on, with its other cuts.
    source.unregister("parts")
    again = source.get_replica("parts").array
    assert again is not None
    assert again.tobytes() == whole


def test_a_name_is_not_taken_by_accident(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    first = one.register("taken", b"one")
    with pytest.raises(AlreadyExistsError, match="replace=True"):
        other.register("taken", b"two")
    with pytest.raises(AlreadyExistsError):
        one.register("taken", b"longer")
    # The same bytes are one more source.
    joined = other.register("taken", b"one")
    assert (joined.generation, joined.whole_count) == (first.generation, 2)


def test_a_name_that_is_replaced_is_so_for_everybody(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    first = one.register("w", b"one")
    assert other.get_replica("w").generation == first.generation
    second = other.register("w", b"three", replace=True)
    assert second.generation > first.generation
    assert second.whole_count == 1
    replica = one.get_replica("w")
    assert replica.array is not None
    assert replica.array.tobytes() == b"three"
    with pytest.raises(NotFoundError, match="was asked for"):
        one.get_replica("w", generation=first.generation)
    # The first one's memory is free of it, and may be used for the second.
    assert one.describe("w").whole_count == 2
    third = one.register("w", b"three", replace=True)
    assert third.generation == second.generation, "the same bytes are no other generation"


def test_only_one_of_many_begins_a_name(etcd: Etcd) -> None:
    stores = [P2PStore(etcd.where, transports="tcp") for _ in range(4)]
    outcomes: list[str] = []
    start = threading.Barrier(len(stores))

    def register(store: P2PStore, content: bytes) -> None:
        start.wait()
        try:
            store.register("race", content)
            outcomes.append("done")
        except AlreadyExistsError:
            outcomes.append("there")

    threads = [
        threading.Thread(target=register, args=(store, b"%d" % number))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["done", "there", "there", "there"]
    assert stores[0].describe("race").whole_count == 1
    for store in stores:
        store.close()


def test_lists_are_by_prefix(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    names = ["p/a", "p/ä b", "p/%2F", "p", "p/a/0000000000000001/x", "q"]
    for name in names:
        one.register(name, name.encode())
    other.get_replica("p/a")
    assert [found.name for found in other.list("p/")] == sorted(n for n in names if n[:2] == "p/")
    assert {found.name for found in one.list()} >= set(names)
    assert [found.whole_count for found in one.list("p/a")] == [2, 1]
    assert one.list("p/nothing") == []
    for name in names:
        got = other.get_replica(name).array
        assert got is not None
        assert got.tobytes() == name.encode()


def test_the_end_of_a_store_leaves_nothing(etcd: Etcd) -> None:
    with P2PStore(etcd.where) as watcher:
        with P2PStore(etcd.where, transports="tcp") as store:
            store.register("short", b"lived")
            assert watcher.list("short")
            store.unregister("short")
            assert not watcher.list("short")
            with pytest.raises(NotFoundError):
                store.unregister("short")
            store.register("short", b"lived")
        assert not watcher.list("short")
        with pytest.raises(ClosedError):
            store.list()
        store.close()
        with pytest.raises(NotFoundError, match="nobody has short"):
            watcher.get_replica("short")


def test_memory_is_watched(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    memory = bytearray(b"x" * 10_000)
    one.register("mine", memory)
    one.register("mine too", memory)  # The same memory under two names.
    with pytest.raises(AlreadyExistsError):
        one.register("part of it", memoryview(memory)[100:200])
    one.unregister("mine")
    assert other.get_replica("mine too").size_bytes == len(memory)
    other.register("yours", content_of(3, 10_000))
    with pytest.raises(InvalidArgumentError, match="is that of mine too"):
        one.get_replica("yours", memory)
    one.unregister("mine too")
    one.get_replica("yours", memory)
    assert memory == content_of(3, 10_000).tobytes()
    # Fetched into the same memory again it is only looked at; changed, it is fetched.
    assert one.get_replica("yours", memory).bytes_by_source == {}
    memory[77] ^= 1
    assert one.get_replica("yours", memory).bytes_by_source == {other.engine.address: 10_000}
    assert memory == content_of(3, 10_000).tobytes()


def test_a_reader_need_not_share(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    one.register("alone", content_of(1, 100_000), piece_size=4096)
    assert not other.get_replica("alone", share=False).is_shared
    assert one.describe("alone").owners == one.describe("alone").owners[:1]
    with pytest.raises(NotFoundError):
        other.unregister("alone")


def test_an_engine_of_the_caller_stays(etcd: Etcd) -> None:
    with TransferEngine(transports="tcp") as engine, P2PStore(etcd.where) as reader:
        with P2PStore(etcd.where, engine=engine) as store:
            store.register("lent", b"bytes")
            assert reader.get_replica("lent").bytes_by_source == {engine.address: 5}
        assert engine.register(bytearray(100))
        with pytest.raises(InvalidArgumentError, match="options"):
            P2PStore(etcd.where, engine=engine, host="127.0.0.1")


def test_arguments_are_checked(pair: tuple[P2PStore, P2PStore]) -> None:
    one, other = pair
    for name in ("", " x", "a\nb", "x" * 256):
        with pytest.raises(InvalidArgumentError, match="the name"):
            one.register(name, b"x")
    with pytest.raises(InvalidArgumentError, match="at least 4096"):
        one.register("n", b"x", piece_size=1)
    with pytest.raises(InvalidArgumentError, match="larger piece size"):
        one.register("n", np.zeros(4096 * (PIECES_MAX + 1), np.uint8), piece_size=4096)
    with pytest.raises(InvalidArgumentError, match="1025 buffers"):
        one.register("n", [bytearray(1) for _ in range(1025)])
    with pytest.raises(InvalidArgumentError, match="no buffer"):
        one.register("n", [[b"x"]])
    one.register("n", b"12345")
    with pytest.raises(InvalidArgumentError, match="has 5 bytes"):
        other.get_replica("n", bytearray(6))
    with pytest.raises(InvalidArgumentError, match="read-only"):
        other.get_replica("n", b"12345")
    other.register("many", b"x" * 1025)
    into = [bytearray(1) for _ in range(1025)]
    with pytest.raises(InvalidArgumentError, match="share=False"):
        one.get_replica("many", into)
    one.get_replica("many", into, share=False)
    assert b"".join(into) == b"x" * 1025
    shared = bytearray(5)
    with pytest.raises(InvalidArgumentError, match="overlap"):
        other.get_replica("n", [memoryview(shared)[:3], memoryview(shared)[2:4]])
    with pytest.raises(InvalidArgumentError, match="milliseconds"):
        other.get_replica("n", timeout_ms=-1)


def test_pieces_grow_with_what_they_are_of() -> None:
    for size in (0, 1, 4 * MiB, 16 << 30, (16 << 30) + 1, 1 << 40, SIZE_MAX):
        piece_size = piece_size_for(size)
        assert -(-size // piece_size) <= PIECES_MAX
        assert piece_size == 4 * MiB or -(-size // (piece_size // 2)) > PIECES_MAX
    assert layout_of([b"", b""], writable=False).size_bytes == 0


def test_only_etcd_can_keep_the_catalogue(http_where: str) -> None:
    for where in (http_where, "P2PHANDSHAKE", "redis://127.0.0.1:6379"):
        with pytest.raises(UnsupportedError, match="etcd 3.4"):
            P2PStore(where)
    with pytest.raises(InvalidArgumentError, match="no etcd"):
        P2PStore("ftp://127.0.0.1")
    port = free_port()
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: Connection refused"):
        P2PStore(f"etcd://127.0.0.1:{port}")


@pytest.fixture
def http_where(tmp_path: Any) -> Iterator[str]:
    server = OurServer(tmp_path)
    yield server.where
    server.stop()
