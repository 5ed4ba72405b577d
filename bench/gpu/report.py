"""Merge results of the GPU machine into a table and a plot.

    python3 -m bench.gpu.report OUT FILE…     writes OUT.json, OUT.md and OUT.png

Name the files in the order in which they were measured: where several measured the same, the last
counts. The first one may be an earlier OUT.json, whose runs keep their numbers. Ratios are those of
one run: where it has nothing to compare with, there is none. LABEL=FILE: its reads were made under
a setting that is not the usual one, and stand apart under that label.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.cases import COMPLETE
from bench.gpu.holds import (
    COLD_SERVERS,
    L2_SERVERS,
    LABEL_END,
    Figures,
    base,
    holds_table,
    labels,
    latest,
    p50_ms,
)

PLACES = [
    ("none", "cold", "recompute, no HiCache"),
    ("l2", "cold", "recompute, HiCache without storage"),
    ("ours", "cold", "recompute, our tier attached and empty"),
    ("ours", "L1", "L1 (GPU)"),
    ("l2", "L2", "L2 (host pool)"),
    ("ours", "L2", "L2 (host pool), our tier attached"),
    ("ours", "L3", "our tier, after a flush"),
    ("restart", "L3 first", "our tier, first hits of a restarted engine"),
    ("restart", "L3", "our tier, restarted engine after a flush"),
    ("ssd", "L3 SSD", "our tier, pages on SSD only, node and engine restarted"),
    ("ssd", "L3", "our tier, the second hits after that"),
    ("linker", "cold", "recompute, our linker attached and empty"),
    ("linker", "L1", "L1 (GPU), our linker attached"),
    ("linker", "L3", "our tier through the linker (no L2), after a flush"),
    ("linker-restart", "L3 first", "the same, first hits of a restarted engine"),
    ("linker-restart", "L3", "the same, restarted engine after a flush"),
    ("file", "L3", "`file` on tmpfs, after a flush"),
    ("turns-l2", "cold", "recompute, HiCache without storage, small L2"),
    ("turns-ours", "cold", "recompute, our tier attached and empty, small L2"),
]
COLD_OTHERWISE = ("cold, backed", "cold, apart")
LOCAL_OPTIONS = re.compile(r" --(?:out|carry|site|commit) \S+")
SECTIONS = ("legs", "levers", "ssd_legs")


def is_good(row: dict[str, Any]) -> bool:
    """Whether a prompt was found, whole, where it was looked for."""
    found = sum(row["cached"].get(place, 0) for place in ("device", "host", "storage"))
    if str(row["wanted"]).startswith("cold"):
        return bool(found == 0)
    is_there = str(row["wanted"]).startswith(row["source"])
    return is_there and bool(found >= COMPLETE * row["length"])


def merge(files: Sequence[str | Path]) -> dict[str, Any]:
    """Return one result of several."""
    merged: dict[str, Any] = {"runs": [], "samples": [], "from_run": {}}
    for given in files:
        label, _, file = str(given).rpartition("=")
        result = json.loads(Path(file).read_text(encoding="utf-8"))
        if not merged["runs"] and "runs" in result:
            merged = result
            continue
        number = len(merged["runs"]) + 1
        for row in result.pop("samples", []):
            if is_good(row):
                for name in ("tokens", "sent_s"):
                    row.pop(name, None)
                if label and row["wanted"].startswith("L3"):
                    row["server"] = f"{label}{LABEL_END}{row['server']}"
                merged["samples"].append({**row, "run": number})
        for name in SECTIONS:
            if name in result:
                merged[name] = result.pop(name)
                merged["from_run"][name] = number
        if label:
            servers = result["servers"].items()
            result["servers"] = {f"{label}{LABEL_END}{name}": about for name, about in servers}
        result["command"] = LOCAL_OPTIONS.sub("", result["command"])
        merged["runs"].append(without_places(result))
        merged.get("ssd_legs", {}).pop("facts", None)
    return merged


def without_places(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without the folders of its machine; the disk that was used stays."""
    folder = Path(result.pop("ssd_folder", "off"))
    for place in result.pop("disk", {}).get("places", []):
        if Path(place["path"]) == folder.parent:
            result["disk"] = {name: place[name] for name in ("kind", "source", "free")}
    return result


def text_of(merged: dict[str, Any]) -> str:
    """Return the whole result as JSON, a sample in each line."""
    rest = {name: value for name, value in merged.items() if name != "samples"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in merged["samples"])
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    return f'{head},\n "samples": [\n{rows}\n ]\n}}\n'


def grouped(merged: dict[str, Any]) -> Figures:
    """Return the samples by run, server, place and length."""
    found: Figures = {}
    for row in merged["samples"]:
        key = (row["run"], row["server"], row["wanted"], row["length"])
        found.setdefault(key, []).append(row)
    return found


