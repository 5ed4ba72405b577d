"""`mooncake-hicache p2p`: what is in the catalogue of the P2P store."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from mooncake_hicache.cli.common import console, print_json
from mooncake_hicache.units import format_size

__all__ = ["p2p_app"]

OWNERS_SHOWN = 3

p2p_app = typer.Typer(
    help="The P2P store: names for memory that any process can fetch.", no_args_is_help=True
)


@p2p_app.callback()
def _root() -> None:
    pass


@p2p_app.command("list")
def list_command(
    metadata: Annotated[
        str, typer.Option("--metadata", metavar="ETCD", help="etcd://host:port[,host:port]")
    ],
    prefix: Annotated[str, typer.Argument(help="What names begin with.")] = "",
    cluster: Annotated[str, typer.Option("--cluster", help="As the stores have it.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List names, their sizes, and who has them.

    The secret is that of the transfer engines (MOONCAKE_HICACHE_TRANSFER_SECRET): entries that are
    signed with another one are only counted.
    """
    # Imported here: the other commands have no use for it.
    from mooncake_hicache.p2p.listed import list_names

    names, foreign_count = list_names(metadata, prefix, cluster=cluster)
    if as_json:
        print_json(
            {"names": [dataclasses.asdict(one) for one in names], "foreign_count": foreign_count}
        )
        return
    table = Table("name", "size", "whole", "partial", "generation", "owners", box=None)
    for one in names:
        more = len(one.owners) - OWNERS_SHOWN
        table.add_row(
            one.name,
            format_size(one.size_bytes),
            str(one.whole_count),
            str(one.partial_count),
            str(one.generation),
            "; ".join(one.owners[:OWNERS_SHOWN]) + (f"; {more} more" if more > 0 else ""),
        )
    console.print(table)
    if foreign_count:
        typer.echo(f"{foreign_count} entries do not count: signed with another secret, or damaged")
