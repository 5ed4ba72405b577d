"""Conversations with a growing context: several clients, several rounds, answers fed back."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.gpu.server import Answer, Server, prompt


def conversations(
    server: Server, *, clients: int, rounds: int, turn_tokens: int, answer_tokens: int, at_once: int
) -> list[dict[str, Any]]:
    """Run the conversations, `at_once` requests at a time; return a row for each round.

    In each round every client asks once, in the same order, with all that was said before. So the
    working set is that of all clients, and least recently used caches do their worst.
    """
    contexts = [prompt(("turn", client, 0), turn_tokens) for client in range(clients)]

    def ask(client: int) -> tuple[int, Answer]:
        context = contexts[client]
        asked = len(context)
        answer = server.ask(context, answer_tokens)
        context += answer.tokens
        context += prompt(("turn", client, len(context)), turn_tokens)
        return asked, answer

    rows = []
    for number in range(rounds):
        begun = time.monotonic()
        with ThreadPoolExecutor(at_once) as threads:
            answers = list(threads.map(ask, range(clients)))
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
