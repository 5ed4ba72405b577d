"""The external linker over SGLang's real pools: pages go to the node and come back to other slots.

The pools are in host memory, where a load has no stages: all layers are there when it has ended.
GPU memory is tested in C++ over a fake driver, and by `bench.gpu.linker` on a real GPU.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import DevicePoolEntry
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from mooncake_hicache.sglang import linker as linker_module
from mooncake_hicache.sglang import linker_plugin, load_counter
from mooncake_hicache.sglang.device_pools import DevicePool, device_of
from mooncake_hicache.sglang.linker import HiCacheLinker
from mooncake_hicache.sglang.load_counter import LoadCounter
from tests.sglang.backends import PoolName, PoolTransfer, keys, until

PAGE = 16
LAYERS = 3
PAGES = 12


def pool_of(is_mla, pages=PAGES, page_size=PAGE):
    shared = {
        "size": (pages - 1) * page_size,  # SGLang adds a page for padding.
        "page_size": page_size,
        "dtype": torch.bfloat16,
        "layer_num": LAYERS,
        "device": "cpu",
        "enable_memory_saver": False,
    }
    if is_mla:
        return MLATokenToKVPool(kv_lora_rank=64, qk_rope_head_dim=16, **shared)
    return MHATokenToKVPool(head_num=2, head_dim=32, **shared)


def buffers(pool):
    return (
        pool.kv_buffer if isinstance(pool, MLATokenToKVPool) else [*pool.k_buffer, *pool.v_buffer]
    )


def fill(pool, seed):
    generator = torch.Generator().manual_seed(seed)
    for buffer in buffers(pool):
        buffer.copy_(torch.randn(buffer.shape, generator=generator).to(buffer.dtype))


def slots(pages):
    return torch.cat([torch.arange(p * PAGE, (p + 1) * PAGE, dtype=torch.int64) for p in pages])


def contents(pool, pages):
    return [buffer[slots(pages)].clone() for buffer in buffers(pool)]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def parameters(pool, **given):
    fields = {
        "token_to_kv_pool_allocator": SimpleNamespace(get_kvcache=lambda: pool),
        "page_size": PAGE,
        "attn_tp_cache_group": None,
        "tp_cache_group": None,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "mtp_draft_device_pools": (),
        "sidecar_draft_device_pools": (),
    }
    return SimpleNamespace(**{**fields, **given})


@pytest.fixture
def make(request, runtime_dir):
    """Makes linkers of one model of this test's own, connected to a node."""
    with contextlib.ExitStack() as stack:

        def made(pool, *, tag=request.node.name, **given):
            linker = HiCacheLinker(
                SimpleNamespace(enable_linker_mla_dedup=False),
                parameters(pool, **given),
                components={ComponentType.FULL},
                extra_config={"extra_backend_tag": tag},
            )
            stack.callback(linker.close)
            until(lambda: linker.storage._store.is_connected, 30)
            return linker

        yield made


def transfer(names, pages=None):
    indices = None if pages is None else slots(pages)
    return [PoolTransfer(name=PoolName.KV, keys=list(names), device_indices=indices)]


def offload(linker, names, pages):
    """Store pages and wait for the result."""
    before = linker.num_completed_offloads()
    assert linker.offload(transfer(names, pages))
    until(lambda: linker.num_completed_offloads() > before, 30)
    return linker.pop_completed_offload()


def run(linker):
    """What a forward pass does with the loads that are queued; whether they landed."""
    index = linker.start_layer_wise_loading()
    linker.layer_done_counter.set_consumer(index)
    for layer in range(LAYERS):
        linker.layer_done_counter.wait_until(layer)
    return linker.finish_layer_wise_loading(index)


@pytest.mark.parametrize("is_mla", [False, True])
def test_pages_come_back_to_other_slots(make, is_mla):
    pool = pool_of(is_mla)
    linker = make(pool)
    fill(pool, 1)
    names, kept = keys(5), contents(pool, [3, 1, 4, 0, 2])
    assert linker.lookup("r", transfer(names)) == []
    assert offload(linker, names, [3, 1, 4, 0, 2])
    assert linker.lookup("r", transfer([*names, *keys(2, "others")])) == [1, 2, 3, 4, 5]
    fill(pool, 2)
    elsewhere = contents(pool, [0, 1, 2, 3, 4, 10, 11])
    assert linker.load("r", transfer(names, [9, 5, 6, 8, 7]))
    assert run(linker)
    assert same(contents(pool, [9, 5, 6, 8, 7]), kept)
    assert same(contents(pool, [0, 1, 2, 3, 4, 10, 11]), elsewhere), "nothing else was touched"


