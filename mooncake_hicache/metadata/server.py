"""The HTTP metadata server: the original's protocol, with times to live and conditions added.

    GET    /metadata?key=K                  200 the value | 404
    PUT    /metadata?key=K[&ttl_s=SECONDS]  200           | 400, 401, 412, 413, 507
    DELETE /metadata?key=K                  200           | 401, 404, 412
    GET    /health                          200 OK

Codes and texts are the original's, so that its clients see no difference: a key with `rpc_meta` in
it is not replaced by another value, and what has no `ttl_s` stays. Ours in addition: `ttl_s`,
answered with the header Hicache-Ttl; ETag with If-Match and If-None-Match: *, by which an engine
renews and removes its own entry and nobody else's; limits; and a token for changes
(Authorization: Bearer), which the original's clients send when MC_METADATA_HTTP_TOKEN is set.

Everything is in memory: after a restart our engines put their entries again by themselves.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time

from aiohttp import web

from mooncake_hicache.errors import InvalidArgumentError, IoError
from mooncake_hicache.metadata.names import Address
from mooncake_hicache.metadata.table import Limits, Outcome, Table, tag_of
from mooncake_hicache.web import WebThread, carries_token

__all__ = ["TTL_HEADER", "Bound", "MetadataServer", "listen"]

TTL_HEADER = "Hicache-Ttl"
TTL_MAX_S = 86_400.0
BODY_TIMEOUT_S = 10.0
BACKLOG = 512

_ANSWERS = {
    Outcome.DONE: (200, "metadata updated"),
    Outcome.REFUSED: (412, "the value there is another one"),
    Outcome.DUPLICATE: (400, "Duplicate rpc_meta key not allowed"),
    Outcome.ABSENT: (404, "metadata not found"),
    Outcome.FULL: (507, "the metadata server is full"),
    Outcome.TOO_LARGE: (413, "key or value is too large"),
}


def listen(
    host: str,
    port: int,
    what: str = "the metadata server",
    remedy: str = "choose another address or port",
) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or an address, IPv6 without brackets; empty: every address of this machine.
        port: 0: any free one.
        what: Who it is, for messages.
        remedy: What to do if it cannot, for messages.

    Raises:
        IoError: It cannot listen there; the message names host, port and cause.
    """
    bound = Bound(host, port, what, remedy)
    try:
        return bound.listen()
    except IoError:
        bound.close()
        raise


class Bound:
    """A port that is this process's, and at which connections are refused until it listens.

    So whoever has much to do before it can answer knows at once that the port can be had, and shows
    by listening that it is ready. One thread calls.

    Args, Raises: See `listen`.
    """

    def __init__(self, host: str, port: int, what: str, remedy: str) -> None:
        self._where = (what, host, port, remedy)
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.socket(family, kind, protocol)
        except OSError as error:
            raise self._failed(error) from None
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(place)
        except OSError as error:
            self._socket.close()
            raise self._failed(error) from None

    @property
    def host(self) -> str:
        """The address that the name stands for."""
        return str(self._socket.getsockname()[0])

    def listen(self) -> socket.socket:
        """Return the socket, which listens from now on."""
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise self._failed(error) from None
        return self._socket

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def _failed(self, error: OSError) -> IoError:
        what, host, port, remedy = self._where
        return IoError(
            f"{what} cannot listen at {Address(host, port)}: {error.strerror or error}; {remedy}"
        )


class MetadataServer:
    """Answers on a listening socket, from a thread of its own, until it is closed."""

    def __init__(
        self, listener: socket.socket, *, limits: Limits | None = None, token: str = ""
    ) -> None:
        host, port = listener.getsockname()[:2]
        self.address = Address(host, port)
        pages = _Pages(Table(limits or Limits()), token)
        self._web = WebThread(pages.application(), listener, "hicache-metadata")

    @property
    def url(self) -> str:
        """What clients are given."""
        return f"http://{self.address}/metadata"

    @property
    def thread(self) -> threading.Thread:
        """The thread that answers."""
        return self._web.thread

    def is_running(self) -> bool:
        """Return whether it answers."""
        return self._web.is_running()

    def close(self) -> None:
        """End every connection and stop. May be called again."""
        self._web.close()

    def __enter__(self) -> MetadataServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pages:
    def __init__(self, table: Table, token: str) -> None:
        self._table = table
        self._token = token.encode()

    def application(self) -> web.Application:
        # One byte more than a value may have, so that the table says what is too large.
        application = web.Application(client_max_size=self._table.limits.value_size_bytes + 1)
        application.router.add_route("*", "/metadata", self.metadata)
        application.router.add_get("/health", self.health)
        return application

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def metadata(self, request: web.Request) -> web.Response:
        key = request.query.get("key", "").strip()
        if not key:
            return web.Response(status=400, text="metadata key is required")
        if request.method == "GET":
            return self._get(key)
        if request.method not in ("PUT", "DELETE"):
            return _say(405, "Method not allowed")
        if not self._may_change(request):
            return _say(401, "a token is needed: Authorization: Bearer TOKEN")
        if request.method == "PUT":
            return await self._put(key, request)
        outcome = self._table.remove(key, time.monotonic(), if_tag=request.headers.get("If-Match"))
        if outcome is Outcome.DONE:
            return _say(200, "metadata deleted")
        return _say(*_ANSWERS[outcome])

    def _may_change(self, request: web.Request) -> bool:
        return not self._token or carries_token(request, self._token)

    def _get(self, key: str) -> web.Response:
        value = self._table.get(key, time.monotonic())
        if value is None:
            return _say(404, "metadata not found")
        headers = {"ETag": tag_of(value)}
        return web.Response(body=value, content_type="application/json", headers=headers)

    async def _put(self, key: str, request: web.Request) -> web.Response:
        try:
            ttl_s = _ttl_of(request.query.get("ttl_s"))
        except InvalidArgumentError as error:
            return _say(400, str(error))
        none_match = request.headers.get("If-None-Match")
        if none_match not in (None, "*"):
            return _say(400, "If-None-Match can only be *")
        try:
            value = await asyncio.wait_for(request.read(), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:
            return _say(408, f"the value did not come within {BODY_TIMEOUT_S:.0f} s")
        if_tag = request.headers.get("If-Match")
        outcome = self._table.put(
            key,
            value,
            time.monotonic(),
            ttl_s=ttl_s,
            if_tag=if_tag,
            if_absent=none_match is not None,
            is_once="rpc_meta" in key and if_tag is None,
        )
        if outcome is Outcome.SAME:
            # As the original: only for the keys that it does not replace.
            outcome = Outcome.DONE
            answer = _say(200, "metadata unchanged" if "rpc_meta" in key else "metadata updated")
        else:
            answer = _say(*_ANSWERS[outcome])
        if outcome is Outcome.DONE:
            answer.headers["ETag"] = tag_of(value)
            if ttl_s is not None:
                answer.headers[TTL_HEADER] = f"{ttl_s:g}"
        return answer


def _say(status: int, text: str) -> web.Response:
    # The type is the original's, though the text is none of JSON.
    return web.Response(status=status, text=text, content_type="application/json")


def _ttl_of(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        ttl_s = float(text)
    except ValueError:
        ttl_s = math.nan
    if not 0 < ttl_s <= TTL_MAX_S:
        raise InvalidArgumentError(f"ttl_s is seconds, more than 0 and at most {TTL_MAX_S:.0f}")
    return ttl_s
