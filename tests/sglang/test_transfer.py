"""Batches of any size are moved in bounded time."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("sglang")

from mooncake_hicache._core import Code
from mooncake_hicache.sglang import adapter
from mooncake_hicache.sglang.pools import Pool, Share
from mooncake_hicache.sglang.settings import STORE_CALL_MAX_MS
from mooncake_hicache.sglang.stats import TrafficLog
from mooncake_hicache.sglang.transfer import Budget, Mover
from tests.sglang import host_pools
from tests.sglang.backends import config, fill, keys, open_backend, page_bytes, slots


class SlowNamespace:
    """Answers after a while, and remembers how many pages each call was for."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.calls = []

    def answer(self, names, *_args, **_kwargs):
        self.calls.append(len(names))
        time.sleep(self.seconds)
        return np.full(len(names), Code.OK, dtype=np.uint8)

    lookup = get_into_addresses = put_from = answer


class Connected:
    is_connected = True


def pool_of(namespace, page_size=1024, shares=1, pages=512):
    class FixedPool(Pool):
        def ranges(self, host_indices, page_count):
            sizes = np.full(shares, page_size // shares, dtype=np.uint64)
            return np.zeros((page_count, shares), dtype=np.uint64), sizes

    parts = tuple(Share(namespace, i, shares, {}) for i in range(shares))
    return FixedPool("kv", None, 1, None, parts)


def write(pool, count, budget):
    mover = Mover(Connected(), TrafficLog(False))
    return mover.write(pool, keys(count), None, budget, parent=None, chained=True)


def read(pool, count, budget):
    return Mover(Connected(), TrafficLog(False)).read(pool, keys(count), None, budget)


@pytest.mark.parametrize("move", [read, write])
def test_calls_are_bounded_in_pages_and_bytes(move):
    for page_size, expected in ((1024, 128), (64 << 20, 4), (1 << 30, 1)):
        namespace = SlowNamespace()
        assert move(pool_of(namespace, page_size), 200, Budget()) == [True] * 200
        assert max(namespace.calls) == expected
        assert sum(namespace.calls) == 200


@pytest.mark.parametrize("move", [read, write])
def test_budget_is_looked_at_between_pieces_and_between_objects(move):
    namespace = SlowNamespace(0.05)
    done = move(pool_of(namespace, 1 << 30), 20, Budget(0.12))
    assert True in done and not done[-1] and len(namespace.calls) <= 4
    namespace = SlowNamespace(0.05)
    assert move(pool_of(namespace, 1 << 30, shares=8), 4, Budget(0.12)) == [False] * 4
    assert len(namespace.calls) <= 4


def test_look_ups_end_with_the_budget():
    mover = Mover(Connected(), TrafficLog(False))
    namespace = SlowNamespace(0.05)
    pool = pool_of(namespace, shares=8)
    assert mover.prefix_length(pool, keys(4), Budget(0.12), lease=True) == 0
    assert not mover.found(pool, keys(4), Budget(0.12), lease=True).any()
    assert len(namespace.calls) <= 8


def test_budget_and_the_last_call_end_within_five_seconds():
    assert Budget().left_s() + STORE_CALL_MAX_MS / 1000 < 5


def test_all_pools_of_an_engine_share_the_time_for_first_writes(monkeypatch):
    given = []

    def write_each_page(_address, _size, _threads, left_ms):
        given.append(left_ms)
        time.sleep(0.05)

    monkeypatch.setattr(adapter, "_WRITE_FIRST_S", 0.12)
    monkeypatch.setattr(adapter._core, "write_each_page", write_each_page)
    pools = {name: host_pools.mha() for name in ("a", "b", "c", "d", "e", "f")}
    backend = open_backend(host_pools.mha(), config(), side=pools)
    backend.close()
    assert 2 <= len(given) <= 3
    assert given == sorted(given, reverse=True)


def test_more_keys_than_one_message_holds():
    host = host_pools.mha(tokens=256, page=1)
    backend = open_backend(host, config())
    try:
        names = keys(70_000)
        fill(host, 1)
        expected = page_bytes(host, range(256))
        assert all(backend.batch_set_v1(names[:256], slots(host, range(256))))
        assert backend.batch_exists(names) == 256
        last = [*keys(69_744, "other"), *names[:256]]
        assert backend.batch_exists(last) == 0
        serving = backend.serving()
        found = serving.mover.found(serving.anchor, last, Budget(), lease=False)
        assert found[-256:].all() and not found[:-256].any()
        fill(host, 2)
        assert all(backend.batch_get_v1(names[:256], slots(host, range(256))))
        assert page_bytes(host, range(256)) == expected
    finally:
        backend.close()
