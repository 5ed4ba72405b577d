"""sgl_kernel's operators that copy KV between the device pool and a host pool, in torch.

Names and parameters are those of sgl_kernel. The device keeps one tensor per layer, [token, head,
dim]. A name says both ends: `lf` layer first, `pf` page first (host [token, layer, ...]), `ph` page
head (host [page, head, token in page, layer, dim]); `per_layer` loads one layer to the device,
`all_layer` writes all layers to the host; `mla` has one tensor where the others have K and V.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _rows_at(address: int, count: int, size: int) -> Tensor:
    """View memory as `count` rows of `size` bytes: the operators get layers as raw addresses."""
    buffer = (ctypes.c_uint8 * (count * size)).from_address(int(address))
    return torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8).reshape(count, size))


def _count(indices: Tensor) -> int:
    return int(indices.max()) + 1


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape((rows.shape[0], *like.shape[1:]))


# ---- kernel, layer first


def transfer_kv_per_layer_mla(
    src: Tensor, dst: Tensor, src_indices: Tensor, dst_indices: Tensor, item_size: int, **_: Any
) -> None:
    dst[dst_indices] = _shaped(src[src_indices], dst)


def transfer_kv_per_layer(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    **_: Any,
) -> None:
    transfer_kv_per_layer_mla(src_k, dst_k, src_indices, dst_indices, item_size)
    transfer_kv_per_layer_mla(src_v, dst_v, src_indices, dst_indices, item_size)


def transfer_kv_all_layer_mla(
    src_layers: Tensor,
    dst_layers: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    num_layers: int,
    **_: Any,
) -> None:
    for source, target in zip(src_layers.tolist(), dst_layers.tolist(), strict=True):
        rows = _rows_at(source, _count(src_indices), item_size)[src_indices]
        _rows_at(target, _count(dst_indices), item_size)[dst_indices] = rows


def transfer_kv_all_layer(
    src_k_layers: Tensor,
    dst_k_layers: Tensor,
    src_v_layers: Tensor,
    dst_v_layers: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    num_layers: int,
    **_: Any,
) -> None:
    for sources, targets in ((src_k_layers, dst_k_layers), (src_v_layers, dst_v_layers)):
        transfer_kv_all_layer_mla(sources, targets, src_indices, dst_indices, item_size, num_layers)


# ---- kernel, page first


def transfer_kv_per_layer_mla_pf_lf(
    src: Tensor,
    dst: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    **_: Any,
) -> None:
    dst[dst_indices] = _shaped(src[src_indices, layer_id], dst)


def transfer_kv_per_layer_pf_lf(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    **_: Any,
) -> None:
    dst_k[dst_indices] = _shaped(src_k[src_indices, layer_id], dst_k)
    dst_v[dst_indices] = _shaped(src_v[src_indices, layer_id], dst_v)


def transfer_kv_all_layer_mla_lf_pf(
    src_layers: Tensor,
    dst: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    **_: Any,
) -> None:
    target = dst.view(torch.uint8).reshape(dst.shape[0], num_layers, item_size)
    for layer, source in enumerate(src_layers.tolist()):
        target[dst_indices, layer] = _rows_at(source, _count(src_indices), item_size)[src_indices]


def transfer_kv_all_layer_lf_pf(
    src_k_layers: Tensor,
    dst_k: Tensor,
    src_v_layers: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    **_: Any,
) -> None:
    for sources, target in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        transfer_kv_all_layer_mla_lf_pf(
            sources, target, src_indices, dst_indices, item_size, dst_layout_dim, num_layers
        )


# ---- kernel, page head


def transfer_kv_per_layer_ph_lf(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    page_size: int,
    head_num: int,
    **_: Any,
) -> None:
    pages, tokens = src_indices // page_size, src_indices % page_size
    dst_k[dst_indices] = src_k[pages, :, tokens, layer_id]
    dst_v[dst_indices] = src_v[pages, :, tokens, layer_id]


def transfer_kv_all_layer_lf_ph(
    src_k_layers: Tensor,
    dst_k: Tensor,
    src_v_layers: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    page_size: int,
    head_num: int,
    **_: Any,
) -> None:
    pages, tokens = dst_indices // page_size, dst_indices % page_size
    for sources, target in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        for layer, source in enumerate(sources.tolist()):
            rows = _rows_at(source, _count(src_indices), item_size)[src_indices].view(target.dtype)
            target[pages, :, tokens, layer] = rows.reshape(
                len(pages), target.shape[1], target.shape[-1]
            )


# ---- direct


def transfer_kv_direct(
    src_layers: Sequence[Tensor],
    dst_layers: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = _shaped(source[src_indices], target)


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    pages = src_indices[::page_size] // page_size
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        target[dst_indices] = source[pages, layer_id].reshape((-1, *target.shape[1:]))


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    pages = dst_indices[::page_size] // page_size
    layers = len(src_ptrs) // len(dst_ptrs)
    for position, target in enumerate(dst_ptrs):
        for layer in range(layers):
            rows = src_ptrs[position * layers + layer][src_indices]
            target[pages, layer] = rows.reshape((len(pages), *target.shape[2:]))


OPERATORS: dict[str, Callable[..., None]] = {
    name: value for name, value in globals().items() if name.startswith("transfer_kv_")
}
