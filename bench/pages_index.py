"""What does not depend on the size of a page: look-ups, latency, the index, waste, idle time."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.progress import Progress

from bench.limits import Area
from bench.node import private_node
from bench.pages_copy import KiB, MiB, keys_of
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.store import Store

LOOKUP_BATCH = 2048
SMALL_INDEX, LARGE_INDEX = 10_000, 1_000_000
WASTE_POOL = 2048 * MiB
# 64-token pages of three models: DeepSeek-V3 (61 layers × 576 × bf16), Qwen3-8B (144 KiB a token),
# and one rank of eight of Llama-3-70B (40 KiB a token).
MODEL_PAGE_SIZES = (61 * 576 * 2 * 64, 144 * KiB * 64, 40 * KiB * 64)
LOOKUP_ROUNDS, LOOKUP_CALLS = 10, 100
IDLE_SECONDS, SETTLE_SECONDS = 10.0, 3.0  # A young node still prepares its pool.


def percentiles_us(call: Callable[[], object], count: int) -> dict[str, float]:
    """Call `count` times after a warm-up; return p50 and p99 in microseconds."""
    for _ in range(max(5, count // 20)):
        call()
    times = np.empty(count)
    for number in range(count):
        began = time.perf_counter()
        call()
        times[number] = time.perf_counter() - began
    p50, p99 = np.percentile(times * 1e6, [50, 99])
    return {"p50_us": float(p50), "p99_us": float(p99)}


def put_small(pages: Namespace, keys: list[str], size: int) -> None:
    """Store pages of `size` bytes that all hold the same; thousands in one call."""
    area = Area(max(size, 4 * KiB))
    for start in range(0, len(keys), 4096):
        some = keys[start : start + 4096]
        addresses = np.full((len(some), 1), area.addresses(size, 0, 1)[0], dtype=np.uint64)
        codes = pages.put_from(some, addresses, np.array([size], dtype=np.uint64), chained=False)
        if (np.asarray(codes) != 0).any():
            raise RuntimeError(f"put of small pages: codes {np.unique(codes)}")


def lookups(store: Store) -> dict[str, dict[str, float]]:
    """Time look-ups of whole prompts, hit and miss, and single small pages."""
    pages = store.namespace({"bench": "pages", "case": "lookups"})
    keys = keys_of("lookups", LOOKUP_BATCH)
    put_small(pages, keys, 4 * KiB)
    absent = keys_of("absent", LOOKUP_BATCH)
    if pages.prefix_length(keys) != len(keys) or pages.prefix_length(absent) != 0:
        raise RuntimeError("look-ups are wrong")
    address = Area(4 * KiB).bytes
    found = {
        "prefix_2048_hit": percentiles_us(lambda: pages.prefix_length(keys), 500),
        "prefix_2048_miss": percentiles_us(lambda: pages.prefix_length(absent), 500),
        "exists_2048_hit": percentiles_us(lambda: pages.exists_batch(keys), 500),
        "exists_2048_miss": percentiles_us(lambda: pages.exists_batch(absent), 500),
    }
    for batch in (1, 32, 128):
        some = keys[:batch]
        call = lambda some=some: pages.exists_batch(some)  # noqa: E731
        found[f"exists_{batch}"] = percentiles_us(call, 1000)
    found["get_4k"] = percentiles_us(lambda: pages.get(keys[0]), 4000)
    found["get_4k_into"] = percentiles_us(lambda: pages.get_into(keys[0], address), 4000)
    pages.clear()
    return found


def resident_bytes(pid: int) -> int:
    """Return a process's memory that is its own: without files and shared memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * KiB
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon")


def index_growth(progress: Progress, large: int) -> dict[str, float]:
    """Fill the index of a fresh node; return bytes per page, and look-up times beside a small one.

    The two are asked in turn, so that a busy moment of the machine slows both.
    """
    with (
        private_node("64MiB"),
        Store.open() as small_store,
        private_node("1GiB"),
        Store.open() as large_store,
    ):
        small_pages = small_store.namespace({"bench": "pages", "case": "small index"})
        small_keys = keys_of("small", SMALL_INDEX)
        put_small(small_pages, small_keys, 256)
        pages = large_store.namespace({"bench": "pages", "case": "large index"})
        pid = int(node_stats(large_store)["pid"])
        empty = resident_bytes(pid)
        keys: list[str] = []
        task = progress.add_task(f"an index of {large:,} pages", total=large)
        while len(keys) < large:
            more = keys_of(f"index/{len(keys)}", min(50_000, large - len(keys)))
            put_small(pages, more, 256)
            keys += more
            progress.advance(task, len(more))
        stats = node_stats(large_store)
        if stats["pages"] != large:
            raise RuntimeError(f"{stats['pages']} pages in the index, not {large}")
        figures: dict[str, float] = {
            "pages": large,
            "bytes_per_page_reported": stats["index_size_bytes"] / large,
            "bytes_per_page_resident": (resident_bytes(pid) - empty) / large,
        }
        for kind, lookup in (("prefix", _prefixes), ("strewn", _strewn)):
            small_us, large_us = _medians_us(lookup(small_pages, small_keys), lookup(pages, keys))
            figures[f"{kind}_small_p50_us"] = small_us
            figures[f"{kind}_large_p50_us"] = large_us
            figures[f"{kind}_ratio"] = large_us / small_us
        return figures


