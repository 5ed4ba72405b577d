"""Real host pools of SGLang, small, without a server around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.hybrid_cache import hybrid_pool_assembler
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.memory_pool_host import DeepSeekV4PagedHostPool, LogicalHostPool
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

PAGE = 16
TOKENS = 256

MHA_LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")
MLA_LAYOUTS = ("layer_first", "page_first", "page_first_direct")


def mha(
    layout: str = "page_first",
    *,
    heads: int = 4,
    head_dim: int = 8,
    v_head_dim: int | None = None,
    layers: int = 3,
    page: int = PAGE,
    tokens: int = TOKENS,
    dtype: torch.dtype = torch.bfloat16,
    start_layer: int = 0,
) -> Any:
    """A pool of keys and values per head."""
    device = MHATokenToKVPool(
        size=tokens,
        page_size=page,
        dtype=dtype,
        head_num=heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
        start_layer=start_layer,
        end_layer=start_layer + layers - 1,
    )
    host_class, buffers, options = hybrid_pool_assembler._mha_host_inputs(device, ())
    return host_class(buffers, 2.0, 0, page, layout, pin_memory=False, **options)


def mla(
    layout: str = "page_first",
    *,
    rank: int = 64,
    rope: int = 16,
    layers: int = 3,
    page: int = PAGE,
    tokens: int = TOKENS,
    dcp: tuple[int, int] = (0, 1),
) -> Any:
    """A pool of compressed keys and values, the same on all ranks."""
    device = MLATokenToKVPool(
        size=tokens,
        page_size=page,
        dtype=torch.bfloat16,
        kv_lora_rank=rank,
        qk_rope_head_dim=rope,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
    )
    return MLATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        2.0,
        0,
        page * dcp[1],
        layout,
        pin_memory=False,
        device_capacity_tokens=tokens,
        start_layer=device.start_layer,
        end_layer=device.end_layer,
        target_layer_num=device.layer_num,
        override_kv_cache_dim=device.kv_cache_dim,
        dcp_size=dcp[1],
        dcp_rank=dcp[0],
    )


def mamba(
    layout: str = "page_first", *, layers: int = 2, slots: int = 24, temporal: int = 5
) -> Any:
    """A pool of states: one slot each, several tensors of different formats."""
    from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo

    buffers = MambaStateBufferInfo(
        temporal=torch.zeros((layers, slots, temporal, 3), dtype=torch.float32),
        conv=(
            torch.zeros((layers, slots, 6, 2), dtype=torch.bfloat16),
            torch.zeros((layers, slots, 7), dtype=torch.bfloat16),
        ),
    )
    return MambaPoolHost(buffers, 2.0, 0, device_capacity=slots, pin_memory=False, layout=layout)


def paged(
    layout: str = "page_first",
    *,
    name: PoolName = PoolName.DEEPSEEK_V4_C4,
    layers: int = 3,
    row_bytes: int = 96,
    pages: int = 20,
    page: int = PAGE,
) -> Any:
    """A pool of opaque rows, one per page and layer."""
    return DeepSeekV4PagedHostPool(
        pool_name=str(name),
        device_buffers=[torch.zeros((pages, row_bytes), dtype=torch.uint8) for _ in range(layers)],
        item_bytes=row_bytes,
        num_host_pages=pages,
        slot_page_size=page,
        layout=layout,
        pin_memory=False,
    )


def logical(*, tokens: int = 2 * TOKENS, page: int = PAGE) -> Any:
    """An anchor that hands out indices and has no memory."""
    return LogicalHostPool(tokens, page)


def indexer(anchor: Any, *, layers: int = 3, bytes_per_token: int = 132) -> Any:
    """The index keys of sparse attention, at the indices of `anchor`."""
    from sglang.srt.mem_cache.pool_host.dsa import DSAIndexerPoolHost
    from sglang.srt.mem_cache.pool_host.host_pool_decl import HostPoolDecl, HostPoolStorageInfo

    page = anchor.page_size
    device = SimpleNamespace(
        store_dtype=torch.uint8,
        start_layer=0,
        end_layer=layers - 1,
        layer_num=layers,
        device="cpu",
        layer_shard_enabled=False,
        index_k_with_scale_buffer=[
            torch.zeros((anchor.page_num, bytes_per_token * page), dtype=torch.uint8)
            for _ in range(layers)
        ],
    )
    host_class = type(
        "DSAIndexerPoolHost",
        (DSAIndexerPoolHost,),
        {"_device_owned_layer_range": lambda self: (0, layers)},
    )
    storage = HostPoolStorageInfo(bytes_per_token_per_layer=bytes_per_token, dtype=torch.uint8)
    declaration = HostPoolDecl(
        pool_name=PoolName.INDEXER,
        device_pool=device,
        indices_from_pool=PoolName.KV,
        layout_source=PoolName.KV,
        storage_info=storage,
        host_pool_builder=None,
    )
    return host_class(declaration, anchor, pin_memory=False)
