"""Models with several pools: states, windows, index keys, drafts, logical anchors."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

pytest.importorskip("sglang")

from sglang.srt.mem_cache.hicache_storage import PoolTransferResult, SidecarPoolSpec

from tests.sglang import host_pools
from tests.sglang.backends import (
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    config,
    fill,
    keys,
    open_backend,
    page_bytes,
    slots,
)

PAGES = 8


@pytest.fixture
def opened():
    """Opens backends that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_and_close_later(*args, **kwargs):
            backend = open_backend(*args, **kwargs)
            stack.callback(backend.close)
            return backend

        yield open_and_close_later


def transfer(name, host=None, pages=(), names=(), trailing=0):
    """What the engine passes for a side pool; look-ups of windows have placeholders for keys."""
    if trailing:
        return PoolTransfer(
            name=name,
            keys=["__placeholder__"] * trailing,
            hit_policy=PoolHitPolicy.TRAILING_PAGES,
        )
    indices = None if host is None else slots(host, pages)
    return PoolTransfer(name=name, host_indices=indices, keys=list(names) or None)


def stored_kv(backend, host, count=PAGES):
    fill(host, 1)
    names = keys(count, id(backend))
    assert backend.batch_set_v1(names, slots(host, range(count))) == [True] * count
    return names


def stored_side(backend, name, host, names, pages):
    """Store side pages under the names at these positions; returns their bytes."""
    chosen = [names[page] for page in pages]
    at = range(len(pages))
    done = backend.batch_set_v2([transfer(name, host, at, chosen)])
    assert done == {name: [True] * len(pages)}
    return page_bytes(host, at)


def test_states_restore_only_where_they_were_saved(opened):
    kv, states = host_pools.mha(), host_pools.mamba()
    fill(states, 2)
    backend = opened(kv, side={PoolName.MAMBA: states})
    names = stored_kv(backend, kv)
    expected = stored_side(backend, PoolName.MAMBA, states, names, [1, 4])
    found = backend.batch_exists_v2(names, [transfer(PoolName.MAMBA, trailing=1)])
    assert found.kv_hit_pages == 5
    assert found.restorable_prefix_pages == [2, 5]
    assert found.extra_pool_hit_pages == {PoolName.KV: 8, PoolName.MAMBA: 5}
    fill(states, 3)
    done = backend.batch_get_v2([transfer(PoolName.MAMBA, states, [9], [names[4]])])
    assert done == {PoolName.MAMBA: [True]}
    assert page_bytes(states, [9]) == expected[1:]


def test_windows_need_all_their_pages(opened):
    kv, window = host_pools.mha(), host_pools.mha(heads=2, layers=2)
    fill(window, 2)
    backend = opened(kv, side={PoolName.SWA: window})
    names = stored_kv(backend, kv)
    stored_side(backend, PoolName.SWA, window, names, [0, 2, 3, 4, 6, 7])
    found = backend.batch_exists_v2(names, [transfer(PoolName.SWA, trailing=2)])
    # Prefixes whose last two pages are there; a prefix of one page needs only that one.
    assert found.restorable_prefix_pages == [1, 4, 5, 8]
    assert found.kv_hit_pages == 8


def test_several_side_pools_restore_where_all_agree(opened):
    kv, states, window = host_pools.mha(), host_pools.mamba(), host_pools.mha(heads=2)
    backend = opened(kv, side={PoolName.MAMBA: states, PoolName.SWA: window})
    names = stored_kv(backend, kv)
    stored_side(backend, PoolName.MAMBA, states, names, [2, 5])
    stored_side(backend, PoolName.SWA, window, names, [1, 2, 6, 7])
    asked = [transfer(PoolName.MAMBA, trailing=1), transfer(PoolName.SWA, trailing=2)]
    found = backend.batch_exists_v2(names, asked)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (3, [3])
    # Each pool's own boundary, not the common one.
    assert found.extra_pool_hit_pages[PoolName.MAMBA] == 6
    assert found.extra_pool_hit_pages[PoolName.SWA] == 8


def test_nothing_restorable_is_an_empty_result(opened):
    kv, states = host_pools.mha(), host_pools.mamba()
    backend = opened(kv, side={PoolName.MAMBA: states})
    names = stored_kv(backend, kv)
    found = backend.batch_exists_v2(names, [transfer(PoolName.MAMBA, trailing=1)])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (0, [])
    found = backend.batch_exists_v2(keys(3, "none"), [transfer(PoolName.MAMBA, trailing=1)])
    assert found == PoolTransferResult(0, {}, [])


def test_index_keys_follow_the_kv_pages(opened):
    storage = config(is_mla_model=True)
    kv = host_pools.mla()
    index = host_pools.indexer(kv)
    fill(index, 2)
    backend = opened(kv, storage, {PoolName.INDEXER: index})
    names = stored_kv(backend, kv)
    expected = stored_side(backend, PoolName.INDEXER, index, names, range(6))
    asked = [transfer(PoolName.INDEXER)]
    found = backend.batch_exists_v2(names, asked)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (6, [1, 2, 3, 4, 5, 6])
    # Read at the indices of the KV pages.
    done = backend.batch_get_v2([transfer(PoolName.INDEXER, kv, range(16, 24), names)])
    assert done == {PoolName.INDEXER: [True] * 6 + [False] * 2}
    assert page_bytes(index, range(16, 22)) == expected