def _medians_us(*calls: Callable[[], object]) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(LOOKUP_ROUNDS):
        for call, seconds in zip(calls, times, strict=True):
            for number in range(LOOKUP_CALLS):
                began = time.perf_counter()
                call()
                if number >= LOOKUP_CALLS // 5:  # The first ones find the other's cache lines.
                    seconds.append(time.perf_counter() - began)
    return [float(np.median(seconds)) * 1e6 for seconds in times]


def _prefixes(pages: Namespace, keys: list[str]) -> Callable[[], object]:
    """Return the look-up that an engine makes: chains of 2048 pages, by name, with leases."""
    chance = random.Random(1)
    starts = [chance.randrange(len(keys) - LOOKUP_BATCH) for _ in range(256)]
    # Names of their own, as an engine computes them for each request.
    chains = [[str(bytes(k, "ascii"), "ascii") for k in keys[s : s + LOOKUP_BATCH]] for s in starts]
    turn = itertools.cycle(chains)
    return lambda: pages.prefix_length(next(turn))


def _strewn(pages: Namespace, keys: list[str]) -> Callable[[], object]:
    """Return look-ups of 2048 pages from anywhere, without leases or names: the bare index."""
    chance = random.Random(1)
    batches = [bytes.fromhex("".join(chance.sample(keys, LOOKUP_BATCH))) for _ in range(256)]
    turn = itertools.cycle(batches)
    return lambda: pages.lookup(next(turn), lease=False, prefix=False)


def node_stats(store: Store) -> dict[str, int]:
    """Return the node's figures; raises RuntimeError without a node."""
    stats = store.stats()["node"]
    if stats is None:
        raise RuntimeError("no node answers")
    return dict(stats)


def waste(progress: Progress) -> dict[str, float]:
    """Mix the pages of three models in a full pool, evicting; return shares of the pool."""
    area = Area(max(MODEL_PAGE_SIZES))
    with private_node(f"{WASTE_POOL // MiB}MiB"), Store.open() as store:
        models = [
            (store.namespace({"bench": "waste", "model": number}), size)
            for number, size in enumerate(MODEL_PAGE_SIZES)
        ]
        chance = random.Random(5)
        written, number = 0, 0
        fills, wastes = [], []
        task = progress.add_task("three models in a full pool", total=4 * WASTE_POOL)
        while written < 4 * WASTE_POOL:
            pages, size = models[chance.randrange(len(models))]
            count = chance.randrange(1, 9)
            keys = keys_of(f"waste/{number}", count)
            addresses = np.full((count, 1), area.bytes.ctypes.data, dtype=np.uint64)
            codes = pages.put_from(keys, addresses, np.array([size], dtype=np.uint64))
            if (np.asarray(codes) != 0).any():
                raise RuntimeError(f"a put into a pool without leases: codes {np.unique(codes)}")
            written, number = written + count * size, number + 1
            progress.advance(task, count * size)
            if written > 2 * WASTE_POOL and number % 8 == 0:
                stats = node_stats(store)
                fills.append(stats["pool_used_bytes"] / stats["pool_size_bytes"])
                wastes.append(stats["pool_waste_bytes"] / stats["pool_size_bytes"])
        evicted = node_stats(store)["evicted_pages"]
    return {
        "fill_min": min(fills),
        "fill_median": float(np.median(fills)),
        "waste_max": max(wastes),
        "evicted_pages": evicted,
    }


def idle(store: Store) -> dict[str, float]:
    """Do nothing, connected; return the percent of a core that node and client spend on it."""
    pid = int(node_stats(store)["pid"])

    def node_seconds() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(SETTLE_SECONDS)
    node, client = node_seconds(), time.process_time()
    time.sleep(IDLE_SECONDS)
    return {
        "node_percent": 100 * (node_seconds() - node) / IDLE_SECONDS,
        "client_percent": 100 * (time.process_time() - client) / IDLE_SECONDS,
    }
