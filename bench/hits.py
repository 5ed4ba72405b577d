"""Prefix hits by capacity and policy: `python -m bench hits`.

Replays requests through the node's own eviction policies, in one cache of equal pages. A request
hits the longest run of its leading pages that are there; then all its pages are there. Beside them
stands Belady's optimum, which knows the future: of the way from LRU to it, the table shows the
share that each policy goes.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.hits_workloads import WORKLOADS, Requests, make, read_trace
from bench.report import Bound, console, machine, show_bounds, write_json
from mooncake_hicache import _core

POLICIES = ("lru", "s3fifo", "adaptive")
TEXTBOOK = "s3fifo_textbook"
BELADY = "belady"
CAPACITIES = (1000, 3000, 5859, 10_000, 30_000, 50_000, 100_000)
TRACE = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl.gz"
SYNTHETIC_CAPACITIES = (1000, 5000)
SYNTHETIC_TURNOVER = 40  # pages asked for, in capacities


def leading_hits(chain: Sequence[int], resident: object) -> int:
    """Return how many leading pages of the chain are resident."""
    held: Any = resident
    for count, page in enumerate(chain):
        if page not in held:
            return count
    return len(chain)


def belady(requests: Requests, capacity: int) -> int:
    """Return the pages hit when the page used furthest in the future is evicted."""
    return sum(belady_hits(requests, capacity))


def belady_hits(requests: Requests, capacity: int) -> list[int]:
    """Return the same by request."""
    ids = requests.ids.tolist()
    never = len(ids)
    next_use = [never] * len(ids)
    seen: dict[int, int] = {}
    for position in range(len(ids) - 1, -1, -1):
        next_use[position] = seen.get(ids[position], never)
        seen[ids[position]] = position
    resident: dict[int, int] = {}  # page -> position of its next use
    furthest: list[tuple[int, int]] = []  # stale entries are skipped when they come up
    hits: list[int] = []
    position = 0
    for chain in requests.chains():
        hits.append(leading_hits(chain, resident))
        for page in chain:
            if page not in resident and len(resident) >= capacity:
                while True:
                    use, gone = heapq.heappop(furthest)
                    if resident.get(gone) == -use:
                        break
                del resident[gone]
            resident[page] = next_use[position]
            heapq.heappush(furthest, (-next_use[position], page))
            position += 1
    return hits


class _TextbookS3Fifo:
    """S3-FIFO as published: page by page, without regard to chains."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.small_size = max(1, capacity // 10)
        self.uses: dict[int, int] = {}
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.ghosts: OrderedDict[int, None] = OrderedDict()

    def use(self, page: int) -> None:
        if page in self.uses:
            self.uses[page] = min(3, self.uses[page] + 1)
            return
        while len(self.uses) >= self.capacity:
            self._evict()
        if page in self.ghosts:
            del self.ghosts[page]
            self.main.append(page)
        else:
            self.small.append(page)
        self.uses[page] = 0

    def _evict(self) -> None:
        if self.small and (len(self.small) >= self.small_size or not self.main):
            page = self.small.popleft()
            if self.uses[page] > 0:
                self.uses[page] = 0
                self.main.append(page)
                return
            del self.uses[page]
            self.ghosts[page] = None
            if len(self.ghosts) > self.capacity:
                self.ghosts.popitem(last=False)
            return
        page = self.main.popleft()
        if self.uses[page] > 0:
            self.uses[page] -= 1
            self.main.append(page)
        else:
            del self.uses[page]


def textbook_s3fifo(requests: Requests, capacity: int) -> int:
    """Return the pages hit by S3-FIFO as published."""
    cache = _TextbookS3Fifo(capacity)
    hits = 0
    for chain in requests.chains():
        hits += leading_hits(chain, cache.uses)
        for page in chain:
            cache.use(page)
    return hits


def measure(requests: Requests, capacity: int, *, half: bool) -> dict[str, Any]:
    """Return the share of pages hit by each policy; `half`: also of the second half alone."""
    row: dict[str, Any] = {"capacity_pages": capacity, "hit_share": {}, "policy": {}}
    middle = len(requests.now_ms) // 2
    pages_before = int(requests.starts[middle])
    for policy in POLICIES:
        began = time.process_time()
        hits, memory = _core.replay_trace(
            policy, capacity, requests.starts, requests.ids, requests.now_ms
        )
        seconds = time.process_time() - began
        row["hit_share"][policy] = int(hits.sum(dtype="uint64")) / requests.page_count
        row["policy"][policy] = {
            "memory_bytes": memory,
            "ns_per_page": 1e9 * seconds / requests.page_count,
        }
        if half:
            later = int(hits[middle:].sum(dtype="uint64"))
            row["policy"][policy]["second_half"] = later / (requests.page_count - pages_before)
    row["hit_share"][TEXTBOOK] = textbook_s3fifo(requests, capacity) / requests.page_count
    row["hit_share"][BELADY] = belady(requests, capacity) / requests.page_count
    shares = row["hit_share"]
    way = shares[BELADY] - shares["lru"]
    row["way_to_belady"] = {
        name: (shares[name] - shares["lru"]) / way if way > 0 else None for name in POLICIES
    }
    return row


