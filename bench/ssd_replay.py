"""Requests replayed through a real node: what is written for them, and what they hit."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.hits import belady_hits
from bench.hits_workloads import Requests, from_chains, make, read_trace
from bench.limits import Area
from bench.pages_copy import KiB, MiB
from bench.pages_index import node_stats
from bench.ssd_node import OK, Scale, ssd_node, wait_written
from mooncake_hicache.store import Store

PAGE_SIZE = 64 * KiB
REGION_SIZE = 64 * MiB
"""Smaller than by default, so that the scaled disk has as many of them as a real one."""
POOL_SHARE = 0.05
"""Of the trace's distinct pages that memory holds."""
FILLS = (0.5, 0.9, 2.0)
"""Distinct pages by the size of the SSD. Beyond 1 space is reused all the time."""
TIME_MAX_S = 60.0
SHORT_LEASES = {"lookup_lease_ttl_ms": "100", "read_lease_ttl_ms": "100"}
"""A quarter of an hour of requests is replayed in seconds. Leases of the usual length would cover
every region all the time, and none could be reused."""

# Mooncake's report on SSD offload (docs: ssd-offload-benchmark-results): SGLang's bench_multiturn,
# 20 clients, 10 rounds of 4096 tokens, a barrier after each, in random order; Qwen3-8B with pages
# of 64 tokens (9 MiB) and 80 GB of memory. Here pages are of 64 KiB and memory holds as many.
CLIENTS, ROUNDS = 20, 10
REPORT_PAGES = 64
REPORT_CAPACITY = 80_000_000_000 // (9 * MiB)
REPORT_ROUNDS = (7, 8)
"""Those in which the report's memory is too small and its figures fall."""
LOOP_PASSES = 4


@dataclass
class Outcome:
    """Of one replay."""

    asked: list[int] = field(default_factory=list)
    """Pages, by request."""
    hits: list[int] = field(default_factory=list)
    seconds: float = 0.0
    stats: dict[str, int] = field(default_factory=dict)

    def share(self, requests: slice) -> float:
        """Return the share of pages hit in some requests."""
        return sum(self.hits[requests]) / sum(self.asked[requests])


