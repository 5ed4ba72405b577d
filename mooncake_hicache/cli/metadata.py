"""`mooncake-hicache metadata`: the server at which engines find each other by name."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated

import typer

from mooncake_hicache.metadata.names import is_loopback
from mooncake_hicache.units import parse_size

__all__ = ["metadata_command"]

TOKEN_ENVIRONMENT = "MC_METADATA_HTTP_TOKEN"


def metadata_command(
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; 0.0.0.0 or :: for every address.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The TCP port. 0: any free one.")
    ] = 8080,
    token_file: Annotated[
        str,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Its first line must come with every change (Authorization: Bearer). Without it "
            f"{TOKEN_ENVIRONMENT} counts, and without that anybody may change anything.",
        ),
    ] = "",
    value_size_max: Annotated[
        str, typer.Option("--value-size-max", metavar="SIZE", help="Of one value.")
    ] = "1MiB",
    memory_max: Annotated[
        str, typer.Option("--memory-max", metavar="SIZE", help="Of all keys and values.")
    ] = "256MiB",
    count_max: Annotated[
        int, typer.Option("--count-max", min=1, metavar="COUNT", help="Of keys.")
    ] = 65_536,
) -> None:
    """Serve names of engines over HTTP, with the original's protocol.

    Engines are given http://HOST:PORT/metadata. Everything is in memory; after a restart engines
    of this package put themselves there again. Ends on SIGTERM and SIGINT.
    """
    # Imported here: the other commands have no use for it.
    from mooncake_hicache.metadata.server import MetadataServer, listen
    from mooncake_hicache.metadata.table import Limits
    from mooncake_hicache.metadata.token import read_token

    limits = Limits(parse_size(value_size_max), parse_size(memory_max), count_max)
    token = read_token(token_file) if token_file else os.environ.get(TOKEN_ENVIRONMENT, "")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with MetadataServer(listen(host, port), limits=limits, token=token) as server:
        typer.echo(f"metadata server answers at {server.url}")
        if not token and not is_loopback(server.address.host):
            typer.echo(
                "without --token-file anybody who reaches this address can change where engines "
                "look for each other",
                err=True,
            )
        stopped.wait()
    typer.echo("metadata server stopped")
