"""A store over HTTP, with the paths and bodies of the original's REST service.

    PUT    /api/put            {"key": "…", "value": "…"}; the value is text
    GET    /api/get/KEY        the bytes; 404 where there are none
    GET    /api/exist/KEY      {"exists": true}
    DELETE /api/remove/KEY     404 where there is none
    DELETE /api/remove_all     all objects of the store's tenant

A key with "/" may be written with %2F or as it is. The paths that mount and unmount segments are
known: what asks for nothing is success, as with the original, and everything else is 501, because a
machine has one node here. Whatever is not 200 has the body {"error": "why"}.

Bounded are requests at a time, their bodies, what bodies and values take together, and the time in
which a body comes and an answer is read. Calls to the node run in threads of their own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.compat.store.codes import OBJECT_NOT_FOUND, OK
from mooncake_hicache.compat.store.failures import failures
from mooncake_hicache.compat.store.gate import Gate, RefusedError, after_answer

__all__ = ["RestLimits", "StorePages"]

MiB = 1 << 20
THREAD_COUNT = 16
GRACE_PERIOD_MAX_S = 3600

_NOT_FOUND = "Key not found"
_MOUNT_REMEDY = (
    "a machine has one node here, whose memory is set when it starts: give whoever starts it "
    "global_segment_size, or set its option pool_size"
)
_DISK_REMEDY = (
    "the node goes on serving what is on its SSD when this program ends; to take the node out of "
    "the cluster, POST /api/drain?node=NAME to the master"
)


@dataclass(frozen=True)
class RestLimits:
    """What callers may take of this process."""

    request_count: int = 64
    """Requests at a time."""
    body_size_bytes: int = 100 * MiB
    """Of one body. The original's limit."""
    memory_bytes: int = 1024 * MiB
    """Of the bodies and values under way, as they are sent. Python's copies take a few times as
    much."""
    body_timeout_s: float = 30.0
    """Seconds in which a body must have come."""
    send_timeout_s: float = 120.0
    """Seconds in which an answer must have been read."""
    drain_timeout_s: float = 5.0
    """Seconds that requests under way have at the end."""


