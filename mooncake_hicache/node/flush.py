"""Writing to SSD what a node has only in memory, before it ends, and saying how far that is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from mooncake_hicache.errors import Error
from mooncake_hicache.node.engine import StartedEngine, engine_stats, flush_engine
from mooncake_hicache.units import format_size

__all__ = ["Flush", "progress_text"]

_log = logging.getLogger("mooncake_hicache.node")

PROGRESS_S = 2.0


class Flush:
    """One flush. The node serves, and takes new pages, while it runs.

    Args:
        started: What is flushed; it has directories on SSD.
        timeout_s: Seconds that it may take.
    """

    def __init__(self, started: StartedEngine, timeout_s: int) -> None:
        self._started = started
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._total = 0

    async def run(self, hurried: asyncio.Event) -> bool:
        """Flush until all is written, the time is over, it fails, or `hurried` is set.

        Returns whether all is written. After `hurried` the engine must be stopped, which ends what
        is still under way.
        """
        loop = asyncio.get_running_loop()
        _log.info("flushing to SSD, for at most %d s; a second signal ends it", self._timeout_s)
        flush = loop.run_in_executor(None, flush_engine, self._started, self._timeout_s)
        hurry = asyncio.ensure_future(hurried.wait())
        waited_for: set[asyncio.Future[Any]] = {flush, hurry}
        try:
            while not (flush.done() or hurry.done()):
                self._log_progress(await loop.run_in_executor(None, self._left))
                await asyncio.wait(
                    waited_for, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            hurry.cancel()
        took_s = time.monotonic() - self._began
        if flush.done() and await flush:
            _log.info("flushed to SSD in %.1f s: %s", took_s, format_size(self._total))
            return True
        left = await loop.run_in_executor(None, self._left)
        _log.warning(
            "%s after %.1f s of flushing: %s are not on SSD and go with the node",
            "hurried" if hurried.is_set() else "gave up",
            took_s,
            "some pages" if left is None else format_size(left),
        )
        return False

    def _left(self) -> int | None:
        """Return the bytes to be written, None if the engine does not answer. Blocks."""
        with contextlib.suppress(Error):
            return int(engine_stats(self._started.engine)["ssd_flush_left_bytes"])
        return None

    def _log_progress(self, left: int | None) -> None:
        if left is None:
            return
        # New pages may come meanwhile.
        self._total = max(self._total, left)
        if left > 0:
            took_s = time.monotonic() - self._began
            _log.info("flushing to SSD: %s", progress_text(left, self._total, took_s))


def progress_text(left_bytes: int, total_bytes: int, took_s: float) -> str:
    """Return how far a flush is, for people: `3.1 GiB of 12 GiB, 1.2 GiB/s`."""
    written = total_bytes - left_bytes
    text = f"{format_size(written)} of {format_size(total_bytes)}"
    return f"{text}, {format_size(written / took_s)}/s" if written > 0 and took_s > 0 else text