def bounds_of(rows: Sequence[dict[str, Any]]) -> list[Bound]:
    """Return what must hold on the trace, for the capacities that were asked for."""
    bounds: list[Bound] = []
    for row in rows:
        capacity, shares = row["capacity_pages"], row["hit_share"]
        if capacity not in (1000, 3000, 10_000, 30_000):
            continue
        best = max(shares["lru"], shares["s3fifo"], shares[TEXTBOOK])
        ratio = shares["adaptive"] / best
        bounds.append(Bound(f"{capacity:,} pages", ratio, "× LRU, S3-FIFO", 1, True))
        if capacity <= 3000:
            gain = shares["adaptive"] / shares["lru"]
            bounds.append(Bound(f"{capacity:,} pages", gain, "× LRU", 1.25, True))
    return bounds


def show(title: str, rows: Sequence[dict[str, Any]], first: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, justify="right", no_wrap=True)
    for column in (*POLICIES, "textbook", BELADY, "÷ lru", "way"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shares = row["hit_share"]
        best = max(shares[name] for name in POLICIES)
        cells = [
            f"[bold]{shares[name]:.4f}[/]" if shares[name] == best else f"{shares[name]:.4f}"
            for name in POLICIES
        ]
        gain = f"{shares['adaptive'] / shares['lru']:.2f}" if shares["lru"] > 0 else "-"
        way = row["way_to_belady"]["adaptive"]
        name = row.get("workload")
        label = f"{row['capacity_pages']:,}" if name is None else f"{name} {row['capacity_pages']}"
        table.add_row(
            label,
            *cells,
            f"{shares[TEXTBOOK]:.4f}",
            f"{shares[BELADY]:.4f}",
            gain,
            "-" if way is None else f"{100 * way:.0f} %",
        )
    console.print(table)
    console.print(
        "textbook: S3-FIFO as published, page by page; ÷ lru, way: adaptive, of LRU's hits, and "
        "of the way from LRU to Belady's optimum"
    )


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw hits by capacity, one line a policy; made workloads as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    names = (*POLICIES, TEXTBOOK, BELADY)
    labels = {TEXTBOOK: "s3fifo, textbook", BELADY: "Belady (knows the future)"}
    if "workload" in rows[0]:
        for number, name in enumerate(names):
            xs = [x + 0.16 * number for x in range(len(rows))]
            axes.bar(
                xs, [row["hit_share"][name] for row in rows], 0.16, label=labels.get(name, name)
            )
        ticks = [f"{row['workload']}\n{row['capacity_pages']}" for row in rows]
        axes.set_xticks([x + 0.32 for x in range(len(rows))], ticks, fontsize=7, rotation=60)
    else:
        for name in names:
            dashes = "--" if name in labels else "-"
            axes.plot(
                [row["capacity_pages"] for row in rows],
                [row["hit_share"][name] for row in rows],
                dashes,
                marker="o",
                label=labels.get(name, name),
            )
        axes.set_xscale("log")
        axes.set_xlabel("capacity, pages of 512 tokens")
    axes.set_ylabel("share of pages hit")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    console.print(f"written {path}")


def run(cases: Sequence[tuple[str | None, int, Requests]]) -> list[dict[str, Any]]:
    """Measure each (workload, capacity, requests), showing how far it is."""
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("replaying", total=len(cases))
        for name, capacity, requests in cases:
            progress.update(task, description=f"{name or 'trace'}, {capacity:,} pages")
            row = measure(requests, capacity, half=name is None)
            rows.append(row if name is None else {"workload": name, **row})
            progress.advance(task)
    return rows


def capacities_from(text: str) -> list[int]:
    """Read "1000,3000"."""
    try:
        capacities = [int(part) for part in text.split(",")]
    except ValueError:
        capacities = []
    if not capacities or min(capacities) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of page counts like 1000,3000")
    return capacities


def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print, write; return 1 if a bound does not hold, 2 without a trace."""
    about = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog="python -m bench hits", description=about)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, PNG")
    parser.add_argument("--trace", type=Path, metavar="FILE", help=f"JSON lines ({TRACE.name})")
    parser.add_argument(
        "--capacities", type=capacities_from, metavar="N,N", help="of the cache, in pages"
    )
    parser.add_argument("--synthetic", action="store_true", help="made requests; needs no trace")
    args = parser.parse_args(argv)

    figures: dict[str, Any] = {"machine": machine()}
    bounds: list[Bound] = []
    if args.synthetic:
        capacities = args.capacities or SYNTHETIC_CAPACITIES
        rows = run(
            [
                (name, capacity, make(name, capacity, SYNTHETIC_TURNOVER * capacity))
                for capacity in capacities
                for name in WORKLOADS
            ]
        )
        show("Share of pages hit, made requests", rows, "workload")
    else:
        path = args.trace or TRACE
        if not path.is_file():
            print(
                f"no trace at {path}: name one with --trace FILE (JSON lines with timestamp and "
                "hash_ids, .gz or not), or use --synthetic, which needs none",
                file=sys.stderr,
            )
            return 2
        try:
            requests = read_trace(path)
        except (OSError, ValueError) as error:
            print(f"cannot read the trace: {error}", file=sys.stderr)
            return 2
        figures["trace"] = {
            "name": path.name,
            "requests": len(requests.now_ms),
            "pages": requests.page_count,
        }
        rows = run([(None, capacity, requests) for capacity in args.capacities or CAPACITIES])
        show(f"Share of pages hit, {path.name}", rows, "capacity")
        bounds = bounds_of(rows)
    holds = show_bounds(bounds) if bounds else True
    figures["rows"] = rows
    if args.json:
        write_json(args.json, figures, bounds)
    if args.plot:
        plot(args.plot, rows)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