class StorePages:
    """What is answered about one store, which others may use as well.

    Args:
        store: The store; not closed by this.
        token: Comes with each request; empty: none is needed.
        has_ssd: Whether the store was set up with a folder on an SSD.
        limits: What callers may take.
    """

    def __init__(
        self,
        store: MooncakeDistributedStore,
        *,
        token: str = "",
        has_ssd: bool = False,
        limits: RestLimits | None = None,
    ) -> None:
        self._store, self._has_ssd = store, has_ssd
        self._limits = limits or RestLimits()
        self._gate = Gate(
            token=token,
            request_count_max=self._limits.request_count,
            send_timeout_s=self._limits.send_timeout_s,
        )
        self._used_bytes = 0
        self._threads = ThreadPoolExecutor(THREAD_COUNT, "hicache-rest")

    def application(self) -> web.Application:
        """Return what answers."""
        application = web.Application(
            client_max_size=self._limits.body_size_bytes, middlewares=[self._gate.middleware()]
        )
        router = application.router
        router.add_put("/api/put", self.put)
        router.add_get("/api/get/{key:.+}", self.get)
        router.add_get("/api/exist/{key:.+}", self.exist)
        router.add_delete("/api/remove/{key:.+}", self.remove)
        router.add_delete("/api/remove_all", self.remove_all)
        router.add_post("/api/reconfigure", self.reconfigure)
        router.add_post("/api/unmount_local_disk", self.unmount_local_disk)
        for name in ("mount_shm", "unmount_shm", "mount", "unmount"):
            router.add_post(f"/api/{name}", self.not_supported)
        return application

    async def drain(self) -> None:
        """Let nobody in any more, and give those that are the time to be answered."""
        await self._gate.drain(self._limits.drain_timeout_s)

    def close(self) -> None:
        """End the threads, once what runs in them has returned: close the store first."""
        self._threads.shutdown()

    # ---- objects

    async def put(self, request: web.Request) -> web.Response:
        """Store a text. An object that is there stays as it is, which is success."""
        key, value = await self._in_thread(_key_and_value, await self._body_of(request))
        return _success_of(await self._ask(self._store.put, key, value))

    async def get(self, request: web.Request) -> web.Response:
        """Return an object's bytes."""
        key = _key_of(request)
        size_bytes = await self._ask(self._store.get_size, key)
        if size_bytes < 0:
            raise RefusedError(404, _NOT_FOUND)
        self._hold(size_bytes)
        value = await self._ask(self._store.get, key)
        if not value:  # There are no empty objects: it was removed since.
            raise RefusedError(404, _NOT_FOUND)
        return web.Response(body=value, content_type="application/octet-stream")

    async def exist(self, request: web.Request) -> web.Response:
        """Return whether an object is there."""
        found = await self._ask(self._store.is_exist, _key_of(request))
        return web.json_response({"exists": found > 0})

    async def remove(self, request: web.Request) -> web.Response:
        """Remove an object."""
        code = await self._ask(self._store.remove, _key_of(request))
        if code == OBJECT_NOT_FOUND:
            raise RefusedError(404, _NOT_FOUND)
        return _success_of(code)

    async def remove_all(self, _: web.Request) -> web.Response:
        """Remove all objects of the store's tenant."""
        count = await self._ask(self._store.remove_all)
        return web.json_response({"status": f"success removed {count} keys"})

    # ---- segments

    async def reconfigure(self, request: web.Request) -> web.Response:
        """Let go of mounted segments, of which there are none; or mount one, which cannot be."""
        mode = (await self._object_of(request)).get("mode")
        if mode == "prefill":
            return web.json_response({"status": "success", "mode": mode})
        if mode == "decode":
            return await self.not_supported(request)
        raise RefusedError(400, "Invalid mode. Use 'decode' or 'prefill'")

    async def unmount_local_disk(self, request: web.Request) -> web.Response:
        """Let go of the SSD: nothing, without one."""
        grace_s = (await self._object_of(request)).get("grace_period_seconds", 0)
        if type(grace_s) is not int or not 0 <= grace_s <= GRACE_PERIOD_MAX_S:
            raise RefusedError(
                400, f"grace_period_seconds is a whole number from 0 to {GRACE_PERIOD_MAX_S}"
            )
        if self._has_ssd:
            raise RefusedError(501, f"{request.path} is not supported: {_DISK_REMEDY}")
        return _success_of(OK)

    async def not_supported(self, request: web.Request) -> web.Response:
        """Say why."""
        raise RefusedError(501, f"{request.path} is not supported: {_MOUNT_REMEDY}")

    # ---- what all do

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call of the store returns; refuses the request if it fails."""

        def ask() -> Any:
            with failures() as heard:
                found = call(*arguments)
            for failure in heard:
                raise RefusedError(400 if failure.is_mistake else 500, failure.text)
            return found

        return await self._in_thread(ask)

    def _hold(self, size_bytes: int) -> None:
        """Count bytes as in use until a request is through; refuse it if they are too many."""
        most = self._limits.memory_bytes
        if size_bytes > most:
            raise RefusedError(
                501,
                f"{size_bytes} bytes are not sent over HTTP, where {most} are the most: use "
                "get_into() of the store",
            )
        if self._used_bytes + size_bytes > most:
            raise RefusedError(503, "too many bytes are under way: ask again later")
        self._used_bytes += size_bytes

        def let_go() -> None:
            self._used_bytes -= size_bytes

        after_answer(let_go)

    async def _body_of(self, request: web.Request) -> bytes:
        most, timeout_s = self._limits.body_size_bytes, self._limits.body_timeout_s
        size_bytes = request.content_length
        if size_bytes is not None and size_bytes > most:
            raise web.HTTPRequestEntityTooLarge(most, size_bytes)
        # As many as it says, or, if that tells nothing, as may be.
        is_told = size_bytes is not None and "Content-Encoding" not in request.headers
        self._hold(size_bytes if size_bytes is not None and is_told else most)
        try:
            return await asyncio.wait_for(request.read(), timeout_s)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the body did not come within {timeout_s:g} s") from None
        except web.RequestPayloadError as error:
            raise RefusedError(400, f"the body cannot be read: {error}") from None

    async def _object_of(self, request: web.Request) -> dict[str, Any]:
        found: dict[str, Any] = await self._in_thread(_object_in, await self._body_of(request))
        return found


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "the body is no object of JSON")
    return found


def _key_and_value(body: bytes) -> tuple[str, bytes]:
    found = _object_in(body)
    key, value = found.get("key"), found.get("value")
    if not isinstance(key, str) or not isinstance(value, str) or not key or not value:
        raise RefusedError(400, 'give {"key": "…", "value": "…"}, both texts that are not empty')
    return _checked(key), _encoded(value, "value")


def _key_of(request: web.Request) -> str:
    return _checked(request.match_info["key"])


def _checked(key: str) -> str:
    _encoded(key, "key")
    return key


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(400, f"the {what} is no text that has a UTF-8 form: {error}") from None


def _success_of(code: int) -> web.Response:
    if code != OK:
        raise RefusedError(500, f"the store has answered {code}")
    return web.json_response({"status": "success"})
