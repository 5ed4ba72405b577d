"""Time to first token by where the prompt is cached, and the same tokens from everywhere."""

from __future__ import annotations

import bisect
import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.server import Answer, Server, prompt

NEW_TOKENS = 4

# More tokens than the GPU's cache holds, so that asking in turn finds every prompt in L2; few
# enough for L2. Chosen for 49152 tokens on the GPU and 135000 in L2.
DEVICE_TOKENS = 49152
PROMPTS = {4096: 14, 16384: 4, 32768: 3}

HIT_EVERY_S = 0.6
AFTER_HIT_S = 0.05  # By then the last token of a hit is answered, too.
DECODE_S = 7.0  # More than what is measured beside a request that decodes takes.
DECODE_TOKENS_MIN = 260
COMPLETE = 0.95  # Of a prompt; the last page and a token are always computed.


def is_complete(length: int, answer: Answer) -> bool:
    """Whether a prompt was either computed or found as a whole."""
    found = sum(answer.cached.get(place, 0) for place in ("device", "host", "storage"))
    return found == 0 or found >= COMPLETE * length


class Samples:
    """Answers by length and by where the prompt was found; a wrong place is kept and said."""

    def __init__(self, tag: str, names: Mapping[str, str] | None = None) -> None:
        """`names`: what this server's answers call a place, where it is another one."""
        self.tag = tag
        self.rows: list[dict[str, Any]] = []
        self._names = names or {}

    def add(
        self, length: int, wanted: str, answer: Answer, reference: Sequence[int] | None
    ) -> None:
        """Keep one answer, and whether its tokens are those of the reference."""
        same = None if reference is None else list(answer.tokens) == list(reference)
        source = self._names.get(answer.source, answer.source)
        row = {
            "server": self.tag,
            "length": length,
            "wanted": wanted,
            "source": source if is_complete(length, answer) else f"part {source}",
            "sent_s": answer.sent_s,
            "ttft_s": answer.ttft_s,
            "cached": answer.cached,
            "tokens": list(answer.tokens),
            "same": same,
        }
        self.rows.append(row)

    def summary(self) -> list[str]:
        """Return a line for each length and place."""
        lines = []
        for length in sorted({row["length"] for row in self.rows}):
            for wanted in dict.fromkeys(row["wanted"] for row in self.rows):
                rows = [r for r in self.rows if r["length"] == length and r["wanted"] == wanted]
                if not rows:
                    continue
                good = sorted(r["ttft_s"] for r in rows if wanted.startswith(r["source"]))
                odd = [r["source"] for r in rows if not wanted.startswith(r["source"])]
                same = [r["same"] for r in rows if r["same"] is not None]
                p50 = f"{statistics.median(good) * 1e3:8.1f}" if good else "       -"
                last = f"{good[-1] * 1e3:8.1f}" if good else "       -"
                lines.append(
                    f"{self.tag:9} {length:6} {wanted:12} p50 {p50} ms  max {last} ms  "
                    f"n {len(good):3}  same {sum(same)}/{len(same)}  elsewhere {odd}"
                )
        return lines


def prompts_of(length: int) -> list[list[int]]:
    """Return the prompts of one length, the same in every server."""
    return [prompt((length, number), length) for number in range(PROMPTS[length])]


def warm_up(server: Server, lengths: Iterable[int]) -> None:
    """Let kernels be compiled and memory be touched."""
    for length in lengths:
        for _ in range(2):  # Computed, and found on the GPU: most is then to be appended to.
            server.ask(prompt(("warm", server.port, length), length), NEW_TOKENS)


def cold(server: Server, samples: Samples, length: int) -> list[Answer]:
    """Ask every prompt for the first time."""
    answers = []
    for ids in prompts_of(length):
        answer = server.ask(ids, NEW_TOKENS)
        samples.add(length, "cold", answer, None)
        answers.append(answer)
    return answers


def hits_l1(server: Server, samples: Samples, length: int, times: int) -> None:
    """Ask the latest prompt again and again."""
    ids = prompts_of(length)[-1]
    reference: tuple[int, ...] | None = None
    for _ in range(times):
        answer = server.ask(ids, NEW_TOKENS)
        samples.add(length, "L1", answer, reference)
        reference = reference or answer.tokens


def hits_l2(
    server: Server, samples: Samples, length: int, rounds: int, references: list[Answer]
) -> None:
    """Ask all prompts in turn, several times."""
    for _ in range(rounds):
        for ids, reference in zip(prompts_of(length), references, strict=True):
            samples.add(length, "L2", server.ask(ids, NEW_TOKENS), reference.tokens)


