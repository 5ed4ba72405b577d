"""`mooncake-hicache status --cluster`: the nodes of a cluster, as its master knows them."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from mooncake_hicache import _core
from mooncake_hicache.cli.common import EXIT_NOT_RUNNING, console, print_json
from mooncake_hicache.errors import Error, TransientError, UnsupportedError
from mooncake_hicache.master.ask import directory_client
from mooncake_hicache.units import format_size

__all__ = ["show_cluster"]

TIMEOUT_MS = 4000
INTERVAL_S = 1.0
COLOURS = {"live": "green", "suspect": "red", "gone": "red"}


def show_cluster(masters: str, *, config: str, as_json: bool, watch: bool) -> int:
    """Print the nodes once, or again and again until Ctrl-C; return the exit status.

    Raises:
        InvalidArgumentError: The masters or the secret are wrong.
    """
    client = directory_client(masters, config)
    try:
        if watch and not as_json:
            return _watch(client, masters)
        try:
            members = client.members(TIMEOUT_MS)
        except (TransientError, UnsupportedError) as error:
            if as_json:
                print_json({"masters": masters, "failure": str(error)})
            else:
                console.print(f"no master leads: {error}", markup=False)
            return EXIT_NOT_RUNNING
        if as_json:
            print_json({"masters": masters, "epoch": client.epoch, "members": members})
        else:
            console.print(_table(client.epoch, members))
        return 0
    finally:
        client.stop()


def _watch(client: _core.DirectoryClient, masters: str) -> int:
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=False) as live:
        while True:
            try:
                members = client.members(TIMEOUT_MS)  # First: the epoch comes with them.
                live.update(_table(client.epoch, members), refresh=True)
            except Error as error:
                live.update(Text(f"no master of {masters} leads: {error}"), refresh=True)
            time.sleep(INTERVAL_S)
    return 0


def _table(epoch: int, members: list[dict[str, Any]]) -> Table:
    alive = sum(one["state"] != "gone" for one in members)
    pages = sum(one["pages"] for one in members)
    title = f"{alive} nodes, {pages:,} pages on them, epoch {epoch}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("node", "state"):
        table.add_column(name)
    for name in ("pages", "memory", "in use", "SSD", "in use", "found", "read", "load"):
        table.add_column(name, justify="right")
    for name in ("failure domain", "address"):
        table.add_column(name)
    for one in sorted(members, key=lambda one: (one["state"] == "gone", one["name"])):
        size, used = one["capacity_bytes"], one["capacity_bytes"] - one["free_bytes"]
        table.add_row(
            Text(one["name"]),
            Text(one["state"], style=COLOURS.get(one["state"], "yellow")),
            f"{one['pages']:,}",
            format_size(size),
            _share(used, size),
            format_size(one["ssd_size_bytes"]) if one["ssd_size_bytes"] else "–",
            _share(one["ssd_used_bytes"], one["ssd_size_bytes"]),
            _share(one["found_pages"], one["found_pages"] + one["missed_pages"]),
            format_size(one["read_bytes"]),
            f"{100 * one['load']:.0f} %",
            Text(one["failure_domain"]),
            Text(", ".join(one["addresses"])),
        )
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"
