"""What tells models apart, and where it is said."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("sglang")

from mooncake_hicache.pages.namespace import namespace_digest
from mooncake_hicache.sglang import identity
from mooncake_hicache.sglang.identity import (
    Coordinates,
    head_groups,
    is_rank_sharded,
    model_description,
    pool_description,
)
from mooncake_hicache.sglang.pools import pool_tensors
from mooncake_hicache.sglang.server import model_fingerprint
from mooncake_hicache.sglang.settings import read_settings
from tests.sglang import host_pools
from tests.sglang.backends import config


@pytest.fixture
def folder(tmp_path):
    """A folder as a model lies in it."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"layers": 2, "_name_or_path": "/a"}))
    for number in range(20):
        (place / f"weights-{number:02}.safetensors").write_bytes(bytes([number]) * 100_000)
    (place / "README.md").write_text("hello")
    return place


def changed(folder, tmp_path, change):
    """The fingerprint of a copy after a change; functions are cached by path."""
    copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(folder, copy)
    change(copy)
    return model_fingerprint(str(copy))


def test_fingerprint_does_not_depend_on_the_place(folder, tmp_path):
    def rename(copy):
        (copy / "config.json").write_text(json.dumps({"_name_or_path": "/b", "layers": 2}))
        (copy / "README.md").write_text("other")

    assert changed(folder, tmp_path, rename) == model_fingerprint(str(folder)) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "config.json").write_text('{"layers": 3}'),
        lambda f: (f / "weights-05.safetensors").unlink(),
        lambda f: (f / "weights-05.safetensors").write_bytes(b"x" * 99_999),
        lambda f: (f / "weights-00.safetensors").write_bytes(b"x" * 100_000),
        lambda f: (f / "weights-03.safetensors").write_bytes(b"x" * 100_000),
        lambda f: (f / "weights-20.safetensors").write_bytes(b""),
    ],
)
def test_fingerprint_changes_with_the_model(folder, tmp_path, change):
    assert changed(folder, tmp_path, change) != model_fingerprint(str(folder))


def test_model_that_is_not_there_has_no_fingerprint():
    assert model_fingerprint("/no/such/model") is None
    assert model_fingerprint("dummy") is None


def test_single_file_is_a_model(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    assert model_fingerprint(str(file)) is not None


def describe(host, name="kv", server=None, monkeypatch=None, **given):
    storage = config(**{"model_name": "m", **given})
    coordinates = Coordinates.of(storage)
    if server is not None:
        monkeypatch.setattr(identity, "server_option", server.get)
    model = model_description(coordinates, read_settings({}, {}))
    group = head_groups(name, host, coordinates)[0]
    return pool_description(
        model, name, host, coordinates, group, 1, 16, [64, 64], pool_tensors(host)
    )


SERVER = {
    "dtype": "bfloat16",
    "quantization": None,
    "kv_cache_dtype": "auto",
    "json_model_override_args": "{}",
    "weight_version": "default",
    "speculative_draft_model_path": "/models/draft",
}


@pytest.mark.parametrize(
    "name",
    ["dtype", "quantization", "kv_cache_dtype", "json_model_override_args", "weight_version"],
)
def test_server_option_that_changes_the_kv_changes_the_namespace(monkeypatch, name):
    host = host_pools.mha()
    first = describe(host, server=SERVER, monkeypatch=monkeypatch)
    other = describe(host, server={**SERVER, name: "other"}, monkeypatch=monkeypatch)
    assert namespace_digest(first) != namespace_digest(other)


def test_draft_model_matters_to_draft_pools_only(monkeypatch):
    host = host_pools.mha()
    other = {**SERVER, "speculative_draft_model_path": "/models/other"}
    for name, differs in (("kv", False), ("draft", True), ("swa", False)):
        digests = {
            namespace_digest(describe(host, name, server=server, monkeypatch=monkeypatch))
            for server in (SERVER, other)
        }
        assert (len(digests) == 2) is differs


def test_engine_version_matters_to_opaque_rows_only(monkeypatch):
    versions = iter(["0.5.17", "0.5.23"] * 2)
    monkeypatch.setattr(identity, "engine_version", lambda: next(versions))
    rows, plain = host_pools.paged(), host_pools.mha()
    assert len({namespace_digest(describe(rows, "deepseek_v4_c4")) for _ in range(2)}) == 2
    assert len({namespace_digest(describe(plain)) for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("name", "make", "is_mla", "sharded"),
    [
        ("kv", host_pools.mha, False, True),
        ("indexer", host_pools.paged, False, True),
        ("kv", host_pools.mla, True, False),
        ("mamba", host_pools.mamba, True, True),
        ("draft", host_pools.mha, True, True),
        ("draft", host_pools.mla, True, False),
        ("draft_swa", host_pools.mha, True, True),
        ("draft_swa", host_pools.paged, True, False),
        ("swa", host_pools.paged, True, False),
    ],
)
def test_sharded_pools_are_those_that_every_rank_writes(name, make, is_mla, sharded):
    coordinates = Coordinates.of(config(is_mla_model=is_mla, tp_size=2, tp_rank=1))
    assert is_rank_sharded(name, make(), coordinates) is sharded


def test_sharded_pools_match_the_engines_rule_of_who_writes():
    """The engine's own function, for every kind of pool on a rank that does not write KV."""
    from types import SimpleNamespace

    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    if not hasattr(HybridCacheController, "should_backup"):
        pytest.skip("this version of SGLang has no such function")
    pools = {
        "kv": host_pools.mla(),
        "mamba": host_pools.mamba(),
        "draft": host_pools.mha(),
        "draft_swa": host_pools.mha(),
        "swa": host_pools.paged(),
        "deepseek_v4_c4": host_pools.paged(),
    }
    from tests.sglang.backends import PoolName, PoolTransfer

    entries = {PoolName(n): SimpleNamespace(host_pool=pool) for n, pool in pools.items()}
    controller = SimpleNamespace(
        backup_skip=True,
        storage_backend_type="mooncake",
        mem_pool_host=SimpleNamespace(entry_map=entries),
    )
    coordinates = Coordinates.of(config(is_mla_model=True, tp_size=2, tp_rank=1))
    for name, pool in pools.items():
        writes = HybridCacheController.should_backup(controller, PoolTransfer(name=PoolName(name)))
        assert is_rank_sharded(name, pool, coordinates) is writes, name
