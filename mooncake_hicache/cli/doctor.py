"""`mooncake-hicache doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mooncake_hicache.cli.checks import all_checks
from mooncake_hicache.cli.common import EXIT_ERROR, console, print_json, with_options
from mooncake_hicache.cli.finding import Check

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


_OPTIONS = (
    *("runtime_dir", "socket", "config", "pool_size", "huge_pages", "numa_node"),
    *("ssd", "ssd_size", "ssd_free_min", "ssd_region_size", "ssd_io"),
)


@with_options(_OPTIONS)
def doctor_command(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this machine, the options and the node, and name a remedy for whatever is amiss.

    Changes nothing and starts nothing. Exit status: 0 without errors (there may be warnings), 1
    with.
    """
    checks = all_checks(given)
    failed = any(check.verdict == "error" for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    raise typer.Exit(EXIT_ERROR if failed else 0)


def _print(checks: list[Check]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        text = Text(check.finding)
        if check.remedy:
            text.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(Text(check.verdict, style=_STYLES[check.verdict]), check.name, text)
    console.print(table)