def ttft_table(figures: Figures) -> list[str]:
    """Return the table of times to first token."""
    lines = [
        "| tokens | found in | samples | p50 ms | p99 ms | input tokens/s | × recompute "
        "| × L2 | same tokens | run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for length in sorted({key[3] for key in figures}):
        for label, place in itertools.product(labels(figures), PLACES):
            server, wanted, name = f"{label}{place[0]}", place[1], f"{label}{place[2]}"
            run = latest(figures, server, wanted, length)
            if not run:
                continue
            rows = figures[run, server, wanted, length]
            cold = base(figures, run, (*COLD_SERVERS, "turns-l2"), "cold", length)
            l2 = base(figures, run, L2_SERVERS, "L2", length)
            p50 = p50_ms(rows)
            times = sorted(row["ttft_s"] * 1e3 for row in rows)
            p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
            same = [row["same"] for row in rows if row["same"] is not None]
            lines.append(
                f"| {length} | {name} | {len(rows)} | {p50:.0f} | {p99:.0f} | "
                f"{length / p50 * 1e3:,.0f} | "
                f"{f'{p50 / cold[1]:.2f}' if cold else ''} | "
                f"{f'{p50 / l2[1]:.2f}' if l2 else ''} | "
                f"{f'{sum(same)} of {len(same)}' if same else ''} | {run} |"
            )
    return lines


def parts_table(figures: Figures, *, of_misses: bool) -> list[str]:
    """Return where the time of misses, or of hits from storage, went, median milliseconds."""
    columns = []
    for length in sorted({key[3] for key in figures}):
        for server, wanted, _ in PLACES:
            if (wanted == "cold") != of_misses:
                continue
            run = latest(figures, server, wanted, length)
            rows = figures.get((run, server, wanted, length), [])
            parts = [row["parts_ms"] for row in rows if row.get("parts_ms")]
            if parts:
                columns.append((f"{server}, {wanted}, {length}", parts))
    if not columns:
        return []
    lines = ["| step | " + " | ".join(head for head, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for step in columns[0][1][0]:
        cells = [f"{statistics.median(row[step] for row in rows):.1f}" for _, rows in columns]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


VARIANT_COLUMNS = (
    *((wanted, length) for length in (4096, 16384) for wanted in ("cold", *COLD_OTHERWISE)),
    ("L3", 32768),
    ("L3 busy", 32768),
)


def variants_table(figures: Figures, merged: dict[str, Any]) -> list[str]:
    """Return what was measured under several settings, if any."""
    lines = []
    for number, run in enumerate(merged["runs"], 1):
        for server, about in run.get("variants", {}).items():
            found = [figures.get((number, server, *column)) for column in VARIANT_COLUMNS]
            cells = [f"{p50_ms(rows):.1f}" if rows else "" for rows in found]
            steps = about.get("decode_step_s", {})
            ratio = steps["between hits"] / steps["while a hit is read"] if steps else None
            cells.append(f"{ratio:.2f} ({len(found[-1] or ())})" if ratio else "")
            lines.append(f"| {about['variant']} | " + " | ".join(cells) + f" | {number} |")
    if not lines:
        return []
    heads = [f"{wanted.replace('cold', 'miss')}, {length}" for wanted, length in VARIANT_COLUMNS]
    return [
        "Median ms, one server each. Misses one after the other beside the writes of the one "
        "before, the same where the pool's memory is backed, and apart; hits (L3) alone and beside "
        "a request that decodes. Decode: its steps a second while a hit is read ÷ between two "
        "hits (of so many).",
        "",
        "| setting | " + " | ".join(heads) + " | decode | run |",
        "|---" * (len(heads) + 3) + "|",
        *lines,
    ]


def flat(values: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested results with their names."""
    if isinstance(values, dict):
        return [leaf for key, value in values.items() for leaf in flat(value, f"{name}, {key}")]
    return [(name.removeprefix(", "), values)]


def rates_table(values: dict[str, Any]) -> list[str]:
    """Return the bandwidths among some results."""
    lines = ["| leg | GB/s |", "|---|---|"]
    for name, value in flat(values):
        rates = value if isinstance(value, list) else [value]
        if all(isinstance(rate, float) and rate > 1e8 for rate in rates):
            lines.append(f"| {name} | {', '.join(f'{rate / 1e9:.1f}' for rate in rates)} |")
    return lines


def disk_table(merged: dict[str, Any]) -> list[str]:
    """Return what the disk gave to fio and to us."""
    lines = ["| what | GB/s | run |", "|---|---|---|"]
    found = [(number, run["ssd"]) for number, run in enumerate(merged["runs"], 1) if "ssd" in run]
    if "ssd_legs" in merged:
        found.append((merged["from_run"]["ssd_legs"], merged["ssd_legs"]))
    for run, values in found:
        who = values.get("limit is by", "fio")
        kind = "store, 4 MiB pages" if values is merged.get("ssd_legs") else "beside the hits"
        for name, value in flat(values):
            if isinstance(value, float) and value > 1e8:
                said = name.replace("limit:", "" if "plain threads" in name else who).strip()
                lines.append(f"| {kind}: {said} | {value / 1e9:.2f} | {run} |")
        flush = values.get("flush", {})
        if flush.get("file_bytes"):
            rate = flush["file_bytes"] / flush["seconds"] / 1e9
            lines.append(f"| {kind}: the whole `mooncake-hicache stop` | {rate:.2f} | {run} |")
    return lines


def turns_table(merged: dict[str, Any]) -> list[str]:
    """Return the conversations by run, server and round, if any."""
    lines = []
    for number, run in enumerate(merged["runs"], 1):
        for kind, rows in run.get("turns", {}).items():
            for row in rows if isinstance(rows, list) else []:
                shares = [f"{row[f'{place}_share']:.0%}" for place in ("device", "host", "storage")]
                lines.append(
                    f"| {kind} | {row['round']} | {row['ttft_p50_s'] * 1e3:.0f} | "
                    f"{row['ttft_p99_s'] * 1e3:.0f} | {row['input_tokens_per_s']:,.0f} | "
                    f"{' | '.join(shares)} | {number} |"
                )
    if not lines:
        return []
    return [
        "| server | round | TTFT p50 ms | TTFT p99 ms | input tokens/s | L1 | L2 | storage | run |",
        "|---|---|---|---|---|---|---|---|---|",
        *lines,
    ]


def write_markdown(path: Path, merged: dict[str, Any], figures: Figures) -> None:
    """Write all tables."""
    machine = merged["runs"][-1]["machine"]
    lines = ["# Time to first token on a GPU", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items()) + ".", ""]
    versions = merged["runs"][0].get("versions", {})
    lines += [", ".join(f"{name} {value}" for name, value in versions.items()) + ".", ""]
    lines += [
        "Model: the shape of Qwen3-8B with random weights, 144 KiB of KV per token (32768 tokens: "
        "4.8 GB), pages of 64 tokens. Fewer than 100 samples: p99 is the greatest.",
        "",
    ]
    lines += ["Each line says which run it is of; ratios are those of one run.", ""]
    for number, one in enumerate(merged["runs"], 1):
        commit = f" (commit {one['commit']})" if one.get("commit") else ""
        lines += [f"{number}. `{one['command']}`{commit}. {one.get('note', '')}".rstrip()]
    lines += ["", "× recompute: of the same run, without HiCache, else without storage, else with "]
    lines[-1] += "our tier attached and empty."
    lines += ["", "## What must hold", "", *holds_table(figures, merged), ""]
    lines += ["## All times", "", *ttft_table(figures), ""]
    for what, of_misses in (("hit", False), ("miss", True)):
        if parts := parts_table(figures, of_misses=of_misses):
            lines += [f"## Where the time of a {what} goes (median ms)", "", *parts, ""]
    if variants := variants_table(figures, merged):
        lines += ["## Settings beside each other", "", *variants, ""]
    if any("ssd" in run for run in merged["runs"]):
        lines += ["## The disk, GB/s", "", *disk_table(merged), ""]
    for name, title in (("legs", "Bandwidth"), ("levers", "What could make it faster")):
        if name in merged:
            run = merged["from_run"][name]
            lines += [f"## {title} (run {run})", "", *rates_table(merged[name]), ""]
    if turns := turns_table(merged):
        lines += ["## Conversations", "", *turns, ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def plot(path: Path, figures: Figures) -> None:
    """Draw time to first token by place, one group of bars per length."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    places = [p for p in PLACES if any(key[1:3] == p[:2] for key in figures)]
    lengths = sorted({key[3] for key in figures})
    figure, axes = plt.subplots(1, len(lengths), figsize=(4.2 * len(lengths), 4.4), squeeze=False)
    for axis, length in zip(axes[0], lengths, strict=True):
        for at, (server, wanted, _) in enumerate(places):
            run = latest(figures, server, wanted, length)
            rows = figures.get((run, server, wanted, length))
            if rows:
                bar = axis.barh(at, p50_ms(rows), color=f"C{at}")
                axis.bar_label(bar, fmt="%.0f", padding=2, fontsize=8)
        axis.set_title(f"{length} tokens")
        axis.set_xlabel("time to first token, p50, ms")
        axis.set_yticks(range(len(places)), [name for *_, name in places], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
    for axis in axes[0][1:]:
        axis.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str]) -> int:
    """Read, merge and write."""
    if len(argv) < 2:
        print(__doc__)
        return 2
    out = Path(argv[0])
    merged = merge(argv[1:])
    figures = grouped(merged)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(text_of(merged), encoding="utf-8")
    write_markdown(out.with_suffix(".md"), merged, figures)
    plot(out.with_suffix(".png"), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
