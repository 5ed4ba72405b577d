"""The client of an HTTP metadata server: ours, or the original's.

The original's server knows neither times to live nor conditions: entries are kept there too, but
one of an engine that crashed stays, which is logged once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from mooncake_hicache.errors import (
    InvalidArgumentError,
    NoSpaceError,
    TimeoutError_,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.metadata.cause import cause_of
from mooncake_hicache.metadata.names import Address, parse_address
from mooncake_hicache.metadata.protocol import TIMEOUT_S, Keeper
from mooncake_hicache.metadata.server import TTL_HEADER
from mooncake_hicache.metadata.table import tag_of

__all__ = ["TOKEN_ENVIRONMENT", "HttpMetadata"]

_log = logging.getLogger(__name__)

TOKEN_ENVIRONMENT = "MC_METADATA_HTTP_TOKEN"
"""The original's variable for the token of its server."""
ANSWER_SIZE_MAX = 1 << 20
_NOT_FOUND = "metadata not found"

T = TypeVar("T")


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.body[:200].decode(errors="replace").strip()


class HttpMetadata(Keeper):
    """Finds engines by name at `http://host:port/metadata`; see `Metadata`.

    Args:
        url: The server. Without a path, `/metadata` is meant.
        timeout_s: Seconds that one call may take.
        cluster: Separates those who share a server: names are looked for in the same one only.
        token: What the server wants before it changes anything; empty: what
            MC_METADATA_HTTP_TOKEN says.

    Raises:
        InvalidArgumentError: The URL, the cluster or the token is none.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, cluster: str = "", token: str = ""
    ) -> None:
        self._address, self._url = _server_of(url)
        super().__init__(f"http server {self._address}", cluster)
        self._timeout_s = timeout_s
        token = token or os.environ.get(TOKEN_ENVIRONMENT, "")
        if not token.isascii() or not (token + "x").isprintable():
            raise InvalidArgumentError("the token of the metadata server is no printable ASCII")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._knows_ttl = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="hicache-metadata-client", daemon=True
        )
        self._thread.start()

    def _put(self, key: str, value: bytes, ttl_s: float) -> None:
        answer = self._ask("PUT", key, value, {}, ttl_s)
        self._expect(answer, 200)
        self._look_for_ttl(answer)

    def _renew(self, key: str, value: bytes, ttl_s: float) -> None:
        if self._knows_ttl:
            answer = self._ask("PUT", key, value, {"If-Match": tag_of(value)}, ttl_s)
            if answer.status == 200:
                return
            self._expect(answer, 412)
        found = self._get(key)
        if found is None:
            # It was restarted, or did not hear of us for too long.
            answer = self._ask("PUT", key, value, {"If-None-Match": "*"}, ttl_s)
            self._expect(answer, 200)
            self._look_for_ttl(answer)
        elif found != value:
            raise self._taken(key, found)

    def _get(self, key: str) -> bytes | None:
        answer = self._ask("GET", key)
        if answer.status == 404 and answer.text == _NOT_FOUND:
            return None
        self._expect(answer, 200)
        return answer.body

    def _remove(self, key: str, value: bytes) -> None:
        # A server without conditions would remove what somebody else has put.
        if not self._knows_ttl and self._get(key) != value:
            return
        answer = self._ask("DELETE", key, headers={"If-Match": tag_of(value)})
        if answer.status != 412 and not (answer.status == 404 and answer.text == _NOT_FOUND):
            self._expect(answer, 200)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _look_for_ttl(self, answer: _Answer) -> None:
        knows_ttl = TTL_HEADER.lower() in answer.headers
        if not knows_ttl and self._knows_ttl:
            _log.warning(
                "the metadata server %s does not know times to live: names of engines that crash "
                "stay there; `mooncake-hicache metadata` is one that does",
                self._address,
            )
        self._knows_ttl = knows_ttl

    def _expect(self, answer: _Answer, status: int) -> None:
        if answer.status == status:
            return
        said = f"the metadata server {self._address} answered {answer.status} ({answer.text!r})"
        if answer.status in (401, 403):
            raise InvalidArgumentError(
                f"{said}: give it its token, as `token` or in {TOKEN_ENVIRONMENT}"
            )
        if answer.status == 507:
            raise NoSpaceError(f"{said}: raise its limits, or remove what nobody needs")
        if answer.status in (400, 413):
            raise InvalidArgumentError(said)
        raise UnavailableError(
            f"{said}: is {self._url} the address of a metadata server, such as "
            "`mooncake-hicache metadata` prints?"
        )

    def _ask(
        self,
        method: str,
        key: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        ttl_s: float | None = None,
    ) -> _Answer:
        tried = f"the metadata server {self._address}"
        try:
            return self._wait(self._request(method, key, body, headers or {}, ttl_s))
        except asyncio.TimeoutError:
            raise TimeoutError_(
                f"{tried} did not answer within {self._timeout_s:g} s: is it overloaded, or does a "
                "firewall drop what is sent there?"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(
                f"cannot reach {tried}: {cause_of(error)}; start it (`mooncake-hicache metadata`) "
                "or correct its address"
            ) from None

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        bounded = asyncio.wait_for(call, self._timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result()

    async def _request(
        self,
        method: str,
        key: str,
        body: bytes | None,
        headers: dict[str, str],
        ttl_s: float | None,
    ) -> _Answer:
        query = {"key": key} | ({"ttl_s": f"{ttl_s:g}"} if ttl_s is not None else {})
        # A connection for each: there is one every few seconds, and one that is kept open may be
        # half dead after a restart of the server.
        async with (
            aiohttp.ClientSession(headers=self._headers, auto_decompress=False) as session,
            session.request(
                method,
                self._url,
                params=query,
                data=body,
                headers={"Content-Type": "application/json", **headers},
                allow_redirects=False,
            ) as answer,
        ):
            read = bytearray()
            async for part in answer.content.iter_any():
                read += part
                if len(read) > ANSWER_SIZE_MAX:
                    raise aiohttp.ClientPayloadError("its answer does not end")
            seen = {name.lower(): value for name, value in answer.headers.items()}
            return _Answer(answer.status, bytes(read), seen)


def _server_of(url: str) -> tuple[Address, str]:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgumentError(f"{url!r:.200} is no URL: {error}") from None
    if parts.scheme == "https":
        raise UnsupportedError(
            f"{url}: metadata over https is not supported; use http:// within a network that you "
            "trust, or etcd"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgumentError(
            f"{url}: the address of a metadata server is http://host:port/metadata, without "
            "user, query or fragment"
        )
    address = parse_address(parts.netloc, what="metadata server", port=80)
    path = parts.path if parts.path.strip("/") else "/metadata"
    return address, f"http://{address}{path}"
