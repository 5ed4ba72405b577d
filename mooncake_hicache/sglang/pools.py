"""Host pools of the engine, as the adapter uses them: pages to memory ranges, and namespaces.

A pool is looked at once, when the engine registers it. From then on a batch of pages becomes
addresses by arithmetic (see `pages.geometry`); a pool that does not lay its pages out regularly is
asked for each batch, as SGLang's own adapters do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.pages.geometry import Addresses, PageGeometry, part
from mooncake_hicache.sglang.identity import Coordinates, head_groups, pool_description

if TYPE_CHECKING:
    from mooncake_hicache.store import Namespace, Store

__all__ = [
    "Pool",
    "Share",
    "is_logical",
    "open_pool",
    "page_tokens_of",
    "pool_tensors",
    "with_weights",
]

logger = logging.getLogger(__name__)

_BUFFERS = ("kv_buffer", "k_buffer", "v_buffer", "index_k_buffer", "index_k_scale_buffer")


@dataclass(frozen=True)
class Share:
    """One object of a page: the whole of it, or one group of heads."""

    namespace: Namespace
    index: int
    count: int
    description: Mapping[str, object] = field(repr=False)
    """What the namespace was opened with."""


@dataclass(frozen=True)
class Pool:
    """A registered host pool. Immutable and thread-safe."""

    name: str
    host: Any
    page_tokens: int
    """Token slots of a page."""
    geometry: PageGeometry | None
    shares: tuple[Share, ...] = ()
    """The objects of a page. Without any, nothing can be stored."""
    is_logical: bool = False
    """The pool hands out indices and has no memory: there is nothing to read or write."""
    page_size_bytes: int = 0
    """Bytes of a page on this rank, all its objects together."""
    tensors: tuple[Any, ...] = field(default=(), repr=False)
    """Keeps the memory mapped: the engine may destroy its pools while a copy is under way."""

    def ranges(self, host_indices: Any, page_count: int) -> tuple[Addresses, Addresses] | None:
        """Return addresses [pages, ranges] and sizes of the pages at these token slots.

        Returns None if the indices are not those of `page_count` whole pages of this pool.
        """
        if host_indices is None or len(host_indices) != page_count * self.page_tokens:
            return None
        if getattr(host_indices, "is_cuda", False):
            host_indices = host_indices.cpu()
        if self.geometry is not None:
            first: npt.NDArray[np.int64] = host_indices[:: self.page_tokens].numpy()
            pages, rest = np.divmod(first, self.page_tokens)
            if rest.any() or not 0 <= pages.min() <= pages.max() < self.geometry.page_count:
                return None
            return self.geometry.addresses(pages), self.geometry.sizes
        addresses, sizes = self.host.get_page_buffer_meta(host_indices)
        shape = (page_count, len(addresses) // page_count)
        return (
            np.array(addresses, dtype=np.uint64).reshape(shape),
            np.array(sizes, dtype=np.uint64).reshape(shape),
        )

    @staticmethod
    def part(share: Share, addresses: Addresses, sizes: Addresses) -> tuple[Addresses, Addresses]:
        """Return the addresses and sizes of one object of each page."""
        return part(addresses, sizes, share.index, share.count)


def is_logical(host: Any) -> bool:
    """Whether a host pool only hands out indices and has no memory of its own."""
    return bool(getattr(host, "_is_dummy", False)) or getattr(host, "kv_buffer", host) is None


def page_tokens_of(host: Any) -> int:
    """Return how many token slots the engine passes for one page of a pool."""
    # Under decode context parallelism a rank's page stands for more tokens than it holds.
    return int(getattr(host, "logical_page_size", 0) or getattr(host, "page_size", 0) or 1)


def pool_tensors(host: Any) -> tuple[Any, ...]:
    """Return the tensors that a pool keeps its pages in."""
    if hasattr(host, "get_hybrid_pool_buffer"):
        found = list(host.get_hybrid_pool_buffer())
    else:
        found = []
        for name in _BUFFERS:
            value = getattr(host, name, None)
            found += value if isinstance(value, (list, tuple)) else [value]
    seen: set[tuple[int, int]] = set()
    tensors = []
    for tensor in found:
        if tensor is None or not tensor.numel():
            continue
        span = (tensor.data_ptr(), tensor.numel() * tensor.element_size())
        if span not in seen:
            seen.add(span)
            tensors.append(tensor)
    return tuple(tensors)


def open_pool(
    name: str, host: Any, coordinates: Coordinates, model: dict[str, object], store: Store
) -> Pool:
    """Look at a host pool and open the namespaces of its pages.

    Raises whatever the pool raises if its pages have no addresses in this layout.
    """
    page_tokens = page_tokens_of(host)
    if is_logical(host):
        return Pool(name, host, page_tokens, None, is_logical=True)
    tensors = pool_tensors(host)
    geometry = None
    # Pages of a pool that shares its memory with others move; only the pool knows where they are.
    if getattr(host, "shared_allocation_domain", None) is None:
        geometry = _probe(host, page_tokens, tensors)
    sizes = geometry.sizes.tolist() if geometry else [int(s) for s in _ask(host, page_tokens, 0)[1]]
    if geometry is None:
        logger.info("pool %s: pages are not laid out regularly, asking for each batch", name)
    groups = head_groups(name, host, coordinates)
    if any(size % len(groups) for size in sizes):
        groups = [(coordinates.tp_rank, coordinates.tp_size)]
    shares = []
    for index, group in enumerate(groups):
        description = pool_description(
            model,
            name,
            host,
            coordinates,
            group,
            len(groups),
            page_tokens,
            [size // len(groups) for size in sizes],
            tensors,
        )
        namespace = store.namespace(description)
        shares.append(Share(namespace, index, len(groups), description))
    return Pool(
        name,
        host,
        page_tokens,
        geometry,
        tuple(shares),
        page_size_bytes=sum(sizes),
        tensors=tensors,
    )


def with_weights(pool: Pool, weights: str, store: Store) -> Pool:
    """Return the same pool with namespaces for pages of other weights."""
    shares = []
    for share in pool.shares:
        description = {**share.description, "update": weights}
        shares.append(
            replace(share, namespace=store.namespace(description), description=description)
        )
    return replace(pool, shares=tuple(shares))


def _ask(host: Any, page_tokens: int, page: int) -> tuple[Sequence[int], Sequence[int]]:
    import torch

    slots = torch.arange(page * page_tokens, (page + 1) * page_tokens, dtype=torch.int64)
    addresses, sizes = host.get_page_buffer_meta(slots)
    return addresses, sizes


def _probe(host: Any, page_tokens: int, tensors: Sequence[Any]) -> PageGeometry | None:
    # `size` counts the slots of this rank; the engine's indices count those of all DCP ranks.
    slots = int(getattr(host, "logical_size", 0) or getattr(host, "size", 0))
    spans = [(t.data_ptr(), t.numel() * t.element_size()) for t in tensors]
    return PageGeometry.probe(
        lambda page: _ask(host, page_tokens, page), slots // page_tokens, spans
    )
