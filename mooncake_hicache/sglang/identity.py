"""Which namespace a pool's pages belong to.

The engine's page hash covers tokens (and the adapter and salt of the request), nothing else. All
that also decides what the bytes are goes into the namespace: the model and its weights, the number
format, the order of the bytes in a host page, and which heads, layers and tokens this rank holds.

Leaving something out would hand out wrong bytes; putting in something needless only makes a miss.
So when in doubt it is in.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mooncake_hicache.sglang.fingerprint import file_digest, model_fingerprint
from mooncake_hicache.sglang.server import engine_version, server_option
from mooncake_hicache.sglang.settings import Settings

__all__ = ["Coordinates", "head_groups", "is_rank_sharded", "model_description", "pool_description"]

_FORMAT = 1
_SERVER_OPTIONS = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "json_model_override_args",
    "revision",
    "model_impl",
    "modelopt_quant",
    "rl_quant_profile",
)
_DRAFT_POOLS = ("draft", "draft_indexer", "draft_swa")
_SHARDED_DRAFT_POOLS = ("draft", "draft_swa")
_HEADS_OUTERMOST = "page_head"


@dataclass(frozen=True)
class Coordinates:
    """Which part of a model one engine rank holds, as SGLang's storage config tells it."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dcp_rank: int
    dcp_size: int
    logical_page_size: int | None
    tp_lcm_size: int | None
    should_split_heads: bool
    is_mla_model: bool
    """Every rank of a TP group holds the same KV (MLA, DeepSeek-V4), and one of them writes it."""
    model_name: str | None

    @classmethod
    def of(cls, config: Any) -> Coordinates:
        """Read a `HiCacheStorageConfig` of any supported version; None stands for a single rank."""

        def number(name: str, default: int) -> int:
            value = getattr(config, name, default)
            return default if value is None else int(value)

        lcm = getattr(config, "tp_lcm_size", None)
        logical_page_size = getattr(config, "logical_page_size", None)
        name = getattr(config, "model_name", None)
        return cls(
            tp_rank=number("tp_rank", 0),
            tp_size=number("tp_size", 1),
            pp_rank=number("pp_rank", 0),
            pp_size=number("pp_size", 1),
            cp_rank=number("attn_cp_rank", 0),
            cp_size=number("attn_cp_size", 1),
            dcp_rank=number("dcp_rank", 0),
            dcp_size=number("dcp_size", 1),
            logical_page_size=None if logical_page_size is None else int(logical_page_size),
            tp_lcm_size=None if lcm is None else int(lcm),
            should_split_heads=bool(getattr(config, "should_split_heads", False)),
            is_mla_model=bool(getattr(config, "is_mla_model", False)),
            model_name=None if name is None else str(name),
        )


def is_rank_sharded(name: str, pool: object, coordinates: Coordinates) -> bool:
    """Whether each TP rank has data of its own in this pool.

    This is the engine's rule of who writes: a pool that only one rank writes must be one that all
    ranks can read.
    """
    if not coordinates.is_mla_model or name == "mamba":
        return True
    return name in _SHARDED_DRAFT_POOLS and _is_mha_pool(pool)


def _is_mha_pool(pool: object) -> bool:
    try:
        from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
    except ImportError:
        return hasattr(pool, "v_head_dim")
    return isinstance(pool, MHATokenToKVPoolHost)


def head_groups(name: str, pool: object, coordinates: Coordinates) -> list[tuple[int, int]]:
    """Return the groups of heads, as (index, count), that a page of this rank is stored in.

    One group is the rank's own. Engines of different TP sizes that agree on `tp_lcm_size` keep one
    object per finest group instead, which all of them can put together. That takes a layout in
    which a group's bytes lie together.
    """
    own = [(coordinates.tp_rank, coordinates.tp_size)]
    lcm = coordinates.tp_lcm_size
    if not coordinates.should_split_heads or not lcm or lcm % coordinates.tp_size:
        return own
    parts = lcm // coordinates.tp_size
    heads = int(getattr(pool, "head_num", 0) or 0)
    if (
        getattr(pool, "layout", None) != _HEADS_OUTERMOST
        or not is_rank_sharded(name, pool, coordinates)
        or heads < parts
        or heads % parts
    ):
        return own
    return [(coordinates.tp_rank * parts + part, lcm) for part in range(parts)]


