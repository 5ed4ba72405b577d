"""What must hold, beside what was measured: each line compares figures of one run only."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.gpu.server import KV_SIZE_PER_TOKEN

Figures = dict[tuple[int, str, str, int], list[dict[str, Any]]]
"""Samples by run (from 1), server, place and length."""

LABEL_END = ": "  # Between a label and the name of a server, see report.py.
COLD_SERVERS = ("none", "l2", "ours", "linker")
L2_SERVERS = ("l2", "ours")
MISSES = (
    ("turns-ours", "turns-l2"),
    ("ours", "l2"),
    ("ours", "none"),
    ("linker", "l2"),
    ("linker", "none"),
)


def p50_ms(rows: Sequence[dict[str, Any]]) -> float:
    """Return the median time to first token."""
    return float(statistics.median(row["ttft_s"] for row in rows)) * 1e3


def latest(figures: Figures, server: str, wanted: str, length: int) -> int:
    """Return the last run that measured something, 0 if none did."""
    found = [key[0] for key in figures if key[1:] == (server, wanted, length)]
    return max(found, default=0)


def base(
    figures: Figures, run: int, servers: Sequence[str], wanted: str, length: int
) -> tuple[str, float] | None:
    """Return the first of some servers that a run measured, and its median; None without one."""
    for server in servers:
        if rows := figures.get((run, server, wanted, length)):
            return server, p50_ms(rows)
    return None


def row(what: str, measured: str, bound: str, holds: bool, run: int) -> str:
    """Return a line of the table."""
    return f"| {what} | {measured} | {bound} | {'yes' if holds else '**no**'} | {run} |"


def hit_rows(figures: Figures) -> Iterator[str]:
    """Compare hits in memory with recomputing and with L2."""
    for server, length, most, most_l2 in (
        ("ours", 4096, 0.8, None),
        ("ours", 32768, 0.13, 1.5),
        ("linker", 4096, 0.8, None),
        ("linker", 32768, 0.13, 1.5),
    ):
        run = latest(figures, server, "L3", length)
        if not run:
            continue
        hit = p50_ms(figures[run, server, "L3", length])
        name = f"hit in memory{' through the linker' * (server == 'linker')}, {length} tokens"
        if cold := base(figures, run, COLD_SERVERS, "cold", length):
            ratio = hit / cold[1]
            yield row(f"{name} ÷ recompute", f"{ratio:.2f}", f"≤ {most}", ratio <= most, run)
        with_l2 = [
            key[0]
            for key in figures
            if key[1:] == (server, "L3", length) and base(figures, key[0], L2_SERVERS, "L2", length)
        ]
        if most_l2 and with_l2:
            run = max(with_l2)
            l2 = base(figures, run, L2_SERVERS, "L2", length)
            ratio = p50_ms(figures[run, server, "L3", length]) / (l2[1] if l2 else 1)
            yield row(f"{name} ÷ L2 hit", f"{ratio:.2f}", f"≤ {most_l2}", ratio <= most_l2, run)


def labels(figures: Figures) -> list[str]:
    """Return what names of servers may begin with: nothing, and each label."""
    found = {"".join(key[1].rpartition(LABEL_END)[:2]) for key in figures}
    return sorted(found | {""})


def restart_rows(figures: Figures) -> Iterator[str]:
    """Compare an engine that was started anew with the one before."""
    for wanted, name in (("L3 first", "the very first hits"), ("L3", "later")):
        for length in sorted({key[3] for key in figures}):
            # Both were measured under the same label: the last run counts, whatever that was.
            run, label = max(
                (latest(figures, f"{label}restart", wanted, length), label)
                for label in labels(figures)
            )
            before = figures.get((run, f"{label}ours", "L3", length))
            if run and before:
                ratio = p50_ms(figures[run, f"{label}restart", wanted, length]) / p50_ms(before)
                what = f"{label}after a restart of the engine, {name}, {length} tokens ÷ before"
                yield row(what, f"{ratio:.2f}", "≤ 1.3", ratio <= 1.3, run)
            run = latest(figures, "linker-restart", wanted, length)
            if before := figures.get((run, "linker", "L3", length)):
                ratio = p50_ms(figures[run, "linker-restart", wanted, length]) / p50_ms(before)
                what = f"linker, after a restart of the engine, {name}, {length} tokens ÷ before"
                yield row(what, f"{ratio:.2f}", "≤ 1.3", ratio <= 1.3, run)


def rates_of(found: Any, chosen: Callable[[str], bool]) -> list[float]:
    """Return the rates below those names that are chosen, however deep."""
    if not isinstance(found, dict):
        return []
    rates: list[float] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rates += rates_of(value, chosen)
        elif isinstance(value, float) and value > 1e7 and chosen(name):
            rates.append(value)
    return rates


def disk_limits(run: dict[str, Any], legs: Any) -> dict[str, float]:
    """Return what a disk gave in a run: to fio, and at most to anybody who was measured there."""
    reads = {name: value for name, value in run.get("ssd", {}).items() if "limit: read" in name}
    fio = rates_of(reads, lambda name: "huge pages" not in name)
    anybody = rates_of(reads, lambda _: True)
    for name, value in (legs or {}).items():
        if "limit: read" in name or "get" in name:
            anybody += rates_of({name: value}, lambda _: True)
    if not fio:
        return {}
    who = run["ssd"].get("limit is by", "fio")
    return {f"{who}, 4 KiB OS pages": max(fio), "the most anybody read there": max(anybody)}


def ssd_rows(figures: Figures, merged: dict[str, Any]) -> Iterator[str]:
    """Compare hits from SSD with what the disk gives to others."""
    for length in sorted({key[3] for key in figures}):
        run = latest(figures, "ssd", "L3 SSD", length)
        l2 = base(figures, run, L2_SERVERS, "L2", length)
        if not run or l2 is None:
            continue
        hit = p50_ms(figures[run, "ssd", "L3 SSD", length])
        size = length * KV_SIZE_PER_TOKEN
        is_same = merged.get("from_run", {}).get("ssd_legs") == run
        legs = merged.get("ssd_legs") if is_same else None
        for who, rate in disk_limits(merged["runs"][run - 1], legs).items():
            bound = size / (0.9 * rate) * 1e3 + l2[1]
            what = f"hit from SSD, {length} tokens; disk: {rate / 1e9:.2f} GB/s ({who})"
            yield row(what, f"{hit:.0f} ms", f"≤ {bound:.0f} ms", hit <= bound, run)


def miss_rows(figures: Figures) -> Iterator[str]:
    """Compare misses with a server that has no storage."""
    for ours, other in MISSES:
        for length in sorted({key[3] for key in figures}):
            both = [
                key[0]
                for key in figures
                if key[1:] == (ours, "cold", length) and (key[0], other, *key[2:]) in figures
            ]
            if both:
                run = max(both)
                miss = p50_ms(figures[run, ours, "cold", length])
                ratio = miss / p50_ms(figures[run, other, "cold", length])
                what = f"miss, {length} tokens: {ours} ÷ {other}"
                yield row(what, f"{ratio:.3f}", "≤ 1.02", ratio <= 1.02, run)


def decode_rows(merged: dict[str, Any]) -> Iterator[str]:
    """Compare the decode rate beside hits with that of the same request alone."""
    for number, run in reversed(list(enumerate(merged["runs"], 1))):
        rates = run["servers"].get("ours", {}).get("decode_tokens_per_s", {})
        if "L3, while it is read" not in rates:
            continue
        yield from _rates(rates, "", number)
        break
    for number, run in enumerate(merged["runs"], 1):
        for about in run.get("variants", {}).values():
            rates = about.get("decode_tokens_per_s")
            if rates and "--cuda-graph" in about["variant"]:
                threads = re.search(r"DECODE_COPY_THREADS=(\d+)", about["variant"])
                how = f", {threads[1]} copy threads" if threads else ""
                yield from _rates(rates, f"CUDA graphs{how}: ", number)


def _rates(rates: dict[str, float], how: str, number: int) -> Iterator[str]:
    for name, what in (
        ("L3, while it is read", "decode while hits are read ÷ alone"),
        ("L3", "decode beside hits of our tier, their steps of the model counted ÷ alone"),
        ("L2", "the same beside hits of L2 (nothing of ours runs)"),
    ):
        ratio = rates[name] / rates["alone"]
        yield row(f"{how}{what}", f"{ratio:.2f}", "≥ 0.97", ratio >= 0.97, number)


def turns_rows(merged: dict[str, Any]) -> Iterator[str]:
    """Compare conversations with those on other servers, round by round: the last run of both."""
    for other in ("l2", "file"):
        for number, run in reversed(list(enumerate(merged["runs"], 1))):
            turns = run.get("turns", {})
            if not all(isinstance(turns.get(name), list) for name in ("ours", other)):
                continue
            for ours, theirs in zip(turns["ours"], turns[other], strict=False):
                ttft = ours["ttft_p50_s"] / theirs["ttft_p50_s"]
                rate = ours["input_tokens_per_s"] / theirs["input_tokens_per_s"]
                what = f"conversations, round {ours['round']}: ours ÷ {other}, TTFT and throughput"
                holds = ttft < 1 and rate > 1
                yield row(what, f"{ttft:.2f}, {rate:.2f}", "< 1, > 1", holds, number)
            break


def token_rows(figures: Figures) -> Iterator[str]:
    """Count the answers that were compared with the first computation."""
    for run in sorted({key[0] for key in figures}):
        same = [
            sample["same"]
            for key, samples in figures.items()
            for sample in samples
            if key[0] == run and sample["same"] is not None
        ]
        if same:
            what = "answers with the tokens of the first computation"
            yield row(what, f"{sum(same)} of {len(same)}", "all", all(same), run)


def holds_table(figures: Figures, merged: dict[str, Any]) -> list[str]:
    """Return the table."""
    return [
        "| what | measured | must be | holds | run |",
        "|---|---|---|---|---|",
        *hit_rows(figures),
        *restart_rows(figures),
        *ssd_rows(figures, merged),
        *miss_rows(figures),
        *decode_rows(merged),
        *turns_rows(merged),
        *token_rows(figures),
    ]
