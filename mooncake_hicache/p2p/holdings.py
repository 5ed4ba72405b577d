"""The memory of this process that has a name: registered with the engine, published, and ended."""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass, replace

import numpy as np

from mooncake_hicache.errors import (
    AlreadyExistsError,
    BusyError,
    Error,
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
    TransientError,
)
from mooncake_hicache.metadata import owner_here
from mooncake_hicache.p2p.catalogue import Catalogue
from mooncake_hicache.p2p.memory import Layout, ReadableMemory, piece_checksums
from mooncake_hicache.p2p.records import Description, Source
from mooncake_hicache.transfer import TransferEngine

__all__ = ["Holding", "Holdings", "new_source"]

_log = logging.getLogger(__name__)

PARTIAL_PIECES_MIN = 8
"""Fewer pieces are there before others could find out."""


@dataclass
class Holding:
    """Memory under a name."""

    source: Source
    description: Description
    layout: Layout
    map_layout: Layout
    """A byte for each piece; empty for memory that has all from the beginning."""
    is_fetching: bool = False
    is_readable: bool = False


def new_source(
    engine: TransferEngine,
    layout: Layout,
    *,
    name: str,
    generation: int,
    content: str,
    map_address: int = 0,
) -> Source:
    """Return how this process will stand in the catalogue."""
    return Source(
        name=name,
        generation=generation,
        content=content,
        size_bytes=layout.size_bytes,
        address=engine.address,
        epoch=engine.epoch,
        spans=layout.spans,
        map_address=map_address,
        owner=owner_here(),
        id=secrets.token_hex(8),
    )


class Holdings:
    """All of one store. Any thread may call."""

    def __init__(self, engine: TransferEngine, catalogue: Catalogue) -> None:
        self.memory = ReadableMemory(engine)
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._by_id: dict[str, Holding] = {}

    def adopt(self, holding: Holding) -> None:
        """Keep what is published now, and drop what had the same name before."""
        with self._lock:
            before = [
                one
                for one in self._by_id.values()
                if one.source.name == holding.source.name
                and one is not holding
                and not one.is_fetching
            ]
            self._by_id[holding.source.id] = holding
        for one in before:
            self.drop(one)

    def claim(self, holding: Holding) -> bool:
        """Take memory for a fetch. Return whether all of it is there already.

        Raises:
            InvalidArgumentError: It is the memory of another name, or of another fetch.
        """
        source = holding.source
        with self._lock:
            before = [one for one in self._by_id.values() if one.layout.overlaps(holding.layout)]
            for one in before:
                if one.is_fetching or one.source.name != source.name:
                    state = "is being fetched" if one.is_fetching else "is registered"
                    raise InvalidArgumentError(
                        f"the memory for {source.name} is that of {one.source.name}, which {state}"
                    )
            self._by_id[source.id] = holding
        for one in before:
            if self._is_same(one, holding):
                with self._lock:
                    del self._by_id[source.id]
                return True
            self.drop(one)  # Its bytes will not be those any more.
        return False

    def offer(self, holding: Holding, *, share: bool) -> None:
        """Register memory for what will arrive, which RDMA needs, and let others read it.

        If that is not possible, it is only fetched.
        """
        try:
            self.memory.hold(holding.layout)
            try:
                self.memory.hold(holding.map_layout)
            except Error:
                self.memory.release(holding.layout)
                raise
            holding.is_readable = True
            if share and len(holding.description.checksums) >= PARTIAL_PIECES_MIN:
                self._catalogue.publish(holding.source, holding.description)
        except (AlreadyExistsError, NoSpaceError, TransientError) as error:
            _log.warning("%s is fetched but not shared: %s", holding.source.name, error)

    def settle(self, holding: Holding) -> bool:
        """All of it has arrived: be a whole source. Return whether that is so."""
        holding.source = replace(holding.source, map_address=0)
        try:
            if holding.is_readable and self._catalogue.publish(holding.source, holding.description):
                holding.is_fetching = False
                self.adopt(holding)
                return True
        except Error as error:
            _log.warning("%s was fetched but is not shared: %s", holding.source.name, error)
        self.drop(holding)
        return False

    def drop(self, holding: Holding) -> None:
        """End being a source of it. Once this returns nobody reads it any more."""
        with self._lock:
            if self._by_id.pop(holding.source.id, None) is None:
                return
        self._catalogue.withdraw(holding.source.id)
        if holding.is_readable:
            self.memory.release(holding.layout)
            self.memory.release(holding.map_layout)

    def drop_name(self, name: str) -> None:
        """End being a source of a name.

        Raises:
            NotFoundError: This process is none.
            BusyError: It is being fetched.
        """
        with self._lock:
            found = [one for one in self._by_id.values() if one.source.name == name]
        if not found:
            raise NotFoundError(f"this process has not registered {name}")
        if any(one.is_fetching for one in found):
            raise BusyError(f"{name} is being fetched just now")
        for one in found:
            self.drop(one)

    def drop_all(self) -> None:
        """End being a source of anything; what is being fetched ends with its fetch."""
        with self._lock:
            found = [one for one in self._by_id.values() if not one.is_fetching]
        for one in found:
            self.drop(one)

    def abandon(self) -> None:
        """Forget everything, in a forked child: it is its parent's."""
        self._lock = threading.Lock()  # Another thread may have held it at the fork.
        self._by_id = {}

    def _is_same(self, there: Holding, wanted: Holding) -> bool:
        """Whether the memory holds, published and whole, what is to be fetched into it."""
        if (
            there.source.generation != wanted.source.generation
            or there.source.content != wanted.source.content
            or there.layout.spans != wanted.layout.spans
            or not self._catalogue.is_published(there.source.id)
        ):
            return False
        sums = piece_checksums(wanted.layout, wanted.description.piece_size_bytes)
        return bool(np.array_equal(sums, wanted.description.checksums))
