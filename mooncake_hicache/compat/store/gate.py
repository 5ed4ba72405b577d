"""What every request over HTTP to a store passes: who may ask, and how many at once.

Whatever is not answered well is answered in JSON, `{"error": "why"}`. All of it runs in the thread
of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from mooncake_hicache.web import carries_token

__all__ = ["Gate", "RefusedError", "after_answer"]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)
_PATH_LENGTH_MAX = 200


class RefusedError(Exception):
    """Ends a request with a status and the reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


_held: ContextVar[contextlib.ExitStack] = ContextVar("hicache_gate_held")


def after_answer(call: Callable[[], None]) -> None:
    """Have something called once the answer to this request has been read, or never will be."""
    _held.get().callback(call)


class Gate:
    """The middleware of one application.

    Args:
        token: Comes with each request (`Authorization: Bearer`); empty: none is needed.
        request_count_max: Requests at a time; more are answered 503.
        send_timeout_s: Seconds in which a caller must have read its answer.
    """

    def __init__(self, *, token: str = "", request_count_max: int, send_timeout_s: float) -> None:
        self._token = token.encode()
        self._count, self._count_max = 0, request_count_max
        self._send_timeout_s = send_timeout_s
        self._is_ending = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Let nobody in any more, and wait for those that are."""
        self._is_ending = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), timeout_s)

    def middleware(self) -> Any:
        """Return it as aiohttp wants it."""

        @web.middleware
        async def pass_gate(request: web.Request, handler: Answer) -> web.StreamResponse:
            # Before anything of the request's body is read.
            if self._token and not carries_token(request, self._token):
                refusal = _failed(401, "a token is needed: Authorization: Bearer TOKEN")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                return refusal
            if self._count >= self._count_max:
                return _failed(503, f"{self._count} requests are under way: ask again later")
            if self._is_ending:
                refusal = _failed(503, "this service is ending")
                refusal.force_close()
                return refusal
            self._count += 1
            self._is_idle.clear()
            try:
                with contextlib.ExitStack() as held:
                    _held.set(held)
                    response = await _answered(request, handler)
                    await self._send(request, response)
            finally:
                self._count -= 1
                if self._count == 0:
                    self._is_idle.set()
            return response

        return pass_gate

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        # Here and not after the gate, so that an answer that nobody reads counts, and ends.
        try:
            await response.prepare(request)
            await asyncio.wait_for(response.write_eof(), self._send_timeout_s)
        except (asyncio.TimeoutError, ConnectionError):  # Nobody reads it, or is there.
            if request.transport is not None:
                request.transport.abort()


async def _answered(request: web.Request, answer: Answer) -> web.StreamResponse:
    try:
        return await answer(request)
    except RefusedError as error:
        return _failed(error.status, error.why)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refusal = _failed(405, f"{request.method} is not possible here: {allowed} is")
        refusal.headers["Allow"] = allowed
        return refusal
    except web.HTTPNotFound:
        return _failed(404, f"there is nothing at {request.path[:_PATH_LENGTH_MAX]}")
    except web.HTTPRequestEntityTooLarge as error:
        return _failed(413, error.text or "the request is too large")
    except web.HTTPException as error:
        return _failed(error.status, error.reason)
    except ConnectionError:
        return _failed(400, "the caller has hung up")  # Seen by nobody; a log is spared.
    except Exception:  # noqa: BLE001 - a bug: told in the log, and in JSON too.
        _log.exception("%s %s", request.method, request.path[:_PATH_LENGTH_MAX])
        return _failed(500, "an error of the server, which its log tells")


def _failed(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