def test_a_load_may_have_more_pages_than_a_message(make):
    # Unless told otherwise SGLang has pages of one token.
    count = 20_000
    pool = pool_of(False, pages=2 * count, page_size=1)
    linker = make(pool, page_size=1)
    fill(pool, 1)
    names, kept = keys(count), [buffer[:count].clone() for buffer in buffers(pool)]
    for start in range(0, count, 4000):  # What an offload may take is bounded.
        few = [PoolTransfer(name=PoolName.KV, keys=names[start : start + 4000])]
        few[0].device_indices = torch.arange(start, start + 4000)
        assert linker.offload(few)
        until(lambda: linker.num_completed_offloads() > 0, 30)
        assert linker.pop_completed_offload()
    transfers = [PoolTransfer(name=PoolName.KV, keys=names)]
    assert linker.lookup("r", transfers)[-1] == count
    transfers[0].device_indices = torch.arange(count, 2 * count)
    assert linker.load("r", transfers)
    assert run(linker)
    assert same([buffer[count : 2 * count] for buffer in buffers(pool)], kept)


def test_an_engine_with_another_pool_size_finds_them(make):
    first, second = pool_of(False), pool_of(False, pages=40)
    fill(first, 1)
    names = keys(4)
    assert offload(make(first), names, [0, 1, 2, 3])
    other = make(second)
    assert other.lookup("r", transfer(names)) == [1, 2, 3, 4]
    assert other.load("r", transfer(names, [39, 0, 20, 7]))
    assert run(other)
    assert same(contents(second, [39, 0, 20, 7]), contents(first, [0, 1, 2, 3]))


def test_another_shape_or_rank_does_not(make):
    pool = pool_of(False)
    fill(pool, 1)
    names = keys(2)
    assert offload(make(pool), names, [0, 1])
    assert make(pool_of(True)).lookup("r", transfer(names)) == []
    assert make(pool, pp_rank=1, pp_size=2).lookup("r", transfer(names)) == []


def test_loads_of_several_requests_are_one_batch(make):
    pool = pool_of(False)
    linker = make(pool)
    fill(pool, 1)
    names, kept = keys(4), contents(pool, [0, 1, 2, 3])
    assert offload(linker, names, [0, 1, 2, 3])
    assert linker.load("a", transfer(names[:3], [5, 6, 7]))
    assert linker.load("b", transfer(names, [8, 9, 10, 11]))
    assert linker.load("gone", transfer(names, [0, 1, 2, 3]))
    assert linker.cancel_queued_load("gone")
    assert not linker.cancel_queued_load("gone")
    fill(pool, 2)
    untouched = contents(pool, [0, 1, 2, 3])
    assert run(linker)
    assert same(contents(pool, [5, 6, 7]), [part[: 3 * PAGE] for part in kept])
    assert same(contents(pool, [8, 9, 10, 11]), kept)
    assert same(contents(pool, [0, 1, 2, 3]), untouched)
    assert linker.start_layer_wise_loading() == -1, "nothing is queued"


def test_a_load_that_lacks_a_page_says_so(make):
    pool = pool_of(False)
    linker = make(pool)
    fill(pool, 1)
    names = keys(3)
    assert offload(linker, names, [0, 1, 2])
    assert linker.lookup("r", transfer(names)) == [1, 2, 3]
    linker.storage.clear()
    assert linker.load("r", transfer(names, [5, 6, 7]))
    assert not run(linker)
    assert linker.lookup("r", transfer(names)) == []
    assert offload(linker, names, [0, 1, 2]), "they can come back"
    assert linker.load("r", transfer(names, [5, 6, 7]))
    assert run(linker)