def test_logical_anchor_stores_nothing_and_never_limits(opened):
    storage = config(is_mla_model=True)
    anchor = host_pools.logical()
    side = {
        PoolName.DEEPSEEK_V4_C4: host_pools.paged(),
        PoolName.SWA: host_pools.paged(row_bytes=64),
    }
    for host in side.values():
        fill(host, 4)
    backend = opened(anchor, storage, side)
    names = keys(PAGES, "v4")
    indices = slots(anchor, range(PAGES))
    assert backend.batch_set_v1(names, indices) == [True] * PAGES
    assert backend.batch_get_v1(names, indices) == [True] * PAGES
    # Asked without the side pools, it must not claim what only they could have.
    assert backend.batch_exists(names) == 0
    assert backend.batch_exists_v2(names, []).kv_hit_pages == 0
    assert backend.batch_exists_v2(names, [transfer(PoolName.DEEPSEEK_V4_C4)]).kv_hit_pages == 0
    stored_side(backend, PoolName.DEEPSEEK_V4_C4, side[PoolName.DEEPSEEK_V4_C4], names, range(7))
    stored_side(backend, PoolName.SWA, side[PoolName.SWA], names, [3, 4])
    asked = [transfer(PoolName.DEEPSEEK_V4_C4), transfer(PoolName.SWA, trailing=2)]
    found = backend.batch_exists_v2(names, asked)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (5, [5])


def test_states_of_a_replicated_model_are_each_ranks_own(opened):
    name = config().model_name
    ranks = []
    for rank in range(2):
        storage = config(is_mla_model=True, tp_rank=rank, tp_size=2, model_name=name)
        kv, states = host_pools.mla(), host_pools.mamba()
        fill(states, rank)
        ranks.append((kv, states, opened(kv, storage, {PoolName.MAMBA: states})))
    (kv, states, writer), (_, other_states, follower) = ranks
    names = stored_kv(writer, kv)
    stored_side(writer, PoolName.MAMBA, states, names, [7])
    asked = [transfer(PoolName.MAMBA, trailing=1)]
    assert writer.batch_exists_v2(names, asked).kv_hit_pages == 8
    # The KV pages are there for this rank, its state is not: it writes its own, and only that.
    assert follower.batch_exists(names) == 8
    assert follower.batch_exists_v2(names, asked).kv_hit_pages == 0
    expected = stored_side(follower, PoolName.MAMBA, other_states, names, [7])
    assert follower.batch_exists_v2(names, asked).kv_hit_pages == 8
    fill(other_states, 50)
    assert follower.batch_get_v2([transfer(PoolName.MAMBA, other_states, [3], [names[7]])]) == {
        PoolName.MAMBA: [True]
    }
    assert page_bytes(other_states, [3]) == expected


@pytest.mark.parametrize("pool_name", [PoolName.DRAFT, PoolName.DRAFT_SWA])
def test_draft_with_heads_is_each_ranks_own_beside_replicated_kv(opened, pool_name):
    name = config().model_name
    found = []
    for rank in range(2):
        storage = config(is_mla_model=True, tp_rank=rank, tp_size=2, model_name=name)
        kv, draft = host_pools.mla(), host_pools.mha(heads=1, layers=1)
        fill(draft, rank)
        backend = opened(kv, storage, {pool_name: draft})
        names = keys(2, name)
        found.append(backend.batch_exists_v2(names, [transfer(pool_name)]).kv_hit_pages)
        if rank == 0:
            assert all(backend.batch_set_v1(names, slots(kv, range(2))))
        stored_side(backend, pool_name, draft, names, range(2))
        assert backend.batch_exists_v2(names, [transfer(pool_name)]).kv_hit_pages == 2
    assert found == [0, 0]


def test_replicated_draft_is_shared_by_all_ranks(opened):
    name = config().model_name
    storage = [
        config(is_mla_model=True, tp_rank=rank, tp_size=2, model_name=name) for rank in range(2)
    ]
    kv, draft = host_pools.mla(), host_pools.mla(layers=1)
    writer = opened(kv, storage[0], {PoolName.DRAFT: draft})
    names = stored_kv(writer, kv)
    stored_side(writer, PoolName.DRAFT, draft, names, range(8))
    reader = opened(host_pools.mla(), storage[1], {PoolName.DRAFT: host_pools.mla(layers=1)})
    assert reader.batch_exists_v2(names, [transfer(PoolName.DRAFT)]).kv_hit_pages == 8


