"""What tells models apart, and where it is said."""

from __future__ import annotations

import json
import os
import shutil

import pytest

pytest.importorskip("sglang")

from mooncake_hicache.pages.namespace import namespace_digest
from mooncake_hicache.sglang import fingerprint, identity
from mooncake_hicache.sglang.fingerprint import model_fingerprint
from mooncake_hicache.sglang.identity import (
    Coordinates,
    head_groups,
    is_rank_sharded,
    model_description,
    pool_description,
)
from mooncake_hicache.sglang.pools import pool_tensors
from mooncake_hicache.sglang.settings import read_settings
from tests.sglang import host_pools
from tests.sglang.backends import config

TENSORS, TENSOR_SIZE = 10, 10_000


def write_weights(path, number, changed_tensor=None):
    """A safetensors file of ten tensors, one of which may be another than usual."""
    header = {"__metadata__": {"format": "pt"}}
    for i in range(TENSORS):
        offsets = [i * TENSOR_SIZE, (i + 1) * TENSOR_SIZE]
        header[f"t{i}"] = {"dtype": "U8", "shape": [TENSOR_SIZE], "data_offsets": offsets}
    raw = json.dumps(header).encode()
    content = [bytes([number + i + 100 * (i == changed_tensor)]) for i in range(TENSORS)]
    body = b"".join(byte * TENSOR_SIZE for byte in content)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


@pytest.fixture
def folder(tmp_path):
    """A folder as a model lies in it."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"layers": 2, "_name_or_path": "/a"}))
    for number in range(20):
        write_weights(place / f"weights-{number:02}.safetensors", number)
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


@pytest.mark.parametrize("tensor", range(TENSORS))
def test_fingerprint_changes_with_any_tensor_of_any_file(folder, tmp_path, tensor):
    """A fine-tune that leaves names, sizes and most tensors as they are."""
    path = f"weights-{2 * tensor + 1:02}.safetensors"
    other = changed(folder, tmp_path, lambda f: write_weights(f / path, 2 * tensor + 1, tensor))
    assert other != model_fingerprint(str(folder))


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "broken.safetensors"])
def test_file_that_cannot_be_looked_into_counts_with_its_time_of_change(folder, tmp_path, name):
    (folder / name).write_bytes(b"x" * 100_000)
    first = model_fingerprint(str(folder))
    assert changed(folder, tmp_path, lambda _: None) == first
    assert changed(folder, tmp_path, lambda f: os.utime(f / name, ns=(1, 1))) != first


def test_reads_of_a_large_model_are_bounded(folder, tmp_path, monkeypatch):
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(1) or pread(*args))
    changed(folder, tmp_path, lambda _: None)
    assert len(reads) == 20 * TENSORS * 8
    reads.clear()
    monkeypatch.setattr(fingerprint, "_SAMPLES_MAX", 60)
    few = changed(folder, tmp_path, lambda _: None)
    assert len(reads) <= 60
    file = "weights-07.safetensors"
    assert changed(folder, tmp_path, lambda f: os.utime(f / file, ns=(1, 1))) != few


def test_model_that_takes_too_long_to_read_has_no_fingerprint(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SECONDS_MAX", -1.0)
    assert changed(folder, tmp_path, lambda _: None) is None


def test_model_that_is_not_there_has_no_fingerprint():
    assert model_fingerprint("/no/such/model") is None
    assert model_fingerprint("dummy") is None


def test_folder_without_weights_has_no_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_fingerprint(str(tmp_path)) is None


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
    [
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "json_model_override_args",
        "weight_version",
        "load_format",
        "model_impl",
        "modelopt_quant",
        "rl_quant_profile",
        "model_path",
        "quantization_param_path",
    ],
)
def test_server_option_that_changes_the_kv_changes_the_namespace(monkeypatch, name):
    host = host_pools.mha()
    first = describe(host, server=SERVER, monkeypatch=monkeypatch)
    other = describe(host, server={**SERVER, name: "other"}, monkeypatch=monkeypatch)
    assert namespace_digest(first) != namespace_digest(other)


def digest(monkeypatch, name="kv", **server):
    host = host_pools.mha()
    return namespace_digest(describe(host, name, {**SERVER, **server}, monkeypatch))


def test_models_that_cannot_be_read_are_told_apart_by_their_whole_path(monkeypatch):
    paths = ("s3://one/model", "s3://other/model")
    assert len({digest(monkeypatch, model_path=path) for path in paths}) == 2
    drafts = {digest(monkeypatch, "draft", speculative_draft_model_path=path) for path in paths}
    assert len(drafts) == 2


def test_models_that_can_be_read_are_told_apart_by_their_content(monkeypatch, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    paths = (str(folder), str(tmp_path / "copy"))
    assert len({digest(monkeypatch, model_path=path) for path in paths}) == 1


def test_scales_are_told_apart_by_their_content(monkeypatch, tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (digest(monkeypatch, quantization_param_path=str(tmp_path / name)) for name in "abc")
    assert a == b != c


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
