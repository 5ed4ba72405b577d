"""`mooncake-hicache node` and `mooncake-hicache stop`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Annotated, Any, cast

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mooncake_hicache import _core
from mooncake_hicache.cli.common import EXIT_UNRESPONSIVE, console, with_options
from mooncake_hicache.cli.reach import NodeView, look
from mooncake_hicache.config import NodeOptions, StoreOptions
from mooncake_hicache.errors import Error, TransientError, UnavailableError
from mooncake_hicache.node.last_work import DRAIN, FLUSH
from mooncake_hicache.node.spawn import start_detached
from mooncake_hicache.node.state import (
    LAST_PHASES,
    Phase,
    is_locked,
    lives_already,
    read_state,
)

__all__ = ["node_command", "stop_command"]

WAIT_STEP_S = 0.02
PROGRESS_STEP_S = 0.25


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
    now: Annotated[
        bool, typer.Option("--now", help="Do not save what is only in its memory: it is lost.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Kill a node that does not answer or does not end.")
    ] = False,
) -> None:
    """Stop the node and give its memory back, once its pages are at other nodes and on SSD.

    Waits for that, however long it takes; the node itself gives up after its drain_timeout_s and
    its flush_timeout_s. A node without either, or one stopped with --now, loses what it has in
    memory.

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
            _ask_to_stop(view, now=now)
    began = time.monotonic()
    with contextlib.closing(view.client) if view.client else contextlib.nullcontext():
        is_gone = _wait_gone(options, view, timeout_s)
    if is_gone:
        typer.echo("node stopped")
        return
    if (
        force
        and view.state is not None
        and view.state.send(signal.SIGKILL)
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


def _ask_to_stop(view: NodeView, *, now: bool) -> None:
    assert view.client is not None
    if not now:
        view.client.stop_node()
        return
    assert view.stats is not None
    if view.state is None or view.state.pid != view.stats["pid"]:
        raise UnavailableError(
            f"cannot end the node at {view.paths.socket} at once: {view.paths.state} does not name "
            "its process; name its folder with --runtime-dir, or leave out --now"
        )
    view.state.send(signal.SIGQUIT)


def _wait_gone(options: StoreOptions, view: NodeView, timeout_s: float) -> bool:
    """Wait until that very node is gone; another may have been started meanwhile.

    The time-out counts from the end of what it does before it ends.
    """
    if view.client is None:
        timeout_s = min(timeout_s, options.node_unresponsive_ms / 1000)
    deadline = time.monotonic() + timeout_s
    with _last_progress() as show:
        while time.monotonic() < deadline:
            if view.state is not None:
                is_gone = not view.state.is_our_living_process()
            else:
                is_gone = not is_locked(view.paths.node_lock)
            if is_gone:
                return True
            phase, left_s = _last_phase(view)
            if left_s > 0:
                deadline = max(deadline, time.monotonic() + left_s + timeout_s)
                show.advance(view.client, phase)
            time.sleep(WAIT_STEP_S)
    return False


def _last_phase(view: NodeView) -> tuple[Phase, float]:
    """Return what the node does before it ends, and the seconds after which that will be over; 0 if
    it does nothing."""
    state = read_state(view.paths.state)
    is_same = state is not None and view.state is not None and state.pid == view.state.pid
    if state is None or not is_same or state.phase not in LAST_PHASES:
        return "stopping", 0
    return state.phase, max(0.0, state.phase_until - time.time())


class _LastProgress:
    """A bar that appears when a node saves its pages, one for each way, and follows it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next = 0.0
        self._totals: dict[Phase, int] = {}

    def advance(self, client: _core.Client | None, phase: Phase) -> None:
        """Ask the node how much is left, a few times a second, and show it."""
        if client is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_STEP_S
        try:
            stats = cast(dict[str, Any], client.node_stats())
        except Error:
            return  # It has just ended.
        task = DRAIN if phase == "draining" else FLUSH
        left = int(stats[task.left_name])
        if phase not in self._totals:
            self._progress.add_task(task.doing)
        total = self._totals[phase] = max(self._totals.get(phase, 0), left)
        bar = self._progress.task_ids[list(self._totals).index(phase)]
        self._progress.update(bar, total=total, completed=total - left)


@contextlib.contextmanager
def _last_progress() -> Iterator[_LastProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield _LastProgress(progress)
