"""The storage contract of SGLang, on its real host pools and a real node."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("sglang")

import torch

from tests.processes import freeze
from tests.sglang import host_pools
from tests.sglang.backends import (
    HiCacheStorageExtraInfo,
    config,
    fill,
    keys,
    open_backend,
    page_bytes,
    slots,
    until,
)

IN_PROCESS = {"mooncake_hicache": {"in_process": True, "pool_size": "16MiB"}}


@pytest.fixture
def opened():
    """Opens backends that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_and_close_later(*args, **kwargs):
            backend = open_backend(*args, **kwargs)
            stack.callback(backend.close)
            return backend

        yield open_and_close_later


def stored(backend, host, count=4, seed=0):
    """Fill a pool and store its first pages; returns their keys and bytes."""
    fill(host, 7)
    names = keys(count, seed)
    pages = range(count)
    assert backend.batch_set_v1(names, slots(host, pages)) == [True] * count
    return names, page_bytes(host, pages)


POOLS = [
    *((host_pools.mha, layout) for layout in host_pools.MHA_LAYOUTS),
    *((host_pools.mla, layout) for layout in host_pools.MLA_LAYOUTS),
]


@pytest.mark.parametrize(("make", "layout"), POOLS)
def test_pages_come_back_to_other_slots_of_another_engine(opened, make, layout):
    storage = config(is_mla_model=make is host_pools.mla)
    first = make(layout)
    names, expected = stored(opened(first, storage), first)
    second = make(layout)
    reader = opened(second, storage)
    assert reader.batch_exists(names) == 4
    assert reader.batch_get_v1(names, slots(second, [9, 3, 12, 5])) == [True] * 4
    assert page_bytes(second, [9, 3, 12, 5]) == expected


def test_asymmetric_pool_comes_back(opened):
    storage = config()
    first, second = (host_pools.mha(head_dim=8, v_head_dim=4) for _ in range(2))
    names, expected = stored(opened(first, storage), first)
    assert opened(second, storage).batch_get_v1(names, slots(second, [5, 6, 7, 8])) == [True] * 4
    assert page_bytes(second, [5, 6, 7, 8]) == expected


def test_exists_counts_from_the_start_only(opened):
    host = host_pools.mha()
    backend = opened(host)
    names, _ = stored(backend, host)
    missing = keys(2, "missing")
    assert backend.batch_exists(names) == 4
    assert backend.batch_exists([*names, *missing]) == 4
    assert backend.batch_exists([names[0], missing[0], names[1]]) == 1
    assert backend.batch_exists([missing[0], *names]) == 0
    assert backend.batch_exists([]) == 0


def test_get_reads_up_to_the_first_miss_and_leaves_the_rest(opened):
    host = host_pools.mha()
    backend = opened(host)
    names, expected = stored(backend, host)
    fill(host, 8)
    before = page_bytes(host, [10, 11])
    asked = [names[0], names[1], *keys(1, "missing"), names[3]]
    done = backend.batch_get_v1(asked, slots(host, [8, 9, 10, 11]))
    assert done[:3] == [True, True, False]
    assert page_bytes(host, [8, 9]) == expected[:2]
    assert page_bytes(host, [10]) == before[:1]


def test_set_of_a_stored_page_is_true_and_changes_nothing(opened):
    host = host_pools.mha()
    backend = opened(host)
    names, expected = stored(backend, host)
    fill(host, 9)
    assert backend.batch_set_v1(names, slots(host, range(4))) == [True] * 4
    assert backend.batch_get_v1(names, slots(host, range(4))) == [True] * 4
    assert page_bytes(host, range(4)) == expected


def test_large_batches_are_moved_whole(opened):
    host = host_pools.mha(tokens=300 * host_pools.PAGE)
    backend = opened(host)
    names, expected = stored(backend, host, 300)
    fill(host, 8)
    assert backend.batch_exists(names) == 300
    assert backend.batch_get_v1(names, slots(host, range(300))) == [True] * 300
    assert page_bytes(host, range(300)) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": torch.float16},
        {"layout": "page_first_direct"},
        {"layout": "page_head"},
        {"layout": "layer_first"},
        {"heads": 2, "head_dim": 16},
        {"layers": 4},
        {"start_layer": 3},
        {"page": 32, "tokens": 512},
    ],
    ids=str,
)
def test_page_of_another_geometry_is_a_miss(opened, other):
    storage = config()
    host = host_pools.mha()
    names, _ = stored(opened(host, storage), host)
    different = host_pools.mha(**{"layout": "page_first", **other})
    reader = opened(different, storage)
    assert reader.batch_exists(names) == 0
    assert reader.batch_get_v1(names, slots(different, range(4))) == [False] * 4


