"""Put, get and exists against a node in another process: `python -m bench pages`.

Every speed stands beside the best copy that the machine offers, by the same number of threads, of
the same sizes, measured right before each call; so a busy machine slows both. The last table shows
what must hold, and the exit status is 1 if something does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import pages_index
from bench.limits import Area
from bench.node import private_node
from bench.pages_copy import SIZES, WORKING_SET, Bench, KiB, MiB
from bench.report import Bound, console, machine, show_bounds, write_json
from mooncake_hicache.store import Store


def bar() -> Progress:
    """Return a progress bar that says what is measured."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def adapter_overhead() -> dict[str, Any] | None:
    """Measure the adapter in a process of its own; None where SGLang is not installed."""
    if importlib.util.find_spec("sglang") is None:
        return None
    with console.status("the adapter: importing SGLang"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "bench.adapter"],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"bench.adapter failed:\n{done.stdout}\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; takes a few minutes."""
    figures: dict[str, Any] = {"machine": machine()}
    with bar() as progress:
        pool_size = 3 * WORKING_SET
        with private_node(f"{pool_size // MiB}MiB"), Store.open() as store:
            unverified = Store.open(verify=False)
            threads = store.options.copy_thread_count()
            figures["threads"] = threads
            ours, other = Area(WORKING_SET), Area(WORKING_SET)
            bench = Bench(store, unverified, threads, ours, other, args.seconds)
            figures["cold"] = bench.cold()
            bench.warm(pool_size)
            speeds = bench.transfers(progress)
            figures["copies"] = [speed.row() for speed in speeds]
            task = progress.add_task("look-ups and latency", total=None)
            figures["lookups"] = pages_index.lookups(store)
            progress.update(task, total=1, completed=1)
            unverified.close()
            del bench, ours, other
        figures["index"] = pages_index.index_growth(progress, args.index_pages)
        figures["waste"] = pages_index.waste(progress)
    figures["adapter"] = adapter_overhead()
    console.print(f"doing nothing for {pages_index.IDLE_SECONDS:.0f} s")  # Not even a bar moves.
    with private_node("256MiB"), Store.open() as store:
        figures["idle"] = pages_index.idle(store)
    return figures


def size_text(size: int) -> str:
    """Write a size as people do."""
    return f"{size // MiB} MiB" if size >= MiB else f"{size // KiB} KiB"


def show_copies(copies: Sequence[dict[str, Any]]) -> None:
    """Print speeds by size and batch."""
    table = Table(title="GB/s, and the share of the best copy", title_justify="left")
    table.add_column("pages", justify="right", no_wrap=True)
    for column in ("put", "get", "unverified", "best copy", "by"):
        table.add_column(column, justify="right", no_wrap=True)
    cells: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for one in copies:
        name = one["operation"] if one["verify"] else "unverified"
        cells.setdefault((one["size"], one["batch"]), {})[name] = one
    for (size, batch), by_name in cells.items():
        row = [f"{batch} × {size_text(size)}"]
        for name in ("put", "get", "unverified"):
            one = by_name[name]
            row.append(f"{one['speed'] / 1e9:.1f} {one['ratio']:.2f}")
        get = by_name["get"]
        row += [f"{get['copy_speed'] / 1e9:.1f}", f"{get['copy_kind']} ×{get['copy_threads']}"]
        table.add_row(*row)
    console.print(table)


def show_times(figures: dict[str, Any]) -> None:
    """Print look-ups, latency and what is measured once."""
    table = Table(title="Times", title_justify="left")
    table.add_column("call")
    table.add_column("p50", justify="right")
    table.add_column("p99", justify="right")
    for name, times in figures["lookups"].items():
        table.add_row(name, f"{times['p50_us']:.1f} µs", f"{times['p99_us']:.1f} µs")
    console.print(table)
    cold = {name: f"{speed / 1e9:.2f} GB/s" for name, speed in figures["cold"].items()}
    console.print("first touch of memory:", ", ".join(f"{k} {v}" for k, v in cold.items()))
    for name in ("index", "waste", "idle", "adapter"):
        if figures[name]:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items())
            console.print(f"{name}: {shown}")


