"""Serve conversations with the real SGLang and show pages coming back from the node: `make demo`.

The same requests are sent six times: to a server without any cache (whose outputs are the truth),
to one with our tier when nothing is cached, again when its own memory holds everything, again after
a flush of that memory, again to a new engine, and again after engine and node were both stopped and
started. In the last three only the node can have the pages, in the very last one only its SSD.
Every output is compared with the truth.

The node is the demo's own: private folder, small pool, its directory on SSD in that folder, stopped
at the end. A node of yours is not touched. Where no folder for temporary files lies on a disk, the
last pass is left out, and that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.node import command_line, disk_folder, node_stats, private_node
from tests.serving.model import TEXT_TOKEN_COUNT
from tests.serving.server import HICACHE_ARGS, Result, Server, ServerError, has_gpu

console = Console(highlight=False)

FLUSHED = "after a flush"
ENGINE_RESTARTED = "after an engine restart"
BOTH_RESTARTED = "after both restarted"
FROM_THE_NODE = (FLUSHED, ENGINE_RESTARTED, BOTH_RESTARTED)
BACKEND = "MooncakeHiCacheStore"
"""The class that SGLang names in its answers when our tier serves."""


@dataclass(frozen=True)
class Workload:
    """How much is asked; sizes in tokens."""

    conversations: int = 6
    turns: int = 3
    system_size: int = 320
    question_size: int = 288
    """More than the 256 tokens below which SGLang does not ask its storage."""
    answer_size: int = 16
    device_size: int = 4096
    """The device pool: smaller than all conversations together, so that host memory is used too."""
    page_size: int = 16
    logprob_tolerance: float = 1e-4
    pool_size: str = "256MiB"
    ssd_size: str = "1GiB"


ON_CPU = Workload()
ON_GPU = Workload(
    system_size=4096,
    question_size=512,
    answer_size=32,
    device_size=12288,
    page_size=64,
    logprob_tolerance=0.15,  # A GPU adds up in another order when part of a prompt is cached.
    pool_size="16GiB",
    ssd_size="32GiB",
)


@dataclass
class Pass:
    """All requests, sent once."""

    name: str
    results: list[Result] = field(default_factory=list)
    wrong: int = 0
    near_ties: int = 0

    def cached(self, tier: str) -> int:
        """Sum the tokens that came from `tier`: device, host or storage."""
        return sum(int(result.details.get(tier) or 0) for result in self.results)


class Truth:
    """Requests and the outputs of a server without a cache."""

    def __init__(self, server: Server, workload: Workload, progress: Progress) -> None:
        self.workload = workload
        self.prompts: list[list[int]] = []
        self.results: list[Result] = []
        chance = random.Random(7)

        def text(size: int) -> list[int]:
            return [chance.randrange(TEXT_TOKEN_COUNT) for _ in range(size)]

        system = text(workload.system_size)
        histories = [list(system) for _ in range(workload.conversations)]
        task = progress.add_task("no cache", total=workload.conversations * workload.turns)
        for _ in range(workload.turns):
            for history in histories:
                history.extend(text(workload.question_size))
                result = server.generate(history, workload.answer_size)
                self.prompts.append(list(history))
                self.results.append(result)
                history.extend(result.tokens)
                progress.advance(task)

    def run(self, name: str, server: Server, progress: Progress) -> Pass:
        """Send every request to `server` and compare what it answers."""
        done = Pass(name)
        for prompt, expected in progress.track(
            list(zip(self.prompts, self.results, strict=True)), description=name
        ):
            result = server.generate(prompt, self.workload.answer_size)
            done.results.append(result)
            verdict = compare(expected, result, self.workload.logprob_tolerance)
            done.wrong += verdict == "wrong"
            done.near_ties += verdict == "near tie"
        return done


def compare(expected: Result, result: Result, tolerance: float) -> str:
    """Say whether an output is "equal", "wrong", or differs by a "near tie".

    A near tie: where the tokens first differ, both were equally probable within the tolerance. What
    follows has another context and says nothing.
    """
    if len(result.tokens) != len(expected.tokens):
        return "wrong"
    for want, got, a, b in zip(
        expected.tokens, result.tokens, expected.logprobs, result.logprobs, strict=True
    ):
        if not abs(a - b) <= tolerance:  # Written so that NaN is wrong.
            return "wrong"
        if want != got:
            return "near tie"
    return "equal"


@contextlib.contextmanager
def started(tag: str, args: Sequence[str], model: str | None) -> Iterator[Server]:
    """Start a server and say so; it is stopped at the end."""
    with console.status(f"starting sglang.launch_server ({tag}): about half a minute"):
        # SGLang only logs a plugin that fails: without this the stock backend would be shown.
        server = Server(tag, args, {"MOONCAKE_HICACHE_SGLANG": "required"}, model=model)
    took = f"up after {server.start_seconds:.0f} s"
    console.print(f"  server [bold]{tag}[/] {took}, log {server.log_path}", soft_wrap=True)
    with server:
        if not has_gpu():  # The first request compiles; it must not count in any time.
            server.generate(range(8), 2)
        yield server


def bar() -> Progress:
    """Return a progress bar that says what is sent, how far it is, and for how long."""
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def run(
    workload: Workload, tp: int, model: str | None, more: Sequence[str], *, with_ssd: bool
) -> list[Pass]:
    """Do all passes; the first is the truth itself. Raises ServerError."""
    common = ["--tp", str(tp), "--page-size", str(workload.page_size)]
    common += ["--max-total-tokens", str(workload.device_size)]
    without = [*common, "--disable-radix-cache", *more]
    with started("no-cache", without, model) as server, bar() as progress:
        truth = Truth(server, workload, progress)
    passes = [Pass("no cache", truth.results)]
    hicache = [*common, *HICACHE_ARGS, *more]
    with started("hicache", hicache, model) as server, bar() as progress:
        passes.append(truth.run("nothing cached yet", server, progress))
        passes.append(truth.run("again", server, progress))
        server.flush()
        passes.append(truth.run(FLUSHED, server, progress))
        server.flush()  # Returns when all pages are written.
    with started("hicache-restarted", hicache, model) as server, bar() as progress:
        passes.append(truth.run(ENGINE_RESTARTED, server, progress))
    if with_ssd:
        stop_node()
        with started("both-restarted", hicache, model) as server, bar() as progress:
            passes.append(truth.run(BOTH_RESTARTED, server, progress))
    return passes


def stop_node() -> None:
    """Stop the node as an operator does, and check that it went. Raises ServerError."""
    began = time.monotonic()
    before = node_stats()
    with console.status("stopping the node: its pages go to SSD"):
        said = command_line("stop")
    if node_stats() or "node stopped" not in said:
        raise ServerError(f"the node did not stop: {said}")
    console.print(
        f"  node stopped in {time.monotonic() - began:.1f} s, {before['pages']} pages were in its "
        "memory",
        soft_wrap=True,
    )


def show(passes: Sequence[Pass], prompts: int) -> None:
    """Print the table."""
    requests = len(passes[0].results)
    table = Table(
        title=f"{requests} requests, {prompts} tokens of prompt: where the tokens came from",
        title_justify="left",
    )
    table.add_column("pass", no_wrap=True)
    for column in ("device", "host", "node", "computed", "median", "wrong"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in passes:
        tiers = [one.cached(tier) for tier in ("device", "host", "storage")]
        median = statistics.median(result.seconds for result in one.results)
        computed = prompts - sum(result.cached_tokens for result in one.results)
        table.add_row(
            one.name,
            *(f"[green]{n}[/]" if n else "-" for n in tiers),
            str(computed),
            f"{median * 1000:.0f} ms",
            f"[red]{one.wrong}[/]" if one.wrong else "0",
        )
    console.print(table)


def verdict_of(passes: Sequence[Pass]) -> dict[str, object]:
    """Return what demo.json says first."""
    compared = passes[1:]
    from_node = {one.name: one.cached("storage") for one in passes}
    backends = {
        str(result.details["storage_backend"])
        for one in compared
        for result in one.results
        if result.details.get("storage_backend")
    }
    return {
        "backend": ",".join(sorted(backends)),
        "requests": sum(len(one.results) for one in compared),
        "wrong_outputs": sum(one.wrong for one in compared),
        "near_ties": sum(one.near_ties for one in compared),
        "cached_tokens_storage": from_node[FLUSHED],
        "cached_tokens_storage_after_restart": from_node[ENGINE_RESTARTED],
        "cached_tokens_storage_after_node_restart": from_node.get(BOTH_RESTARTED),
    }


def versions() -> dict[str, str]:
    """Return what ran."""
    found = {"python": platform.python_version()}
    for name in ("mooncake-hicache", "sglang", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if every output was right and pages came from the node when asked."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen here")
    parser.add_argument("--model", help="a model's folder (default: a tiny one, made on the spot)")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("server_args", nargs="*", help="more arguments for the server, after --")
    args = parser.parse_args(argv)
    workload = ON_GPU if has_gpu() else ON_CPU
    device = "GPU" if has_gpu() else "CPU (no GPU here)"
    names = ", ".join(f"{name} {number}" for name, number in versions().items())
    console.print(f"[bold]mooncake-hicache demo[/] on the {device}: {names}", soft_wrap=True)
    began = time.monotonic()
    parent = disk_folder()
    if parent is None:
        console.print("No folder for temporary files lies on a disk: the SSD is not shown.")
    ssd = "off" if parent is None else f"{{folder}}/ssd={workload.ssd_size}"
    settings = {"ssd": ssd, "ssd_region_size": "64MiB"}
    with private_node(workload.pool_size, parent=parent, **settings) as folder:
        try:
            passes = run(
                workload, args.tp, args.model, args.server_args, with_ssd=parent is not None
            )
        except ServerError as error:
            console.print(f"[red]The server failed:[/] {error}", markup=True)
            return 1
        status, stats = command_line("status"), node_stats()
        prompts = sum(
            workload.system_size
            + turn * (workload.question_size + workload.answer_size)
            + workload.question_size
            for turn in range(workload.turns)
            for _ in range(workload.conversations)
        )
        show(passes, prompts)
        console.print(f"The node ({folder}):\n{status}", markup=False, soft_wrap=True)
    verdict = verdict_of(passes)
    ok = (
        not verdict["wrong_outputs"]
        and verdict["backend"] == BACKEND
        and all(one.cached("storage") > 0 for one in passes if one.name in FROM_THE_NODE)
        and (parent is None or stats["ssd_recovered_pages"] > 0)
    )
    if args.json:
        more = {
            "device": device,
            "versions": versions(),
            "tp": args.tp,
            "workload": asdict(workload),
            "ssd": {name: stats[name] for name in stats if name.startswith("ssd_")},
            "seconds": round(time.monotonic() - began, 1),
            "passes": [pass_json(one) for one in passes],
        }
        args.json.write_text(json.dumps(verdict | more, indent=2) + "\n", encoding="utf-8")
        console.print(f"written {args.json}")
    last = last_line(verdict, workload.logprob_tolerance)
    console.print(f"[green]{last}[/]" if ok else f"[red]failed[/]: {last}", soft_wrap=True)
    return 0 if ok else 1


def last_line(verdict: dict[str, object], tolerance: float) -> str:
    """Say how many outputs equal those without a cache, and how many were too close to call."""
    wrong, ties = verdict["wrong_outputs"], verdict["near_ties"]
    text = f"{verdict['requests']} outputs compared with those without a cache: {wrong} wrong"
    if ties:
        text += (
            f", {ties} near {'tie' if ties == 1 else 'ties'} (another token, whose log-probability "
            f"is within {tolerance:g})"
        )
    elif not wrong:
        text += ", every token equal"
    return text + f"; log-probabilities may differ by {tolerance:g}"


def pass_json(one: Pass) -> dict[str, object]:
    """Return what demo.json says of a pass."""
    return {
        "name": one.name,
        "requests": len(one.results),
        "wrong_outputs": one.wrong,
        "near_ties": one.near_ties,
        **{f"cached_tokens_{tier}": one.cached(tier) for tier in ("device", "host", "storage")},
        "median_ms": round(statistics.median(r.seconds for r in one.results) * 1000, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
