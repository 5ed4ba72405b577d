"""What all ways of finding engines by name have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Protocol

from mooncake_hicache.errors import ClosedError, Error, InvalidArgumentError, NotFoundError
from mooncake_hicache.metadata.entry import Entry, decode_entry, encode_entry, foreign
from mooncake_hicache.metadata.names import check_name
from mooncake_hicache.metadata.renewal import Renewer, TakenError

__all__ = ["TIMEOUT_S", "TTL_S", "Keeper", "Metadata"]

TTL_S = 15.0
"""Seconds for which an entry outlives its engine when that crashes."""
TTL_MIN_S, TTL_MAX_S = 1.0, 86_400.0
TIMEOUT_S = 4.0
"""Seconds that one call may take."""


class Metadata(Protocol):
    """Finds engines by name. Any thread may call."""

    def publish(self, name: str, entry: Entry, ttl_s: float = TTL_S) -> None:
        """Make an engine known by a name, and keep it known until `withdraw` or the process ends.

        The newest wins: a restarted engine takes its name over from its dead predecessor, and of
        two that live the older one logs that it lost it. Blocks, at most for the time limit.

        Args:
            name: What others look for.
            entry: What they find.
            ttl_s: Seconds from a crash until the name is gone, 1 to 86400.

        Raises:
            UnavailableError, TimeoutError_: The server does not answer.
            InvalidArgumentError: The name, the entry or the token is wrong.
            NoSpaceError: The server is full.
        """

    def resolve(self, name: str) -> Entry:
        """Return what is known of a name. Blocks, at most for the time limit.

        Raises:
            NotFoundError: No engine goes by it.
            UnavailableError, TimeoutError_: The server does not answer.
            UnsupportedError: It is an engine of the original, or of another release.
            CorruptError: What is kept there is not an engine's.
        """

    def withdraw(self, name: str) -> None:
        """Make a name of this process unknown; nothing if another engine has taken it.

        Raises:
            UnavailableError, TimeoutError_: The server does not answer. The name ends by itself.
        """

    def close(self) -> None:
        """Withdraw what is published, as far as the server answers, and end. Does not raise."""


class Keeper(ABC):
    """A server that keeps entries for a time to live: the half of Metadata that HTTP and etcd
    share."""

    def __init__(self, where: str, cluster: str) -> None:
        if cluster:
            check_name(cluster)
        self._where = where
        cluster = cluster.strip("/") + "/" if cluster else ""
        # Beside the keys of the original, so that neither takes the other's for its own. Without
        # "segment" and "client", by which its master looks for what it may clean up.
        self._prefix = f"mooncake-hicache/engine/{cluster}"
        self._originals_prefix = f"mooncake/{cluster}ram/"
        self._published: dict[str, tuple[bytes, float]] = {}  # Value and time to live.
        self._renewer = Renewer(self._renew_name, where)
        self._publishing = threading.Lock()
        self._is_closed = False

    @abstractmethod
    def _put(self, key: str, value: bytes, ttl_s: float) -> None: ...

    @abstractmethod
    def _renew(self, key: str, value: bytes, ttl_s: float) -> None:
        """Put it again unless somebody else has put something there.

        Raises:
            TakenError: Somebody has.
        """

    @abstractmethod
    def _get(self, key: str) -> bytes | None: ...

    @abstractmethod
    def _remove(self, key: str, value: bytes) -> None:
        """Remove it unless somebody else has put something there."""

    @abstractmethod
    def _end(self) -> None: ...

    def publish(self, name: str, entry: Entry, ttl_s: float = TTL_S) -> None:
        """See `Metadata.publish`."""
        self._check_open()
        check_name(name)
        value = encode_entry(entry)
        if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
            raise InvalidArgumentError(f"ttl_s {ttl_s} is not from {TTL_MIN_S} to {TTL_MAX_S}")
        with self._publishing:
            self._renewer.drop(name)
            self._put(self._prefix + name, value, ttl_s)
            self._published[name] = (value, ttl_s)
            self._renewer.keep(name, ttl_s)

    def resolve(self, name: str) -> Entry:
        """See `Metadata.resolve`."""
        self._check_open()
        check_name(name)
        value = self._get(self._prefix + name)
        if value is not None:
            return decode_entry(value, name, self._where)
        if self._get(self._originals_prefix + name) is not None:
            raise foreign(name, self._where)
        raise NotFoundError(
            f"no engine goes by the name {name} at {self._where}: it has not started yet, has "
            "ended, or publishes itself elsewhere"
        )

    def withdraw(self, name: str) -> None:
        """See `Metadata.withdraw`."""
        self._check_open()
        with self._publishing:
            self._withdraw(name)

    def close(self) -> None:
        """See `Metadata.close`."""
        with self._publishing:
            if self._is_closed:
                return
            self._is_closed = True
            self._renewer.close()
            try:
                for name in self._renewer.kept():
                    self._withdraw(name)
            except Error:
                pass  # It does not answer, so it will not for the next either; they end alone.
            self._end()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _withdraw(self, name: str) -> None:
        self._renewer.drop(name)
        published = self._published.pop(name, None)
        if published is not None:
            self._remove(self._prefix + name, published[0])

    def _renew_name(self, name: str) -> None:
        value, ttl_s = self._published[name]
        self._renew(self._prefix + name, value, ttl_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the metadata client of {self._where} is closed")

    def _taken(self, key: str, value: bytes) -> TakenError:
        """Return the error for a key with somebody else's value."""
        try:
            entry = decode_entry(value, key.removeprefix(self._prefix), self._where)
        except Error:
            return TakenError("something that is no engine of ours")
        return TakenError(f"the engine at {entry.address} ({entry.owner or 'owner not known'})")
