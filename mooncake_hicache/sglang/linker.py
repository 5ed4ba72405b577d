"""The external linker: pages between the GPU and the node's memory, without host pools.

SGLang calls it `--enable-unified-cache-external-linker`. There is no L2 to fill first: a hit is
copied by the GPU out of the node's memory, layer by layer under the forward pass that uses it.

What follows from SGLang's rules:

* A look-up runs on the scheduler's thread, and a load holds up its batch. So only pages in the
  memory of this machine count; those on SSD and on other nodes come there when they are looked
  for, and count the next time.
* A load that fails ends its requests with status 503 and touches nothing else. So what a look-up
  reports is leased until the load, which follows in the same step of the scheduler.
* Results of offloads are reported in order, one for each, and all ranks agree on their number.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolName, PoolTransfer
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinker

from mooncake_hicache.sglang.adapter import MooncakeHiCacheStore
from mooncake_hicache.sglang.device_pools import DevicePool, device_of, pool_group_of
from mooncake_hicache.sglang.load_counter import Load, LoadCounter
from mooncake_hicache.sglang.server import server_option

__all__ = ["HiCacheLinker"]

logger = logging.getLogger(__name__)

_QUIESCE_S = 5.0
"""How long `reset` lets queued offloads go on; the engine flushes its caches in this time."""

_PAUSE_MAX_S = 60.0
"""How long nothing is found, at most, while loads fail one after the other."""


class _Offload(NamedTuple):
    transfers: list[PoolTransfer]
    events: list[Any]
    epoch: int


class HiCacheLinker(UnifiedCacheLinker):  # type: ignore[misc]
    """Moves pages of the engine's GPU pools. Made by SGLang, one for each rank.

    Args:
        server_args: the server's arguments.
        params: SGLang's `CacheInitParams`.
        components: of the radix tree.
        extra_config: the JSON of `--unified-cache-external-linker-config`; the options are those of
            `--hicache-storage-backend-extra-config`.
        forward_stream: the stream that writes the pools.

    Raises:
        ValueError: the model's pools or an option are not supported.
    """

    def __init__(
        self,
        server_args: Any,
        params: Any,
        *,
        components: Any,
        extra_config: dict[str, Any] | None = None,
        forward_stream: Any = None,
    ) -> None:
        if getattr(server_args, "enable_linker_mla_dedup", False):
            raise ValueError(
                "--enable-linker-mla-dedup is not supported: every rank reads the pages from the "
                "memory of this machine over its own PCIe link; leave it out"
            )
        self.forward_stream = forward_stream
        kvcache = params.token_to_kv_pool_allocator.get_kvcache()
        self.pool_group = pool_group_of(kvcache, params, components)
        self.pools = self.pool_group.entry_map
        self._device = device_of(self.pools)
        config = _storage_config(params, self.pool_group.rank_replicated, dict(extra_config or {}))
        self.storage = MooncakeHiCacheStore(config, device=self._device, resident=True)
        for name, entry in self.pools.items():
            self.storage.register_mem_host_pool_v2(DevicePool(entry), name)
        # Where every rank holds the same KV, one of them writes it.
        self._is_writer = not self.pool_group.rank_replicated or config.tp_rank == 0
        layers = self.pool_group.num_layers
        self._stage_of_piece = {
            name: DevicePool(entry).stage_of_piece(layers) for name, entry in self.pools.items()
        }
        self.layer_done_counter = LoadCounter(layers, self._current_stream())
        if PoolName.MAMBA in self.pools:
            params.req_to_token_pool.register_layer_transfer_counter(self.layer_done_counter)
        self._queued_loads: dict[str, list[PoolTransfer]] = {}
        self._failed_loads = 0  # In a row.
        self._paused_until_s = 0.0
        # One load at a time, its pools side by side.
        self._loader = ThreadPoolExecutor(1, "hicache-load")
        self._readers = ThreadPoolExecutor(len(self.pools), "hicache-load-pool")
        # No longer than the tree has nodes, each of which is locked until its result is taken.
        self._offloads: SimpleQueue[_Offload | None] = SimpleQueue()
        self._results: SimpleQueue[bool] = SimpleQueue()
        self._epoch = 0
        self._in_flight = 0
        self._idle = threading.Condition()
        self._offloader = threading.Thread(
            target=self._work_off, name="hicache-offload", daemon=True
        )
        self._offloader.start()
        serving = self.storage.serving()
        if serving is not None:
            serving.mover.pin_pool()

    def _current_stream(self) -> Callable[[], int] | None:
        if self._device is None:
            return None
        return lambda: int(torch.cuda.current_stream().cuda_stream)

    # ---- look-ups

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        """Return every prefix length, in pages, that can be restored at once."""
        expanded = self.pool_group.resolve_transfers(transfers)
        kv = next((t for t in transfers if t.name == PoolName.KV), None)
        if not expanded or kv is None or not kv.keys:
            return []
        if time.monotonic() < self._paused_until_s:
            return []
        result = self.storage.batch_exists_v2(list(kv.keys), expanded)
        return list(result.restorable_prefix_pages or [])

    # ---- loads

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        """Queue a load for the next `start_layer_wise_loading`."""
        expanded = self.pool_group.resolve_transfers(
            transfers, allow_partial=True, allow_missing_kv=True
        )
        if not expanded or rid in self._queued_loads:
            return False
        self._queued_loads[rid] = expanded
        return True

    def cancel_queued_load(self, rid: str) -> bool:
        """Forget a load that has not been started."""
        return self._queued_loads.pop(rid, None) is not None

    def start_layer_wise_loading(self) -> int:
        """Start the queued loads. Returns the number that the forward pass names them by, or -1."""
        if not self._queued_loads:
            return -1
        queued, self._queued_loads = self._queued_loads, {}
        by_pool: dict[Any, list[PoolTransfer]] = {}
        for transfers in queued.values():
            for transfer in transfers:
                by_pool.setdefault(transfer.name, []).append(transfer)
        index, load = self.layer_done_counter.begin(len(by_pool))
        ready = [] if self._device is None else [_event()]
        self._loader.submit(self._load, load, by_pool, ready)
        return index

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        """Wait until a load writes nothing any more. Returns whether all of it is right."""
        landed = self.layer_done_counter.finish(counter_index)
        self._note_load(landed)
        return landed

    def _note_load(self, landed: bool) -> None:
        """Have the engine compute for a while where loads keep failing: each ends its requests.

        One that fails is no reason: a page was lost, and is not found any more. All ranks miss what
        one of them does not find.
        """
        self._failed_loads = 0 if landed else self._failed_loads + 1
        if self._failed_loads < 2:
            return
        pause_s = min(_PAUSE_MAX_S, 2.0 ** (self._failed_loads - 2))
        self._paused_until_s = time.monotonic() + pause_s
        logger.error("%d loads failed in a row: paused for %.0f s", self._failed_loads, pause_s)

    def _load(self, load: Load, by_pool: dict[Any, list[PoolTransfer]], ready: list[Any]) -> None:
        """Runs on the loader's thread."""
        landed = False
        try:
            _wait_for(ready)  # The slots are free from here on.
            if load.may_begin():
                parts = [
                    self._readers.submit(self._load_pool, load, part, name, transfers)
                    for part, (name, transfers) in enumerate(by_pool.items())
                ]
                wait(parts)  # For all of them, whatever the first says.
                landed = all(part.result() for part in parts)
        except Exception:
            logger.exception("loading pages failed")
        finally:
            for part in range(len(by_pool)):
                load.stages.end(part)
            load.landed.set_result(landed)

    def _load_pool(self, load: Load, part: int, name: Any, transfers: list[PoolTransfer]) -> bool:
        serving = self.storage.serving()
        pool = None if serving is None else serving.pools.get(str(getattr(name, "value", name)))
        if serving is None or pool is None:
            return False
        keys = [key for transfer in transfers for key in transfer.keys or ()]
        indices = torch.cat([transfer.host_indices.cpu() for transfer in transfers])
        return serving.mover.load(
            pool, keys, indices, load.stages, part, self._stage_of_piece[name]
        )

    # ---- offloads

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        """Queue pages to be stored. `session_id` has no counterpart here."""
        expanded = self.pool_group.resolve_transfers(transfers, allow_partial=True)
        if not expanded:
            return False
        if not self._is_writer:
            self._results.put(True)
            return True
        with self._idle:
            self._in_flight += 1
        self._offloads.put(_Offload(expanded, self.record_offload_ready(), self._epoch))
        return True

    def num_completed_offloads(self) -> int:
        """Return how many results wait to be taken."""
        return self._results.qsize()

    def pop_completed_offload(self) -> bool:
        """Return the oldest result: whether everything was stored."""
        return self._results.get_nowait()

    def _work_off(self) -> None:
        """Runs on the offloader's thread."""
        while (task := self._offloads.get()) is not None:
            stored = False
            try:
                _wait_for(task.events)
                if task.epoch == self._epoch:
                    results = self.storage.batch_set_v2(task.transfers)
                    stored = all(all(flags) for flags in results.values())
            except Exception:
                logger.exception("storing pages failed")
            with self._idle:
                # A result that nobody waits for any more would be taken for the next one's, whose
                # slots would be given away while they are read.
                if task.epoch == self._epoch:
                    self._results.put(stored)
                self._in_flight -= 1
                self._idle.notify_all()

    # ---- life

    def reset(self) -> None:
        """Let what is under way end, and forget it; offloads that are still queued after 5 s are
        dropped."""
        self._queued_loads.clear()
        self.layer_done_counter.reset()
        end_s = time.monotonic() + _QUIESCE_S
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0, _QUIESCE_S)
            if self._in_flight:
                logger.warning("dropped %d offloads that were still queued", self._in_flight)
            self._epoch += 1  # What is queued now does nothing, and has no result.
            # One at most is being written, and ends within its budget.
            left_s = max(0.0, end_s + _QUIESCE_S - time.monotonic())
            self._idle.wait_for(lambda: self._in_flight == 0, left_s)
        while True:
            try:
                self._results.get_nowait()
            except Empty:
                return

    def close(self) -> None:
        """Let what is under way end, and give everything back."""
        self.reset()
        self._offloads.put(None)
        self._offloader.join(_QUIESCE_S)
        self._loader.shutdown(wait=False)
        self._readers.shutdown(wait=False)
        self.storage.close()

    def record_offload_ready(self) -> list[Any]:
        """Return what an offload waits for: the pages are chosen, and written."""
        if self._device is None:
            return []
        return [_event()] + ([] if self.forward_stream is None else [_event(self.forward_stream)])


def _event(stream: Any = None) -> Any:
    """Return what comes when all that is queued on a stream, by default the current, is done."""
    # Waiting for it sleeps: a forward pass may take a second, and the engine needs its CPUs.
    event = torch.cuda.Event(blocking=True)
    event.record(*([] if stream is None else [stream]))
    return event


def _wait_for(events: list[Any]) -> None:
    for event in events:
        event.synchronize()


def _storage_config(
    params: Any, rank_replicated: bool, extra_config: dict[str, Any]
) -> HiCacheStorageConfig:
    group = params.attn_tp_cache_group or params.tp_cache_group
    rank, size = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank(group=group)
        size = torch.distributed.get_world_size(group=group)
    name = server_option("served_model_name") or server_option("model_path")
    return HiCacheStorageConfig(
        tp_rank=rank,
        tp_size=size,
        pp_rank=params.pp_rank,
        pp_size=params.pp_size,
        attn_cp_rank=params.attn_cp_rank,
        attn_cp_size=params.attn_cp_size,
        is_mla_model=rank_replicated,
        enable_storage_metrics=False,
        is_page_first_layout=False,
        model_name=None if name is None else str(name),
        extra_config=extra_config,
    )
