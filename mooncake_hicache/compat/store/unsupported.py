"""What of the original's `mooncake.store` is not here: using it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from mooncake_hicache.errors import UnsupportedError

__all__ = [
    "EngramStore",
    "EngramStoreConfig",
    "MooncakeDistributedNoFRegister",
    "ParallelAxis",
    "ReadTarget",
    "StoreUnsupported",
    "TensorParallelism",
]

_ENGRAM = "Engram tables are not part of mooncake-hicache: keep them with put() and get()"
_NVME = "NVMe over fabrics is not part of mooncake-hicache; local SSDs are its option ssd"
_PARALLEL = (
    "tensor-parallel reads and writes are not part of mooncake-hicache: put each rank's shard "
    "under a key of its own with put_from()"
)


class _Unsupported:
    _why = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise UnsupportedError(f"{type(self).__name__}: {self._why}")


class EngramStore(_Unsupported):
    """Not supported."""

    _why = _ENGRAM


class EngramStoreConfig(_Unsupported):
    """Not supported."""

    _why = _ENGRAM


class MooncakeDistributedNoFRegister(_Unsupported):
    """Not supported."""

    _why = _NVME


class ParallelAxis(_Unsupported):
    """Not supported."""

    _why = _PARALLEL


class TensorParallelism(_Unsupported):
    """Not supported."""

    _why = _PARALLEL


class ReadTarget(_Unsupported):
    """Not supported."""

    _why = _PARALLEL


def _refuse(name: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        del self, args, kwargs
        raise UnsupportedError(f"{name}(): {why}")

    refuse.__name__ = name
    refuse.__doc__ = "Not supported."
    return refuse


_FILES = "use save_tensor_to_safetensor() and load_tensor_from_safetensor()"
_NEWER = {
    "get_tensor_dim_selection_into": "read ranges with get_into_ranges()",
    "load_kv_cache_from_file": _FILES,
    "load_tensor": "use get_tensor(), or load_tensor_from_safetensor()",
    "load_tensor_from_file": _FILES,
    "save_kv_cache_to_file": _FILES,
    "save_tensor": "use put_tensor(), or save_tensor_to_safetensor()",
    "save_tensor_to_file": _FILES,
}
"""What sources of the original that are newer than its release have besides, and what to do."""


class StoreUnsupported:
    """The methods of `MooncakeDistributedStore` that raise UnsupportedError."""

    def __getattr__(self, name: str) -> Any:
        # They are missing, and not there to raise, because programs look whether they are there.
        why = f": it is not part of mooncake-hicache; {_NEWER[name]}" if name in _NEWER else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{why}")


for _name in (
    "batch_get_tensor_with_parallelism",
    "batch_get_tensor_with_parallelism_into",
    "batch_get_tensor_with_tp",
    "batch_get_tensor_with_tp_into",
    "batch_pub_tensor_with_tp",
    "batch_put_tensor_with_parallelism",
    "batch_put_tensor_with_parallelism_from",
    "batch_put_tensor_with_tp",
    "batch_put_tensor_with_tp_from",
    "batch_upsert_tensor_with_parallelism",
    "batch_upsert_tensor_with_parallelism_from",
    "get_tensor_with_parallelism",
    "get_tensor_with_parallelism_into",
    "get_tensor_with_tp",
    "get_tensor_with_tp_into",
    "pub_tensor_with_tp",
    "put_tensor_with_parallelism",
    "put_tensor_with_parallelism_from",
    "put_tensor_with_tp",
    "put_tensor_with_tp_from",
    "upsert_tensor_with_parallelism",
    "upsert_tensor_with_parallelism_from",
):
    setattr(StoreUnsupported, _name, _refuse(_name, _PARALLEL))
