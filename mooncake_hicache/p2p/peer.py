"""A source that a fetch reads from: its connection, and which pieces it has."""

from __future__ import annotations

import threading
import time

import numpy as np

from mooncake_hicache.errors import UnavailableError
from mooncake_hicache.p2p.memory import Layout
from mooncake_hicache.p2p.records import Source
from mooncake_hicache.transfer import Segment, TransferEngine

__all__ = ["Peer"]

CONNECT_TIMEOUT_MS = 5000
MAP_TIMEOUT_MS = 5000
MAP_INTERVAL_S = 0.05
"""Between two looks at which pieces a source has that is not whole itself."""


class Peer:
    """One source. Threads of one fetch use it; what is counted is guarded by the fetch."""

    def __init__(
        self,
        engine: TransferEngine,
        source: Source,
        piece_count: int,
        before: Peer | None = None,
    ) -> None:
        self.source = source
        self.layout = Layout(source.spans)
        self.is_lost = False
        self.why_lost = ""
        self.bad_count: int = before.bad_count if before is not None else 0
        """Pieces from it that did not match their checksum."""
        self.tries: int = before.tries + 1 if before is not None else 1
        """How often it was begun with."""
        self._engine = engine
        self._opening = threading.Lock()
        self._segment: Segment | None = None
        self._is_closed = False
        self._pieces = np.full(piece_count, source.is_whole, np.uint8)
        self._looked_s = float("-inf")

    def open(self, timeout_ms: int) -> Segment:
        """Connect, or return the connection.

        Raises:
            UnavailableError, TimeoutError_: It does not answer, another process listens there, or
                it was closed meanwhile.
        """
        with self._opening:
            if self._segment is None and not self._is_closed:
                self._segment = self._connect(max(1, min(timeout_ms, CONNECT_TIMEOUT_MS)))
            if self._is_closed:
                self._hang_up()
            if self._segment is None:
                raise UnavailableError("the fetch is over")
            return self._segment

    def _connect(self, timeout_ms: int) -> Segment:
        segment = self._engine.open(self.source.address, timeout_ms=timeout_ms)
        try:
            epoch = segment.describe(timeout_ms=timeout_ms)["epoch"]
            if epoch != self.source.epoch:
                raise UnavailableError(f"another process listens at {self.source.address} now")
        except BaseException:
            segment.close()
            raise
        return segment

    def has(self, piece: int) -> bool:
        """Return whether it had the piece when it was looked at last."""
        return bool(self._pieces[piece])

    def look(self, timeout_ms: int) -> None:
        """Ask a source that is not whole which pieces it has, if the last look is not recent.

        Raises:
            UnavailableError, TimeoutError_, InvalidArgumentError: It is gone.
        """
        now_s = time.monotonic()
        if self.source.is_whole or now_s - self._looked_s < MAP_INTERVAL_S:
            return
        self._looked_s = now_s  # Two threads that look at the same time do no harm.
        pieces = np.zeros_like(self._pieces)
        self.open(timeout_ms).read(
            pieces, self.source.map_address, timeout_ms=max(1, min(timeout_ms, MAP_TIMEOUT_MS))
        )
        self._pieces = pieces

    def close(self) -> bool:
        """Close the connection for good: what moves over it fails. Blocks until nothing does.

        Returns:
            False: somebody is connecting, and closes it as soon as that is over.
        """
        self._is_closed = True
        if not self._opening.acquire(blocking=False):
            # Who connects looks whether it was closed after it has set the segment.
            if self._segment is None:
                return False
            self._opening.acquire()
        try:
            self._hang_up()
        finally:
            self._opening.release()
        return True

    def _hang_up(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()
