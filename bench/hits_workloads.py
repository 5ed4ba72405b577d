"""Requests to replay: a recorded trace, or made ones that each stress one habit of a policy."""

from __future__ import annotations

import gzip
import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UINT64 = np.uint64


@dataclass(frozen=True)
class Requests:
    """Requests in order; request i names the pages ids[starts[i]:starts[i + 1]], root first."""

    starts: NDArray[np.uint64]
    ids: NDArray[np.uint64]
    now_ms: NDArray[np.uint64]

    @property
    def page_count(self) -> int:
        """How many pages are asked for in all."""
        return len(self.ids)

    def chains(self) -> Iterable[list[int]]:
        """Each request's pages, as Python numbers."""
        ids, starts = self.ids.tolist(), self.starts.tolist()
        return (ids[a:b] for a, b in pairwise(starts))


def from_chains(chains: Sequence[Sequence[int]], now_ms: Sequence[int]) -> Requests:
    """Pack requests given as lists."""
    starts = np.cumsum([0, *(len(chain) for chain in chains)], dtype=UINT64)
    ids = np.fromiter((page for chain in chains for page in chain), dtype=UINT64)
    return Requests(starts, ids, np.asarray(now_ms, dtype=UINT64))


def read_trace(path: Path) -> Requests:
    """Read JSON lines with `timestamp` (ms) and `hash_ids`, gzipped or not.

    Raises OSError if it cannot be read, ValueError if it is something else.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    chains: list[list[int]] = []
    now_ms: list[int] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                request = json.loads(line)
                chains.append([int(page) for page in request["hash_ids"]])
                now_ms.append(int(request["timestamp"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a request ({error!r})") from error
    if not chains:
        raise ValueError(f"{path}: no request")
    return from_chains(chains, now_ms)


def _single(pages: NDArray[np.int64]) -> Requests:
    """One page a request: keys that form no chains."""
    count = len(pages)
    return Requests(
        np.arange(count + 1, dtype=UINT64),
        pages.astype(UINT64),
        10 * np.arange(count, dtype=UINT64),
    )


def _zipf(
    random: np.random.Generator, page_count: int, exponent: float, size: int
) -> NDArray[np.int64]:
    weights = np.arange(1, page_count + 1, dtype=np.float64) ** -exponent
    return random.choice(page_count, size=size, p=weights / weights.sum())


def loop(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Round and round a little more than fits: LRU hits nothing."""
    del random
    return _single(np.arange(size) % (capacity * 11 // 10))


def scan_and_hot(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Half of the requests from a hot set, the other half never seen again."""
    hot = random.integers(0, capacity // 2, size)
    return _single(np.where(random.random(size) < 0.5, hot, capacity + np.arange(size)))


def scan_bursts(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Zipf, interrupted by scans as long as the cache."""
    parts: list[NDArray[np.int64]] = []
    fresh = 1 << 32
    for _ in range(-(-size // (3 * capacity))):
        parts += [
            _zipf(random, 2 * capacity, 0.8, 2 * capacity),
            np.arange(fresh, fresh + capacity),
        ]
        fresh += capacity
    return _single(np.concatenate(parts)[:size])


def zipf(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Fixed popularity, ten times as many pages as fit."""
    return _single(_zipf(random, 10 * capacity, 0.9, size))


def zipf_moving(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Popularity that moves on to other pages again and again."""
    moved = np.arange(size) // (10 * capacity) * (2 * capacity)
    return _single(_zipf(random, 10 * capacity, 0.9, size) + moved)


def recency(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """What was used lately is used again, and nothing else matters: LRU is best."""
    stack: list[int] = []
    pages = np.empty(size, dtype=np.int64)
    depths = random.exponential(0.6 * capacity, size).astype(np.int64).tolist()
    is_fresh = (random.random(size) < 0.3).tolist()
    for i in range(size):
        if is_fresh[i] or depths[i] >= len(stack):
            page = i
            del stack[: max(0, len(stack) - 4 * capacity)]
        else:
            page = stack.pop(-1 - depths[i])
        stack.append(page)
        pages[i] = page
    return _single(pages)


def chats(random: np.random.Generator, capacity: int, size: int) -> Requests:
    """Many short conversations, below a few shared system prompts."""
    fresh = 0

    def new_pages(count: int) -> list[int]:
        nonlocal fresh
        fresh += count
        return list(range(fresh - count, fresh))

    prompts = [new_pages(4 + i) for i in range(8)]
    shares = 1 / np.arange(1, 9)
    shares /= shares.sum()
    waiting: list[tuple[int, int, list[int], int]] = []  # due, number, chain, turns left
    chains: list[list[int]] = []
    now_ms: list[int] = []
    now = number = pages = 0
    while pages < size:
        now += 10
        if random.random() < 1 / 3:
            prompt = prompts[random.choice(8, p=shares)]
            number += 1
            heapq.heappush(waiting, (now, number, prompt, int(random.integers(0, 6))))
        while waiting and waiting[0][0] <= now and pages < size:
            _, _, chain, turns_left = heapq.heappop(waiting)
            chain = chain + new_pages(int(random.integers(1, 4)))
            chains.append(chain)
            now_ms.append(now)
            pages += len(chain)
            if turns_left > 0:
                number += 1
                due = now + 10 + int(random.exponential(1.5 * capacity))
                heapq.heappush(waiting, (due, number, chain, turns_left - 1))
    return from_chains(chains, now_ms)


Workload = Callable[[np.random.Generator, int, int], Requests]
WORKLOADS: dict[str, Workload] = {
    "loop": loop,
    "scan_and_hot": scan_and_hot,
    "scan_bursts": scan_bursts,
    "zipf": zipf,
    "zipf_moving": zipf_moving,
    "recency": recency,
    "chats": chats,
}


def make(name: str, capacity: int, size: int, seed: int = 7) -> Requests:
    """Return the named workload for a cache of this many pages; the same for the same seed."""
    return WORKLOADS[name](np.random.default_rng(seed), capacity, size)
