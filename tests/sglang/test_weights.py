"""Live updates of the weights: pages of other weights are never met."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang")

import torch

from mooncake_hicache.sglang import weights
from mooncake_hicache.sglang.transfer import Budget
from tests.serving.server import server_env
from tests.sglang import host_pools
from tests.sglang.backends import config, fill, keys, open_backend, page_bytes, slots


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """The state of a process whose weights were never updated."""
    monkeypatch.setattr(weights, "_live", weights.Weights())
    monkeypatch.setattr(weights, "_session", None)


@pytest.fixture
def host():
    return host_pools.mha()


@pytest.fixture
def backend(host):
    backend = open_backend(host, config())
    yield backend
    backend.close()


def updater(**fields):
    return SimpleNamespace(tp_cpu_group=None, **fields)


def request(version=None):
    return SimpleNamespace(weight_version=version)


def update(version=None, *, flushes=True, succeeds=True):
    """What the hooks see of an update of all weights."""

    def original(_updater, _request):
        if flushes and succeeds:
            weights._after_flush(True)
        return SimpleNamespace(success=succeeds)

    weights._around_whole(original, updater(), request(version))


def put(backend, host, seed):
    fill(host, seed)
    assert backend.batch_set_v1(keys(4), slots(host, range(4))) == [True] * 4
    return page_bytes(host, range(4))


def get(backend, host):
    """The pages that are found, or None if none is."""
    found = backend.batch_exists(keys(4))
    done = backend.batch_get_v1(keys(4), slots(host, range(8, 12)))
    assert found in (0, 4)
    assert done == [found == 4] * 4
    return page_bytes(host, range(8, 12)) if found else None


def test_hook_targets_are_there():
    import sglang.srt.managers.scheduler  # noqa: F401

    for target in weights.HOOK_TARGETS:
        assert callable(pkgutil.resolve_name(target)), target


def test_hooks_are_applied_where_there_is_a_scheduler_and_only_there():
    code = """
import sys
if len(sys.argv) > 1:
    import sglang.srt.managers.scheduler
