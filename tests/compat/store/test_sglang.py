"""SGLang's own Mooncake adapter, unmodified, on the drop-in: the class, then a whole server.

What installs our plug-in is left out, so that `--hicache-storage-backend mooncake` means SGLang's
`mem_cache/storage/mooncake_store`, which imports `mooncake.store`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: make installs it", allow_module_level=True)

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from mooncake_hicache.sglang.plugin import SWITCH_VARIABLE
from tests.compat.processes import DROPIN
from tests.compat.store.stores import MiB, machine, opened
from tests.compat.test_sglang import site_environment
from tests.master.masters import SECRET, MasterProcess
from tests.serving.server import HICACHE_ARGS, Server
from tests.sglang import host_pools
from tests.sglang.backends import config, fill, keys, page_bytes, slots

PAGES = [3, 1, 7, 4]


class Cluster:
    """`mooncake_master`, and a folder for this machine's nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        flags = ["--rpc_address=127.0.0.1", "--rpc_port=0", "--port=0", "--metrics_port=0"]
        module = "mooncake_hicache.compat.master"
        self.master = MasterProcess(folder / "master.log", *flags, module=module)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.master.port}"

    @property
    def extra_config(self) -> dict[str, Any]:
        """What a user writes into --hicache-storage-backend-extra-config."""
        return {
            "local_hostname": "localhost",
            "metadata_server": "P2PHANDSHAKE",
            "global_segment_size": 64 * MiB,
            "protocol": "tcp",
            "device_name": "",
            "master_server_address": self.address,
            "master_metrics_port": int(self.master.url.rpartition(":")[2]),
        }


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with machine() as folder:
        cluster = Cluster(folder)
        try:
            yield cluster
        finally:
            cluster.master.stop()


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of SGLang's adapter; `mooncake` is the drop-in."""
    monkeypatch.syspath_prepend(str(DROPIN))
    from sglang.srt.mem_cache.storage.mooncake_store import mooncake_store

    return mooncake_store


def open_stock(adapter: Any, host: Any, cluster: Cluster, **given: Any) -> HiCacheStorage:
    """The adapter, as the engine makes it."""
    extra = {**cluster.extra_config, **given.pop("extra", {})}
    # A model of this name: what one adapter has stored another one finds.
    storage = config(**{"model_name": "a/model", **given}, extra_config=extra)
    backend: HiCacheStorage = adapter.MooncakeStore(storage, host)
    assert backend.store.__class__.__module__.startswith("mooncake_hicache.")
    backend.register_mem_pool_host(host)
    return backend


def round_trip(adapter: Any, cluster: Cluster, make: Any, **given: Any) -> None:
    host = make()
    fill(host, 1)
    backend, names = open_stock(adapter, host, cluster, **given), keys(len(PAGES))
    before = page_bytes(host, PAGES)
    assert backend.batch_exists(names) == 0
    assert backend.batch_set_v1(names, slots(host, PAGES)) == [True] * len(PAGES)
    assert backend.batch_set_v1(names, slots(host, PAGES)) == [True] * len(PAGES)
    assert backend.batch_exists(names) == len(PAGES)
    assert backend.batch_exists([*names[:2], *keys(1, "other"), *names[2:]]) == 2
    # Another adapter, as of another engine, reads them to other places.
    other = make()
    fill(other, 2)
    reader = open_stock(adapter, other, cluster, **given)
    untouched = page_bytes(other, [0])
    targets = [9, 2, 5, 8]
    assert reader.batch_get_v1(names, slots(other, targets)) == [True] * len(PAGES)
    assert page_bytes(other, targets) == before
    assert page_bytes(other, [0]) == untouched
    found = reader.batch_get_v1([names[0], *keys(1, "other")], slots(other, [0, 1]))
    assert found == [True, False]
    reader.clear()
    assert backend.batch_exists(names) == 0
    for one in (backend, reader):
        one.store.close()


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
def test_keys_and_values_of_heads(adapter: Any, cluster: Cluster, layout: str) -> None:
    round_trip(adapter, cluster, lambda: host_pools.mha(layout))


@pytest.mark.parametrize("layout", host_pools.MLA_LAYOUTS)
def test_compressed_keys_and_values(adapter: Any, cluster: Cluster, layout: str) -> None:
    round_trip(adapter, cluster, lambda: host_pools.mla(layout), is_mla_model=True)


def test_ranks_groups_and_a_tenant(adapter: Any, cluster: Cluster) -> None:
    extra = {"enable_group_semantics": True, "tenant_id": "someone"}
    given = {"tp_rank": 1, "tp_size": 2, "pp_rank": 1, "pp_size": 2, "extra": extra}
    round_trip(adapter, cluster, host_pools.mha, **given)


def test_the_adapter_asks_whether_the_cluster_is_there(adapter: Any, cluster: Cluster) -> None:
    with opened(cluster.address):  # It waits for a node, which another program has brought.
        round_trip(adapter, cluster, host_pools.mha, extra={"check_server": True})


def test_settings_of_the_environment(
    adapter: Any, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_MASTER", cluster.address)
    monkeypatch.setenv("MOONCAKE_GLOBAL_SEGMENT_SIZE", str(64 * MiB))
    monkeypatch.setenv("MOONCAKE_PROTOCOL", "tcp")
    monkeypatch.setenv("MOONCAKE_LOCAL_HOSTNAME", "localhost")
    host = host_pools.mha()
    backend = adapter.MooncakeStore(config(), host)
    backend.register_mem_pool_host(host)
    names = keys(2)
    assert backend.batch_set_v1(names, slots(host, [0, 1])) == [True, True]
    assert backend.batch_exists(names) == 2
    backend.store.close()


def test_memory_that_the_store_allocates(adapter: Any) -> None:
    import torch

    # Nobody keeps the allocator: what it gave must live on.
    tensor = adapter.MooncakeHostTensorAllocator().allocate((4, 1024), torch.bfloat16)
    tensor.fill_(1.5)
    assert tensor.shape == (4, 1024)
    assert float(tensor.sum()) == 1.5 * 4096


# ---- the whole server


PROMPT = [(7 * i) % 250 for i in range(400)]
CACHED = 384  # All full pages but for the last token.


@pytest.mark.serving
@pytest.mark.timeout(900)
def test_a_server_with_the_stock_backend_hits_what_it_has_stored(cluster: Cluster) -> None:
    extra = {**cluster.extra_config, "prefetch_threshold": 16}
    arguments = [*HICACHE_ARGS, "--hicache-mem-layout", "page_first_direct"]
    arguments += ["--hicache-storage-backend-extra-config", json.dumps(extra)]
    environment = {
        **site_environment(),
        SWITCH_VARIABLE: "off",
        "MOONCAKE_HICACHE_TRANSFER_SECRET": SECRET,
        "SGLANG_HICACHE_MOONCAKE_REUSE_TE": "0",
    }
    with Server("stock-mooncake", arguments, environment) as server:
        first = server.generate(PROMPT)
        assert first.cached_tokens == 0
        server.flush()
        again = server.generate(PROMPT)
        assert again.details["storage"] == CACHED, server.log
        assert again.details["storage_backend"] == "MooncakeStore"
        assert (again.tokens, again.logprobs) == (first.tokens, first.logprobs)
        log = server.log
    assert "Mooncake store warmup successfully" in log
    # Another engine, after the first one's end: the node keeps the pages.
    with Server("stock-mooncake-2", arguments, environment) as server:
        later = server.generate(PROMPT)
        assert later.tokens == first.tokens
        assert later.details["storage"] == CACHED, server.log
