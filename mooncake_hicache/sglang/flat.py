"""Pages handed over as tensors or addresses instead of through a registered pool.

SGLang uses these calls with a backend that it does not know to read host pools in place (one loaded
by module path without `interface_v1`), and tools use them by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mooncake_hicache._core import Code
from mooncake_hicache.sglang.transfer import Budget

if TYPE_CHECKING:
    from mooncake_hicache.store import Namespace

__all__ = ["get_flat", "put_flat"]


def get_flat(
    namespace: Namespace, keys: Sequence[str], targets: Sequence[Any], sizes: Sequence[Any] | None
) -> list[bool]:
    """Read each page into a tensor, or into `sizes` bytes at an address. The size must be exact."""
    budget = Budget()
    return [
        budget.left_s() > 0
        and bool((namespace.get_into_addresses([key], addresses, counts) == Code.OK).all())
        for key, (addresses, counts) in zip(keys, _spans(targets, sizes), strict=True)
    ]


def put_flat(
    namespace: Namespace, keys: Sequence[str], sources: Sequence[Any], sizes: Sequence[Any] | None
) -> list[bool]:
    """Write each page from a tensor, or `sizes` bytes from an address. Being there is success."""
    good, budget = (Code.OK, Code.ALREADY_EXISTS), Budget()
    return [
        budget.left_s() > 0
        and namespace.put_from([key], addresses, counts, parent=None, chained=False)[0] in good
        for key, (addresses, counts) in zip(keys, _spans(sources, sizes), strict=True)
    ]


def _spans(places: Sequence[Any], sizes: Sequence[Any] | None) -> list[tuple[Any, Any]]:
    """Return addresses [1, ranges] and sizes [ranges] of each page."""
    spans = []
    for i, place in enumerate(places):
        if hasattr(place, "data_ptr"):
            if not place.is_contiguous() or place.device.type != "cpu":
                raise ValueError("a page must be a contiguous tensor in host memory")
            addresses, counts = [place.data_ptr()], [place.numel() * place.element_size()]
        elif sizes is None:
            raise ValueError("a page that is given by its address needs a size")
        else:
            addresses = list(place) if isinstance(place, (list, tuple)) else [place]
            size = sizes[i]
            counts = list(size) if isinstance(size, (list, tuple)) else [size]
        spans.append((np.array([addresses], dtype=np.uint64), np.array(counts, dtype=np.uint64)))
    return spans