@pytest.mark.parametrize(
    "other",
    [
        {"model_name": "another"},
        {"tp_size": 2},
        {"tp_size": 2, "tp_rank": 1},
        {"pp_size": 2},
        {"pp_size": 2, "pp_rank": 1},
        {"attn_cp_size": 2},
        {"attn_cp_size": 2, "attn_cp_rank": 1},
        {"is_mla_model": True},
        {"extra_config": {"extra_backend_tag": "blue"}},
        {"extra_config": {"weight_version": "2"}},
        {"extra_config": {"tenant_id": "other"}},
    ],
    ids=str,
)
def test_page_of_another_rank_or_model_is_a_miss(opened, other):
    storage = config()
    host = host_pools.mha()
    names, _ = stored(opened(host, storage), host)
    reader = opened(host, config(**{"model_name": storage.model_name, **other}))
    assert reader.batch_exists(names) == 0
    assert reader.batch_get_v1(names, slots(host, range(4))) == [False] * 4


def test_pool_of_another_capacity_shares_pages(opened):
    storage = config()
    host, larger = host_pools.mha(), host_pools.mha(tokens=4 * host_pools.TOKENS)
    names, expected = stored(opened(host, storage), host)
    assert opened(larger, storage).batch_get_v1(names, slots(larger, range(40, 44))) == [True] * 4
    assert page_bytes(larger, range(40, 44)) == expected


def test_data_parallel_replicas_share_pages(opened):
    storage = config()
    host = host_pools.mha()
    names, _ = stored(opened(host, storage), host)
    replica = config(model_name=storage.model_name, dp_rank=3)
    assert opened(host_pools.mha(), replica).batch_exists(names) == 4


# ---- ranks


def test_rank_replicated_pages_are_written_once_and_read_by_all(opened):
    name = config().model_name
    writer_pool, reader_pool = host_pools.mla(), host_pools.mla()
    ranks = [
        config(is_mla_model=True, tp_rank=rank, tp_size=2, model_name=name) for rank in range(2)
    ]
    names, expected = stored(opened(writer_pool, ranks[0]), writer_pool)
    reader = opened(reader_pool, ranks[1])
    assert reader.batch_get_v1(names, slots(reader_pool, [4, 5, 6, 7])) == [True] * 4
    assert page_bytes(reader_pool, [4, 5, 6, 7]) == expected
    other_tp = config(is_mla_model=True, tp_size=8, tp_rank=5, model_name=name)
    assert opened(host_pools.mla(), other_tp).batch_exists(names) == 4


def test_ranks_of_a_sharded_pool_never_see_each_other(opened):
    name = config().model_name
    hosts = [host_pools.mha() for _ in range(2)]
    ranks = [
        opened(host, config(tp_rank=rank, tp_size=2, model_name=name))
        for rank, host in enumerate(hosts)
    ]
    names, first = stored(ranks[0], hosts[0])
    assert ranks[1].batch_exists(names) == 0
    fill(hosts[1], 99)
    assert ranks[1].batch_set_v1(names, slots(hosts[1], range(4))) == [True] * 4
    second = page_bytes(hosts[1], range(4))
    for rank, host, expected in zip(ranks, hosts, (first, second), strict=True):
        assert rank.batch_get_v1(names, slots(host, range(8, 12))) == [True] * 4
        assert page_bytes(host, range(8, 12)) == expected


def test_decode_context_parallel_shards_never_share(opened):
    name = config().model_name

    def rank(number):
        host = host_pools.mla(dcp=(number, 2))
        storage = config(
            is_mla_model=True,
            tp_rank=number,
            tp_size=2,
            dcp_rank=number,
            dcp_size=2,
            logical_page_size=2 * host_pools.PAGE,
            model_name=name,
        )
        return host, opened(host, storage)

    (first_host, first), (_, second) = rank(0), rank(1)
    names, expected = stored(first, first_host)
    assert second.batch_exists(names) == 0
    assert first.batch_get_v1(names, slots(first_host, [4, 5, 6, 7])) == [True] * 4
    assert page_bytes(first_host, [4, 5, 6, 7]) == expected
    plain = config(is_mla_model=True, tp_size=2, model_name=name)
    assert opened(host_pools.mla(), plain).batch_exists(names) == 0


