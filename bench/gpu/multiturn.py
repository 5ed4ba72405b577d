"""Conversations with a growing context: several clients, several rounds, answers fed back."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.gpu.server import Answer, Server, prompt


@dataclass(frozen=True)
class Turns:
    """How many speak, how often, and how much."""

    clients: int
    rounds: int
    first_tokens: int
    """Of each first prompt: the working set is `clients` times that from the first round on."""
    turn_tokens: int
    answer_tokens: int
    at_once: int


# 217,000 tokens in the first round, 32 GB: four times an L2 of 8 GB.
TURNS = Turns(
    clients=24, rounds=4, first_tokens=9040, turn_tokens=1000, answer_tokens=16, at_once=2
)


def conversations(server: Server, turns: Turns, until_s: float) -> list[dict[str, Any]]:
    """Run the conversations, `at_once` requests at a time; return a row for each round.

    In each round every client asks once, in the same order, with all that was said before. So the
    working set is that of all clients, and least recently used caches do their worst. No round
    begins after `until_s`, a moment of the monotonic clock.
    """
    contexts = [prompt(("turn", client, 0), turns.first_tokens) for client in range(turns.clients)]

    def ask(client: int) -> tuple[int, Answer]:
        context = contexts[client]
        asked = len(context)
        answer = server.ask(context, turns.answer_tokens)
        context += answer.tokens
        context += prompt(("turn", client, len(context)), turns.turn_tokens)
        return asked, answer

    rows: list[dict[str, Any]] = []
    for number in range(turns.rounds):
        if time.monotonic() > until_s:
            break
        begun = time.monotonic()
        with ThreadPoolExecutor(turns.at_once) as threads:
            answers = list(threads.map(ask, range(turns.clients)))
        seconds = time.monotonic() - begun
        asked = sum(length for length, _ in answers)
        ttfts = sorted(answer.ttft_s for _, answer in answers)
        row: dict[str, Any] = {
            "round": number + 1,
            "input_tokens": asked,
            "seconds": seconds,
            "input_tokens_per_s": asked / seconds,
            "ttft_p50_s": statistics.median(ttfts),
            "ttft_p99_s": ttfts[min(len(ttfts) - 1, int(len(ttfts) * 0.99))],
        }
        for place in ("device", "host", "storage"):
            found = sum(answer.cached.get(place, 0) for _, answer in answers)
            row[f"{place}_share"] = found / asked
        rows.append(row)
    return rows
