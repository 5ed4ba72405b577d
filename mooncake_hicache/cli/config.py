"""`mooncake-hicache config`: the options in effect, and where each comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from mooncake_hicache.cli.common import console, print_json, with_options
from mooncake_hicache.config import StoreOptions, options_file_text

__all__ = ["config_command"]


@with_options(["config"])
def config_command(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    template: Annotated[
        bool,
        typer.Option("--template", help="Print an options file with every default, explained."),
    ] = False,
) -> None:
    """Show every option: its value now, and the source of the value."""
    if template:
        typer.echo(options_file_text(), nl=False)
        return
    options = StoreOptions(**given)
    rows = {
        name: {"value": getattr(options, name), "source": options.source_of(name)}
        for name in StoreOptions.model_fields
    }
    if as_json:
        print_json(rows)
        return
    table = Table("option", "value", "source", box=None, pad_edge=False)
    for name, row in rows.items():
        value = "" if row["value"] == "" else str(row["value"])
        table.add_row(
            name, value, row["source"], style=None if row["source"] != "default" else "dim"
        )
    console.print(table)
