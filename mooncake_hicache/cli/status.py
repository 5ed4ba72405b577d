"""`mooncake-hicache status`: what the node keeps, and how well it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from mooncake_hicache.cli.common import (
    EXIT_NOT_RUNNING,
    EXIT_UNRESPONSIVE,
    console,
    print_json,
    with_options,
)
from mooncake_hicache.cli.reach import NodeView, look
from mooncake_hicache.cli.status_cluster import show_cluster
from mooncake_hicache.cli.status_ssd import share, ssd_rows, ssd_trouble
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.node.state import LAST_PHASES
from mooncake_hicache.units import format_duration_ms, format_size

__all__ = ["status_command"]


@with_options(["runtime_dir", "socket", "config"])
def status_command(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="HOST:PORT",
            help="Show the nodes of the cluster with this master (several with commas).",
        ),
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="With --cluster: again and again, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the node of this machine, or the nodes of a cluster. Never starts one.

    Exit status: 0 it answers, 3 there is none, 4 there is one and it does not answer.
    """
    if cluster:
        config = str(given.get("config") or "")
        raise typer.Exit(show_cluster(cluster, config=config, as_json=as_json, watch=watch))
    view = look(StoreOptions(**given))
    word, status = _verdict(view)
    if as_json:
        print_json(
            {
                "node": word,
                "socket": view.paths.socket,
                "answer_ms": round(view.answer_ms, 3),
                "failure": view.failure,
                "state": asdict(view.state) if view.state and view.is_held else None,
                "stats": view.stats,
            }
        )
    elif view.stats is None:
        pid = f" (pid {view.state.pid})" if view.state and view.is_held else ""
        console.print(f"{word}{pid}: {view.failure}")
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column()
        for name, text in _rows(view, view.stats):
            table.add_row(name, text)
        console.print(table)
    raise typer.Exit(status)


def _verdict(view: NodeView) -> tuple[str, int]:
    if view.stats is not None:
        return "running", 0
    return (
        ("unresponsive", EXIT_UNRESPONSIVE) if view.is_held else ("not running", EXIT_NOT_RUNNING)
    )


def _cluster(stats: dict[str, Any]) -> str:
    if "cluster" not in stats:
        return "none"
    name = f"{stats['cluster']['name']} at {stats['cluster']['masters']}"
    if not stats["cluster_joined"]:
        lost = f"{name}: no master counts it as a member, so others do not find its pages"
        trouble = stats["cluster"].get("trouble", "")
        return f"{lost}: {trouble}" if trouble else lost
    words = ["member"]
    if stats["cluster_draining"]:
        words = [f"draining, {format_size(stats['drain_left_bytes'])} left"]
    if stats["cluster_announcing"]:
        words.append("telling what it has")
    pending, lag_ms = stats["cluster_pending_pages"], stats["cluster_lag_ms"]
    words.append(f"{pending:,} changes to tell, the oldest {format_duration_ms(lag_ms)} old")
    words.append(f"{stats['remote_fetched_pages']:,} pages fetched")
    return f"{name}: {', '.join(words)}"


def _rows(view: NodeView, stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    state = view.state if view.state is not None and view.state.pid == stats["pid"] else None
    is_leaving = state is not None and state.phase in LAST_PHASES
    word = state.phase if state is not None and is_leaving else "running"
    yield "node", f"{word}, pid {stats['pid']}, up {format_duration_ms(stats['uptime_ms'])}"
    yield "socket", view.paths.socket
    if state is not None:
        yield "http", state.http_url or "off"
        yield "log", state.log
        yield "started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started_at))
        yield "version", state.version
    used, size = stats["pool_used_bytes"], stats["pool_size_bytes"]
    yield "pool", f"{format_size(used)} of {format_size(size)} used ({share(used, size)})"
    yield "pages", f"{stats['pages']:,} in {stats['namespaces']} namespaces"
    yield "clients", f"{stats['clients'] - 1} (and this command)"
    yield "leases", f"{stats['leases']:,} over {format_size(stats['leased_bytes'])}"
    found, missed = stats["lookup_hit_pages"], stats["lookup_miss_pages"]
    yield "look-ups", f"{found + missed:,} pages, {share(found, found + missed)} there"
    hits, misses = stats["get_hit_pages"], stats["get_miss_pages"]
    yield (
        "gets",
        f"{hits + misses:,} pages, {share(hits, hits + misses)} there, "
        f"{format_size(stats['get_hit_bytes'])}",
    )
    yield (
        "puts",
        f"{stats['put_stored_pages']:,} pages stored, {format_size(stats['put_stored_bytes'])}; "
        f"{stats['put_existing_pages']:,} were there, {stats['put_no_space_pages']:,} had no room, "
        f"{stats['put_over_quota_pages']:,} were over their quota",
    )
    yield (
        "evicted",
        f"{stats['evicted_pages']:,} pages, {format_size(stats['evicted_bytes'])}, policy "
        f"{stats['eviction_policy']}",
    )
    yield from ssd_rows(state, stats)
    yield "cluster", _cluster(stats)
    for one in stats["tenant_use"]:
        used, limit = one["used_bytes"], one["limit_bytes"]
        name = one["tenant"] or "(not known yet)"
        yield (
            "quota",
            f"{format_size(used)} of {format_size(limit)} used ({share(used, limit)}), "
            f"{one['pages']:,} pages: tenant {name}",
        )
    for one in sorted(stats["namespace_use"], key=lambda one: -one["size_bytes"]):
        memory = f"{one['pages']:,} pages, {format_size(one['size_bytes'])}"
        name = one["description"] or "(not opened yet)"
        yield "namespace", f"{memory}, {one['ssd_pages']:,} on SSD: {name}"
    trouble = {name: stats[name] for name in ("corrupt_pages", "bad_frames", "rejected_clients")}
    trouble |= ssd_trouble(stats)
    yield (
        "trouble",
        ", ".join(f"{n.replace('_', ' ')} {c}" for n, c in trouble.items() if c) or "none",
    )