def test_draft_and_target_of_one_shape_stay_apart(opened):
    kv, draft = host_pools.mha(), host_pools.mha()
    backend = opened(kv, side={PoolName.DRAFT: draft})
    names = stored_kv(backend, kv)
    assert backend.batch_exists_v2(names, [transfer(PoolName.DRAFT)]).kv_hit_pages == 0
    fill(draft, 77)
    expected = stored_side(backend, PoolName.DRAFT, draft, names, range(8))
    assert backend.batch_get_v1(names, slots(kv, range(8, 16))) == [True] * 8
    assert page_bytes(kv, range(8, 16)) == page_bytes(kv, range(8)) != expected


def test_pool_that_comes_later_works(opened):
    kv, late = host_pools.mha(), host_pools.mamba()
    backend = opened(kv)
    names = stored_kv(backend, kv)
    assert backend.batch_exists_v2(names, [transfer(PoolName.MAMBA, trailing=1)]).kv_hit_pages == 0
    assert backend.batch_set_v2([transfer(PoolName.MAMBA, late, [0], names[:1])]) == {
        PoolName.MAMBA: [False]
    }
    backend.register_mem_host_pool_v2(late, PoolName.MAMBA)
    stored_side(backend, PoolName.MAMBA, late, names, [7])
    assert backend.batch_exists_v2(names, [transfer(PoolName.MAMBA, trailing=1)]).kv_hit_pages == 8


def test_groups_of_pages_never_shorten_a_hit(opened):
    if not hasattr(PoolHitPolicy, "BLOCK_GROUPS"):
        pytest.skip("this version of SGLang has no groups")
    kv, other = host_pools.mha(), host_pools.mha(heads=1)
    backend = opened(kv, side={PoolName.AUXILIARY_SWA: other})
    names = stored_kv(backend, kv)
    asked = dataclasses.replace(
        transfer(PoolName.AUXILIARY_SWA), hit_policy=PoolHitPolicy.BLOCK_GROUPS
    )
    assert backend.batch_exists_v2(names, [asked]).kv_hit_pages == 8


def test_pool_that_cannot_be_addressed_is_a_miss_and_the_others_work(opened, caplog):
    kv = host_pools.mha()
    index = host_pools.indexer(host_pools.mla("layer_first"))
    backend = opened(kv, side={PoolName.INDEXER: index})
    assert "pool indexer" in caplog.text
    assert "cannot be stored" in caplog.text
    names = stored_kv(backend, kv)
    assert backend.batch_exists(names) == 8
    assert backend.batch_exists_v2(names, [transfer(PoolName.INDEXER)]).kv_hit_pages == 0
    assert backend.batch_get_v2([transfer(PoolName.INDEXER, kv, range(8), names)]) == {
        PoolName.INDEXER: [False] * 8
    }


# ---- the endpoint that describes objects


def describe(backend, specs=(), window=None):
    return backend.describe_l3_object_layout(
        sidecar_pool_specs=specs, swa_trailing_pages=window, page_size=host_pools.PAGE
    )


def test_layout_names_the_objects_of_a_replicated_model(opened):
    kv = host_pools.mla()
    index = host_pools.indexer(kv)
    storage = config(is_mla_model=True, pp_rank=1, pp_size=2)
    backend = opened(kv, storage, {PoolName.INDEXER: index})
    spec = SidecarPoolSpec(pool_name=PoolName.INDEXER, indices_from_pool=PoolName.KV)
    layout = describe(backend, [spec])
    assert layout["enabled"]
    inner = layout["hicache_object_layout"]
    assert (inner["pp_rank"], inner["pp_size"], inner["is_mla_backend"]) == (1, 2, True)
    assert [(p["pool"], p["hit_policy"]) for p in inner["pools"]] == [
        ("kv", "all_pages"),
        ("indexer", "all_pages"),
    ]
    suffixes = [suffix for pool in inner["pools"] for suffix in pool["suffixes"]]
    assert len(set(suffixes)) == 2
    assert all(suffix.startswith("@") and len(suffix) == 65 for suffix in suffixes)


def test_layout_of_sharded_pools_is_not_enabled(opened):
    assert "rank-replicated" in describe(opened(host_pools.mha()))["reason"]
    kv = host_pools.mla()
    hybrid = opened(kv, config(is_mla_model=True), {PoolName.MAMBA: host_pools.mamba()})
    layout = describe(hybrid)
    assert not layout["enabled"]
    assert "Auxiliary" in layout["reason"]


def test_layout_with_windows_needs_their_length(opened):
    side = {PoolName.SWA: host_pools.paged()}
    backend = opened(host_pools.logical(), config(is_mla_model=True), side)
    assert not describe(backend)["enabled"]
    (pool,) = describe(backend, window=4)["hicache_object_layout"]["pools"]
    assert (pool["hit_policy"], pool["trailing_pages"]) == ("trailing_pages", 4)


def test_layout_without_pools_is_not_enabled(opened):
    backend = opened(host_pools.logical(), config(is_mla_model=True))
    assert not describe(backend)["enabled"]
