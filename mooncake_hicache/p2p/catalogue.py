"""Who has which name: the catalogue in etcd.

    catalogue.publish(source, description)     from now on readers find it
    catalogue.read("weights").sources          at the other end

All that a process publishes hangs on one lease, which it keeps alive: of a process that crashed
nothing is left when that ends. A name is replaced in one transaction, which removes every source of
an earlier generation; none of them can come back, because an entry is only put where no later
generation is. So readers see one generation at a time, and it only ever grows.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from etcd3gw import Etcd3Client, Lease
from etcd3gw.exceptions import Etcd3Exception

from mooncake_hicache.errors import (
    ClosedError,
    CorruptError,
    Error,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from mooncake_hicache.metadata import HANDSHAKE, TIMEOUT_S, TTL_S
from mooncake_hicache.metadata.etcd_calls import EtcdCalls
from mooncake_hicache.metadata.names import check_name
from mooncake_hicache.p2p.keys import GENERATION_MAX, Keys, delete, encoded, no_key_in, put
from mooncake_hicache.p2p.records import (
    Description,
    Source,
    decode_description,
    decode_source,
    encode_description,
    encode_source,
)

__all__ = ["Catalogue", "Found", "open_catalogue"]

_log = logging.getLogger(__name__)

SOURCES_MAX = 256
"""Sources of a name that a reader looks at; a name may have more."""
PAGE_COUNT = 128
LISTED_MAX = 100_000
DESCRIPTIONS_TRIED_MAX = 8
RENEWALS_PER_TTL = 3
TTL_MIN_S, TTL_MAX_S = 2, 86_400
RETRY_STEP_S = 0.5


@dataclass
class Found:
    """What the catalogue says of a name."""

    revision: int
    """How often etcd has been changed."""
    sources: list[Source] = field(default_factory=list)
    """The sources of the newest generation; of equal content, if etcd has lost its memory."""
    foreign: list[str] = field(default_factory=list)
    """Why entries do not count: they are signed with another secret, or damaged."""

    @property
    def generation(self) -> int:
        """The newest generation; 0: there is none."""
        return self.sources[0].generation if self.sources else 0


@dataclass
class _Published:
    source: Source
    description: Description


def open_catalogue(where: str) -> EtcdCalls:
    """Return the calls of the etcd that an address means. Connects to nothing yet.

    Raises:
        UnsupportedError: It means a server that cannot keep a catalogue.
        InvalidArgumentError: It means none at all.
    """
    scheme, separator, rest = where.partition("://")
    if where == HANDSHAKE or (separator and scheme in ("http", "https", "redis")):
        raise UnsupportedError(
            f"{where:.200} cannot keep the catalogue of the P2P store, which needs leases, "
            "transactions and look-ups by prefix: give etcd://host:port of an etcd 3.4 or later"
        )
    if separator and scheme != "etcd":
        raise InvalidArgumentError(f"{where!r:.200} is no etcd: etcd://host:port[,host:port] is")
    return EtcdCalls(rest if separator else where, TIMEOUT_S)


class Catalogue:
    """The catalogue, as one process sees it. Any thread may call; each call is bounded by 4 s.

    Args:
        calls: How to reach etcd.
        key: What entries are signed with.
        cluster: Separates those who share an etcd.
        ttl_s: Whole seconds for which entries outlive a process that crashed.

    Raises:
        InvalidArgumentError: The cluster or the time is none.
    """

    def __init__(
        self, calls: EtcdCalls, key: bytes, *, cluster: str = "default", ttl_s: int = int(TTL_S)
    ) -> None:
        if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
            raise InvalidArgumentError(f"ttl_s {ttl_s} is not from {TTL_MIN_S} to {TTL_MAX_S}")
        self._calls = calls
        self._key = key
        self._keys = Keys(cluster)
        self._ttl_s = ttl_s
        self._changing = threading.Lock()  # One change at a time, renewals among them.
        self._lease = 0
        self._published: dict[str, _Published] = {}
        self._leaving: set[tuple[str, ...]] = set()  # Could not be removed yet.
        self._ending = threading.Event()
        self._renewer: threading.Thread | None = None

    @property
    def where(self) -> str:
        """What messages call it."""
        return self._calls.where

    # ---- looking

    def read(self, name: str, timeout_s: float | None = None) -> Found:
        """Return who has a name. Entries that do not prove themselves are told apart.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer.
            InvalidArgumentError: That is no name.
        """
        start, end = self._keys.of_name(check_name(name))
        # The newest and whole ones first, in case there are more than are looked at.
        answer = self._range(start, end, SOURCES_MAX, timeout_s, sort_order="DESCEND")
        found = Found(int(answer["header"]["revision"]))
        for path, value in _pairs(answer):
            try:
                source = self._decode(path, value)
            except (CorruptError, UnsupportedError) as error:
                found.foreign.append(str(error))
                continue
            first = found.sources[0] if found.sources else source
            if (source.generation, source.content) == (first.generation, first.content):
                found.sources.append(source)
        return found

    def description(self, sources: list[Source], timeout_s: float | None = None) -> Description:
        """Return what the bytes of these sources are, which all have the same.

        Raises:
            NotFoundError: They are gone.
            CorruptError: What is there is damaged.
            UnavailableError, TimeoutError_: etcd does not answer.
        """
        damage: Error | None = None
        for source in sources[:DESCRIPTIONS_TRIED_MAX]:
            path = self._keys.pieces(source.name, source.generation, source.id)
            for _, value in _pairs(self._range(path, "", 1, timeout_s)):
                try:
                    return decode_description(value, source)
                except CorruptError as error:
                    damage = error
        raise damage or NotFoundError(f"{sources[0].name} has gone from {self.where} just now")

    def list(self, prefix: str, timeout_s: float | None = None) -> tuple[list[Source], int]:
        """Return the sources of all names with a prefix, and how many entries do not count.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer.
        """
        start, end = self._keys.with_prefix(prefix)
        sources: list[Source] = []
        foreign_count = 0
        while len(sources) + foreign_count < LISTED_MAX:
            answer = self._range(start, end, PAGE_COUNT, timeout_s)
            pairs = _pairs(answer)
            for path, value in pairs:
                try:
                    sources.append(self._decode(path, value))
                except (CorruptError, UnsupportedError):
                    foreign_count += 1
            if not answer.get("more") or not pairs:
                break
            start = pairs[-1][0] + "\0"
        return sources, foreign_count

    def _decode(self, path: str, value: bytes) -> Source:
        source = decode_source(value, path, self._key)
        if path != self._path(source):
            raise CorruptError(f"the catalogue's entry {path:.400} says that it is another one")
        return source

    # ---- publishing

    def publish(self, source: Source, description: Description, *, is_first: bool = False) -> bool:
        """Make a source known, and keep it known until `withdraw` or the process ends.

        What there was of earlier generations is removed in the same step. Published again, an entry
        is replaced.

        Args:
            source: Who has the bytes.
            description: What they are.
            is_first: It begins its generation, which nobody else may have begun.

        Returns:
            Whether it was done: not if there is a later generation, or with `is_first` the same.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer.
            InvalidArgumentError: It is too large for the catalogue.
        """
        if not 0 < source.generation <= GENERATION_MAX:
            raise InvalidArgumentError(f"{source.generation} is no generation")
        with self._changing:
            if self._ending.is_set():
                raise ClosedError("this catalogue is closed")
            published = _Published(source, description)
            paths = self._paths(source)
            self._keep_renewing()
            try:
                is_done = self._put(published, is_first=is_first)
            except Error:
                self._leaving.add(paths)  # It may have been done, or be about to.
                raise
            if is_done:
                self._leaving.discard(paths)
                self._published[source.id] = published
            else:
                # Perhaps because of ourselves: it was done, and tried again for want of an answer.
                self._leaving.add(paths)
            return is_done

    def withdraw(self, identity: str) -> None:
        """Make a source unknown, by its id; nothing if it is already.

        What cannot be removed because etcd does not answer is removed once it does. Never raises.
        """
        with self._changing:
            published = self._published.pop(identity, None)
            if published is None or self._ending.is_set():
                return
            self._leaving.add(self._paths(published.source))
            self._remove_leaving()

    def is_published(self, identity: str) -> bool:
        """Return whether readers find a source, as far as is known here."""
        return identity in self._published

    def close(self) -> None:
        """Withdraw everything, as far as etcd answers, and end. Does not raise."""
        self._ending.set()
        if self._renewer is not None:
            self._renewer.join()
        with self._changing:
            self._published.clear()
            lease, self._lease = self._lease, 0
            if lease:
                self._try("end its lease", lambda client: Lease(lease, client).revoke())

    def abandon(self) -> None:
        """Forget everything, in a forked child: it is its parent's."""
        self._changing = threading.Lock()  # Another thread may have held it at the fork.
        self._ending = threading.Event()
        self._ending.set()
        self._renewer = None
        self._published, self._lease = {}, 0

    # ---- with the lock held

    def _path(self, source: Source) -> str:
        return self._keys.source(
            source.name, source.generation, source.id, is_whole=source.is_whole
        )

    def _paths(self, source: Source) -> tuple[str, ...]:
        """All keys that a source may have had."""
        place = (source.name, source.generation, source.id)
        entries = [self._keys.source(*place, is_whole=is_whole) for is_whole in (True, False)]
        return *entries, self._keys.pieces(*place)

    def _put(self, published: _Published, *, is_first: bool = False) -> bool:
        source = published.source
        path = self._path(source)
        *entries, pieces_path = self._paths(source)
        pieces, digest = encode_description(published.description)
        if digest != source.content:
            raise InvalidArgumentError(f"the source of {source.name} names another description")
        value = encode_source(source, path, self._key)
        later = source.generation + (0 if is_first else 1)

        def try_it(client: Etcd3Client) -> bool:
            if not self._lease:
                self._lease = client.lease(ttl=self._ttl_s).id
            answer = client.transaction(
                {
                    "compare": [no_key_in(*self._keys.from_generation(source.name, later))],
                    "success": [
                        *(
                            delete(*one)
                            for one in self._keys.before_generation(source.name, source.generation)
                        ),
                        *(delete(one) for one in entries if one != path),
                        put(pieces_path, pieces, self._lease),
                        put(path, value, self._lease),
                    ],
                }
            )
            return bool(answer.get("succeeded", False))

        def put_it(client: Etcd3Client) -> bool:
            try:
                return try_it(client)
            except Etcd3Exception as error:
                if "lease not found" not in (error.detail_text or ""):
                    raise
                self._lease = 0  # We were away for too long, or etcd has lost what it had.
                return try_it(client)

        return bool(self._calls.call(put_it))

    def _remove_leaving(self) -> None:
        for paths in list(self._leaving):
            removal = {"compare": [], "success": [delete(path) for path in paths]}

            def remove(client: Etcd3Client, removal: dict[str, Any] = removal) -> Any:
                return client.transaction(removal)

            if not self._try("remove an entry", remove):
                return
            self._leaving.discard(paths)

    def _try(self, what: str, operation: Callable[[Etcd3Client], Any]) -> bool:
        try:
            self._calls.call(operation)
        except Error as error:
            _log.warning("cannot %s at %s: %s; it ends by itself", what, self.where, error)
            return False
        return True

    # ---- the thread that renews

    def _keep_renewing(self) -> None:
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._run, name="hicache-p2p", daemon=True)
            self._renewer.start()

    def _run(self) -> None:
        step_s = self._ttl_s / RENEWALS_PER_TTL
        wait_s, has_failed = step_s, False
        while not self._ending.wait(wait_s):
            try:
                with self._changing:
                    if self._ending.is_set():
                        return
                    self._renew()
            except Exception as error:  # noqa: BLE001 - nobody is there to catch it.
                if not has_failed:
                    _log.warning("cannot renew what is in the catalogue: %s; trying on", error)
                wait_s, has_failed = min(step_s, RETRY_STEP_S), True
                continue
            if has_failed:
                _log.info("the catalogue at %s is renewed again", self.where)
            wait_s, has_failed = step_s, False

    def _renew(self) -> None:
        def refresh(client: Etcd3Client) -> set[str]:
            """Keep the lease alive; return the keys that hang on it."""
            lease = Lease(self._lease, client)
            if lease.refresh() <= 0:
                self._lease = 0
                return set()
            keys = lease.keys()
            return {bytes(key).decode(errors="replace") for key in keys}

        present = self._calls.call(refresh) if self._lease else set()
        self._remove_leaving()
        for identity, published in list(self._published.items()):
            source = published.source
            if self._path(source) in present:
                continue
            if not self._put(published):
                del self._published[identity]
                _log.info(
                    "%s was registered anew by another process: this one is no source of "
                    "generation %d any more",
                    source.name,
                    source.generation,
                )

    def _range(
        self, start: str, end: str, limit: int, timeout_s: float | None, **more: Any
    ) -> dict[str, Any]:
        asked = {"key": encoded(start), "limit": limit, **more}
        if end:
            asked["range_end"] = encoded(end)

        def ask(client: Etcd3Client) -> dict[str, Any]:
            answer = client.post(client.get_url("/kv/range"), json=asked)
            int(answer["header"]["revision"])  # Whoever answers otherwise is no etcd.
            _pairs(answer)
            return dict(answer)

        return self._calls.call(ask, timeout_s)


def _pairs(answer: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [
        (
            base64.b64decode(one["key"]).decode(errors="replace"),
            base64.b64decode(one.get("value", "")),
        )
        for one in answer.get("kvs", [])
    ]