def model_description(coordinates: Coordinates, settings: Settings) -> dict[str, object]:
    """Return the part of the description that all pools of a server share."""
    path = server_option("model_path")
    revision = server_option("revision")
    load_format = server_option("load_format")
    scales = server_option("quantization_param_path")
    weight_version = settings.weight_version or server_option("weight_version")
    return {
        "format": _FORMAT,
        "engine": "sglang",
        "model": coordinates.model_name,
        **_files(path, revision),
        "weights": None if weight_version is None else str(weight_version),
        "tag": settings.tag,
        "tenant": settings.tenant,
        "server": {name: _text(server_option(name)) for name in _SERVER_OPTIONS},
        # How files are read decides what the weights are, down to random ones.
        "load_format": _text(load_format),
        "scales": None if scales is None else file_digest(str(scales)) or str(scales),
    }


def pool_description(
    model: Mapping[str, object],
    name: str,
    pool: Any,
    coordinates: Coordinates,
    group: tuple[int, int],
    parts: int,
    page_tokens: int,
    range_sizes: Sequence[int],
    tensors: Sequence[Any],
) -> dict[str, object]:
    """Return the description of one pool's pages, for one group of heads.

    Args:
        model: from `model_description`.
        name: the pool's name in the engine.
        pool: the host pool.
        coordinates: the rank's.
        group: from `head_groups`.
        parts: how many groups the rank's heads are cut into.
        page_tokens: token slots of a page.
        range_sizes: bytes of each memory range of a stored page, in order.
        tensors: the pool's buffers.
    """
    rows = any(str(tensor.dtype) == "torch.uint8" for tensor in tensors)
    layers = [_number(pool, key) for key in ("start_layer", "end_layer", "layer_num")]
    target_layers = _number(pool, "target_layer_num")
    has_draft = name in _DRAFT_POOLS or (
        target_layers is not None and target_layers != _number(pool, "layer_num")
    )
    heads = _number(pool, "head_num")
    return {
        **model,
        "pool": name,
        "layout": str(getattr(pool, "layout", "")),
        "page_tokens": page_tokens,
        "page_bytes": [[size, len(list(run))] for size, run in itertools.groupby(range_sizes)],
        "layers": [*layers, target_layers],
        "heads": None if heads is None else heads // parts,
        "dims": [_number(pool, key) for key in ("head_dim", "v_head_dim", "kv_cache_dim")],
        "mla": [_number(pool, key) for key in ("kv_lora_rank", "qk_rope_head_dim")],
        "tensors": [_tensor(tensor, pool) for tensor in tensors],
        # What the bytes of an opaque row mean is the engine's own affair.
        "rows": engine_version() if rows else None,
        "draft": _draft_model() if has_draft else None,
        "head_group": list(group) if is_rank_sharded(name, pool, coordinates) else None,
        "pp": [coordinates.pp_rank, coordinates.pp_size],
        "cp": [coordinates.cp_rank, coordinates.cp_size],
        "dcp": _dcp(coordinates),
    }


def _dcp(coordinates: Coordinates) -> list[int | None] | None:
    if coordinates.dcp_size == 1:
        return None
    return [
        coordinates.dcp_rank,
        coordinates.dcp_size,
        coordinates.tp_size,
        coordinates.logical_page_size,
    ]


def _draft_model() -> dict[str, object]:
    path = server_option("speculative_draft_model_path")
    revision = server_option("speculative_draft_model_revision")
    return {
        "algorithm": _text(server_option("speculative_algorithm")),
        "name": None if path is None else str(path).rstrip("/").rsplit("/", 1)[-1],
        "load_format": _text(server_option("speculative_draft_load_format")),
        **_files(path, revision),
    }


def _files(path: object, revision: object) -> dict[str, object]:
    """Return what tells a model's files from others: their content, or else where they are."""
    if path is None:
        return {"files": None, "path": None}
    fingerprint = model_fingerprint(str(path), revision if isinstance(revision, str) else None)
    return {"files": fingerprint, "path": str(path) if fingerprint is None else None}


def _tensor(tensor: Any, pool: Any) -> list[object]:
    """Return a buffer's number format and its shape, with `*` for what only counts pages."""
    dtype = str(tensor.dtype)
    if getattr(pool, "layout", None) == _HEADS_OUTERMOST:
        # Heads are the outermost part of a page, and their number is said elsewhere: ranks with
        # more or fewer of them share groups.
        return [dtype]
    counts = {getattr(pool, key, None) for key in ("size", "page_num", "num_host_pages")}
    counts |= {getattr(pool, "indexer_page_num", None)}
    shape: list[object] = []
    for length in tensor.shape:
        is_count = length in counts and "*" not in shape
        shape.append("*" if is_count else int(length))
    return [dtype, *shape]


def _number(pool: object, name: str) -> int | None:
    value = getattr(pool, name, None)
    return int(value) if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
