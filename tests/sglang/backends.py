"""Storage backends over real host pools, as the engine makes them, and what tests do with them."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)

from mooncake_hicache.sglang.adapter import MooncakeHiCacheStore
from mooncake_hicache.sglang.pools import page_tokens_of, pool_tensors

__all__ = [
    "Backend",
    "HiCacheStorageExtraInfo",
    "PoolHitPolicy",
    "PoolName",
    "PoolTransfer",
    "config",
    "fill",
    "keys",
    "open_backend",
    "page_bytes",
    "slots",
    "until",
]

Backend = MooncakeHiCacheStore
_models = itertools.count()


def config(**given: Any) -> HiCacheStorageConfig:
    """A storage config of one rank; a model of its own unless `model_name` is given."""
    fields = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": True,
        "is_page_first_layout": True,
        "model_name": f"model-{next(_models)}",
        "extra_config": {},
    }
    return HiCacheStorageConfig(**{**fields, **given})


def open_backend(
    host: Any,
    storage: HiCacheStorageConfig | None = None,
    side: Mapping[PoolName, Any] | None = None,
    *,
    connected: bool = True,
) -> Backend:
    """A backend with its pools registered in the engine's order, connected to a node."""
    backend = Backend(storage or config(), host)
    backend.register_mem_pool_host(host)
    for name, pool in {PoolName.KV: host, **(side or {})}.items():
        backend.register_mem_host_pool_v2(pool, name)
    backend.on_host_pools_registered()
    if connected:
        until(lambda: backend._store is not None and backend._store.is_connected, 30)
    return backend


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.005)


def keys(count: int, seed: object = 0) -> list[str]:
    """Page hashes, different for each seed."""
    return [hashlib.sha256(f"{seed}/{i}".encode()).hexdigest() for i in range(count)]


def slots(host: Any, pages: Sequence[int]) -> torch.Tensor:
    """The engine's indices of these pages of a pool."""
    size = page_tokens_of(host)
    return torch.cat([torch.arange(p * size, (p + 1) * size, dtype=torch.int64) for p in pages])


def fill(host: Any, seed: int) -> None:
    """Write noise into all of a pool."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in pool_tensors(host):
        raw = tensor.view(-1).view(torch.uint8)
        raw.copy_(torch.randint(0, 256, raw.shape, generator=generator, dtype=torch.uint8))


def page_bytes(host: Any, pages: Sequence[int]) -> list[bytes]:
    """The bytes of these pages of a pool, each in the pool's own order."""
    addresses, sizes = host.get_page_buffer_meta(slots(host, pages))
    ranges = len(addresses) // len(pages)
    pieces = [ctypes.string_at(a, s) for a, s in zip(addresses, sizes, strict=True)]
    return [b"".join(pieces[i * ranges : (i + 1) * ranges]) for i in range(len(pages))]