def bounds_of(figures: dict[str, Any]) -> list[Bound]:
    """Return what must hold, with what was measured."""

    def ratio(operation: str, size: int, batch: int) -> float:
        return next(
            float(one["ratio"])
            for one in figures["copies"]
            if (one["operation"], one["size"], one["batch"], one["verify"])
            == (operation, size, batch, True)
        )

    times, index = figures["lookups"], figures["index"]
    per_page = max(index["bytes_per_page_reported"], index["bytes_per_page_resident"])
    copy = "× best copy"
    bounds = [
        Bound("get, 32 × 4 MiB, verified", ratio("get", 4 * MiB, 32), copy, 0.85, True),
        Bound("put, 32 × 4 MiB", ratio("put", 4 * MiB, 32), copy, 0.80, True),
        Bound("get, 128 × 64 KiB, verified", ratio("get", 64 * KiB, 128), copy, 0.6, True),
        Bound("prefix of 2048, hit, p50", times["prefix_2048_hit"]["p50_us"], "µs", 300, False),
        Bound("prefix of 2048, miss, p50", times["prefix_2048_miss"]["p50_us"], "µs", 300, False),
        Bound("exists of 2048, hit, p50", times["exists_2048_hit"]["p50_us"], "µs", 300, False),
        Bound("exists of 2048, miss, p50", times["exists_2048_miss"]["p50_us"], "µs", 300, False),
        Bound("get of one 4 KiB page, p50", times["get_4k"]["p50_us"], "µs", 30, False),
        Bound(f"index, at {index['pages']:,} pages", per_page, "bytes a page", 256, False),
        Bound("1 M pages to 10 k, prefix, p50", index["prefix_ratio"], "×", 1.2, False),
        Bound("pool filled, three models", 100 * figures["waste"]["fill_min"], "%", 95, True),
        Bound("pool wasted, three models", 100 * figures["waste"]["waste_max"], "%", 5, False),
        Bound("idle node", figures["idle"]["node_percent"], "% of a core", 1, False),
        Bound("idle client", figures["idle"]["client_percent"], "% of a core", 1, False),
    ]
    if figures["adapter"]:
        own = figures["adapter"]["own_p50_us"] / 1000
        bounds.append(Bound("adapter, get of 128 pages, p50", own, "ms", 1, False))
    return bounds


def plot(path: Path, figures: dict[str, Any]) -> None:
    """Draw the speeds beside the best copy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    operations = (("put", True, "put"), ("get", True, "get, verified"), ("get", False, "get"))
    labels = [size_text(size) for size in SIZES]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for panel, batch in zip(panels, (32, 128), strict=True):
        for operation, verify, label in operations:
            line = {
                one["size"]: one["ratio"]
                for one in figures["copies"]
                if (one["operation"], one["verify"], one["batch"]) == (operation, verify, batch)
            }
            xs = [number for number, size in enumerate(SIZES) if size in line]
            panel.plot(xs, [line[SIZES[x]] for x in xs], marker="o", label=label)
        panel.axhline(1, color="gray", linewidth=1)
        panel.set_xticks(range(len(SIZES)), labels)
        panel.set_ylim(0, 1.2)
        panel.grid(alpha=0.3)
        panel.set_xlabel("size of a page")
        panel.set_title(f"{batch} pages in one call")
    panels[0].set_ylabel("speed ÷ best copy of this machine")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    console.print(f"written {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 if a bound does not hold."""
    about = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog="python -m bench pages", description=about)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, PNG")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each case (1.5)")
    parser.add_argument("--index-pages", type=int, default=pages_index.LARGE_INDEX, metavar="N")
    args = parser.parse_args(argv)
    figures = measure(args)
    show_copies(figures["copies"])
    show_times(figures)
    bounds = bounds_of(figures)
    holds = show_bounds(bounds)
    if args.json:
        write_json(args.json, figures, bounds)
    if args.plot:
        plot(args.plot, figures)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