def test_reset_forgets_what_is_queued_and_keeps_what_is_stored(make):
    pool = pool_of(False)
    linker = make(pool)
    fill(pool, 1)
    names = keys(6)
    assert offload(linker, names[:2], [0, 1])
    assert linker.offload(transfer(names[2:], [2, 3, 4, 5]))
    assert linker.load("r", transfer(names[:2], [6, 7]))
    linker.reset()
    assert linker.num_completed_offloads() == 0
    assert linker.start_layer_wise_loading() == -1
    assert linker.lookup("r", transfer(names)) == [1, 2, 3, 4, 5, 6], "it was let to end"


def test_without_a_node_nothing_is_found_and_nothing_fails(make):
    pool = pool_of(False)
    linker = make(pool)
    linker.storage.close()
    assert linker.lookup("r", transfer(keys(2))) == []
    assert not offload(linker, keys(2), [0, 1])
    assert linker.load("r", transfer(keys(2), [0, 1]))
    assert not run(linker)


def test_what_is_not_supported_is_refused():
    def make(pool, dedup=False, **given):
        arguments = SimpleNamespace(enable_linker_mla_dedup=dedup)
        return HiCacheLinker(arguments, parameters(pool, **given), components={ComponentType.FULL})

    with pytest.raises(ValueError, match="--enable-linker-mla-dedup is not supported"):
        make(pool_of(True), dedup=True)
    with pytest.raises(ValueError, match="KV of a draft model; use --enable-hierarchical-cache"):
        make(pool_of(False), mtp_draft_device_pools=(pool_of(False),))
    other_layout = pool_of(False)
    other_layout.kv_cache_layout = "hnd"
    with pytest.raises(ValueError, match="layout hnd"):
        make(other_layout)


def test_each_piece_of_a_page_has_the_layer_that_needs_it_first():
    tensors = [torch.zeros(4, 8) for _ in range(4)]
    entry = DevicePoolEntry(
        name=PoolName.KV,
        indices_from_pool=PoolName.KV,
        device_pool=None,
        components=[tensors[:2], tensors[2:]],
        layer_mapping={0: 0, 2: (0, 1), 5: 1},
        page_size=2,
        rows_are_pages=False,
    )
    pool = DevicePool(entry)
    assert pool.stage_of_piece(6).tolist() == [0, 2, 0, 2]
    assert (pool.page_num, pool.size) == (2, 4)


def test_pools_must_be_where_pages_can_be_moved():
    def entries(*devices):
        return {
            n: SimpleNamespace(kv_buffer=[torch.empty(0, device=d)]) for n, d in enumerate(devices)
        }

    assert device_of(entries("cpu", "cpu")) is None
    with pytest.raises(ValueError, match=r"\['cpu', 'meta'\]"):
        device_of(entries("cpu", "meta"))
    with pytest.raises(ValueError, match="pages on meta cannot be moved"):
        device_of(entries("meta"))


def test_a_forward_pass_waits_for_its_own_load_only():
    streams = []
    counter = LoadCounter(LAYERS, lambda: streams.append(1) or 0)
    index, load = counter.begin(1)
    counter.wait_until(2)  # It uses no load.
    counter.set_consumer(-1)
    counter.wait_until(2)
    assert not streams
    counter.set_consumer(index)
    load.stages.end(0)
    load.landed.set_result(True)
    counter.wait_until(2)
    assert len(streams) == 1
    assert counter.finish(index)
    assert counter.finish(index), "it is forgotten"
    other, load = counter.begin(2)
    assert other == index + 1
    load.landed.set_result(False)
    assert not counter.finish(other)


def test_only_our_name_is_taken_over(make):
    pool = pool_of(False)
    made = make(pool)
    original = lambda *args, **kwargs: (args, kwargs)  # noqa: E731
    assert linker_plugin._create(original, 1, 2, backend="mori", config={}) == (
        (1, 2),
        {"backend": "mori", "config": {}},
    )
    linker_plugin._names.add("mooncake")
    linker = linker_plugin._create(
        original,
        SimpleNamespace(enable_linker_mla_dedup=False),
        parameters(pool),
        backend="mooncake",
        config={"extra_backend_tag": "other"},
        components={ComponentType.FULL},
        forward_stream=None,
    )
    assert type(linker) is type(made)
    linker.close()


