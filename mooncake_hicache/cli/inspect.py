"""`mooncake-hicache inspect`: what an SSD directory holds, and whether it is sound."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from mooncake_hicache.cli.common import EXIT_ERROR, console, print_json
from mooncake_hicache.ssd.format import Entry, EntryKind
from mooncake_hicache.ssd.inspect import Damage, Liveness, LogFile, Region, RegionState, Verdict
from mooncake_hicache.ssd.names import read_descriptions
from mooncake_hicache.units import format_size

__all__ = ["inspect_command"]

_STYLES = {
    RegionState.SEALED: "green",
    RegionState.UNSEALED: "yellow",
    RegionState.WRITING: "cyan",
    RegionState.DAMAGED: "bold red",
}
_DAMAGE_SHOWN_MAX = 100


@dataclass
class _Use:
    """Pages of a region or a namespace."""

    pages: int = 0
    size: int = 0
    live_pages: int = 0
    live_size: int = 0

    def add(self, entry: Entry, is_live: bool) -> None:
        self.pages += 1
        self.size += entry.size
        self.live_pages += is_live
        self.live_size += entry.size if is_live else 0

    def as_dict(self) -> dict[str, int]:
        return {
            "pages": self.pages,
            "page_bytes": self.size,
            "live_pages": self.live_pages,
            "live_bytes": self.live_size,
        }


@dataclass
class _Line:
    """One region, without its entries."""

    index: int
    state: RegionState
    sequence: int
    removals: int
    use: _Use = field(default_factory=_Use)


@dataclass
class _Report:
    lines: list[_Line] = field(default_factory=list)
    namespaces: dict[bytes, _Use] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)
    verified: Counter[Verdict] = field(default_factory=Counter)

    def add(self, region: Region, liveness: Liveness) -> _Line:
        removals = sum(entry.kind is not EntryKind.PAGE for entry in region.entries)
        line = _Line(region.index, region.state, region.sequence, removals)
        for entry in region.pages:
            is_live = liveness.is_live(entry)
            line.use.add(entry, is_live)
            self.namespaces.setdefault(entry.namespace, _Use()).add(entry, is_live)
        self.lines.append(line)
        self.damage += region.damage
        return line


def inspect_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder with pages.log in it.")
    ],
    is_verifying: Annotated[
        bool, typer.Option("--verify", help="Read every page, and compare its checksum.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    with_entries: Annotated[
        bool, typer.Option("--entries", help="List every page and every removal.")
    ] = False,
) -> None:
    """Show what an SSD folder holds. Reads only; a node may run on it meanwhile.

    Exit status: 0 it is sound, as far as it was read; 1 something is damaged, or it could not be
    read.
    """
    with LogFile(directory) as log:
        descriptions = read_descriptions(directory)
        is_in_use = log.is_in_use()
        report = _Report()
        entries: list[dict[str, Any]] = []
        with _progress(not as_json) as progress:
            liveness = _weigh(log, progress)
            for region in progress(log.regions(), "pages", log.region_count):
                report.add(region, liveness)
                if with_entries:
                    entries += [_entry_fields(region, one, liveness) for one in region.entries]
        if is_verifying:
            _verify(log, report, is_quiet=as_json)
        if as_json:
            print_json(
                _fields(log, report, descriptions, is_in_use)
                | ({"entries": entries} if with_entries else {})
            )
        else:
            _print(log, report, descriptions, is_in_use)
            if with_entries:
                _print_entries(entries)
    raise typer.Exit(EXIT_ERROR if report.damage else 0)


_Track = Callable[[Iterator[Region], str, int], Iterator[Region]]


@contextmanager
def _progress(is_shown: bool) -> Iterator[_Track]:
    with Progress(console=_bars(), transient=True, disable=not is_shown) as bars:
        yield lambda regions, name, count: iter(bars.track(regions, count, description=name))


def _bars() -> Console:
    """Progress goes beside the output, never into it."""
    return Console(stderr=True)


def _weigh(log: LogFile, progress: _Track) -> Liveness:
    liveness = Liveness()
    for region in progress(log.regions(), "regions", log.region_count):
        liveness.add(region.entries)
    return liveness


def _verify(log: LogFile, report: _Report, *, is_quiet: bool) -> None:
    columns = (BarColumn(), DownloadColumn(True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_bars(), transient=True, disable=is_quiet) as bars:
        task = bars.add_task("verify", total=sum(line.use.size for line in report.lines))
        for line in report.lines:
            if not line.use.pages:
                continue
            region = log.read_region(line.index)
            for entry in region.pages:
                verdict = log.verify(region, entry, lambda size: bars.advance(task, size))
                report.verified[verdict] += 1
                if verdict is Verdict.DAMAGED:
                    what = f"page {entry.key.hex()} does not match its checksum"
                    report.damage.append(Damage(region.index, what, entry))
            log.forget_cached(region)


# ---- for programs


def _entry_fields(region: Region, entry: Entry, liveness: Liveness) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "region": region.index,
        "kind": entry.kind.name.lower(),
        "sequence": entry.sequence,
        "namespace": entry.namespace.hex(),
    }
    if entry.kind is not EntryKind.CLEARED:
        fields["key"] = entry.key.hex()
    if entry.kind is EntryKind.PAGE:
        fields |= {
            "first_sector": entry.first_sector,
            "size": entry.size,
            "checksum": f"{entry.checksum:016x}",
            "parent_key_hash": f"{entry.parent_key_hash:016x}",
            "live": liveness.is_live(entry),
        }
    return fields


def _fields(
    log: LogFile, report: _Report, descriptions: dict[bytes, str], is_in_use: bool
) -> dict[str, Any]:
    return {
        "path": str(log.path),
        "log_id": log.superblock.log_id.hex(),
        "made_at": log.superblock.made_at,
        "size": log.size,
        "region_size": log.superblock.region_size,
        "node_is_running": is_in_use,
        "regions": [
            {"region": line.index, "state": line.state.value, "sequence": line.sequence}
            | line.use.as_dict()
            | {"removals": line.removals}
            for line in report.lines
        ],
        "namespaces": [
            {"namespace": digest.hex(), "description": descriptions.get(digest)} | use.as_dict()
            for digest, use in report.namespaces.items()
        ],
        "verified": {verdict.value: report.verified[verdict] for verdict in report.verified},
        "damage": [
            {"region": one.region, "what": one.what}
            | ({"key": one.entry.key.hex()} if one.entry else {})
            for one in report.damage
        ],
    }


# ---- for people


def _print(log: LogFile, report: _Report, descriptions: dict[bytes, str], is_in_use: bool) -> None:
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    for name, text in _head(log, report, is_in_use):
        head.add_row(name, Text(text))
    for digest, use in sorted(report.namespaces.items(), key=lambda item: -item[1].live_size):
        known = descriptions.get(digest, "not described")
        head.add_row("namespace", Text(f"{digest.hex()} {_amount(use)}: {known}"))
    console.print(head)
    used = [line for line in report.lines if line.state is not RegionState.FREE]
    if used:
        console.print(_region_table(used))
    for one in report.damage[:_DAMAGE_SHOWN_MAX]:
        console.print(Text(f"damaged: region {one.region}: {one.what}", style="bold red"))
    if len(report.damage) > _DAMAGE_SHOWN_MAX:
        console.print(f"… and {len(report.damage) - _DAMAGE_SHOWN_MAX:,} more: --json lists all")
    if report.damage:
        console.print(
            "Damaged pages are misses, never wrong bytes; a node passes over them. If there are "
            "new ones again and again, the disk is failing. A node that was killed while it wrote "
            "leaves some in its unsealed region."
        )


def _amount(use: _Use) -> str:
    return (
        f"{use.live_pages:,} live of {use.pages:,} pages, {format_size(use.live_size)} of "
        f"{format_size(use.size)}"
    )


def _head(log: LogFile, report: _Report, is_in_use: bool) -> Iterator[tuple[str, str]]:
    yield "file", f"{log.path}, {format_size(log.size)}"
    made_at = log.superblock.made_at
    # A clock that was wrong once may have written any number.
    made = time.strftime(", made %Y-%m-%d %H:%M:%S", time.localtime(made_at % 2**40))
    yield "log", log.superblock.log_id.hex() + made
    yield "node", "runs on it: what is being written may look torn" if is_in_use else "none"
    states = Counter(line.state for line in report.lines)
    counts = ", ".join(f"{states[state]:,} {state.value}" for state in RegionState if states[state])
    yield "regions", f"{log.region_count:,} of {format_size(log.superblock.region_size)}: {counts}"
    total = _Use()
    for line in report.lines:
        total.pages += line.use.pages
        total.size += line.use.size
        total.live_pages += line.use.live_pages
        total.live_size += line.use.live_size
    yield "pages", _amount(total)
    if report.verified:
        parts = (f"{report.verified[verdict]:,} {verdict.value}" for verdict in Verdict)
        yield "verified", ", ".join(parts)


def _region_table(lines: list[_Line]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("region", justify="right")
    table.add_column("state")
    for name in ("sequence", "pages", "live", "removals", "size", "live size"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            str(line.index),
            Text(line.state.value, style=_STYLES[line.state]),
            str(line.sequence),
            f"{line.use.pages:,}",
            f"{line.use.live_pages:,}",
            f"{line.removals:,}",
            format_size(line.use.size),
            format_size(line.use.live_size),
        )
    return table


def _print_entries(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        words = [f"region {entry['region']}", entry["kind"], f"sequence {entry['sequence']}"]
        words.append(f"namespace {entry['namespace'][:16]}")
        if "key" in entry:
            words.append(f"key {entry['key']}")
        if "size" in entry:
            words += [f"sector {entry['first_sector']}", f"{entry['size']} bytes"]
            words.append("live" if entry["live"] else "dead")
        typer.echo("  ".join(words))
