"""What a node does with its pages before it ends, and saying how far that is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mooncake_hicache.errors import Error
from mooncake_hicache.node.engine import StartedEngine, drain_engine, engine_stats, flush_engine
from mooncake_hicache.units import format_size

__all__ = ["DRAIN", "FLUSH", "LastWork", "Task", "progress_text"]

_log = logging.getLogger("mooncake_hicache.node")

PROGRESS_S = 2.0


class Task(NamedTuple):
    """One of the things that may be done."""

    doing: str
    done: str
    left_name: str
    """The statistic that tells how many bytes are left."""
    loss: str
    """What becomes of those."""
    run: Callable[[StartedEngine, int], bool]


DRAIN = Task(
    doing="giving pages to other nodes",
    done="gave its pages to other nodes",
    left_name="drain_left_bytes",
    loss="are at no other node",
    run=drain_engine,
)
FLUSH = Task(
    doing="flushing to SSD",
    done="flushed to SSD",
    left_name="ssd_flush_left_bytes",
    loss="are not on SSD and go with the node",
    run=flush_engine,
)


class LastWork:
    """One task of one node, which serves, and takes new pages, while it is done.

    Args:
        started: Whose pages they are.
        task: What is done.
        timeout_s: Seconds that it may take.
    """

    def __init__(self, started: StartedEngine, task: Task, timeout_s: int) -> None:
        self._started = started
        self._task = task
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._total = 0

    async def run(self, hurried: asyncio.Event) -> bool:
        """Work until all is done, the time is over, it fails, or `hurried` is set.

        Returns whether all is done. After `hurried` the engine must be stopped, which ends what
        is still under way.
        """
        loop = asyncio.get_running_loop()
        task = self._task
        _log.info("%s, for at most %d s; a second signal ends it", task.doing, self._timeout_s)
        work = loop.run_in_executor(None, task.run, self._started, self._timeout_s)
        hurry = asyncio.ensure_future(hurried.wait())
        waited_for: set[asyncio.Future[Any]] = {work, hurry}
        try:
            while not (work.done() or hurry.done()):
                self._log_progress(await loop.run_in_executor(None, self._left))
                await asyncio.wait(
                    waited_for, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            hurry.cancel()
        took_s = time.monotonic() - self._began
        if work.done() and await work:
            _log.info("%s in %.1f s: %s", task.done, took_s, format_size(self._total))
            return True
        left = await loop.run_in_executor(None, self._left)
        _log.warning(
            "%s after %.1f s of %s: %s %s",
            "hurried" if hurried.is_set() else "gave up",
            took_s,
            task.doing,
            "some pages" if left is None else format_size(left),
            task.loss,
        )
        return False

    def _left(self) -> int | None:
        """Return the bytes that are left, None if the engine does not answer. Blocks."""
        with contextlib.suppress(Error):
            return int(engine_stats(self._started.engine)[self._task.left_name])
        return None

    def _log_progress(self, left: int | None) -> None:
        if left is None:
            return
        # New pages may come meanwhile.
        self._total = max(self._total, left)
        if left > 0:
            took_s = time.monotonic() - self._began
            _log.info("%s: %s", self._task.doing, progress_text(left, self._total, took_s))


def progress_text(left_bytes: int, total_bytes: int, took_s: float) -> str:
    """Return how far a task is, for people: `3.1 GiB of 12 GiB, 1.2 GiB/s`."""
    done = total_bytes - left_bytes
    text = f"{format_size(done)} of {format_size(total_bytes)}"
    return f"{text}, {format_size(done / took_s)}/s" if done > 0 and took_s > 0 else text
