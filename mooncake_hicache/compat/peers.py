"""Peers by the names that callers use, opened when they are first needed and kept open."""

from __future__ import annotations

import logging
import threading

from mooncake_hicache.errors import Error, NotFoundError, UnavailableError
from mooncake_hicache.metadata import Metadata
from mooncake_hicache.transfer import Segment, TransferEngine

__all__ = ["Peers"]

_log = logging.getLogger(__name__)

_WARM_INTERVAL_S = 2.0


class Peers:
    """The segments that an engine has opened. Any thread may call."""

    def __init__(self, engine: TransferEngine, metadata: Metadata) -> None:
        self._engine = engine
        self._metadata = metadata
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._warmer: threading.Thread | None = None
        self._ending = threading.Event()

    def get(self, name: str, timeout_ms: int) -> Segment:
        """Return the segment of that name; connects if it is not open.

        Raises:
            Error: Nobody goes by that name, or nobody answers.
        """
        with self._lock:
            segment = self._segments.get(name)
            opening = self._opening.setdefault(name, threading.Lock())
        if segment is not None:
            return segment
        with opening:  # Of many threads that ask at once, one connects.
            with self._lock:
                segment = self._segments.get(name)
            return segment or self._open(name, timeout_ms)

    def _open(self, name: str, timeout_ms: int) -> Segment:
        try:
            address = self._metadata.resolve(name).address
            segment = self._engine.open(address, timeout_ms=timeout_ms)
        except Error:
            with self._lock:  # Names that nobody goes by are not collected.
                self._opening.pop(name, None)
            raise
        with self._lock:
            # Two may have opened it, if a third one failed in between.
            kept = self._segments.setdefault(name, segment)
        if kept is not segment:
            segment.close()
        return kept

    def drop(self, name: str, segment: Segment) -> None:
        """Forget a segment whose peer is gone: the next use of the name opens it anew."""
        with self._lock:
            if self._segments.get(name) is not segment:
                return
            del self._segments[name]
            self._opening.pop(name, None)
        segment.close()

    def keep_warm(self) -> None:
        """From now on look after the peers in the background: one that was lost is opened again
        before it is needed."""
        with self._lock:
            if self._warmer is not None:
                return
            self._warmer = threading.Thread(target=self._warm, name="mh-warm", daemon=True)
            self._warmer.start()

    def close(self) -> None:
        """Close all. Blocks for a second or so."""
        self._ending.set()
        if self._warmer is not None:
            self._warmer.join()
        with self._lock:
            segments = list(self._segments.values())
            self._segments.clear()
        for segment in segments:
            segment.close()

    def _warm(self) -> None:
        names: set[str] = set()
        while not self._ending.wait(_WARM_INTERVAL_S):
            with self._lock:
                names |= set(self._segments)
            for name in sorted(names):
                try:
                    segment = self.get(name, 1000)
                    try:
                        segment.probe(timeout_ms=1000)
                    except UnavailableError:
                        self.drop(name, segment)
                except NotFoundError:
                    names.discard(name)  # It has withdrawn.
                except Error as error:
                    _log.debug("keeping %s warm: %s", name, error)
                if self._ending.is_set():
                    return
