"""The node's HTTP side: `/metrics` for Prometheus, `/health` for probes, `/status` as JSON.

Read-only and without authentication, therefore on the loopback address unless an option says
otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiohttp import web

from mooncake_hicache.errors import TransientError
from mooncake_hicache.metrics import node_metrics_text
from mooncake_hicache.version import __version__
from mooncake_hicache.web import CONTENT_TYPE_METRICS, serving

__all__ = ["serve"]


@contextlib.asynccontextmanager
async def serve(
    stats: Callable[[], Mapping[str, Any]],
    describe: Callable[[], Mapping[str, Any]],
    listener: socket.socket,
) -> AsyncIterator[None]:
    """Answer on a listening socket for as long as the `async with` lasts.

    Args:
        stats: Returns the node's counts; called from other threads, may block and may raise
            `TransientError`.
        describe: Returns what `/status` says beside the counts; must be JSON-serialisable.
        listener: A TCP socket that listens already.
    """
    application = web.Application()
    pages = _Pages(stats, describe)
    application.router.add_get("/metrics", pages.metrics)
    application.router.add_get("/health", pages.health)
    application.router.add_get("/status", pages.status)
    application.router.add_get("/", pages.index)
    async with serving(application, listener):
        yield


class _Pages:
    def __init__(
        self,
        stats: Callable[[], Mapping[str, Any]],
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._read_stats = stats
        self._describe = describe

    async def _stats(self) -> Mapping[str, Any]:
        # In a thread: the engine answers from its own, and if that is stuck this one must not be.
        try:
            return await asyncio.get_running_loop().run_in_executor(None, self._read_stats)
        except TransientError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from None

    async def metrics(self, _: web.Request) -> web.Response:
        text = node_metrics_text(await self._stats(), __version__)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_METRICS})

    async def health(self, _: web.Request) -> web.Response:
        await self._stats()
        return web.json_response({"status": "ok"})

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response({**self._describe(), "stats": await self._stats()})

    async def index(self, _: web.Request) -> web.Response:
        return web.Response(text="mooncake-hicache node: /metrics /health /status\n")
