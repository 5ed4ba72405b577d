"""The engine's pools on the GPU, as the linker uses them.

SGLang describes a GPU pool to linkers as a `DevicePoolEntry`: the tensors of all its layers, of
which a page takes one piece each. `DevicePool` is the same in the form of a host pool, so that what
is known about host pools (their geometry, their namespaces) holds for it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.srt.mem_cache.hicache_storage import PoolName

__all__ = ["DevicePool", "device_of", "pool_group_of"]

LAYOUT = "layers"
"""A page is stored as the pieces of all layers, in the order of the pool's tensors."""


class DevicePool:
    """A pool of the GPU in the form of a host pool; `entry` is SGLang's `DevicePoolEntry`.

    What is not said here (`head_num`, `start_layer` and so on) the engine's own pool says.
    """

    layout = LAYOUT

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self.page_size = int(entry.page_size)
        rows = min(int(buffer.shape[0]) for buffer in entry.kv_buffer)
        span = int(entry._row_span)
        self.page_num = rows // span
        """Pages that the tensors have room for."""
        self.size = self.page_num * self.page_size
        """Token slots."""
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("kv_buffer", "k_buffer", "v_buffer"):
            raise AttributeError(name)
        return getattr(self.entry.device_pool, name)

    @property
    def num_host_pages(self) -> int:
        """Rows of the tensors: a length that says how much fits, and not what a page is."""
        return self._rows

    def get_hybrid_pool_buffer(self) -> list[Any]:
        """Return the tensors of all layers."""
        return list(self.entry.kv_buffer)

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        """Return the addresses and sizes of the pieces of the pages at these token slots."""
        addresses, sizes = self.entry.get_page_buffer_meta(indices)
        return addresses, sizes

    def stage_of_piece(self, stage_count: int) -> npt.NDArray[np.uint64]:
        """Return for each piece of a page the layer that needs it first; shape [pieces].

        Args:
            stage_count: layers of a load. A piece that no layer names belongs to the first.
        """
        stages: list[int] = []
        for component in self.entry.components:
            first = [stage_count] * len(component)
            for layer, buffers in self.entry.layer_mapping.items():
                for number in (buffers,) if isinstance(buffers, int) else buffers:
                    first[number] = min(first[number], int(layer))
            stages += [0 if layer == stage_count else layer for layer in first]
        return np.array(stages, dtype=np.uint64)


def pool_group_of(kvcache: Any, params: Any, components: Any) -> Any:
    """Return SGLang's `DevicePoolGroup` of an engine's pools.

    SGLang builds it for hybrid models; for models with one pool of plain keys and values, or of
    MLA, it has none, and it is built here.

    Raises:
        ValueError: pages of such a pool cannot be moved without a host pool.
    """
    from sglang.srt.mem_cache.hybrid_cache import linker_pool_assembler as assembler
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

    kind = type(kvcache)
    if kind not in (MHATokenToKVPool, MLATokenToKVPool) or set(components) != {ComponentType.FULL}:
        return assembler.resolve_hybrid_device_pool_group(
            kvcache=kvcache, page_size=params.page_size, params=params, components=components
        )
    drafts = [
        *(getattr(params, "mtp_draft_device_pools", None) or ()),
        *(getattr(params, "sidecar_draft_device_pools", None) or ()),
    ]
    layout = getattr(kvcache, "kv_cache_layout", None) or "nhd"
    scales = [getattr(kvcache, name, None) for name in ("k_scale_buffer", "native_k_scale_buffer")]
    if drafts or layout != "nhd" or any(scale is not None for scale in scales):
        what = "KV of a draft model" if drafts else f"{kind.__name__} in layout {layout}"
        raise ValueError(
            f"the external linker does not support {what if drafts else what + ' or with scales'}; "
            "use --enable-hierarchical-cache --hicache-storage-backend mooncake"
        )
    layers = range(int(kvcache.layer_num))
    is_mla = kind is MLATokenToKVPool
    buffers = kvcache.kv_buffer if is_mla else [*kvcache.k_buffer, *kvcache.v_buffer]
    entry = assembler.DevicePoolEntry(
        name=PoolName.KV,
        indices_from_pool=PoolName.KV,
        device_pool=kvcache,
        components=[list(buffers)],
        layer_mapping={i: i if is_mla else (i, len(layers) + i) for i in layers},
        page_size=params.page_size,
        rows_are_pages=False,
    )
    return assembler.DevicePoolGroup([entry], len(layers), params.page_size, rank_replicated=is_mla)


def device_of(pools: dict[Any, Any]) -> int | None:
    """Return the CUDA device that the tensors of these entries are on, None for host memory.

    Raises:
        ValueError: they are on several devices, or on one that is neither.
    """
    devices = {buffer.device for entry in pools.values() for buffer in entry.kv_buffer}
    if len(devices) != 1:
        raise ValueError(f"the pools of one rank are on {sorted(map(str, devices))}")
    device = devices.pop()
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise ValueError(
            f"pages on {device} cannot be moved without host memory; use "
            "--enable-hierarchical-cache --hicache-storage-backend mooncake"
        )
    return int(device.index or 0)