from sglang.srt.plugins import load_plugins
load_plugins()
from mooncake_hicache.sglang import weights
print(weights.is_watched(), "sglang.srt.managers.scheduler" in sys.modules)
"""
    for arguments, expected in (([], "False False"), (["scheduler"], "True True")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **server_env()},
        )
        assert done.stdout.split("\n")[0] == expected, done.stderr
        assert "Failed to apply hooks" not in done.stderr


def test_after_an_update_old_pages_are_misses_and_new_ones_lie_apart(backend, host):
    old = put(backend, host, 1)
    update()
    assert get(backend, host) is None
    new = put(backend, host, 2)
    assert get(backend, host) == new != old
    update()
    assert get(backend, host) is None


def test_version_brings_its_pages_back_and_no_version_does_not(backend, host):
    update("A")
    of_a = put(backend, host, 1)
    update("B")
    assert get(backend, host) is None
    of_b = put(backend, host, 2)
    update("A")
    assert get(backend, host) == of_a
    update()
    assert get(backend, host) is None
    update("B")
    assert get(backend, host) == of_b


def test_version_of_two_sets_of_weights_is_never_trusted_again(backend, host):
    update("A")
    put(backend, host, 1)
    update("A")
    assert get(backend, host) is None
    put(backend, host, 2)
    update("B")
    update("A")
    assert get(backend, host) is None


def test_failed_update_changes_the_weights_too(backend, host):
    update("A")
    put(backend, host, 1)
    update("B", succeeds=False)
    weights._after_flush(True)
    assert get(backend, host) is None
    put(backend, host, 2)
    update("B")
    assert get(backend, host) is None


def test_nothing_is_served_before_a_flush(backend, host):
    put(backend, host, 1)
    update("A", flushes=False)
    assert get(backend, host) is None
    assert backend.batch_set_v1(keys(4), slots(host, range(4))) == [False] * 4
    weights._after_flush(False)
    assert backend.batch_set_v1(keys(4), slots(host, range(4))) == [False] * 4
    weights._after_flush(True)
    assert get(backend, host) is None
    put(backend, host, 2)


def test_update_that_raises_is_noticed(backend, host):
    put(backend, host, 1)

    def original(_updater, _request):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        weights._around_whole(original, updater(), request("A"))
    weights._after_flush(True)
    assert get(backend, host) is None


def test_call_under_way_keeps_the_namespace_it_began_with(backend, host):
    serving = backend.serving()
    update()
    fill(host, 1)
    indices = slots(host, range(4))
    assert all(
        serving.mover.write(serving.anchor, keys(4), indices, Budget(), parent=None, chained=True)
    )
    assert get(backend, host) is None


def test_adapter_that_is_made_after_an_update_does_not_see_the_pages_before_it(host):
    storage = config()
    first = open_backend(host, storage)
    put(first, host, 1)
    update()
    second = open_backend(host, storage)
    assert get(second, host) is None
    assert put(second, host, 2) == get(first, host)
    first.close()
    second.close()


def test_other_engine_with_the_same_versions_has_other_pages(backend, host, monkeypatch):
    update("A")
    put(backend, host, 1)
    monkeypatch.setattr(weights, "_live", weights.Weights())
    update("A")
    assert get(backend, host) is None


def part(version=None, *, session=None, succeeds=True):
    def original(_updater, _request):
        weights._after_flush(True)
        return SimpleNamespace(success=succeeds)

    weights._around_part(original, updater(_session=session), request(version))


def begin():
    weights._around_begin(lambda *_: None, updater(_session=None), request())


def end():
    result = SimpleNamespace(success=True)
    weights._around_end(lambda *_: result, updater(_session=object()), request())


def session(*versions):
    begin()
    for version in versions:
        part(version, session=object())
    end()


def test_session_of_several_parts_has_one_version(backend, host):
    session("A", "A", "A")
    of_a = put(backend, host, 1)
    session("B", "B")
    assert get(backend, host) is None
    session("A", "A")
    assert get(backend, host) == of_a


def test_nothing_is_served_within_a_session(backend, host):
    put(backend, host, 1)
    begin()
    part("A", session=object())
    assert get(backend, host) is None
    assert backend.batch_set_v1(keys(4), slots(host, range(4))) == [False] * 4
    end()
    put(backend, host, 2)


def test_session_without_parts_may_have_changed_everything(backend, host):
    """Weights that another process writes straight into the engine's memory."""
    put(backend, host, 1)
    session()
    assert backend.batch_set_v1(keys(4), slots(host, range(4))) == [False] * 4
    weights._after_flush(True)
    assert get(backend, host) is None


def test_parts_without_a_session_have_no_version(backend, host):
    """Before SGLang had sessions nothing said which part is the last."""
    weights._around_part(lambda *_: SimpleNamespace(success=True), updater(), request("A"))
    weights._after_flush(True)
    put(backend, host, 1)
    weights._around_part(lambda *_: SimpleNamespace(success=True), updater(), request("A"))
    weights._after_flush(True)
    assert get(backend, host) is None


def test_part_that_is_refused_changes_nothing(backend, host):
    old = put(backend, host, 1)
    part("A", session=None)
    assert get(backend, host) == old


def test_pages_by_tensor_follow_the_weights(backend, host):
    page = torch.arange(64, dtype=torch.uint8)
    assert backend.set("page", page)
    update()
    assert not backend.exists("page")
    assert backend.get("page", torch.zeros_like(page)) is None


def test_clear_after_an_update_drops_the_new_pages(backend, host):
    update()
    put(backend, host, 1)
    backend.clear()
    assert get(backend, host) is None


def test_all_ranks_give_the_weights_the_same_name(tmp_path):
    code = """
import sys, types
import torch.distributed as dist
from mooncake_hicache.sglang import weights
weights.server_option, weights.keeps_pages = {}.get, lambda: True
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
updater = types.SimpleNamespace(tp_cpu_group=dist.new_group([0, 1], backend="gloo"))
update = lambda *_: types.SimpleNamespace(success=True)
weights._around_whole(update, updater, types.SimpleNamespace(weight_version=None))
print("name", weights.live().state().name)
weights._around_whole(update, updater, types.SimpleNamespace(weight_version="A"))
print("name", weights.live().state().name)
dist.barrier()
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    names = []
    for rank in ranks:
        output, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
        names.append([line for line in output.splitlines() if line.startswith("name")])
    assert names[0] == names[1]
    assert len(set(names[0])) == 2