def hits_l3(
    server: Server,
    samples: Samples,
    length: int,
    rounds: int,
    references: Sequence[Sequence[int]],
    name: str = "L3",
    flush_first: bool = True,
) -> list[float]:
    """Empty L1 and L2 and ask all prompts, several times. Returns the seconds of each flush."""
    flushes = []
    for number in range(rounds):
        if number or flush_first:
            flushes.append(round(server.flush(), 2))
        for ids, reference in zip(prompts_of(length), references, strict=True):
            samples.add(length, name, server.ask(ids, NEW_TOKENS), reference)
    return flushes


class Running:
    """A request that decodes in the background, and when each of its tokens came."""

    def __init__(self, server: Server, new_tokens: int) -> None:
        self.times: list[float] = []
        ids = prompt(("running", server.port, time.monotonic()), 512)
        self._thread = threading.Thread(
            target=lambda: server.ask(ids, new_tokens, self.times.append)
        )

    def __enter__(self) -> Running:
        self._thread.start()
        while len(self.times) < 5 and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


@dataclass
class Decode:
    """What happened while one request decoded: when its tokens came, and when what was asked."""

    times: list[float]
    spans: dict[str, tuple[float, float]]
    """Begin and end of the time alone, beside hits of L3, and beside hits of L2."""


def decode_beside_hits(server: Server, samples: Samples, length: int, rounds: int) -> list[Decode]:
    """Let a request decode, alone and while hits of L3 and then of L2 arrive; several times."""
    with Running(server, 60) as running:  # A prompt beside it compiles one more kernel.
        server.ask(prompts_of(length)[0], 1)
    step_s = statistics.median(
        after - before for before, after in itertools.pairwise(running.times)
    )
    new_tokens = max(DECODE_TOKENS_MIN, int(DECODE_S / step_s))
    found = []
    for _ in range(rounds):
        server.flush()
        spans = {}
        with Running(server, new_tokens) as running:
            begin = time.monotonic()
            time.sleep(1.5)
            spans["alone"] = (begin, time.monotonic())
            for name in ("L3", "L2"):
                begin = time.monotonic()
                for number, ids in enumerate(prompts_of(length)[:4]):
                    samples.add(length, f"{name} busy", server.ask(ids, 1), None)
                    # Equally often, so that what the hits cost is not hidden by how long they take.
                    time.sleep(max(0.0, begin + (number + 1) * HIT_EVERY_S - time.monotonic()))
                spans[name] = (begin, time.monotonic())
        found.append(Decode(running.times, spans))
    return found


def progress(times: Sequence[float], moment: float) -> float:
    """Return how many tokens there were at a moment, those that are being made counted in part."""
    after = bisect.bisect_right(times, moment)
    if after == 0 or after == len(times):
        return float(after)
    begin, end = times[after - 1], times[after]
    return after + (moment - begin) / (end - begin)


