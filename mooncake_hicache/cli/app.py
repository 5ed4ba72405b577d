"""The command line: which commands there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mooncake_hicache.cli.common import EXIT_ERROR
from mooncake_hicache.cli.config import config_command
from mooncake_hicache.cli.doctor import doctor_command
from mooncake_hicache.cli.inspect import inspect_command
from mooncake_hicache.cli.master import master_command
from mooncake_hicache.cli.metadata import metadata_command
from mooncake_hicache.cli.node import node_command, stop_command
from mooncake_hicache.cli.p2p import p2p_app
from mooncake_hicache.cli.status import status_command
from mooncake_hicache.cli.topology import topology_command
from mooncake_hicache.errors import Error
from mooncake_hicache.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="mooncake-hicache",
    help="The KV-cache tier behind SGLang's HiCache: pages that outlive the engine.\n\n"
    "Every option can also be set in the environment, as MOONCAKE_HICACHE_ and its capital name, "
    "or in the file that MOONCAKE_HICACHE_CONFIG names; `config` shows what is in effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"mooncake-hicache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command("node")(node_command)
app.command("status")(status_command)
app.command("stop")(stop_command)
app.command("doctor")(doctor_command)
app.command("config")(config_command)
app.command("inspect")(inspect_command)
app.command("topology")(topology_command)
app.command("master")(master_command)
app.command("metadata")(metadata_command)
app.add_typer(p2p_app, name="p2p")


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    try:
        app()
    except Error as error:
        typer.echo(f"mooncake-hicache: {error}", err=True)
        sys.exit(EXIT_ERROR)