def test_a_load_that_comes_after_the_forward_pass_has_not_landed(monkeypatch):
    monkeypatch.setattr(load_counter, "_WAIT_MAX_MS", 10)
    counter = LoadCounter(LAYERS, None)
    index, load = counter.begin(1)
    counter.set_consumer(index)
    counter.wait_until(0)  # In vain: the forward pass goes on with what the slots hold.
    load.stages.end(0)
    load.landed.set_result(True)
    assert not counter.finish(index)


def test_a_load_that_is_given_up_writes_nothing_afterwards(make, monkeypatch):
    pool = pool_of(False)
    linker = make(pool)
    fill(pool, 1)
    names = keys(2)
    assert offload(linker, names, [0, 1])
    go_on, begun = threading.Event(), threading.Event()
    monkeypatch.setattr(linker_module, "_wait_for", lambda _: begun.set() or go_on.wait(30))
    monkeypatch.setattr(load_counter, "_WAIT_MAX_MS", 10)
    assert linker.load("r", transfer(names, [5, 6]))
    before = contents(pool, range(PAGES))
    index = linker.start_layer_wise_loading()
    assert begun.wait(30)
    assert not linker.finish_layer_wise_loading(index)
    go_on.set()  # The slots are another request's by now.
    linker._loader.submit(lambda: None).result(30)
    assert same(contents(pool, range(PAGES)), before)


def test_a_load_that_writes_is_waited_for(make, monkeypatch):
    linker = make(pool_of(False))
    go_on, begun = threading.Event(), threading.Event()

    def load_pool(load, part, *_):
        if part == 0:
            raise OSError("a part that fails does not end the others")
        begun.set()
        return go_on.wait(30)

    monkeypatch.setattr(linker, "_load_pool", load_pool)
    monkeypatch.setattr(load_counter, "_WAIT_MAX_MS", 10)
    other = PoolTransfer(name=PoolName.SWA, keys=keys(1), device_indices=slots([5]))
    linker._queued_loads["r"] = [*transfer(keys(1), [5]), other]
    index = linker.start_layer_wise_loading()
    assert begun.wait(30)
    with ThreadPoolExecutor(1) as scheduler:
        finished = scheduler.submit(linker.finish_layer_wise_loading, index)
        assert not wait_for_futures([finished], 0.1).done
        go_on.set()
        assert not finished.result(30)


def test_an_offload_that_outlives_a_reset_has_no_result(make, monkeypatch):
    pool = pool_of(False)
    linker = make(pool)
    go_on, begun = threading.Event(), threading.Event()
    batch_set = linker.storage.batch_set_v2

    def slow(transfers):
        begun.set()
        go_on.wait(30)
        return batch_set(transfers)

    monkeypatch.setattr(linker.storage, "batch_set_v2", slow)
    monkeypatch.setattr(linker_module, "_QUIESCE_S", 0.05)
    assert linker.offload(transfer(keys(1), [0]))
    assert linker.offload(transfer(keys(1, "queued"), [1]))
    assert begun.wait(30)
    linker.reset()
    assert linker.offload(transfer(keys(1, "next"), [2]))
    go_on.set()
    until(lambda: linker._in_flight == 0, 30)
    assert linker.num_completed_offloads() == 1, "that of the next"
    assert linker.pop_completed_offload()
    assert linker.lookup("r", transfer(keys(1, "queued"))) == []


def test_loads_that_keep_failing_are_not_tried_all_the_time(make, monkeypatch):
    linker = make(pool_of(False))
    names = keys(2)
    assert offload(linker, names, [0, 1])
    working = linker._load_pool
    monkeypatch.setattr(linker, "_load_pool", lambda *_: False)

    def load():
        assert linker.load("r", transfer(names, [5, 6]))
        return run(linker)

    assert not load()
    assert linker.lookup("r", transfer(names)) == [1, 2], "one may fail"
    assert not load()
    assert linker.lookup("r", transfer(names)) == [], "its requests are computed"
    until(lambda: linker.lookup("r", transfer(names)) == [1, 2], 30)
    monkeypatch.setattr(linker, "_load_pool", working)
    assert load()
    monkeypatch.setattr(linker, "_load_pool", lambda *_: False)
    assert not load()
    assert linker.lookup("r", transfer(names)) == [1, 2], "it is the first again"
