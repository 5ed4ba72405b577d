"""Pages on SSD beside fio on the same file system: `python -m bench ssd`.

Reads, write-out, memory meanwhile, recovery, and requests replayed through a real node. fio and we
take turns, because disks are shared and have moods. The directory must lie on the disk that is to
be measured; up to 12 GB are used there, and nothing stays. The last table shows what must hold, and
the exit status is 1 if something does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import ssd_fio, ssd_log, ssd_read, ssd_replay, ssd_write
from bench.hits import TRACE
from bench.limits import BUILD
from bench.pages_copy import MiB
from bench.report import Bound, console, machine, show_bounds, write_json
from bench.ssd_node import FULL, QUICK, Scale, ssd_folder

PARTS = ("read", "write", "memory", "recovery", "trace", "loop")
NEED_FIO = ("read", "write")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that were asked for; all of them take about six minutes."""
    scale: Scale = QUICK if args.quick else FULL
    trace = args.trace if args.trace or args.quick or not TRACE.is_file() else TRACE
    figures: dict[str, Any] = {"machine": machine()}
    with console.status("") as status, ssd_folder(args.directory) as folder:

        def tell(what: str) -> None:
            status.update(what)

        calls: dict[str, Callable[[], Any]] = {
            "read": lambda: ssd_read.measure(folder, scale, tell),
            "write": lambda: ssd_write.measure(folder, scale, tell),
            "memory": lambda: ssd_write.measure_meanwhile(folder, scale, tell),
            "recovery": lambda: ssd_log.measure(folder, scale, tell),
            "trace": lambda: ssd_replay.measure_trace(folder, scale, trace, tell),
            "loop": lambda: ssd_replay.measure_loops(folder, scale, tell),
        }
        for part in args.only:
            figures[part] = calls[part]()
            SHOW[part](figures[part])
    return figures


def _gb(speed: float) -> str:
    return f"{speed / 1e9:.2f}"


