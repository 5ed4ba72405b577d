"""The storage backend that SGLang's HiCache calls: `MooncakeHiCacheStore`.

Rules that hold for every method:

* it never raises into the engine, which would stop a scheduler; trouble is a miss and a log line;
* it returns within seconds, and moves no byte afterwards;
* it may be called from several threads at once (look-ups, reads, writes, the scheduler);
* all ranks behave alike: what a configuration error does to one, it does to all.

A page is one object per rank and pool, in a namespace of its own (see `identity`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from mooncake_hicache import _core
from mooncake_hicache.errors import Error, TransientError
from mooncake_hicache.sglang import weights
from mooncake_hicache.sglang.flat import get_flat, put_flat
from mooncake_hicache.sglang.guard import all_false, all_false_v2, never_raises
from mooncake_hicache.sglang.identity import Coordinates, model_description, pool_description
from mooncake_hicache.sglang.l3_layout import describe_layout
from mooncake_hicache.sglang.lookup import contiguous_prefixes, trailing_windows
from mooncake_hicache.sglang.pools import (
    Pool,
    open_pool,
    page_tokens_of,
    pool_tensors,
    with_weights,
)
from mooncake_hicache.sglang.settings import Settings, read_settings
from mooncake_hicache.sglang.stats import OccasionalLog, TrafficLog
from mooncake_hicache.sglang.transfer import Budget, Mover
from mooncake_hicache.store import Namespace, Store
from mooncake_hicache.units import format_size
from mooncake_hicache.version import __version__

__all__ = ["MooncakeHiCacheStore", "Serving"]

logger = logging.getLogger(__name__)

_KV = "kv"
# The engine is up long before the first page is wanted, so opening never waits for the node.
_OPEN_WAIT_MS = 0
# Bounds what all large pools together may cost at the start; what is not done by then is done by
# their first use.
_WRITE_FIRST_S = 3.0

_RESULT_FIELDS = {field.name for field in dataclasses.fields(PoolTransferResult)}


def _base_class() -> type[HiCacheStorage]:
    # The engine asks for a `MooncakeStore` before it asks how objects are laid out. Importing that
    # module needs no mooncake package; its constructor would, and is never called.
    try:
        from sglang.srt.mem_cache.storage.mooncake_store.mooncake_store import MooncakeStore
    except Exception:  # noqa: BLE001 - whatever is wrong with it, we do not depend on it
        return HiCacheStorage
    base: type[HiCacheStorage] = MooncakeStore
    return base


def _pool_name(name: Any) -> str:
    return str(name.value) if isinstance(name, Enum) else str(name)


def _result(kv_pages: int, pool_pages: dict[Any, int], restorable: list[int]) -> PoolTransferResult:
    fields: dict[str, Any] = {"kv_hit_pages": kv_pages, "extra_pool_hit_pages": pool_pages}
    if "restorable_prefix_pages" in _RESULT_FIELDS:
        fields["restorable_prefix_pages"] = restorable
    return PoolTransferResult(**fields)


class Serving(NamedTuple):
    """What one call works with from its begin to its end, whatever happens meanwhile."""

    mover: Mover
    pools: dict[str, Pool]
    anchor: Pool | None


class MooncakeHiCacheStore(_base_class()):  # type: ignore[misc]
    """Keeps the engine's KV pages in the node of this machine.

    Args:
        storage_config: SGLang's `HiCacheStorageConfig`.
        mem_pool: the anchor host pool, or anything else; pools come with the `register_*` calls.
        device: the CUDA device whose memory the pools are in; None: host pools.
        resident: only pages in the memory of this machine are found; others come there meanwhile.

    Never raises and never waits for the node. If the configuration is wrong it warns once and keeps
    nothing: every look-up is a miss.
    """

    def __init__(
        self,
        storage_config: Any = None,
        mem_pool: Any = None,
        *,
        device: int | None = None,
        resident: bool = False,
    ) -> None:
        self.storage_config = storage_config
        self.coordinates = Coordinates.of(storage_config)
        self.mem_pool_host: Any = None
        self.registered_pools: dict[Any, Any] = {}
        self._lock = threading.Lock()
        self._log = OccasionalLog(logger)
        self._traffic = TrafficLog(bool(getattr(storage_config, "enable_storage_metrics", False)))
        self._pools: dict[str, Pool] = {}
        self._weights: str | None = None
        self._write_first_left_s = _WRITE_FIRST_S
        self._flat: Namespace | None = None
        extra = getattr(storage_config, "extra_config", None) or {}
        # Loaded by module path and not declared to read host pools in place: the engine then passes
        # pages as tensors.
        self._is_flat = "module_path" in extra and not extra.get("interface_v1")
        self._settings: Settings | None = None
        self._model: dict[str, object] | None = None
        self._store: Store | None = None
        self._mover: Mover | None = None
        self._must_clear: set[Namespace] = set()
        self._of_mover: dict[str, Any] = {"device": device, "resident": resident}
        self._open(extra)

    def _open(self, extra_config: Any) -> None:
        is_first = not (self.coordinates.tp_rank or self.coordinates.pp_rank)
        try:
            self._settings = read_settings(extra_config, os.environ)
            for warning in self._settings.warnings:
                (logger.warning if is_first else logger.debug)("%s", warning)
            self._store = Store.open(self._settings.options, wait_ms=_OPEN_WAIT_MS)
            self._mover = Mover(self._store, self._traffic, **self._of_mover)
        except Exception as error:  # noqa: BLE001 - an engine without a cache is better than none
            self._store = self._mover = None
            logger.warning(
                "mooncake-hicache is off, nothing will be kept or found: %s",
                error if isinstance(error, Error) else repr(error),
            )
            return
        logger.info(
            "mooncake-hicache %s keeps KV pages of %s (tp %d/%d, pp %d/%d)",
            __version__,
            self.coordinates.model_name,
            self.coordinates.tp_rank,
            self.coordinates.tp_size,
            self.coordinates.pp_rank,
            self.coordinates.pp_size,
        )
        if not weights.is_watched():
            # Not so with the plugin; tools and tests make adapters in other processes.
            logger.log(
                logging.WARNING
                if "sglang.srt.managers.scheduler" in sys.modules
                else logging.DEBUG,
                "updates of the weights go unnoticed in this process: clear the storage after each",
            )

    # ---- pools

    @never_raises(lambda *_: None)
    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Take the anchor pool. A group of pools stands for its anchor."""
        entry = getattr(mem_pool_host, "anchor_entry", None)
        self.mem_pool_host = mem_pool_host
        self._register(_KV, mem_pool_host if entry is None else entry.host_pool)

    @never_raises(lambda *_: None)
    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Take one pool of a group, the anchor included; may be called again for late pools."""
        name = _pool_name(host_pool_name)
        self.registered_pools[host_pool_name] = host_pool
        known = self._pools.get(name)
        if known is None or known.host is not host_pool:
            self._register(name, host_pool)

    def on_host_pools_registered(self) -> None:
        """Nothing to finish: every pool is complete when it is registered."""

    def register_buffer(self, tensor: Any) -> None:
        """Nothing to do: pages are copied by address, so memory need not be registered."""

    def _register(self, name: str, host: Any) -> None:
        pool = Pool(name, host, page_tokens_of(host), None)
        if self._store is not None:
            try:
                pool = open_pool(name, host, self.coordinates, self._describe_model(), self._store)
            except Exception as error:  # noqa: BLE001 - one pool less, not one engine less
                logger.warning(
                    "pool %s (%s, layout %s) cannot be stored, its pages will be misses: %r",
                    name,
                    type(host).__name__,
                    getattr(host, "layout", None),
                    error,
                )
        self._write_first(pool)
        with self._lock:
            if self._weights is not None and self._store is not None:
                pool = with_weights(pool, self._weights, self._store)
            self._pools = {**self._pools, name: pool}
        if pool.shares:
            logger.info(
                "pool %s: pages of %d tokens, %s, in %d object(s), layout %s",
                name,
                pool.page_tokens,
                format_size(pool.page_size_bytes),
                len(pool.shares),
                getattr(host, "layout", None),
            )

    def _write_first(self, pool: Pool) -> None:
        """Make the first reads into a pool as fast as later ones; changes no byte of it."""
        if self._store is None:
            return
        threads = self._store.options.copy_thread_count()
        for tensor in pool.tensors:
            left_ms = int(self._write_first_left_s * 1000)
            if tensor.device.type != "cpu" or left_ms < 1:
                continue
            begun_s = time.monotonic()
            size = tensor.numel() * tensor.element_size()
            _core.write_each_page(tensor.data_ptr(), size, threads, left_ms)
            self._write_first_left_s -= time.monotonic() - begun_s

    def _describe_model(self) -> dict[str, object]:
        if self._model is None:
            assert self._settings is not None
            self._model = model_description(self.coordinates, self._settings)
        return self._model

    # ---- version 1: one pool

    @never_raises(lambda *_, **__: 0)
    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """Return how many pages from the start are stored, and keep them for a following read."""
        serving = self.serving()
        # What a logical anchor stands for is in its side pools, which were not asked about.
        if serving is None or serving.anchor is None or _is_anchor_only(serving.anchor):
            return 0
        return self._kv_prefix_length(serving.mover, serving.anchor, keys, Budget())

    def _kv_prefix_length(self, mover: Mover, anchor: Pool, keys: list[str], budget: Budget) -> int:
        if self._is_flat and not anchor.is_logical:
            flat = self._flat_namespace()
            return 0 if flat is None else flat.prefix_length(keys, lease=True)
        return mover.prefix_length(anchor, keys, budget, lease=True)

    @never_raises(all_false)
    def batch_get_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Read pages into the anchor pool. Only pages whose every byte was verified are True."""
        serving = self.serving()
        if serving is None or serving.anchor is None:
            return all_false(keys)
        return serving.mover.read(serving.anchor, keys, host_indices, Budget())

    @never_raises(all_false)
    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Write pages of the anchor pool. A page that is stored already is True."""
        serving = self.serving()
        if serving is None or serving.anchor is None:
            return all_false(keys)
        parent = _parent(extra_info)
        return serving.mover.write(
            serving.anchor, keys, host_indices, Budget(), parent=parent, chained=True
        )

    # ---- version 2: several pools

    @never_raises(lambda *_, **__: _result(0, {}, []))
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: Any = None,
    ) -> PoolTransferResult:
        """Return which prefixes can be restored from the anchor and all side pools together."""
        serving = self.serving()
        if serving is None or serving.anchor is None:
            return _result(0, {}, [])
        (mover, pools, anchor), budget = serving, Budget()
        assert anchor is not None
        if _is_anchor_only(anchor) and not pool_transfers:
            return _result(0, {}, [])
        kv_pages = self._kv_prefix_length(mover, anchor, keys, budget)
        if not kv_pages:
            return _result(0, {}, [])
        span = keys[:kv_pages]
        pool_pages: dict[Any, int] = {PoolName.KV: kv_pages}
        restorable = np.ones(kv_pages, dtype=bool)
        windows: list[tuple[Pool, int]] = []
        for transfer in pool_transfers or ():
            if not restorable.any():
                break
            pool = pools.get(_pool_name(transfer.name))
            allowed = self._allowed(mover, pool, transfer, span, windows, budget)
            if allowed is None:
                continue
            ends = np.flatnonzero(allowed)
            if len(ends):
                pool_pages[transfer.name] = int(ends[-1]) + 1
            restorable &= allowed
        lengths = [int(i) + 1 for i in np.flatnonzero(restorable)]
        final = lengths[-1] if lengths else 0
        for pool, window in windows if final else ():
            mover.found(pool, span[max(0, final - window) : final], budget, lease=True)
        return _result(final, pool_pages, lengths)

    def _allowed(
        self,
        mover: Mover,
        pool: Pool | None,
        transfer: PoolTransfer,
        span: list[str],
        windows: list[tuple[Pool, int]],
        budget: Budget,
    ) -> Any | None:
        """Return for each prefix length whether a side pool allows it; None if it has no say."""
        if pool is None:
            self._log.warning(f"pool {transfer.name}", "pool %s is not registered", transfer.name)
            return np.zeros(len(span), dtype=bool)
        if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
            # The keys of the transfer are placeholders, only their number counts. States are large,
            # so none is leased before it is clear which one will be read.
            window = max(1, len(transfer.keys or ()))
            windows.append((pool, window))
            return trailing_windows(mover.found(pool, span, budget, lease=False), window)
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
            length = mover.prefix_length(pool, span, budget, lease=True)
            return contiguous_prefixes(np.arange(len(span)) < length)
        # Groups of pages are a second form of pages that are there anyway; by contract they never
        # shorten a hit.
        return None

    @never_raises(all_false_v2)
    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: Any = None
    ) -> dict[Any, list[bool]]:
        """Read pages of side pools."""

        def read(mover: Mover, pool: Pool, transfer: PoolTransfer, budget: Budget) -> list[bool]:
            return mover.read(pool, transfer.keys or [], transfer.host_indices, budget)

        return self._move(transfers, read)

    @never_raises(all_false_v2)
    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: Any = None
    ) -> dict[Any, list[bool]]:
        """Write pages of side pools."""

        def write(mover: Mover, pool: Pool, transfer: PoolTransfer, budget: Budget) -> list[bool]:
            # States are saved at a few points only: the page before is not the one they follow.
            chained = transfer.hit_policy == PoolHitPolicy.ALL_PAGES
            return mover.write(
                pool,
                transfer.keys or [],
                transfer.host_indices,
                budget,
                parent=_parent(extra_info) if chained else None,
                chained=chained,
            )

        return self._move(transfers, write)

    def _move(
        self,
        transfers: list[PoolTransfer],
        action: Callable[[Mover, Pool, PoolTransfer, Budget], list[bool]],
    ) -> dict[Any, list[bool]]:
        results = all_false_v2(transfers)
        serving, budget = self.serving(), Budget()
        if serving is None:
            return results
        for transfer in transfers:
            pool = serving.pools.get(_pool_name(transfer.name))
            if pool is None:
                self._log.warning(
                    f"pool {transfer.name}", "pool %s is not registered", transfer.name
                )
                continue
            results[transfer.name] = action(serving.mover, pool, transfer, budget)
        return results

    # ---- pages by tensor or address

    @never_raises(lambda *_, **__: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """Read one page. Returns the tensor or None; given an address, whether it was read."""
        done = self._get_flat([key], [target_location], _one(target_sizes))[0]
        if hasattr(target_location, "data_ptr"):
            return target_location if done else None
        return done

    @never_raises(lambda keys, *_, **__: [None] * len(keys))
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> Any:
        """Read pages. Returns tensors or None; given addresses, how many from the start."""
        done = self._get_flat(keys, target_locations, target_sizes)
        if all(hasattr(target, "data_ptr") for target in target_locations):
            return [t if ok else None for t, ok in zip(target_locations, done, strict=True)]
        return done.index(False) if False in done else len(done)

    @never_raises(lambda *_, **__: False)
    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        """Write one page from a tensor or from an address. Stored already is True."""
        source = target_location if value is None else value
        return self.batch_set([key], None, [source], _one(target_sizes))

    @never_raises(lambda *_, **__: False)
    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Write pages from tensors or from addresses. True if all are stored."""
        sources = target_locations if values is None else values
        namespace = self._flat_namespace()
        if namespace is None or not keys:
            return False
        return all(put_flat(namespace, keys, sources, target_sizes))

    @never_raises(lambda *_, **__: False)
    def exists(self, key: str) -> bool:
        """Whether a page of the anchor pool, or one written with `set`, is stored."""
        serving = self.serving()
        if serving is None or serving.anchor is None:
            return False
        if not serving.anchor.is_logical and serving.mover.prefix_length(
            serving.anchor, [key], Budget(), lease=False
        ):
            return True
        namespace = self._flat_namespace()
        return namespace is not None and bool(namespace.exists(key))

    def _get_flat(self, keys: Sequence[str], targets: Any, sizes: Any) -> list[bool]:
        namespace = self._flat_namespace()
        return (
            [False] * len(keys) if namespace is None else get_flat(namespace, keys, targets, sizes)
        )

    def _flat_namespace(self) -> Namespace | None:
        # Whole pages in the engine's own flat form; another order of bytes than in the pool.
        if self.serving() is None:
            return None
        with self._lock:
            store, anchor = self._store, self._pools.get(_KV)
            if self._flat is None and store is not None and anchor is not None:
                description = pool_description(
                    self._describe_model(),
                    "flat",
                    anchor.host,
                    self.coordinates,
                    (self.coordinates.tp_rank, self.coordinates.tp_size),
                    1,
                    anchor.page_tokens,
                    [],
                    pool_tensors(anchor.host),
                )
                if self._weights is not None:
                    description["update"] = self._weights
                self._flat = store.namespace(description)
            return self._flat

    # ---- life

    @never_raises(lambda *_: None)
    def clear(self) -> None:
        """Drop every page of this engine's namespaces and of no other. Safe while pages are moved.

        If the node does not answer, nothing is read or written until it has dropped them: after an
        update of the weights an old page would be a wrong page.
        """
        if self._store is None:
            return
        with self._lock:
            self._follow_weights()
            self._must_clear |= {s.namespace for pool in self._pools.values() for s in pool.shares}
            self._must_clear |= {self._flat} if self._flat is not None else set()
        dropped = self._clear_now()
        if self._must_clear:
            logger.warning("the node does not answer: pages are dropped before it is used again")
        else:
            logger.info("dropped %d pages of %s", dropped, self.coordinates.model_name)

    def _clear_now(self) -> int:
        """Drop the pages that wait to be dropped, as far as the node answers. Returns how many."""
        dropped = 0
        for namespace in list(self._must_clear):
            try:
                dropped += namespace.clear()
            except TransientError:
                break
            with self._lock:
                self._must_clear.discard(namespace)
        return dropped

    def serving(self) -> Serving | None:
        """Return what moves which pages, or None while there is nothing to move them to or from."""
        if self._must_clear and self._store is not None:
            if self._store.is_connected:
                self._clear_now()
            if self._must_clear:
                return None
        with self._lock:
            is_settled = self._follow_weights()
            if self._mover is None or not is_settled:
                return None
            return Serving(self._mover, self._pools, self._pools.get(_KV))

    def _follow_weights(self) -> bool:
        """Switch to the namespaces of the weights in use; the lock is held. Returns whether all KV
        of the engine was computed with them."""
        name, is_settled = weights.live().state()
        if name != self._weights and name is not None and self._store is not None:
            store = self._store
            # Calls under way go on with the pools, and so the namespaces, that they began with.
            self._pools = {n: with_weights(p, name, store) for n, p in self._pools.items()}
            self._flat, self._weights = None, name
        return is_settled

    @never_raises(lambda *_: None)
    def get_stats(self) -> Any | None:
        """Return `StorageMetrics` since the last call, or None. The engine asks at every step."""
        return self._traffic.take()

    @never_raises(lambda *_: None)
    def close(self) -> None:
        """Give everything back once calls under way have ended, which `Store.close` waits for.

        May be called twice, and after the host pools are gone.
        """
        with self._lock:
            store, self._store, self._mover = self._store, None, None
            self._pools, self._flat = {}, None
        self.registered_pools = {}
        self.mem_pool_host = None
        if store is not None:
            store.close()

    def describe_l3_object_layout(
        self, *, sidecar_pool_specs: Sequence[Any], swa_trailing_pages: int | None, page_size: int
    ) -> dict[str, Any]:
        """Describe the objects of a page for `/get_hicache_l3_cache_layout`."""
        try:
            return describe_layout(
                self._pools, self.coordinates, sidecar_pool_specs, swa_trailing_pages, page_size
            )
        except Exception as error:
            logger.debug("describing the layout failed", exc_info=True)
            return {
                "enabled": False,
                "backend": "mooncake",
                "page_size": page_size,
                "hicache_object_layout": {"pools": []},
                "reason": f"the layout cannot be described: {error}",
            }


def _is_anchor_only(pool: Pool) -> bool:
    """Whether a pool has no pages on any rank; a stand-in for another rank's pool has some."""
    return pool.is_logical and not getattr(pool.host, "_is_dummy", False)


def _parent(extra_info: Any) -> str | None:
    """Return the page before the first of a call, if the engine passes prefixes along."""
    prefix = getattr(extra_info, "prefix_keys", None)
    return str(prefix[-1]) if prefix else None


def _one(size: Any) -> list[Any] | None:
    return None if size is None else [size]
