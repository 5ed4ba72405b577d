"""The answer to `/get_hicache_l3_cache_layout`: which objects make up a page, and their names.

It has the form that SGLang's own Mooncake adapter gives, so that it can be merged over pipeline
stages. An object is called `<page hash>@<namespace digest>`: the store keeps a page hash per
namespace, and the digest is the namespace's (see `mooncake_hicache.pages.namespace`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mooncake_hicache.sglang.identity import Coordinates, is_rank_sharded
from mooncake_hicache.sglang.pools import Pool

__all__ = ["describe_layout"]

_TRAILING = "trailing_pages"
_ALL = "all_pages"


def describe_layout(
    pools: Mapping[str, Pool],
    coordinates: Coordinates,
    sidecar_pool_specs: Sequence[Any],
    swa_trailing_pages: int | None,
    page_size: int,
) -> dict[str, Any]:
    """Describe the objects of a page.

    Args:
        pools: the registered pools by name.
        coordinates: the rank's.
        sidecar_pool_specs: SGLang's `SidecarPoolSpec`s.
        swa_trailing_pages: pages of a sliding window, None if there is none.
        page_size: tokens of a page.

    Returns:
        SGLang's availability envelope. Layouts in which a rank has data of its own are not enabled:
        one scheduler cannot name the objects of the others.
    """
    entries: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "enabled": True,
        "backend": "mooncake",
        "page_size": page_size,
        "hicache_object_layout": {
            "pools": entries,
            "key_prefix": None,
            "is_mla_backend": coordinates.is_mla_model,
            "pp_rank": coordinates.pp_rank,
            "pp_size": coordinates.pp_size,
        },
    }
    if not coordinates.is_mla_model:
        return _disabled(layout, "External L3 lookup requires rank-replicated/MLA pools")
    specs = {_text(spec.pool_name): spec for spec in sidecar_pool_specs}
    windows = {"mamba": 1, "swa": swa_trailing_pages}
    for name, pool in pools.items():
        if pool.is_logical or not pool.shares:
            continue
        spec = specs.get(name)
        policy = _policy(name, spec, windows)
        entry: dict[str, Any] = {
            "pool": name,
            "suffixes": [f"@{share.namespace.digest.hex()}" for share in pool.shares],
            "hit_policy": policy,
        }
        if policy == _TRAILING:
            window = windows.get(name if spec is None else _text(spec.indices_from_pool))
            if not window or window < 0:
                entries.clear()
                return _disabled(
                    layout, f"Unknown or non-positive trailing-page window for pool {name}"
                )
            entry["trailing_pages"] = window
        entries.append(entry)
    if any(is_rank_sharded(name, pool.host, coordinates) for name, pool in pools.items()):
        return _disabled(layout, "Auxiliary L3 pools are not rank-replicated/MLA")
    if not entries:
        return _disabled(layout, "No physical L3 pools are registered")
    return layout


def _policy(name: str, spec: Any, windows: Mapping[str, int | None]) -> str:
    if spec is not None:
        return _text(spec.hit_policy)
    return _TRAILING if name in windows else _ALL


def _disabled(layout: dict[str, Any], reason: str) -> dict[str, Any]:
    return {**layout, "enabled": False, "reason": reason}


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
