"""`mooncake-hicache node` and `mooncake-hicache stop`."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any

import typer

from mooncake_hicache.cli.common import EXIT_UNRESPONSIVE, with_options
from mooncake_hicache.cli.reach import NodeView, look
from mooncake_hicache.config import NodeOptions, StoreOptions
from mooncake_hicache.errors import TransientError
from mooncake_hicache.node.spawn import start_detached
from mooncake_hicache.node.state import is_locked, lives_already, read_state

__all__ = ["node_command", "stop_command"]

WAIT_STEP_S = 0.02


@with_options(NodeOptions.model_fields)
def node_command(
    given: dict[str, Any],
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; return once it answers.")
    ] = False,
) -> None:
    """Run this machine's node: the memory that keeps pages, for all engines of this user.

    Engines find it, or start it, by themselves; run it by hand to choose its options or to let a
    service manager look after it. Ends on SIGTERM, `mooncake-hicache stop`, or when idle.
    """
    if not detach:
        # Imported here: the other commands have no use for it.
        from mooncake_hicache.node.daemon import run

        raise typer.Exit(run(NodeOptions(**given)))
    options = StoreOptions(**given)
    view = look(options)
    if view.is_held:
        raise lives_already(view.paths.node_lock, view.state)
    start_detached(options, timeout_ms=options.start_timeout_ms)
    state = read_state(view.paths.state)
    typer.echo(
        f"node {state.pid if state else '?'} answers at {view.paths.socket}, logs to "
        f"{view.paths.log}"
    )


@with_options(["runtime_dir", "socket", "config"])
def stop_command(
    given: dict[str, Any],
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for its end.")
    ] = 15.0,
    force: Annotated[
        bool, typer.Option("--force", help="Kill a node that does not answer or does not end.")
    ] = False,
) -> None:
    """Stop the node and give its memory back. Its pages are gone.

    Engines that are still connected start a new one when they need it: stop them first, or set
    MOONCAKE_HICACHE_AUTOSTART=0 for them.
    """
    options = StoreOptions(**given)
    view = look(options, keep_client=True)
    if view.client is None and not view.is_held:
        typer.echo(f"no node runs at {view.paths.socket}")
        return
    if view.client is not None:
        others = int(view.stats["clients"]) - 1 if view.stats else 0
        if others > 0:
            typer.echo(f"{others} clients are connected; they may start a new node", err=True)
        # It may have ended before it could answer; the wait below tells.
        with contextlib.suppress(TransientError):
            view.client.stop_node()
        view.client.close()
    began = time.monotonic()
    if _wait_gone(options, view, timeout_s):
        typer.echo("node stopped")
        return
    if (
        force
        and view.state is not None
        and view.state.kill()
        and _wait_gone(options, view, timeout_s)
    ):
        typer.echo(f"node {view.state.pid} killed")
        return
    pid = view.state.pid if view.state else "unknown"
    typer.echo(
        f"the node (pid {pid}) did not end within {time.monotonic() - began:.1f} s"
        + ("" if force else ": use --force to kill it"),
        err=True,
    )
    raise typer.Exit(EXIT_UNRESPONSIVE)


def _wait_gone(options: StoreOptions, view: NodeView, timeout_s: float) -> bool:
    """Wait until that very node is gone; another may have been started meanwhile."""
    if view.client is None:
        timeout_s = min(timeout_s, options.node_unresponsive_ms / 1000)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if view.state is not None:
            is_gone = not view.state.is_our_living_process()
        else:
            is_gone = not is_locked(view.paths.node_lock)
        if is_gone:
            return True
        time.sleep(WAIT_STEP_S)
    return False
