"""`P2PStore`: names for memory, catalogue and transfers put together."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.arguments import milliseconds
from mooncake_hicache.config import TransferOptions
from mooncake_hicache.errors import (
    AlreadyExistsError,
    BusyError,
    ClosedError,
    CorruptError,
    Error,
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
    TimeoutError_,
    TransientError,
)
from mooncake_hicache.metadata import TTL_S
from mooncake_hicache.p2p.catalogue import Catalogue, Found, open_catalogue
from mooncake_hicache.p2p.fetch import Fetch, Progress
from mooncake_hicache.p2p.holdings import Holding, Holdings, new_source
from mooncake_hicache.p2p.listed import Listed, listed_of
from mooncake_hicache.p2p.memory import Layout, layout_of, new_array, piece_checksums
from mooncake_hicache.p2p.records import (
    SPANS_MAX,
    Description,
    Source,
    encode_description,
    piece_size_for,
    signing_key,
)
from mooncake_hicache.secret import resolve_secret
from mooncake_hicache.transfer import TransferEngine

__all__ = ["Listed", "P2PStore", "Replica"]

_log = logging.getLogger(__name__)

REGISTER_TRIES = 5
TIMEOUT_MS = 30_000
BYTES_PER_MS_MIN = 100_000
"""What a fetch is given time for when its caller does not say: 100 MB/s, beside TIMEOUT_MS."""
PIECE_TIMEOUT_MS = 5_000
PIECE_BYTES_PER_MS_MIN = 10_000

_living: weakref.WeakSet[P2PStore] = weakref.WeakSet()


@dataclass(frozen=True)
class Replica:
    """What `P2PStore.get_replica` has fetched and verified."""

    name: str
    generation: int
    size_bytes: int
    array: npt.NDArray[np.uint8] | None
    """The bytes; None if they went into buffers of the caller."""
    is_shared: bool
    """Whether this process is a source of them now: then nobody may write to the memory before
    `unregister`. (Who does makes readers look elsewhere; wrong bytes they do not get.)"""
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    """How many bytes came from which address; nothing if they were there already."""


class P2PStore:
    """Makes memory of this process readable by name, and fetches that of others.

    Any thread may call. Not usable after `fork()`: make another one in the child.
    """

    def __init__(
        self,
        metadata: str,
        *,
        engine: TransferEngine | None = None,
        cluster: str = "default",
        ttl_s: int = int(TTL_S),
        **overrides: Any,
    ) -> None:
        """Start an engine, and look whether the catalogue answers.

        Args:
            metadata: `etcd://host:port[,host:port]`.
            engine: An engine to use, which is not closed; it knows the secret.
            cluster: Separates those who share an etcd.
            ttl_s: Whole seconds after which nothing is left of a process that crashed.
            **overrides: Options of the engine otherwise: `host="0.0.0.0", secret="/etc/s"`. Those
                of the environment and the options file count too, as for every engine.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer.
            UnsupportedError: That is no etcd.
            InvalidArgumentError, IoError: An option, or the secret.
        """
        if engine is not None and overrides:
            raise InvalidArgumentError("options are given, and an engine that has its own")
        self._is_closed = True  # Until all of it is there.
        options = engine.options if engine is not None else TransferOptions().replaced(**overrides)
        key = signing_key(resolve_secret(options.secret))
        self._catalogue = Catalogue(open_catalogue(metadata), key, cluster=cluster, ttl_s=ttl_s)
        self._catalogue.read("-")
        self._engine = engine if engine is not None else TransferEngine(options)
        self._owns_engine = engine is None
        self._holdings = Holdings(self._engine, self._catalogue)
        self._is_closed = False
        _living.add(self)

    @property
    def engine(self) -> TransferEngine:
        """The engine that moves the bytes."""
        return self._engine

    # ---- names

    def register(
        self, name: str, buffers: Any, *, replace: bool = False, piece_size: int | None = None
    ) -> Listed:
        """Make memory readable for everybody, under a name, without copying it.

        It must stay as it is until `unregister`: who writes to it makes it unreadable. If the same
        bytes are there already, this process becomes one more source of them. Blocks while the
        checksums are computed, about 0.1 s per GiB.

        Args:
            name: 1 to 255 bytes of text.
            buffers: A contiguous buffer (bytes, array, CPU tensor), or a list of up to 1024: the
                name stands for their bytes, one after the other.
            replace: Other bytes under this name are replaced, for everybody and in one step.
                Otherwise they are an error.
            piece_size: Bytes that are read and verified at a time. By default 4 MiB, or more for
                more than 16 GiB.

        Raises:
            AlreadyExistsError: Others have other bytes under this name; or it overlaps memory that
                is registered already.
            InvalidArgumentError: The name, a buffer or the piece size is none.
            UnavailableError, TimeoutError_: etcd does not answer.
            NoSpaceError: The memory cannot be pinned.
        """
        self._check_open()
        layout = layout_of(buffers, writable=False)
        _check_span_count(name, layout)
        usual_size = piece_size if piece_size is not None else piece_size_for(layout.size_bytes)
        sums = _Sums(layout)
        sums.check(usual_size)
        memory = self._holdings.memory
        memory.hold(layout)
        try:
            for _ in range(REGISTER_TRIES):
                found = self._catalogue.read(name)
                self._refuse_foreign(name, found)
                size_there = self._piece_size_of_same(found, sums)
                if size_there is None and found.sources and not replace:
                    raise _already_there(found.sources[0])
                # A number that was never used: with each registration etcd counts on.
                fresh = max(found.revision, found.generation) + 1
                description, content = sums.described(size_there or usual_size)
                source = new_source(
                    self._engine,
                    layout,
                    name=name,
                    generation=fresh if size_there is None else found.generation,
                    content=content,
                )
                if self._catalogue.publish(source, description, is_first=size_there is None):
                    holding = Holding(source, description, layout, Layout(()), is_readable=True)
                    self._holdings.adopt(holding)
                    return listed_of([*found.sources, source])[0]
            raise BusyError(f"others register {name} again and again just now")
        except BaseException:
            memory.release(layout)
            raise

    def _piece_size_of_same(self, found: Found, sums: _Sums) -> int | None:
        """Return the size of pieces if just these bytes are there already."""
        if not found.sources or found.sources[0].size_bytes != sums.size_bytes:
            return None
        try:
            size = self._catalogue.description(found.sources).piece_size_bytes
        except NotFoundError:  # It has gone just now.
            found.sources.clear()
            return None
        return size if sums.described(size)[1] == found.sources[0].content else None

    def unregister(self, name: str) -> None:
        """End being a source of a name. Once this returns nobody reads the memory any more.

        (But for a process of this machine that was stopped while it read: a warning names it.)
        Who is reading it goes on at another source, or gets an error if there is none.

        Raises:
            NotFoundError: This process is no source of it.
            BusyError: It is being fetched by another thread.
        """
        self._check_open()
        self._holdings.drop_name(name)

    def describe(self, name: str) -> Listed:
        """Return what there is under a name.

        Raises:
            NotFoundError: Nobody has it.
            UnavailableError, TimeoutError_: etcd does not answer.
        """
        self._check_open()
        return listed_of(self._present(name).sources)[0]

    # ---- fetching

    def get_replica(
        self,
        name: str,
        into: Any = None,
        *,
        share: bool = True,
        generation: int | None = None,
        timeout_ms: int | None = None,
        piece_timeout_ms: int | None = None,
        progress: Progress | None = None,
    ) -> Replica:
        """Fetch what a name stands for, from all who have it, and become a source of it.

        When it returns, every byte has been verified. When it raises, the memory may hold anything,
        and nothing is in flight into it any more. If the name is replaced meanwhile, and the old
        bytes cannot be had any more, it begins again with the new ones.

        Args:
            name: What others have registered.
            into: A buffer, or a list of buffers, of together exactly as many bytes. None: new
                memory.
            share: Be a source, of pieces while they arrive and of all of it afterwards.
            generation: Only this one, which `describe` and `register` tell. None: the newest.
            timeout_ms: Milliseconds; by default 30 s and 10 s per GB. An etcd that hangs may add a
                few seconds, in which no byte moves.
            piece_timeout_ms: A source that does not deliver a piece within this is left out; by
                default 5 s and 0.1 s per MB of the piece.
            progress: Called by this thread with the bytes that are there, and those of all. What it
                raises ends the fetch.

        Raises:
            NotFoundError: Nobody has it, or not that generation.
            UnavailableError: Nobody is left who has all of it.
            CorruptError: So it is, and somebody sent wrong bytes.
            TimeoutError_: The deadline passed.
            InvalidArgumentError: `into` has another size, or holds other names of this process.
            NoSpaceError: There is no memory for it.
        """
        self._check_open()
        layout = layout_of(into, writable=True) if into is not None else None
        if layout is not None and share:
            _check_span_count(name, layout, ", or say share=False")
        began_s = time.monotonic()
        limit_ms = None if timeout_ms is None else milliseconds("timeout_ms", timeout_ms)
        while True:
            left_s = None if limit_ms is None else began_s + limit_ms / 1000 - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError_(f"{name} could not be looked up within {limit_ms} ms")
            found = self._present(name, left_s)
            if generation is not None and found.generation != generation:
                raise NotFoundError(
                    f"{name} has generation {found.generation} now, and {generation} was asked for"
                )
            try:
                description = self._catalogue.description(found.sources, left_s)
                if limit_ms is None:
                    limit_ms = TIMEOUT_MS + description.size_bytes // BYTES_PER_MS_MIN
                return self._fetch(
                    found,
                    description,
                    layout,
                    share=share,
                    deadline=began_s + limit_ms / 1000,
                    piece_timeout_ms=piece_timeout_ms,
                    progress=progress,
                )
            except (TransientError, CorruptError, NotFoundError) as error:
                if generation is not None or not self._is_replaced(found):
                    raise
                _log.info("%s was replaced while it was fetched: beginning again (%s)", name, error)

    def _is_replaced(self, found: Found) -> bool:
        source = found.sources[0]
        try:
            return self._catalogue.read(source.name).generation > source.generation
        except Error:
            return False

    def _fetch(
        self,
        found: Found,
        description: Description,
        layout: Layout | None,
        *,
        share: bool,
        deadline: float,
        piece_timeout_ms: int | None,
        progress: Progress | None,
    ) -> Replica:
        first = found.sources[0]
        array = None
        if layout is None:
            array = _memory_for(first)
            layout = layout_of([array], writable=True)
        if layout.size_bytes != first.size_bytes:
            raise InvalidArgumentError(
                f"{first.name} has {first.size_bytes} bytes, and `into` has {layout.size_bytes}"
            )
        pieces = np.zeros(len(description.checksums), np.uint8)
        map_layout = layout_of([pieces], writable=True)
        source = new_source(
            self._engine,
            layout,
            name=first.name,
            generation=first.generation,
            content=first.content,
            map_address=map_layout.spans[0][0] if map_layout.spans else 0,
        )
        holding = Holding(source, description, layout, map_layout, is_fetching=True)
        if self._holdings.claim(holding):
            return Replica(first.name, first.generation, first.size_bytes, array, True)
        if piece_timeout_ms is None:
            piece_timeout_ms = (
                PIECE_TIMEOUT_MS + description.piece_size_bytes // PIECE_BYTES_PER_MS_MIN
            )
        try:
            self._holdings.offer(holding, share=share)
            fetch = Fetch(
                self._engine,
                description,
                layout,
                pieces,
                lambda: self._others(source),
                piece_timeout_ms=milliseconds("piece_timeout_ms", piece_timeout_ms),
                deadline=deadline,
            )
            given = fetch.run(found.sources if len(pieces) else [], progress)
        except BaseException:
            self._holdings.drop(holding)
            raise
        is_shared = share and self._holdings.settle(holding)
        if not share:
            self._holdings.drop(holding)
        return Replica(first.name, first.generation, first.size_bytes, array, is_shared, given)

    def _others(self, own: Source) -> Sequence[Source]:
        return [
            one
            for one in self._catalogue.read(own.name).sources
            if one.id != own.id and (one.generation, one.content) == (own.generation, own.content)
        ]

    # ---- what both need

    def _present(self, name: str, timeout_s: float | None = None) -> Found:
        found = self._catalogue.read(name, timeout_s)
        if not found.sources:
            self._refuse_foreign(name, found)
            raise NotFoundError(
                f"nobody has {name} at {self._catalogue.where}: it was not registered, or whoever "
                "had it has ended"
            )
        return found

    def _refuse_foreign(self, name: str, found: Found) -> None:
        if found.foreign and not found.sources:
            raise CorruptError(
                f"what {self._catalogue.where} has of {name} does not count: {found.foreign[0]}; "
                "give all the same secret, or another cluster, or remove the entry"
            )

    # ---- end

    def close(self) -> None:
        """End being a source of anything, and the engine if it is its own. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        _living.discard(self)
        self._catalogue.close()
        self._holdings.drop_all()
        if self._owns_engine:
            self._engine.close()

    def __enter__(self) -> P2PStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(
                "this P2P store is closed, or belongs to the process from which this one was forked"
            )

    def list(self, prefix: str = "") -> list[Listed]:
        """Return the names that begin with a prefix, sorted, with who has them.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer.
        """
        self._check_open()
        return listed_of(self._catalogue.list(prefix)[0])

    def _abandon_after_fork(self) -> None:
        """Runs in a forked child, where nothing of it is the child's."""
        self._is_closed = True
        self._holdings.abandon()
        self._catalogue.abandon()


