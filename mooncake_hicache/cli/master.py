"""`mooncake-hicache master`: the directory of a cluster."""

from __future__ import annotations

import logging
from typing import Any

import typer

from mooncake_hicache.cli.common import with_options
from mooncake_hicache.config import MasterOptions

__all__ = ["master_command"]


@with_options(MasterOptions.model_fields, MasterOptions)
def master_command(given: dict[str, Any]) -> None:
    """Run a cluster's master: it knows which node has which page.

    Nodes are told of it by their option master ("host:50051", or several with commas). It keeps
    nothing and may be restarted at any time: nodes tell it again what they have. Ends on SIGTERM
    and SIGINT.
    """
    # Imported here: the other commands have no use for it.
    from mooncake_hicache.master.master import run_master

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    raise typer.Exit(run_master(MasterOptions(**given), typer.echo))