def show_reads(rows: list[dict[str, Any]]) -> None:
    """Print reads beside fio."""
    table = Table(title="Pages that are only on SSD, GB/s", title_justify="left")
    table.add_column("pages")
    for column in ("get", "fio", "at depth", "÷ fio", "s CPU/GB", "fio's", "of SSD"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        depth = max(row["fio"], key=lambda depth: row["fio"][depth])
        table.add_row(
            row["case"],
            _gb(row["speed"]),
            _gb(row["fio"][depth]),
            depth,
            f"{row['ratio']:.2f}",
            f"{row['cpu_s_per_gb']:.3f}",
            f"{row['fio_cpu_s_per_gb']:.3f}",
            f"{row['read_from_disk']:.2f}",
        )
    console.print(table)
    console.print("of SSD: bytes read there, by client and node, by bytes of pages read")


def show_writes(figures: dict[str, Any]) -> None:
    """Print write-out beside fio."""
    table = Table(title="Write-out, GB/s", title_justify="left")
    table.add_column("what")
    for column in ("written", "÷ fio", "s CPU/GB", "puts", "left unwritten"):
        table.add_column(column, justify="right", no_wrap=True)
    cpu = f"{figures['fio_cpu_s_per_gb']:.3f}"
    table.add_row("fio, on huge pages", _gb(figures["fio"]), "1", cpu, "", "")
    if not figures["pool_is_huge"]:
        small = _gb(figures["fio_small_pages"])
        table.add_row("fio, on small pages as the pool", small, "", "", "", "")
    names = {
        "flush": "flush of a full pool",
        "paced": "puts, as fast as the disk",
        "unpaced": "puts, as fast as memory",
    }
    for kind, name in names.items():
        row = figures[kind]
        puts = _gb(row["put_speed"]) if "put_speed" in row else ""
        left = f"{100 * row['overrun_share']:.1f} %" if "overrun_share" in row else ""
        cpu = f"{row['node_cpu_s_per_gb']:.3f}"
        table.add_row(name, _gb(row["speed"]), f"{row['ratio']:.2f}", cpu, puts, left)
    console.print(table)


def show_memory(figures: dict[str, Any]) -> None:
    """Print what the tier in memory does during write-out."""
    table = Table(title="In memory, 32 × 4 MiB: GB/s ÷ best copy", title_justify="left")
    table.add_column("call")
    for column in ("alone", "during write-out", "of", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for operation in ("get", "put"):
        alone, meanwhile = (figures[state][operation] for state in ("alone", "write_out"))
        table.add_row(
            operation,
            f"{_gb(alone['speed'])} {alone['ratio']:.2f}",
            f"{_gb(meanwhile['speed'])} {meanwhile['ratio']:.2f}",
            _gb(meanwhile["written_per_s"]),
            f"{figures[f'{operation}_kept']:.2f}",
        )
    console.print(table)


def show_recovery(rows: list[dict[str, Any]]) -> None:
    """Print how fast logs come back."""
    for row in rows:
        console.print(
            f"recovery: {row['regions']:,} regions, {row['log_bytes'] / 1e9:,.0f} GB, "
            f"{row['pages']:,} pages in {row['seconds']:.2f} s: "
            f"{row['bytes_per_s'] / 1e9:,.0f} GB/s, {row['pages_per_s']:,.0f} pages/s; "
            f"first hit {row['first_hit_s']:.2f} s after the start began, "
            f"{'during' if row['first_hit_while_recovering'] else 'after'} recovery; "
            f"index {row['index_bytes_per_page']:.0f} bytes a page"
        )


def show_trace(figures: dict[str, Any]) -> None:
    """Print what the trace wrote."""
    table = Table(
        title=f"{figures['name']}, first {figures['requests']:,} requests, "
        f"{figures['distinct_pages']:,} pages of {figures['page_size'] >> 10} KiB",
        title_justify="left",
    )
    columns = ("pages ÷ SSD", "written ÷ pages", "rewritten", "dropped", "unwritten", "hits", "s")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in figures["rows"]:
        table.add_row(
            f"{100 * row['fill']:.0f} %",
            f"{row['amplification']:.3f}",
            f"{row['rewritten_bytes'] / max(1, row['written_bytes']):.3f}",
            f"{row['dropped_pages']:,}",
            f"{row['overrun_pages']:,}",
            f"{row['hit_share']:.3f}",
            f"{row['seconds']:.0f}",
        )
    console.print(table)


def show_loops(figures: dict[str, Any]) -> None:
    """Print hits by round."""
    names = {
        "lru": "memory, LRU",
        "memory": "memory",
        "belady": "memory, Belady",
        "ssd": "memory and SSD",
    }
    for label, title in (
        ("conversations", "Hits by round of conversations, % of pages"),
        ("circle", "Hits by pass of documents, % of pages"),
    ):
        found = figures[label]
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for number in range(len(found["ssd"])):
            table.add_column(str(number + 1), justify="right", no_wrap=True)
        for name, text in names.items():
            table.add_row(text, *(f"{100 * share:.0f}" for share in found[name]))
        console.print(table)


SHOW: dict[str, Callable[[Any], None]] = {
    "read": show_reads,
    "write": show_writes,
    "memory": show_memory,
    "recovery": show_recovery,
    "trace": show_trace,
    "loop": show_loops,
}


def bounds_of(figures: dict[str, Any]) -> list[Bound]:
    """Return what must hold, of the parts that were measured."""
    bounds: list[Bound] = []
    for row in figures.get("read", []):
        if row["size"] == 4 * MiB and row["verify"]:
            bounds.append(Bound(f"get, {row['case']}", row["ratio"], "× fio", 0.9, True))
    if "write" in figures:
        for kind, name in (("flush", "flush"), ("paced", "sustained puts")):
            ratio = figures["write"][kind]["ratio"]
            bounds.append(Bound(f"write-out, {name}", ratio, "× fio", 0.85, True))
    if "memory" in figures:
        for operation in ("get", "put"):
            kept = figures["memory"][f"{operation}_kept"]
            what = f"{operation} in memory during write-out"
            bounds.append(Bound(what, kept, "× undisturbed", 0.7, True))
    for row in figures.get("recovery", []):
        what = f"recovery, pages of {row['page_size'] >> 10} KiB"
        bounds.append(Bound(what, row["bytes_per_s"] / 1e9, "GB/s", 100, True))
    for row in figures.get("trace", {}).get("rows", []):
        what = f"written by the trace, pages {100 * row['fill']:.0f} % of the SSD"
        bounds.append(Bound(what, row["amplification"], "× pages", 1.3, False))
    if "loop" in figures:
        turns, circle = figures["loop"]["conversations"], figures["loop"]["circle"]
        for number in ssd_replay.REPORT_ROUNDS:
            for name, limit in (("memory", 60), ("ssd", 80)):
                what = f"hits in round {number}, {'memory alone' if name == 'memory' else 'SSD'}"
                bounds.append(Bound(what, 100 * turns[name][number - 1], "%", limit, True))
        bounds.append(Bound("hits in a circle, SSD", 100 * min(circle["ssd"][1:]), "%", 80, True))
    return bounds


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Draw reads beside fio, and hits by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    rows = figures.get("read", [])
    ys = range(len(rows))
    left.barh([y - 0.2 for y in ys], [max(r["fio"].values()) / 1e9 for r in rows], 0.4, label="fio")
    left.barh([y + 0.2 for y in ys], [r["speed"] / 1e9 for r in rows], 0.4, label="get")
    left.set_yticks(ys, [row["case"] for row in rows])
    left.invert_yaxis()
    left.set_xlabel("GB/s, pages that are only on SSD")
    if "loop" in figures:
        turns = figures["loop"]["conversations"]
        xs = range(1, len(turns["ssd"]) + 1)
        lines = (
            ("ssd", "memory and SSD", "-"),
            ("memory", "memory", "-"),
            ("lru", "memory, LRU", "-"),
            ("belady", "memory, Belady", "--"),
        )
        for name, label, dashes in lines:
            right.plot(xs, turns[name], dashes, marker="o", label=label)
        right.set_xlabel("round of 20 conversations; memory holds six rounds")
        right.set_ylabel("share of pages hit")
        right.set_ylim(0, 1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    console.print(f"written {path}")


def parts_from(text: str) -> list[str]:
    """Read "read,loop"."""
    parts = text.split(",")
    wrong = [part for part in parts if part not in PARTS]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(PARTS)}")
    return [part for part in PARTS if part in parts]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 if a bound does not hold, 2 without fio."""
    about = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog="python -m bench ssd", description=about)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, PNG")
    parser.add_argument("--directory", type=Path, default=BUILD, help="on the disk to be measured")
    parser.add_argument("--trace", type=Path, metavar="FILE", help=f"JSON lines ({TRACE.name})")
    parser.add_argument("--only", type=parts_from, default=list(PARTS), metavar="PART,PART",
                        help=", ".join(PARTS))  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="only whether it runs")
    args = parser.parse_args(argv)
    if ssd_fio.program() is None and set(args.only) & set(NEED_FIO):
        print(ssd_fio.MISSING, file=sys.stderr)
        return 2
    figures = measure(args)
    if args.quick:
        console.print("quick: that it runs is all that this shows")
        return 0
    bounds = bounds_of(figures)
    holds = show_bounds(bounds)
    if args.json:
        write_json(args.json, figures, bounds)
    if args.plot:
        plot(args.plot, figures)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
