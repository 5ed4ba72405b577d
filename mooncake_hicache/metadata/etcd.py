"""Names kept in etcd, each under a lease that its engine keeps alive."""

from __future__ import annotations

import math

from etcd3gw import Etcd3Client, Lease
from etcd3gw.exceptions import Etcd3Exception

from mooncake_hicache.metadata.etcd_calls import EtcdCalls
from mooncake_hicache.metadata.protocol import TIMEOUT_S, Keeper

__all__ = ["EtcdMetadata"]

TTL_MIN_S = 2
"""etcd grants no shorter lease."""


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
        self._calls = EtcdCalls(endpoints, timeout_s)
        super().__init__(self._calls.where, cluster)
        self._leases: dict[str, int] = {}

    def _put(self, key: str, value: bytes, ttl_s: float) -> None:
        def put(client: Etcd3Client) -> int:
            lease = client.lease(ttl=max(TTL_MIN_S, math.ceil(ttl_s)))
            client.put(key.encode(), value, lease=lease)
            return lease.id

        self._leases[key] = self._calls.call(put)

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

        self._leases[key], other = self._calls.call(renew)
        if other is not None:
            raise self._taken(key, other)

    def _get(self, key: str) -> bytes | None:
        found = self._calls.call(lambda client: client.get(key.encode()))
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

        self._calls.call(revoke)

    def _end(self) -> None:
        self._leases.clear()
