"""What a store says of itself over HTTP, where its set-up asks for it.

    GET /health            200 {"status": "healthy"} while its master and its node answer, else 503
    GET /metrics           Prometheus: what this store has done, and what its node has
    GET /metrics/summary   the same in a few lines for people
    GET /version           which release this is

Read-only, figures only and without authentication, therefore where the option `http_host` says:
on loopback by default. Several stores on one node all tell the node's figures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from mooncake_hicache.compat.store.connect import check_reached
from mooncake_hicache.compat.store.gate import Gate, RefusedError
from mooncake_hicache.compat.store.settings import Setup
from mooncake_hicache.errors import Error
from mooncake_hicache.metadata.names import Address
from mooncake_hicache.metadata.server import listen
from mooncake_hicache.metrics import client_metrics_text, node_metrics_text
from mooncake_hicache.store import Store
from mooncake_hicache.units import format_duration_ms, format_size
from mooncake_hicache.version import __version__
from mooncake_hicache.web import CONTENT_TYPE_METRICS, WebThread

__all__ = ["ClientHttp"]

REQUEST_COUNT_MAX = 8
SEND_TIMEOUT_S = 10.0
THREAD_COUNT = 2

_log = logging.getLogger(__name__)


class ClientHttp:
    """Answers for one store, from threads of its own, until it is closed. Any thread may call.

    Args:
        store: The connection to the node; not closed by this.
        setup: What it was set up with, its port included.

    Raises:
        IoError: It cannot listen there.
    """

    def __init__(self, store: Store, setup: Setup) -> None:
        self._store, self._setup = store, setup
        listener = listen(
            store.options.http_host,
            setup.http_port or 0,
            "the HTTP of this store",
            "choose another client_http_port (--http_port of mooncake_client), one for each store "
            "of a machine, or leave it out: the store works without",
        )
        self.address = Address(*listener.getsockname()[:2])
        self._threads = ThreadPoolExecutor(THREAD_COUNT, "hicache-client-http")
        self._web = WebThread(self._application(), listener, "hicache-client-http")
        _log.info("the store tells how it is at http://%s/metrics", self.address)

    def close(self) -> None:
        """End it. May be called again."""
        self._web.close()
        self._threads.shutdown(wait=False)

    def _application(self) -> web.Application:
        gate = Gate(request_count_max=REQUEST_COUNT_MAX, send_timeout_s=SEND_TIMEOUT_S)
        application = web.Application(middlewares=[gate.middleware()])
        for path, answer in {
            "/health": self._health,
            "/metrics": self._metrics,
            "/metrics/summary": self._summary,
            "/version": self._version,
        }.items():
            application.router.add_get(path, answer)
        return application

    async def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, question, *arguments
            )
        except Error as error:
            raise RefusedError(503, str(error)) from None

    async def _health(self, _: web.Request) -> web.Response:
        try:
            await self._ask(check_reached, self._store, self._setup)
        except RefusedError as error:
            return web.json_response({"status": "unhealthy", "error": error.why}, status=503)
        return web.json_response({"status": "healthy"})

    async def _metrics(self, _: web.Request) -> web.Response:
        stats = await self._ask(self._store.stats)
        text = client_metrics_text(stats["client"])
        if stats["node"] is not None:
            text += node_metrics_text(stats["node"], __version__)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_METRICS})

    async def _summary(self, _: web.Request) -> web.Response:
        return web.Response(text=_summary_of(await self._ask(self._store.stats)))

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"version": __version__, "display_version": f"mooncake-hicache {__version__}"}
        )


def _summary_of(stats: Mapping[str, Any]) -> str:
    mine, node = stats["client"], stats["node"]
    lines = [
        "=== Client Metrics Summary ===",
        f"read: {mine['get_hit_pages']} objects of {mine['get_pages']} asked for, "
        f"{format_size(mine['get_bytes'])}, {format_size(mine['ssd_bytes'])} of it from SSD",
        f"stored: {mine['put_pages']} objects, {format_size(mine['put_bytes'])}",
        f"failed: {mine['timeouts']} calls without an answer, {mine['unavailable']} without a "
        f"node, {mine['corrupt_pages']} objects damaged",
    ]
    if node is None:
        return "\n".join([*lines, "node: none is connected"]) + "\n"
    lines += [
        f"node: process {node['pid']}, up {format_duration_ms(node['uptime_ms'])}, "
        f"{node['clients']} clients",
        f"memory: {node['pages']} objects, {format_size(node['pool_used_bytes'])} of "
        f"{format_size(node['pool_size_bytes'])}; {node['evicted_pages']} evicted",
        f"SSD: {node['ssd_pages']} objects, {format_size(node['ssd_used_bytes'])} of "
        f"{format_size(node['ssd_size_bytes'])}",
    ]
    return "\n".join(lines) + "\n"