def split(tp_rank, tp_size, name):
    return config(
        tp_rank=tp_rank,
        tp_size=tp_size,
        tp_lcm_size=4,
        should_split_heads=tp_size < 4,
        model_name=name,
        is_page_first_layout=False,
    )


def test_engines_of_different_tp_sizes_share_groups_of_heads(opened):
    """Four ranks with two heads each store; two ranks with four heads each read the same bytes."""
    name = config().model_name
    small = [host_pools.mha("page_head", heads=2) for _ in range(4)]
    names = keys(3, "split")
    for rank, host in enumerate(small):
        fill(host, rank)
        backend = opened(host, split(rank, 4, name))
        assert backend.batch_set_v1(names, slots(host, range(3))) == [True] * 3
    for rank in range(2):
        host = host_pools.mha("page_head", heads=4)
        backend = opened(host, split(rank, 2, name))
        assert backend.batch_exists(names) == 3
        assert backend.batch_get_v1(names, slots(host, [6, 7, 8])) == [True] * 3
        # [k or v, page, head, ...]: heads of both small ranks, one after the other.
        parts = [small[2 * rank + part].kv_buffer[:, 0:3] for part in range(2)]
        expected = torch.cat(parts, dim=2).view(torch.uint8)
        assert torch.equal(host.kv_buffer[:, 6:9].view(torch.uint8), expected)


def test_page_with_a_missing_group_of_heads_is_a_miss(opened):
    name = config().model_name
    host = host_pools.mha("page_head", heads=2)
    names, _ = stored(opened(host, split(0, 4, name)), host)
    wide = host_pools.mha("page_head", heads=4)
    reader = opened(wide, split(0, 2, name))
    assert reader.batch_exists(names) == 0
    assert reader.batch_get_v1(names, slots(wide, range(4))) == [False] * 4
    fill(wide, 5)
    assert reader.batch_set_v1(names, slots(wide, range(4))) == [True] * 4
    assert reader.batch_exists(names) == 4


def test_heads_that_cannot_be_split_stay_together(opened):
    host = host_pools.mha("page_head", heads=3)
    backend = opened(host, split(0, 2, config().model_name))
    names, expected = stored(backend, host)
    assert backend.batch_get_v1(names, slots(host, [6, 7, 8, 9])) == [True] * 4
    assert page_bytes(host, [6, 7, 8, 9]) == expected


# ---- what the engine may do to us


@pytest.mark.parametrize("count", [0, 1, 17, 63, 65])
def test_indices_that_are_not_whole_pages_are_refused(opened, count):
    host = host_pools.mha()
    backend = opened(host)
    indices = torch.arange(count, dtype=torch.int64)
    assert backend.batch_set_v1(keys(4, "odd"), indices) == [False] * 4
    assert backend.batch_get_v1(keys(4, "odd"), indices) == [False] * 4


@pytest.mark.parametrize("first", [-16, 8, 1 << 20])
def test_indices_outside_the_pool_touch_no_memory(opened, first):
    host = host_pools.mha()
    backend = opened(host)
    names, _ = stored(backend, host)
    indices = torch.arange(first, first + 64, dtype=torch.int64)
    assert backend.batch_get_v1(names, indices) == [False] * 4
    assert backend.batch_set_v1(keys(4, "outside"), indices) == [False] * 4


def test_prefix_keys_are_accepted(opened):
    host = host_pools.mha()
    backend = opened(host)
    fill(host, 1)
    names = keys(8, "chain")
    first = HiCacheStorageExtraInfo(prefix_keys=[])
    then = HiCacheStorageExtraInfo(prefix_keys=names[:4])
    assert all(backend.batch_set_v1(names[:4], slots(host, range(4)), first))
    assert all(backend.batch_set_v1(names[4:], slots(host, range(4, 8)), then))
    assert backend.batch_exists(names, first) == 8


