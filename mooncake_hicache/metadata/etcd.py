"""Names kept in etcd, each under a lease that its engine keeps alive.

Over etcd's JSON gateway (etcd3gw), which every etcd of version 3.4 and later has at its client
port. A connection for each call: there is one every few seconds, and nothing is left of an etcd
that was restarted.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

import requests
from etcd3gw import Etcd3Client, Lease
from etcd3gw.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
)

from mooncake_hicache.errors import InvalidArgumentError, TimeoutError_, UnavailableError
from mooncake_hicache.metadata.cause import cause_of
from mooncake_hicache.metadata.names import Address, parse_address
from mooncake_hicache.metadata.protocol import TIMEOUT_S, Keeper

__all__ = ["EtcdMetadata"]

PORT = 2379
ENDPOINTS_MAX = 16
TTL_MIN_S = 2
"""etcd grants no shorter lease."""

T = TypeVar("T")


class EtcdMetadata(Keeper):
    """Finds engines by name in etcd; see `Metadata`.

    Args:
        endpoints: `host:port[,host:port]`; 2379 is the port of those that name none.
        timeout_s: Seconds that one call may take, over all endpoints.
        cluster: Separates those who share an etcd: names are looked for in the same one only.

    Raises:
        InvalidArgumentError: An endpoint or the cluster is none.
    """

    def __init__(self, endpoints: str, *, timeout_s: float = TIMEOUT_S, cluster: str = "") -> None:
        self._endpoints = _endpoints_of(endpoints)
        super().__init__(f"etcd {', '.join(map(str, self._endpoints))}", cluster)
        self._timeout_s = timeout_s
        self._leases: dict[str, int] = {}

    def _put(self, key: str, value: bytes, ttl_s: float) -> None:
        def put(client: Etcd3Client) -> int:
            lease = client.lease(ttl=max(TTL_MIN_S, math.ceil(ttl_s)))
            client.put(key.encode(), value, lease=lease)
            return lease.id

        self._leases[key] = self._call(put)

    def _renew(self, key: str, value: bytes, ttl_s: float) -> None:
        lease_id = self._leases[key]

        def renew(client: Etcd3Client) -> tuple[int, bytes | None]:
            """Return the lease, and what somebody else has put there."""
            lease = Lease(lease_id, client)
            if lease.refresh() <= 0:
                # We were away for too long, or etcd has lost what it had.
                lease = client.lease(ttl=max(TTL_MIN_S, math.ceil(ttl_s)))
            found = client.get(key.encode())
            if not found:
                client.create(key.encode(), value, lease=lease)
                found = client.get(key.encode())
            elif found[0] == value and lease.id != lease_id:
                client.put(key.encode(), value, lease=lease)
            return lease.id, found[0] if found and found[0] != value else None

        self._leases[key], other = self._call(renew)
        if other is not None:
            raise self._taken(key, other)

    def _get(self, key: str) -> bytes | None:
        found = self._call(lambda client: client.get(key.encode()))
        return found[0] if found else None

    def _remove(self, key: str, value: bytes) -> None:
        lease_id = self._leases.pop(key, None)
        if lease_id is None:
            return

        def revoke(client: Etcd3Client) -> None:
            # With the lease goes what hangs on it: our entry, and not one that took its place.
            try:
                Lease(lease_id, client).revoke()
            except Etcd3Exception as error:
                if "lease not found" not in (error.detail_text or ""):
                    raise

        self._call(revoke)

    def _end(self) -> None:
        self._leases.clear()

    def _call(self, operation: Callable[[Etcd3Client], T]) -> T:
        """Run an operation at the first endpoint that answers.

        In a thread of its own: looking up a host's name cannot be given a time limit.
        """
        deadline = time.monotonic() + self._timeout_s
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(self._at_some_endpoint(operation, deadline))
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits.
                result.set_exception(error)

        threading.Thread(target=run, name="hicache-etcd", daemon=True).start()
        try:
            return result.result(self._timeout_s)
        except FutureTimeoutError:
            raise TimeoutError_(
                f"{self._where} did not answer within {self._timeout_s:g} s: is it overloaded, or "
                "does a firewall drop what is sent there?"
            ) from None

    def _at_some_endpoint(self, operation: Callable[[Etcd3Client], T], deadline: float) -> T:
        failures = []
        for endpoint in list(self._endpoints):
            left_s = deadline - time.monotonic()
            share_s = min(left_s, max(0.5, self._timeout_s / len(self._endpoints)))
            if share_s <= 0:
                break
            session = requests.Session()
            session.trust_env = False  # A proxy of the environment is for the world outside.
            client = Etcd3Client(endpoint.host, endpoint.port, timeout=share_s, session=session)
            try:
                found = operation(client)
            except ConnectionTimeoutError:
                failures.append(f"{endpoint}: no answer within {share_s:.1f} s")
            except (ConnectionFailedError, requests.RequestException) as error:
                failures.append(f"{endpoint}: {cause_of(error)}")
            except Etcd3Exception as error:
                failures.append(f"{endpoint}: {(error.detail_text or str(error)).strip()[:200]}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                failures.append(
                    f"{endpoint}: it does not answer like etcd ({type(error).__name__})"
                )
            else:
                self._prefer(endpoint)
                return found
            finally:
                session.close()
        raise UnavailableError(
            f"cannot reach etcd: {'; '.join(failures)}; start it or correct its address"
        )

    def _prefer(self, endpoint: Address) -> None:
        if self._endpoints[0] != endpoint:
            others = [one for one in self._endpoints if one != endpoint]
            self._endpoints = [endpoint, *others]


def _endpoints_of(text: str) -> list[Address]:
    # A path or a slash at the end is what people copy along.
    found = [
        parse_address(one.strip(), what="etcd endpoint", port=PORT)
        for one in text.rstrip("/").split(",")
    ]
    if len(found) > ENDPOINTS_MAX:
        raise InvalidArgumentError(f"{len(found)} etcd endpoints: at most {ENDPOINTS_MAX}")
    return found