def _memory_for(source: Source) -> npt.NDArray[np.uint8]:
    try:
        return new_array(source.size_bytes)
    except (MemoryError, ValueError):
        raise NoSpaceError(
            f"there is no memory for the {source.size_bytes} bytes of {source.name}"
        ) from None


def _check_span_count(name: str, layout: Layout, otherwise: str = "") -> None:
    count = len(layout.spans)
    if count > SPANS_MAX:
        raise InvalidArgumentError(
            f"{count} buffers for {name}: at most {SPANS_MAX} can be shared; copy small ones "
            f"together{otherwise}"
        )


def _already_there(source: Source) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{source.name} is there already with {source.size_bytes} other bytes, from "
        f"{source.owner}: register with replace=True, or under another name"
    )


class _Sums:
    """Descriptions of memory in pieces of whichever size, each computed once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._described: dict[int, tuple[Description, str]] = {}

    @property
    def size_bytes(self) -> int:
        return self._layout.size_bytes

    def check(self, piece_size: int) -> None:
        """Raise InvalidArgumentError for a piece size that cannot be."""
        encode_description(Description(self.size_bytes, piece_size, np.empty(0, np.uint64)))

    def described(self, piece_size: int) -> tuple[Description, str]:
        """Return the description and its digest."""
        if piece_size not in self._described:
            sums = piece_checksums(self._layout, piece_size)
            found = Description(self.size_bytes, piece_size, sums)
            self._described[piece_size] = found, encode_description(found)[1]
        return self._described[piece_size]


def _abandon_all_after_fork() -> None:
    for store in list(_living):
        store._abandon_after_fork()
    _living.clear()


def _close_all_at_exit() -> None:
    for store in list(_living):
        store.close()


atexit.register(_close_all_at_exit)
os.register_at_fork(after_in_child=_abandon_all_after_fork)
