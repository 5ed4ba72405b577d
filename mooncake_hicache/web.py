"""What everything of ours that answers over HTTP for Prometheus and people shares."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from aiohttp import web

__all__ = ["CONTENT_TYPE_METRICS", "serving"]

SHUTDOWN_TIMEOUT_S = 1.0
CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@contextlib.asynccontextmanager
async def serving(application: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Answer on a TCP socket that listens already for as long as the `async with` lasts."""
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