def replay(chains: Sequence[Sequence[int]], label: str) -> Outcome:
    """Replay requests as an engine does: look up, read what is there, store the rest."""
    outcome = Outcome()
    area = Area(PAGE_SIZE * max(len(chain) for chain in chains))
    addresses = area.addresses(PAGE_SIZE, 0, area.size // PAGE_SIZE).reshape(-1, 1)
    sizes = np.array([PAGE_SIZE], dtype=np.uint64)
    names: dict[int, bytes] = {}

    def key(page: int) -> bytes:
        if page not in names:
            names[page] = hashlib.sha256(f"{label}/{page}".encode()).digest()
        return names[page]

    with Store.open() as store:
        pages = store.namespace({"bench": "ssd", "replay": label})
        began = time.monotonic()
        for chain in chains:
            keys = [key(page) for page in chain]
            found = pages.prefix_length(keys)
            if found:
                codes = pages.get_into_addresses(keys[:found], addresses[:found], sizes)
                misses = np.flatnonzero(np.asarray(codes) != OK)
                found = int(misses[0]) if len(misses) else found
            if found < len(keys):
                parent = keys[found - 1] if found else None
                rest = len(keys) - found
                pages.put_from(keys[found:], addresses[:rest], sizes, parent=parent)
            outcome.asked.append(len(keys))
            outcome.hits.append(found)
            # An engine computes for seconds meanwhile.
            wait_written(store)
            if time.monotonic() - began > TIME_MAX_S:
                break
        outcome.seconds = time.monotonic() - began
        outcome.stats = node_stats(store)
    return outcome


# ---------------------------------------------------------------- the trace


def trace_of(path: Path | None, pages_max: int) -> tuple[str, list[list[int]]]:
    """Return as many of the trace's first requests as ask for so many distinct pages."""
    if path is None:
        name, requests = "made conversations", make("chats", pages_max // 4, 8 * pages_max)
    else:
        name, requests = path.name, read_trace(path)
    chains: list[list[int]] = []
    distinct: set[int] = set()
    for chain in requests.chains():
        if len(distinct | set(chain)) > pages_max:
            break
        distinct.update(chain)
        chains.append(chain)
    return name, chains


def measure_trace(
    folder: Path, scale: Scale, path: Path | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return bytes written to the device by bytes of pages, for SSDs of several sizes."""
    name, chains = trace_of(path, scale.trace_pages_max)
    distinct = len({page for chain in chains for page in chain})
    rows = []
    for fill in FILLS:
        tell(f"the trace, distinct pages are {100 * fill:.0f} % of the SSD")
        size = max(8 * REGION_SIZE, int(distinct * PAGE_SIZE / fill))
        pool = max(64 * MiB, int(POOL_SHARE * distinct * PAGE_SIZE))
        place = folder / "trace"
        settings = {"ssd_size": f"{size // KiB}KiB", "ssd_region_size": f"{REGION_SIZE // MiB}MiB"}
        with ssd_node(place, pool, **settings, **SHORT_LEASES):
            outcome = replay(chains, "trace")
        shutil.rmtree(place)
        stats = outcome.stats
        rows.append(
            {
                "fill": fill,
                "ssd_size": size,
                "pool_size": pool,
                "requests": len(outcome.asked),
                "hit_share": outcome.share(slice(None)),
                "amplification": stats["ssd_device_written_bytes"]
                / max(1, stats["ssd_written_bytes"]),
                "written_bytes": stats["ssd_written_bytes"],
                "rewritten_bytes": stats["ssd_rewritten_bytes"],
                "used_share": stats["ssd_used_bytes"] / size,
                "overrun_pages": stats["ssd_overrun_pages"],
                "dropped_pages": stats["ssd_dropped_pages"],
                "seconds": outcome.seconds,
            }
        )
    return {
        "name": name,
        "requests": len(chains),
        "distinct_pages": distinct,
        "page_size": PAGE_SIZE,
        "rows": rows,
    }


# ---------------------------------------------------------------- working sets beyond memory


def rounds_of(turn_pages: int, seed: int = 5) -> Iterator[list[list[int]]]:
    """Yield the chains of each round: every client asks once, with all it has said so far."""
    chance = np.random.default_rng(seed)
    pages_max = ROUNDS * turn_pages
    for number in range(1, ROUNDS + 1):
        yield [
            list(range(client * pages_max, client * pages_max + number * turn_pages))
            for client in chance.permutation(CLIENTS).tolist()
        ]


def measure_loops(folder: Path, scale: Scale, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return hits by round, of the report's conversations, and of documents read in a circle."""
    capacity = REPORT_CAPACITY * scale.turn_pages // REPORT_PAGES
    rounds = list(rounds_of(scale.turn_pages))
    chains = [chain for some in rounds for chain in some]
    by_round = [slice(n * CLIENTS, (n + 1) * CLIENTS) for n in range(ROUNDS)]
    turns = _tiers(folder, chains, by_round, capacity, f"{CLIENTS} conversations", tell)
    turns["asked_again"] = [(n - 1) / n for n in range(1, ROUNDS + 1)]

    documents = 2 * capacity // scale.turn_pages
    circle = [
        list(range(number * scale.turn_pages, (number + 1) * scale.turn_pages))
        for number in range(documents)
    ]
    by_pass = [slice(n * documents, (n + 1) * documents) for n in range(LOOP_PASSES)]
    loop = _tiers(folder, circle * LOOP_PASSES, by_pass, capacity, "documents in a circle", tell)
    return {"capacity_pages": capacity, "conversations": turns, "circle": loop}


def _tiers(
    folder: Path,
    chains: list[list[int]],
    parts: list[slice],
    capacity: int,
    label: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return the share of hits of each part of the requests: memory alone, with SSD, Belady."""
    pool = -(-capacity * PAGE_SIZE // MiB) * MiB
    distinct = len({page for chain in chains for page in chain})
    found: dict[str, Any] = {}
    place = folder / "loop"
    # Room for all, and for the regions that are kept free.
    size = max(8 * REGION_SIZE, distinct * PAGE_SIZE * 5 // 4 + 4 * REGION_SIZE)
    with_ssd = {"ssd_size": f"{size // KiB}KiB", "ssd_region_size": f"{REGION_SIZE // MiB}MiB"}
    for name, ssd, settings in (
        ("lru", "off", {"eviction_policy": "lru"}),
        ("memory", "off", {}),
        ("ssd", str(place), with_ssd),
    ):
        tell(f"{label}: {name}")
        with ssd_node(ssd, pool, **settings):
            outcome = replay(chains, label)
        if len(outcome.asked) < len(chains):
            raise RuntimeError(f"{label}, {name}: not done after {TIME_MAX_S:.0f} s")
        found[name] = [outcome.share(part) for part in parts]
        found[f"{name}_seconds"] = outcome.seconds
    shutil.rmtree(place, ignore_errors=True)
    found["belady"] = _belady_shares(chains, parts, capacity)
    return found


def _belady_shares(chains: list[list[int]], parts: list[slice], capacity: int) -> list[float]:
    requests: Requests = from_chains(chains, range(len(chains)))
    hits = belady_hits(requests, capacity)
    return [sum(hits[part]) / sum(len(chain) for chain in chains[part]) for part in parts]