def test_tensors_are_stored_and_read_without_a_pool(opened):
    host = host_pools.mha()
    backend = opened(host)
    pages = [torch.randn(3, 5), torch.arange(7)]
    names = keys(2, "flat")
    assert backend.batch_set(names, pages)
    assert backend.set("any name", torch.ones(4))
    empty = [torch.zeros(3, 5), torch.zeros(7, dtype=torch.int64)]
    got = backend.batch_get([*names, "missing"], [*empty, torch.zeros(1)])
    assert torch.equal(got[0], pages[0])
    assert torch.equal(got[1], pages[1])
    assert got[2] is None
    assert backend.get("any name", torch.zeros(5)) is None
    assert torch.equal(backend.get("any name", torch.zeros(4)), torch.ones(4))
    assert backend.exists("any name")
    assert not backend.exists("no name")
    target = torch.zeros(4)
    assert backend.get("any name", target.data_ptr(), 16) is True
    assert torch.equal(target, torch.ones(4))


def test_metrics_count_the_bytes_that_were_moved(opened):
    host = host_pools.mha()
    backend = opened(host)
    assert backend.get_stats() is None
    begun = time.monotonic()
    names, _ = stored(backend, host)
    assert backend.batch_get_v1(names, slots(host, range(4))) == [True] * 4
    seconds = time.monotonic() - begun
    metrics = backend.get_stats()
    assert (metrics.prefetch_pgs, metrics.backup_pgs) == ([4], [4])
    # Nothing can have been faster than everything together.
    size = 4 * 2 * 3 * host_pools.PAGE * 4 * 8 * 2
    for (rate,) in (metrics.prefetch_bandwidth, metrics.backup_bandwidth):
        assert rate * 1e9 >= size / seconds
    assert backend.get_stats() is None


def test_clear_drops_own_pages_and_no_others(opened):
    host, other_host = host_pools.mha(), host_pools.mha()
    backend, other = opened(host), opened(other_host)
    names, _ = stored(backend, host)
    stored(other, other_host)
    backend.clear()
    assert backend.batch_exists(names) == 0
    assert backend.batch_get_v1(names, slots(host, range(4))) == [False] * 4
    assert other.batch_exists(names) == 4
    assert backend.batch_set_v1(names, slots(host, range(4))) == [True] * 4
    assert backend.batch_exists(names) == 4


def test_close_twice_and_after_the_pool_is_gone(opened):
    host = host_pools.mha()
    backend = opened(host)
    names, _ = stored(backend, host)
    host.destroy()
    backend.close()
    backend.close()
    assert backend.batch_exists(names) == 0
    assert backend.batch_get_v1(names, torch.arange(64)) == [False] * 4
    assert backend.batch_set_v1(names, torch.arange(64)) == [False] * 4
    assert backend.get_stats().backup_pgs == [4]
    assert backend.get_stats() is None
    backend.clear()


def test_call_under_way_survives_the_end_of_the_pool(opened):
    host = host_pools.mha(tokens=512 * host_pools.PAGE, layers=8)
    backend = opened(host)
    names, _ = stored(backend, host, 400)
    indices = slots(host, range(400))
    stop = threading.Event()

    def read():
        while not stop.is_set():
            backend.batch_get_v1(names, indices)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    host.destroy()
    del host
    backend.close()
    stop.set()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()