def decode_rates(runs: Sequence[Decode], events: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Return the tokens per second alone, beside hits, and just while hits are loaded from L3.

    The last leaves out what any hit costs the others, its own step of the model: it is the time
    from the look-up of a hit to the end of its read.
    """
    tokens: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for one in runs:
        windows = [*one.spans.items()]
        begin, end = one.spans["L3"]
        looked = [e[1] for e in events if e[0].endswith(".prefetch_from_storage")]
        read = [e[2] for e in events if e[0].endswith("._page_transfer")]
        for ended in (moment for moment in read if begin <= moment <= end):
            begun = max((moment for moment in looked if moment < ended), default=begin)
            windows.append(("L3, while it is read", (begun, ended)))
        for name, (first, last) in windows:
            stop = min(last, one.times[-1])
            if first < stop:
                count = progress(one.times, stop) - progress(one.times, first)
                tokens[name] = tokens.get(name, 0.0) + count
                seconds[name] = seconds.get(name, 0.0) + stop - first
    rates = {name: tokens[name] / seconds[name] for name in tokens}
    rates["seconds of reading"] = seconds.get("L3, while it is read", 0.0)
    return rates


def decode_steps(rows: Sequence[dict[str, Any]], events: list[list[Any]]) -> dict[str, float]:
    """Return the mean seconds of a step of the request that decodes, while a hit is read and
    between two hits: within one second of each other, so that a machine that becomes slower or
    faster meanwhile does not count."""
    begins = [event[1] for event in events if event[0].endswith(".run_batch")]
    reads = [event for event in events if event[0].endswith("._page_transfer")]
    steps: dict[str, list[float]] = {"while a hit is read": [], "between hits": []}
    for row in rows:
        if row["wanted"] != "L3 busy":
            continue
        sent, answered = row["sent_s"], row["sent_s"] + row["ttft_s"]
        spans = [("while a hit is read", e[1], e[2]) for e in reads if sent < e[1] < answered]
        spans.append(("between hits", answered + AFTER_HIT_S, sent + HIT_EVERY_S))
        for name, first, last in spans:
            inside = [begin for begin in begins if first <= begin < last]
            steps[name] += [after - before for before, after in itertools.pairwise(inside)]
    return {name: statistics.mean(found) for name, found in steps.items() if found}


def read_events(path: Path) -> list[list[Any]]:
    """Return the events that the plugin noted, by begin."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[list[Any]] = sorted((json.loads(line) for line in lines), key=lambda e: e[1])
    return found


def add_parts(rows: Sequence[dict[str, Any]], events: list[list[Any]]) -> None:
    """Keep with each miss and each hit from storage where its time went."""
    for row in rows:
        if row["source"] in ("cold", "L3"):
            split = where_a_miss_goes if row["source"] == "cold" else where_time_goes
            if parts := split(row, events):
                row["parts_ms"] = parts


def where_time_goes(row: dict[str, Any], events: list[list[Any]]) -> dict[str, float]:
    """Split the time to first token of one hit from storage, in milliseconds."""
    begin, end = row["sent_s"], row["sent_s"] + row["ttft_s"]
    inside = [event for event in events if begin <= event[1] < end]

    def of(name: str) -> list[list[Any]]:
        return [event for event in inside if event[0].endswith("." + name)]

    def total(name: str) -> float:
        return float(sum(event[2] - event[1] for event in of(name)))

    prefetch, query, transfer = (
        of("prefetch_from_storage"),
        of("_storage_hit_query"),
        of("_page_transfer"),
    )
    progress, batches = of("check_prefetch_progress"), of("run_batch")
    if not (prefetch and query and transfer and progress and batches):
        return {}
    gets = of("batch_get_v1") or of("batch_get")
    steps = {
        "request reaches the scheduler": prefetch[0][1] - begin,
        "wait for the look-up thread": query[0][1] - prefetch[0][2],
        "page hashes": query[0][2] - query[0][1] - total("batch_exists"),
        "exists": total("batch_exists"),
        "wait for a scheduler step, room in L2": transfer[0][1] - query[0][2],
        "read: store": total("get_into_addresses"),
        "read: adapter": sum(e[2] - e[1] for e in gets) - total("get_into_addresses"),
        "read: SGLang": transfer[0][2] - transfer[0][1] - sum(e[2] - e[1] for e in gets),
        "wait for a scheduler step": progress[0][2] - transfer[0][2],
        "L2 to GPU, forward, answer": end - progress[0][2],
    }
    return {name: round(seconds * 1e3, 2) for name, seconds in steps.items()}


def where_a_miss_goes(row: dict[str, Any], events: list[list[Any]]) -> dict[str, float]:
    """Split the time to first token of one miss, in milliseconds."""
    begin, end = row["sent_s"], row["sent_s"] + row["ttft_s"]
    inside = [event for event in events if begin <= event[1] < end]

    def of(name: str) -> list[list[Any]]:
        return [event for event in inside if event[0].endswith("." + name)]

    arrived, batches = of("handle_generate_request"), of("run_batch")
    results = [event for event in of("process_batch_result") if event[2] <= end]
    if not (arrived and batches and results):
        return {}
    puts = [e for e in events if e[0].endswith(".put_from") and e[2] > begin and e[1] < end]
    first, last = batches[0], results[-1]
    steps = {
        "request reaches the scheduler": arrived[0][1] - begin,
        "taken in": arrived[0][2] - arrived[0][1],
        "waits for its look-up": first[1] - arrived[0][2],
        "launch": first[2] - first[1],
        "forward": last[2] - first[2],
        "answer": end - last[2],
        "puts beside it": sum(min(e[2], end) - max(e[1], begin) for e in puts),
        "look-up thread": sum(e[2] - e[1] for e in of("_storage_hit_query")),
    }
    return {name: round(seconds * 1e3, 2) for name, seconds in steps.items()}
