"""What the adapter's Python costs per call of the engine: `python -m bench.adapter` prints JSON.

Real host pools and the real adapter, in a process of its own, as importing SGLang changes a
process. The cost is the time of `batch_get_v1` less the time that it spends in the store itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import numpy as np

from bench.node import private_node
from tests.serving.server import SITE, has_gpu

PAGES = 128
PAGE_TOKENS = 64
CALLS = 300


def measure() -> dict[str, float]:
    """Return p50 and p99 of the adapter's own time per get of 128 pages, in microseconds."""
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

    from mooncake_hicache.namespace import Namespace
    from mooncake_hicache.sglang.adapter import MooncakeHiCacheStore
    from tests.sglang.host_pools import mha

    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="bench",
    )
    # Pages of 16 KiB: the bytes cost little, the calls are what is measured.
    pool = mha(heads=1, head_dim=64, layers=1, page=PAGE_TOKENS, tokens=PAGES * PAGE_TOKENS)
    adapter = MooncakeHiCacheStore(config, pool)
    adapter.register_mem_pool_host(pool)
    inside = 0.0
    original = Namespace.get_into_addresses

    def timed(self: Namespace, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        began = time.perf_counter()
        codes = original(self, *args, **kwargs)
        inside += time.perf_counter() - began
        return codes

    Namespace.get_into_addresses = timed  # type: ignore[method-assign]
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(PAGES)]
    indices = torch.arange(PAGES * PAGE_TOKENS, dtype=torch.int64)
    deadline = time.monotonic() + 20
    while not all(adapter.batch_set_v1(keys, indices)):  # It connects in the background.
        if time.monotonic() > deadline:
            raise RuntimeError("the adapter stores nothing")
        time.sleep(0.05)
    own, whole = [], []
    for number in range(CALLS + 20):
        inside = 0.0
        began = time.perf_counter()
        found = adapter.batch_get_v1(keys, indices)
        seconds = time.perf_counter() - began
        if not all(found) or inside == 0.0:
            raise RuntimeError("the adapter did not get its pages from the store")
        if number >= 20:
            own.append(seconds - inside)
            whole.append(seconds)
    adapter.close()
    p50, p99 = np.percentile(np.array(own) * 1e6, [50, 99])
    return {
        "own_p50_us": float(p50),
        "own_p99_us": float(p99),
        "call_p50_us": float(np.median(whole) * 1e6),
    }


def main() -> int:
    """Measure and print one line of JSON, the last one."""
    if not has_gpu():
        sys.path.insert(0, str(SITE))
        import sglang_on_cpu

        sglang_on_cpu.activate()
    from sglang.srt.runtime_context import get_parallel

    with (
        private_node("256MiB"),
        get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1),
    ):
        figures = measure()
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