def test_look_ups_reads_and_writes_at_once(opened):
    host = host_pools.mha(tokens=128 * host_pools.PAGE)
    backend = opened(host)
    names, expected = stored(backend, host, 32)
    wrong: list[object] = []

    def write():
        for turn in range(20):
            if not all(backend.batch_set_v1(keys(8, turn), slots(host, range(8)))):
                wrong.append("set")

    def read():
        for _ in range(20):
            done = backend.batch_get_v1(names, slots(host, range(64, 96)))
            if not all(done) or page_bytes(host, range(64, 96)) != expected:
                wrong.append("get")

    def look():
        for _ in range(40):
            if backend.batch_exists(names) != 32:
                wrong.append("exists")
            backend.get_stats()

    workers = [threading.Thread(target=work) for work in (write, read, look)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


# ---- faults


def flip_bits(pattern: bytes) -> int:
    """Flip one bit in every copy of `pattern` in the shared memory that this process has open."""
    flipped = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("/memfd:"):
                continue
            descriptor = os.open(entry, os.O_RDWR)
        except OSError:
            continue
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            content = file.read()
            at = content.find(pattern)
            while at >= 0:
                os.pwrite(file.fileno(), bytes([content[at] ^ 1]), at)
                flipped += 1
                at = content.find(pattern, at + 1)
    return flipped


def test_flipped_bit_is_a_miss_that_is_counted(opened):
    host = host_pools.mha()
    backend = opened(host, config(extra_config=IN_PROCESS))
    names, expected = stored(backend, host)
    assert flip_bits(expected[1][100:164]) == 1
    assert backend.batch_get_v1(names, slots(host, range(8, 12)))[:2] == [True, False]
    assert page_bytes(host, [8]) == expected[:1]
    until(lambda: backend._store.stats()["node"]["corrupt_pages"] == 1, 5)
    # The page is gone, so the engine stores it again.
    assert backend.batch_exists(names) == 1
    assert backend.batch_set_v1(names, slots(host, range(4))) == [True] * 4


def test_full_pool_evicts_and_goes_on(opened):
    host = host_pools.mha(tokens=600 * host_pools.PAGE, layers=4)
    backend = opened(host, config(extra_config=IN_PROCESS))
    fill(host, 3)
    for turn in range(4):
        names = keys(500, turn)
        assert backend.batch_set_v1(names, slots(host, range(500))) == [True] * 500
    assert backend.batch_exists(names[:1]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"no_such_option": 1},
        {"mooncake_hicache": {"pool_sise": "1GiB"}},
        {"mooncake_hicache": {"pool_size": "1 furlong"}},
        {"mooncake_hicache": {"socket": "/" + "x" * 200, "autostart": False}},
        {"mooncake_hicache": {"in_process": True, "pool_size": "100TB"}},
    ],
    ids=str,
)
def test_wrong_configuration_warns_once_and_always_misses(caplog, wrong):
    host = host_pools.mha()
    begun = time.monotonic()
    backend = open_backend(host, config(extra_config=wrong), connected=False)
    names = keys(4)
    assert backend.batch_exists(names) == 0
    assert backend.batch_get_v1(names, slots(host, range(4))) == [False] * 4
    assert backend.batch_set_v1(names, slots(host, range(4))) == [False] * 4
    assert backend.batch_exists_v2(names).kv_hit_pages == 0
    assert backend.batch_set_v2([]) == {}
    assert backend.get_stats() is None
    backend.clear()
    backend.close()
    assert time.monotonic() - begun < 5
    warnings = [r for r in caplog.records if "mooncake" in r.name and r.levelname == "WARNING"]
    assert warnings, "nothing says why there is no cache"


def test_clear_that_does_not_reach_the_node_is_made_up_for(runtime_dir, opened):
    """After new weights an old page is a wrong page: none may be found before it is dropped."""
    storage = config()
    host = host_pools.mha()
    names, _ = stored(opened(host, storage), host)
    alone = {"mooncake_hicache": {"autostart": False, "node_unresponsive_ms": 600_000}}
    backend = opened(host, config(model_name=storage.model_name, extra_config=alone))
    assert backend.batch_exists(names) == 4
    node = int(backend._store.stats()["node"]["pid"])
    freeze(node)
    try:
        begun = time.monotonic()
        backend.clear()
        assert backend.batch_exists(names) == 0
        assert backend.batch_get_v1(names, slots(host, range(4))) == [False] * 4
        assert time.monotonic() - begun < 5
    finally:
        os.kill(node, signal.SIGCONT)
    until(lambda: backend._store.is_connected, 30)
    assert backend.batch_exists(names) == 0
    assert backend.batch_set_v1(names[:1], slots(host, [0])) == [True]
    assert backend.batch_exists(names) == 1


def test_without_a_node_every_call_returns_at_once(opened, tmp_path):
    nowhere = {"mooncake_hicache": {"autostart": False, "runtime_dir": str(tmp_path / "r")}}
    host = host_pools.mha()
    begun = time.monotonic()
    backend = opened(host, config(extra_config=nowhere), connected=False)
    names = keys(4)
    for _ in range(20):
        assert backend.batch_exists(names) == 0
        assert backend.batch_get_v1(names, slots(host, range(4))) == [False] * 4
        assert backend.batch_set_v1(names, slots(host, range(4))) == [False] * 4
        assert backend.get_stats() is None
    backend.clear()
    backend.close()
    assert time.monotonic() - begun < 5
