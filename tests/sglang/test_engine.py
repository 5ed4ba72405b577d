"""SGLang's real tree, controller and threads keep pages in our node and get them back unchanged."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.environ import envs
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
from sglang.srt.plugins.hook_registry import HookRegistry

from mooncake_hicache.sglang import plugin
from mooncake_hicache.sglang.adapter import MooncakeHiCacheStore
from tests.sglang.backends import until
from tests.sglang.engine import PAGE, Engine, single_rank

PROMPT = list(range(1000, 1000 + 6 * PAGE))

CASES = [
    (is_mla, io, layout, tree)
    for is_mla in (False, True)
    for io, layout in (
        ("kernel", "layer_first"),
        ("kernel", "page_first"),
        ("kernel", "page_head"),
        ("direct", "layer_first"),
        ("direct", "page_first_direct"),
    )
    for tree in (("python", "rust") if layout == "page_first" else ("python",))
    if not (is_mla and layout == "page_head")
]


@pytest.fixture
def engine(request):
    """Makes engines of one model of this test's own."""
    plugin.register()
    HookRegistry.apply_hooks()
    with contextlib.ExitStack() as stack:
        stack.enter_context(single_rank())

        def make(*, connected: bool = True, **given):
            options = {"layout": "page_first", "io": "kernel", "model": request.node.name, **given}
            made = Engine(**options)
            stack.callback(made.close)
            if connected:
                until(lambda: made.adapter._store.is_connected, 30)
            return made

        yield make


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize(("is_mla", "io", "layout", "tree"), CASES)
def test_kv_of_one_engine_reaches_another_through_the_node(engine, is_mla, io, layout, tree):
    shape = {"is_mla": is_mla, "io": io, "layout": layout, "tree": tree}
    writer = engine(**shape)
    assert type(writer.backend) is MooncakeHiCacheStore
    computed = writer.compute(PROMPT, 7)
    writer.evict_device(len(PROMPT))
    match = writer.match(PROMPT)
    assert (match.device_prefix_len, match.host_hit_length) == (0, len(PROMPT))
    assert same(writer.load(PROMPT), computed)
    reader = engine(**shape)
    assert reader.match(PROMPT).device_prefix_len == 0
    assert reader.prefetch(PROMPT) == len(PROMPT)
    assert reader.match(PROMPT).host_hit_length == len(PROMPT)
    assert same(reader.load(PROMPT), computed)


@pytest.mark.parametrize("in_place", [True, False])
def test_backend_loaded_by_module_path(engine, in_place):
    extra = {
        "backend_name": "hicache",
        "module_path": plugin.ADAPTER_MODULE,
        "class_name": plugin.ADAPTER_CLASS,
        **({"interface_v1": 1} if in_place else {}),
    }
    writer, reader = (engine(backend="dynamic", extra=extra) for _ in range(2))
    computed = writer.compute(PROMPT, 7)
    assert reader.prefetch(PROMPT) == len(PROMPT)
    assert same(reader.load(PROMPT), computed)


def test_engine_with_another_layout_finds_nothing(engine):
    engine(layout="page_first").compute(PROMPT, 7)
    assert engine(layout="page_head").prefetch(PROMPT) == 0


def test_longer_prompt_gets_the_part_that_is_stored(engine):
    engine().compute(PROMPT, 7)
    assert engine().prefetch([*PROMPT, *range(5 * PAGE)]) == len(PROMPT)


def test_clear_leaves_nothing_to_fetch(engine):
    writer = engine()
    writer.compute(PROMPT, 7)
    writer.backend.clear()
    assert engine().prefetch(PROMPT) == 0


def test_detach_and_attach_again(engine):
    writer = engine()
    computed = writer.compute(PROMPT, 7)
    controller = writer.cache.cache_controller
    first = writer.adapter
    controller.detach_storage_backend()
    assert first._store is None
    controller.attach_storage_backend(
        "mooncake",
        prefetch_threshold=1,
        model_name=first.storage_config.model_name,
        host_pools=getattr(controller.mem_pool_host, "entries", None),
    )
    until(lambda: writer.adapter._store.is_connected, 30)
    assert isinstance(writer.backend, HiCacheStorage)
    reader = engine()
    assert reader.prefetch(PROMPT) == len(PROMPT)
    assert same(reader.load(PROMPT), computed)


@pytest.mark.parametrize("seed", range(4))
def test_random_failures_and_delays_never_give_wrong_bytes(engine, seed):
    """SGLang's own injector around the backend: calls fail and linger at random."""
    with (
        envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.3),
        envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY.override(0.05),
    ):
        writer, reader = engine(), engine()
        assert type(writer.backend).__name__ == "HiCacheStorageFailureInjector"
        for turn in range(4):
            prompt = [token + 5000 * (10 * seed + turn) for token in PROMPT]
            computed = writer.compute(prompt, seed * 10 + turn)
            fetched = reader.prefetch(prompt)
            assert fetched % PAGE == 0
            if fetched:
                loaded = reader.load(prompt[:fetched])
                assert same(loaded, [layer[:fetched] for layer in computed])


def node_pid(backend):
    return int(backend._store.stats()["node"]["pid"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_node_that_dies_or_hangs_costs_misses_and_comes_back(runtime_dir, engine, how):
    writer = engine()
    writer.compute(PROMPT, 7)
    old = node_pid(writer.adapter)
    os.kill(old, how)
    try:
        begun = time.monotonic()
        other = [token + 100_000 for token in PROMPT]
        reader = engine(connected=False)
        assert reader.prefetch(PROMPT) in (0, len(PROMPT))
        computed = writer.compute(other, 8)
        assert time.monotonic() - begun < 10
        until(lambda: writer.adapter._store.is_connected, 30)
        until(lambda: node_pid(writer.adapter) != old, 30)
        third = [token + 200_000 for token in PROMPT]
        computed = writer.compute(third, 9)
        until(lambda: reader.adapter._store.is_connected, 30)
        assert reader.prefetch(third) == len(third)
        assert same(reader.load(third), computed)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGCONT)
