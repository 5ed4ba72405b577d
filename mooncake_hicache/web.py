"""What everything of ours that answers over HTTP shares."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future

from aiohttp import web

from mooncake_hicache.errors import InternalError

__all__ = ["CONTENT_TYPE_METRICS", "WebThread", "carries_token", "serving"]

SHUTDOWN_TIMEOUT_S = 1.0
IDLE_TIMEOUT_S = 75.0
"""Seconds after which a connection ends on which nothing is asked."""
CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"

_living: weakref.WeakSet[WebThread] = weakref.WeakSet()


def carries_token(request: web.Request, token: bytes) -> bool:
    """Tell whether a request has `Authorization: Bearer` with this token, in constant time."""
    # The bytes as they came: what is no UTF-8 is a wrong token, and not an error.
    given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
    return hmac.compare_digest(given, b"Bearer " + token)


@contextlib.asynccontextmanager
async def serving(
    application: web.Application,
    listener: socket.socket,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[None]:
    """Answer on a TCP socket that listens already for as long as the `async with` lasts.

    Args:
        application: What answers.
        listener: The socket; closed at the end.
        drain: Called when nobody can connect any more: may wait until requests have been answered.
            Those that remain then get nothing more to read, and are soon broken off.
    """
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=IDLE_TIMEOUT_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        site = web.SockSite(runner, listener)
        await site.start()
        try:
            yield
        finally:
            if drain is not None:
                await site.stop()
                await drain()
    finally:
        await runner.cleanup()


class WebThread:
    """Answers on a listening socket, from a thread of its own, until it is closed.

    Any thread may call. A forked child has none of it: there `close` does nothing, and the child
    keeps no port open.
    """

    def __init__(
        self,
        application: web.Application,
        listener: socket.socket,
        name: str,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._application, self._listener, self._drain = application, listener, drain
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._is_ended = asyncio.Event()
        self._pid = os.getpid()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        """The thread that answers."""
        self.thread.start()
        try:
            self._loop = self._started.result()
        except CancelledError:
            raise InternalError(
                f"the thread {name} cannot answer; standard error says why"
            ) from None
        _living.add(self)

    def is_running(self) -> bool:
        """Return whether it answers."""
        return os.getpid() == self._pid and self.thread.is_alive()

    def close(self) -> None:
        """End, as `serving` does. May be called again."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(RuntimeError):  # It has ended.
            self._loop.call_soon_threadsafe(self._is_ended.set)
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.cancel()  # Nothing, if it has.

    async def _serve(self) -> None:
        async with serving(self._application, self._listener, self._drain):
            self._started.set_result(asyncio.get_running_loop())
            await self._is_ended.wait()

    def _forget_after_fork(self) -> None:
        self._listener.close()


def _forget_all_after_fork() -> None:
    for one in list(_living):
        one._forget_after_fork()
    _living.clear()


os.register_at_fork(after_in_child=_forget_all_after_fork)
