"""The original's path `/api/v1/tenant_quotas` of a master.

    GET     all tenants that have a quota; ?tenant_id=NAME one of them
    PUT     ?tenant_id=NAME, {"requested_quota_bytes": n}     needs the token
    DELETE  ?tenant_id=NAME                                   needs the token

The name `*` is for each tenant that is not named. A quota is of all nodes' memory together.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from mooncake_hicache.errors import Error, InvalidArgumentError, NoSpaceError
from mooncake_hicache.options_types import tenant_name

__all__ = ["ClusterQuotas", "QuotaLeadership", "QuotaPages"]

PATH = "/api/v1/tenant_quotas"
QUOTA_MAX_BYTES = 1 << 62
BODY_SIZE_MAX = 4096
# Of the original's codes.
_INTERNAL, _INVALID_PARAMS, _UNAVAILABLE = -1, -600, -1011


@dataclass(frozen=True)
class ClusterQuotas:
    """What the directory knows of quotas."""

    size_bytes: Mapping[str, int]
    """By tenant, of all nodes' memory together."""
    uses: Mapping[str, Mapping[str, int]]
    """By tenant that has a quota anywhere, of all nodes together: `limit_bytes`, `used_bytes` with
    what is reserved, `reserved_bytes`, `pages`."""


class QuotaLeadership(Protocol):
    """What this part needs of the master. Calls may block for a moment."""

    def epoch(self) -> int:
        """Return the epoch it leads with; 0: it does not."""

    def quotas(self) -> ClusterQuotas:
        """Return the tenants' quotas, and what they use."""

    def set_quota(self, tenant: str, size_bytes: int) -> None:
        """Say what a tenant may use of all nodes' memory; 0: it has no quota any more."""


class QuotaPages:
    """Answers requests of that path.

    Args:
        master: Whom it asks.
        refusal: Returns why a request may not change anything; empty: it may.
    """

    def __init__(self, master: QuotaLeadership, refusal: Callable[[web.Request], str]) -> None:
        self._master, self._refusal = master, refusal

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Have a server answer such requests."""
        router.add_route("GET", PATH, self._get)
        router.add_route("PUT", PATH, self._put)
        router.add_route("DELETE", PATH, self._delete)

    async def _get(self, request: web.Request) -> web.Response:
        async def answer() -> web.Response:
            given = request.query.get("tenant_id")
            name = None if given is None else tenant_name(given)
            found = _snapshots(await _in_thread(self._master.quotas))
            if name is None:
                return web.json_response({"success": True, "data": list(found.values())})
            if name not in found:
                return _error(404, _INVALID_PARAMS, f"the tenant {name!r} has no quota")
            return web.json_response({"success": True, "data": found[name]})

        return await self._guarded(answer)

    async def _put(self, request: web.Request) -> web.Response:
        async def answer() -> web.Response:
            name = tenant_name(request.query.get("tenant_id", ""))
            size_bytes = _requested_bytes(await request.read())
            await _in_thread(lambda: self._master.set_quota(name, size_bytes))
            found = _snapshots(await _in_thread(self._master.quotas))
            return web.json_response({"success": True, "data": found[name]})

        return await self._guarded(answer, self._refusal(request))

    async def _delete(self, request: web.Request) -> web.Response:
        async def answer() -> web.Response:
            name = tenant_name(request.query.get("tenant_id", ""))
            before = await _in_thread(self._master.quotas)
            if name not in before.size_bytes:
                why = f"the tenant {name!r} has no quota here; what nodes' options say stays"
                return _error(404, _INVALID_PARAMS, why)
            await _in_thread(lambda: self._master.set_quota(name, 0))
            # As the original: what it was.
            return web.json_response({"success": True, "data": _snapshots(before)[name]})

        return await self._guarded(answer, self._refusal(request))

    async def _guarded(
        self, answer: Callable[[], Awaitable[web.Response]], refusal: str = ""
    ) -> web.Response:
        if refusal:
            return _error(401, _INVALID_PARAMS, refusal)
        if not self._master.epoch():
            return _error(503, _UNAVAILABLE, "this master does not lead; ask the leader")
        try:
            return await answer()
        except InvalidArgumentError as error:
            return _error(400, _INVALID_PARAMS, str(error))
        except NoSpaceError:
            why = "too many tenants have had quotas: restart all nodes and masters to forget them"
            return _error(409, _INTERNAL, why)
        except Error as error:
            return _error(503, _UNAVAILABLE, str(error))


async def _in_thread(question: Callable[[], Any]) -> Any:
    # The directory answers from its own, and may be busy for a moment.
    return await asyncio.get_running_loop().run_in_executor(None, question)


def _error(status: int, code: int, why: str) -> web.Response:
    text = {"success": False, "error_code": code, "error_message": why}
    return web.json_response(text, status=status)


def _requested_bytes(body: bytes) -> int:
    example = '{"requested_quota_bytes": 2147483648}'
    try:
        given = json.loads(body) if len(body) <= BODY_SIZE_MAX else None
    except ValueError:
        given = None
    size = given.get("requested_quota_bytes") if isinstance(given, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= QUOTA_MAX_BYTES:
        raise InvalidArgumentError(f"the body has to be like {example}, with more than 0 bytes")
    return size


def _snapshots(quotas: ClusterQuotas) -> dict[str, dict[str, Any]]:
    names = sorted({*quotas.size_bytes, *quotas.uses})
    return {name: _snapshot(quotas, name) for name in names}


def _snapshot(quotas: ClusterQuotas, name: str) -> dict[str, Any]:
    nothing = {"limit_bytes": 0, "used_bytes": 0, "reserved_bytes": 0, "pages": 0}
    use = quotas.uses.get(name, nothing)
    # Without a quota of the cluster it is what the nodes' own options allow, where it has pages.
    size = quotas.size_bytes.get(name, use["limit_bytes"])
    return {
        "tenant_id": name,
        "requested_quota_bytes": size,
        "effective_quota_bytes": size,
        "used_bytes": use["used_bytes"] - use["reserved_bytes"],
        "reserved_bytes": use["reserved_bytes"],
        "committed_count": use["pages"],
        "metadata_object_count": use["pages"],
        "over_quota": use["used_bytes"] > size,
        "has_explicit_policy": name in quotas.size_bytes,
    }
