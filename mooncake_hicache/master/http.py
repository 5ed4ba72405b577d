"""The master over HTTP: metrics, the page that shows the cluster, and the original's admin paths.

    GET  /                  the page             GET /api/cluster   what it shows, as JSON
    GET  /metrics           Prometheus           GET /health        200 while this master works
    GET  /role /leader /ha_status                who leads
    GET  /get_all_segments  the nodes' names     GET /get_segments_detail  /query_segment?segment=
    POST /api/drain?node=NAME[&off=1]            have a node give its pages away; needs the token
    GET PUT DELETE /api/v1/tenant_quotas         quotas.py; changes need the token

The directory knows pages by the hashes of their names, so the original's paths that list or query
keys are answered 501, with that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from aiohttp import web

from mooncake_hicache.errors import Error
from mooncake_hicache.master.metrics import master_metrics_text
from mooncake_hicache.master.pages import CLUSTER_PAGE
from mooncake_hicache.master.quotas import QuotaLeadership, QuotaPages
from mooncake_hicache.web import CONTENT_TYPE_METRICS, carries_token, serving

__all__ = ["Leadership", "serve"]

_WITHOUT_NAMES = (
    "/get_all_keys",
    "/query_key",
    "/batch_query_keys",
    "/kv_events/status",
    "/metrics/summary",
    "/api/v1/segments/status",
    "/api/v1/drain_jobs",
    "/api/v1/drain_jobs/query",
    "/api/v1/drain_jobs/cancel",
    "/api/v1/remove_all",
)


class Leadership(QuotaLeadership, Protocol):
    """What this part needs of the master. Calls may block for a moment."""

    def stats(self) -> dict[str, int]:
        """Return what the directory counts."""

    def members(self) -> list[dict[str, Any]]:
        """Return the nodes."""

    def leader(self) -> str:
        """Return the leader's address; empty: not known."""

    def drain(self, node: str, *, is_on: bool) -> None:
        """Have a node give its pages away, or end that."""


@contextlib.asynccontextmanager
async def serve(master: Leadership, listener: socket.socket, token: str) -> AsyncIterator[None]:
    """Answer on a listening socket for as long as the `async with` lasts.

    Args:
        master: Whom it shows.
        listener: A TCP socket that listens already.
        token: Comes with whatever changes something; empty: nothing can be changed.
    """
    async with serving(_Pages(master, token).application(), listener):
        yield


class _Pages:
    def __init__(self, master: Leadership, token: str) -> None:
        self._master, self._token = master, token.encode()

    def application(self) -> web.Application:
        application = web.Application()
        router = application.router
        for path, answer in {
            "/": self.index,
            "/api/cluster": self.cluster,
            "/metrics": self.metrics,
            "/health": self.health,
            "/role": self.role,
            "/leader": self.leader,
            "/ha_status": self.health,
            "/get_all_segments": self.segments,
            "/get_segments_detail": self.segments_detail,
            "/query_segment": self.segment,
        }.items():
            router.add_get(path, answer)
        router.add_post("/api/drain", self.drain)
        QuotaPages(self._master, self._refusal).add_to(router)
        for path in _WITHOUT_NAMES:
            router.add_route("*", path, self.not_supported)
        return application

    async def _ask(self, question: Callable[[], Any]) -> Any:
        # In a thread: the directory answers from its own, and may be busy for a moment.
        return await asyncio.get_running_loop().run_in_executor(None, question)

    async def _members(self) -> list[dict[str, Any]]:
        members = await self._ask(self._master.members)
        return [one for one in members if one["state"] != "gone"]

    async def index(self, _: web.Request) -> web.Response:
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; connect-src 'self'"
        }
        return web.Response(text=CLUSTER_PAGE, content_type="text/html", headers=headers)

    async def cluster(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                **self._who_leads(),
                "time_s": time.time(),
                "stats": await self._ask(self._master.stats),
                "members": await self._ask(self._master.members),
            }
        )

    async def metrics(self, _: web.Request) -> web.Response:
        stats, members = await self._ask(self._master.stats), await self._members()
        return web.Response(
            body=master_metrics_text(stats, members),
            headers={"Content-Type": CONTENT_TYPE_METRICS},
        )

    def _who_leads(self) -> dict[str, Any]:
        epoch = self._master.epoch()
        return {
            "role": "leader" if epoch else "standby",
            "epoch": epoch,
            "leader": self._master.leader(),
        }

    async def health(self, _: web.Request) -> web.Response:
        now = self._who_leads()
        return web.json_response(
            {
                "status": "ok",
                "role": now["role"],
                "ha_state": now["role"],
                "service_ready": now["epoch"] != 0,
                "leader_address": now["leader"],
                "view_version": now["epoch"],
            }
        )

    async def role(self, _: web.Request) -> web.Response:
        return web.Response(text=self._who_leads()["role"])

    async def leader(self, _: web.Request) -> web.Response:
        leader = self._master.leader()
        return web.Response(text=leader, status=200 if leader else 503)

    async def segments(self, _: web.Request) -> web.Response:
        return web.Response(text="".join(one["name"] + "\n" for one in await self._members()))

    async def segments_detail(self, _: web.Request) -> web.Response:
        return web.json_response([_segment(one) for one in await self._members()])

    async def segment(self, request: web.Request) -> web.Response:
        name = request.query.get("segment", "")
        for one in await self._members():
            if one["name"] == name:
                return web.json_response(_segment(one))
        return web.json_response({"error": f"no node is called {name!r:.200}"}, status=404)

    def _refusal(self, request: web.Request) -> str:
        """Why it may not change anything; empty: it may."""
        if not self._token:
            return "this master was started without token_file: nothing can be changed over HTTP"
        if carries_token(request, self._token):
            return ""
        return "a token is needed: Authorization: Bearer TOKEN"

    async def drain(self, request: web.Request) -> web.Response:
        if why := self._refusal(request):
            return web.Response(status=401, text=why + "\n")
        node, is_on = request.query.get("node", ""), "off" not in request.query
        try:
            await self._ask(lambda: self._master.drain(node, is_on=is_on))
        except Error as error:
            return web.Response(status=409, text=f"{error}\n")
        return web.json_response({"node": node, "draining": is_on})

    async def not_supported(self, request: web.Request) -> web.Response:
        why = "not supported: the directory knows pages by hashes, not by names; ask a node"
        return web.Response(status=501, text=json.dumps({"error": f"{request.path}: {why}"}) + "\n")


def _segment(member: dict[str, Any]) -> dict[str, Any]:
    return {
        "segment": member["name"],
        "status": member["state"],
        "capacity": member["capacity_bytes"],
        "allocated": member["capacity_bytes"] - member["free_bytes"],
        "keys": member["pages"],
        "endpoints": member["addresses"],
    }
