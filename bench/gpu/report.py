"""Merge results of the GPU machine into a table and a plot.

    python3 -m bench.gpu.report OUT FILE…     writes OUT.json, OUT.md and OUT.png

Where several files measured the same, the last one counts.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.cases import COMPLETE

PLACES = [
    ("none", "cold", "recompute, no HiCache"),
    ("l2", "cold", "recompute, HiCache without storage"),
    ("ours", "cold", "recompute, our tier attached and empty"),
    ("ours", "L1", "L1 (GPU)"),
    ("l2", "L2", "L2 (host pool)"),
    ("ours", "L3", "our tier, after a flush"),
    ("restart", "L3 first", "our tier, first hits of a restarted engine"),
    ("restart", "L3", "our tier, restarted engine after a flush"),
    ("file", "L3", "`file` on tmpfs, after a flush"),
]
Figures = dict[tuple[str, str, int], list[dict[str, Any]]]


def is_good(row: dict[str, Any]) -> bool:
    """Whether a prompt was found, whole, where it was looked for."""
    found = sum(row["cached"].get(place, 0) for place in ("device", "host", "storage"))
    if row["wanted"] == "cold":
        return bool(found == 0)
    is_there = str(row["wanted"]).startswith(row["source"])
    return is_there and bool(found >= COMPLETE * row["length"])


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """Return one result of several."""
    merged: dict[str, Any] = {"runs": [], "samples": []}
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in result.pop("samples", []) if is_good(row)]
        measured = {(row["server"], row["wanted"], row["length"]) for row in rows}
        kept = [
            row
            for row in merged["samples"]
            if (row["server"], row["wanted"], row["length"]) not in measured
        ]
        for row in rows:
            for name in ("tokens", "sent_s"):
                row.pop(name, None)
        merged["samples"] = kept + rows
        for name in ("legs", "levers", "turns"):
            if name in result:
                merged[name] = result.pop(name)
        merged["runs"].append(result)
    return merged


def grouped(merged: dict[str, Any]) -> Figures:
    """Return the samples by server, place and length."""
    found: Figures = {}
    for row in merged["samples"]:
        found.setdefault((row["server"], row["wanted"], row["length"]), []).append(row)
    return found


def p50_ms(rows: Sequence[dict[str, Any]]) -> float:
    """Return the median time to first token."""
    return float(statistics.median(row["ttft_s"] for row in rows)) * 1e3


def ttft_table(figures: Figures) -> list[str]:
    """Return the table of times to first token."""
    lines = [
        "| tokens | found in | samples | p50 ms | p99 ms | input tokens/s | × recompute "
        "| × L2 | same tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for length in sorted({key[2] for key in figures}):
        cold, l2 = figures.get(("none", "cold", length)), figures.get(("l2", "L2", length))
        for server, wanted, name in PLACES:
            rows = figures.get((server, wanted, length))
            if not rows:
                continue
            p50 = p50_ms(rows)
            times = sorted(row["ttft_s"] * 1e3 for row in rows)
            p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
            same = [row["same"] for row in rows if row["same"] is not None]
            lines.append(
                f"| {length} | {name} | {len(rows)} | {p50:.0f} | {p99:.0f} | "
                f"{length / p50 * 1e3:,.0f} | "
                f"{f'{p50 / p50_ms(cold):.2f}' if cold else ''} | "
                f"{f'{p50 / p50_ms(l2):.2f}' if l2 else ''} | "
                f"{f'{sum(same)} of {len(same)}' if same else ''} |"
            )
    return lines


def parts_table(figures: Figures) -> list[str]:
    """Return where the time of hits from storage went, median milliseconds."""
    columns = [
        (key, [row["parts_ms"] for row in rows if row.get("parts_ms")])
        for key, rows in sorted(figures.items(), key=lambda item: item[0][2])
        if key[0] in ("ours", "restart", "file") and key[1] in ("L3", "L3 first")
    ]
    columns = [(key, rows) for key, rows in columns if rows]
    if not columns:
        return []
    heads = [f"{server}, {wanted}, {length}" for (server, wanted, length), _ in columns]
    lines = ["| step | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for step in columns[0][1][0]:
        cells = [f"{statistics.median(row[step] for row in rows):.1f}" for _, rows in columns]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


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


def turns_table(turns: dict[str, Any]) -> list[str]:
    """Return the conversations by server and round."""
    lines = [
        "| server | round | TTFT p50 ms | TTFT p99 ms | input tokens/s | L1 | L2 | storage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, rows in turns.items():
        for row in rows if isinstance(rows, list) else []:
            shares = " | ".join(f"{row[f'{p}_share']:.0%}" for p in ("device", "host", "storage"))
            lines.append(
                f"| {kind} | {row['round']} | {row['ttft_p50_s'] * 1e3:.0f} | "
                f"{row['ttft_p99_s'] * 1e3:.0f} | {row['input_tokens_per_s']:,.0f} | {shares} |"
            )
    return lines


def write_markdown(path: Path, merged: dict[str, Any], figures: Figures) -> None:
    """Write all tables."""
    machine = merged["runs"][-1]["machine"]
    lines = ["# Time to first token on a GPU", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items()) + ".", ""]
    versions = merged["runs"][-1].get("versions", {})
    lines += [", ".join(f"{name} {value}" for name, value in versions.items()) + ".", ""]
    lines += [
        "Model: the shape of Qwen3-8B with random weights, 144 KiB of KV per token (32768 tokens: "
        "4.8 GB), pages of 64 tokens. Fewer than 100 samples: p99 is the greatest.",
        "",
    ]
    lines += [f"    {run['command']}" for run in merged["runs"]] + [""]
    for run in merged["runs"]:
        lines += [f"{run['note']}", ""] if run.get("note") else []
    lines += [*ttft_table(figures), ""]
    lines += ["## Where the time of a hit goes (median ms)", "", *parts_table(figures), ""]
    for name, title in (("legs", "Bandwidth"), ("levers", "What could make it faster")):
        if name in merged:
            lines += [f"## {title}", "", *rates_table(merged[name]), ""]
    if "turns" in merged:
        lines += ["## Conversations", "", *turns_table(merged["turns"]), ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def plot(path: Path, figures: Figures) -> None:
    """Draw time to first token by place, one group of bars per length."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    places = [p for p in PLACES if any(key[:2] == p[:2] for key in figures)]
    lengths = sorted({key[2] for key in figures})
    figure, axes = plt.subplots(1, len(lengths), figsize=(4.2 * len(lengths), 4.4), squeeze=False)
    for axis, length in zip(axes[0], lengths, strict=True):
        for at, (server, wanted, _) in enumerate(places):
            rows = figures.get((server, wanted, length))
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
    merged = merge([Path(name) for name in argv[1:]])
    figures = grouped(merged)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    write_markdown(out.with_suffix(".md"), merged, figures)
    plot(out.with_suffix(".png"), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
