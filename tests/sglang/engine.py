"""SGLang's cache tree, controller, threads and host pools in this process, without a server.

The part of a server that HiCache consists of: a radix tree over device pools (here in host memory),
a controller that copies pages to host pools and from there to storage, and the way back.
"""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sglang.srt.environ import envs
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    CacheRequestHandle,
    EvictParams,
    InsertParams,
    MatchPrefixParams,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

PAGE = 16
LAYERS = 3
TOKENS = 512


@contextlib.contextmanager
def single_rank() -> Iterator[None]:
    """What SGLang asks for its place among ranks."""
    with get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1):
        yield


class Engine:
    """One engine's cache. Not thread-safe; `close` stops its threads and detaches the storage."""

    def __init__(
        self,
        *,
        layout: str,
        io: str,
        tree: str = "python",
        is_mla: bool = False,
        model: str,
        extra: dict[str, object] | None = None,
        backend: str = "mooncake",
    ) -> None:
        extra_config = json.dumps({"prefetch_threshold": 1, **(extra or {})})
        arguments = ServerArgs(
            model_path="dummy",
            served_model_name=model,
            page_size=PAGE,
            hicache_io_backend=io,
            hicache_mem_layout=layout,
            hicache_write_policy="write_through",
            hicache_storage_backend=backend,
            hicache_storage_backend_extra_config=extra_config,
            hicache_storage_prefetch_policy="wait_complete",
            hicache_ratio=2.0,
        )
        set_global_server_args_for_scheduler(arguments)
        shared: dict[str, Any] = {
            "size": TOKENS,
            "page_size": PAGE,
            "dtype": torch.bfloat16,
            "layer_num": LAYERS,
            "device": "cpu",
            "enable_memory_saver": False,
        }
        self.pool: Any = (
            MLATokenToKVPool(kv_lora_rank=64, qk_rope_head_dim=16, **shared)
            if is_mla
            else MHATokenToKVPool(head_num=2, head_dim=32, **shared)
        )
        self.allocator = TokenToKVPoolAllocator(
            size=TOKENS, dtype=torch.bfloat16, device="cpu", kvcache=self.pool, need_sort=False
        )
        parameters = CacheInitParams(
            req_to_token_pool=ReqToTokenPool(
                size=8, max_context_len=1024, device="cpu", enable_memory_saver=False
            ),
            token_to_kv_pool_allocator=self.allocator,
            page_size=PAGE,
            disable=False,
            tree_components=(ComponentType.FULL,),
        )
        with envs.SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND.override(tree):
            self.cache: Any = UnifiedRadixCache(params=parameters)
        self.cache.init_hicache(arguments, parameters)
        self.cache.load_back_threshold = 0
        controller = self.cache.cache_controller
        controller.load_back_threshold = 0
        controller.prefetch_capacity_limit = controller.mem_pool_host.size

    @property
    def backend(self) -> Any:
        """The storage backend, perhaps inside SGLang's failure injector."""
        return self.cache.cache_controller.storage_backend

    @property
    def adapter(self) -> Any:
        """The storage backend itself."""
        return getattr(self.backend, "_backend", self.backend)

    def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Run the scheduler's part of the work until a condition is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"did not come true within {seconds} s"
            self.cache.check_hicache_events()
            time.sleep(0.002)

    def compute(self, tokens: list[int], seed: int) -> list[torch.Tensor]:
        """Put made-up KV of a prompt into the tree; returns it. Waits until it is stored or not."""
        slots = self.allocator.alloc(len(tokens))
        generator = torch.Generator().manual_seed(seed)
        for buffer in self._buffers():
            noise = torch.randn(buffer[slots].shape, generator=generator)
            buffer[slots] = noise.to(buffer.dtype)
        self.cache.insert(InsertParams(key=self._key(tokens), value=slots))
        self.match(tokens)
        self.until(lambda: not self.cache.ongoing_write_through and not self.cache.ongoing_backup)
        return self._contents(slots)

    def match(self, tokens: list[int]) -> Any:
        """What of a prompt is in the tree."""
        return self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))

    def evict_device(self, count: int) -> None:
        """Drop tokens from the device, not from the host."""
        self.cache.evict(EvictParams(num_tokens=count))
        for buffer in self._buffers():
            buffer.zero_()

    def prefetch(self, tokens: list[int]) -> int:
        """Fetch a prompt from storage into the host pool; returns how many tokens came."""
        request = CacheRequestHandle("request", 0)
        root = self.cache.root_node_handle()
        self.cache.prefetch_from_storage(request, root, array("q", tokens), None, None)
        self.until(lambda: self.cache.check_prefetch_progress(request))
        return int(self.cache.pop_prefetch_loaded_tokens(request))

    def load(self, tokens: list[int]) -> list[torch.Tensor]:
        """Bring a prompt from the host to the device; returns its KV."""
        match = self.match(tokens)
        assert self.cache.load_back(match.best_match_node)
        self.cache.ready_to_load_host_cache()
        for acknowledgement in list(self.cache.cache_controller.ack_load_queue):
            acknowledgement.finish_event.synchronize()
        self.cache.loading_check()
        node = self.match(tokens).last_device_node
        return self._contents(self.cache.path_device_indices(node))

    def close(self) -> None:
        """Stop the threads and detach the storage."""
        self.cache.cache_controller.detach_storage_backend()

    def _buffers(self) -> Iterator[torch.Tensor]:
        for layer in range(LAYERS):
            yield self.pool.get_key_buffer(layer)
            if not isinstance(self.pool, MLATokenToKVPool):
                yield self.pool.get_value_buffer(layer)

    def _contents(self, slots: torch.Tensor) -> list[torch.Tensor]:
        return [buffer[slots].clone() for buffer in self._buffers()]

    @staticmethod
    def _key(tokens: list[int]) -> RadixKey:
        return RadixKey(array("q", tokens))
