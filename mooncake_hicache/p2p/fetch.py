"""One fetch: pieces from all sources at once, each verified, until all are there.

Two threads for each source take pieces that nobody has taken, read them, and verify them against
the catalogue's checksums; while one waits for bytes, the other verifies. A piece that fails goes to
another source; a source that dies, hangs or sends wrong bytes again and again is left out. New
sources are looked for meanwhile.

The thread that called waits, tells progress and decides how it ends. When `run` returns or raises,
no byte is in flight.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import (
    BusyError,
    ClosedError,
    CorruptError,
    Error,
    InternalError,
    TimeoutError_,
    UnavailableError,
)
from mooncake_hicache.p2p.memory import Layout, overlay
from mooncake_hicache.p2p.peer import Peer
from mooncake_hicache.p2p.records import Description, Source
from mooncake_hicache.transfer import TransferEngine

__all__ = ["Fetch", "Progress"]

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the bytes that are there and verified, and those of all."""

PEERS_MAX = 8
"""Sources read from at a time."""
THREADS_PER_PEER = 2
TRIES_MAX = 3
"""How often a source is begun with that was lost, and is in the catalogue still."""
BAD_MAX = 3
"""Wrong pieces after which a source is left out."""
STEP_S = 0.1
"""Between two looks at what can only be polled; threads wake each other otherwise."""
REFRESH_S, REFRESH_MIN_S = 2.0, 0.5
STALL_S = 5.0
"""Without any whole source: how long others may have nothing new before that is an error."""


class Fetch:
    """Reads what a description says into a layout. `run` once, by one thread.

    Args:
        engine: Whose transfers are used.
        description: What the bytes are.
        layout: Where they go.
        pieces: A byte for each piece, set to 1 once it is there: for readers of this process.
        refresh: Returns the sources that there are now; may raise `Error`.
        piece_timeout_ms: After so long without a piece that was asked for a source is left out.
        deadline: A time of `time.monotonic()`.
    """

    def __init__(
        self,
        engine: TransferEngine,
        description: Description,
        layout: Layout,
        pieces: npt.NDArray[np.uint8],
        refresh: Callable[[], Sequence[Source]],
        *,
        piece_timeout_ms: int,
        deadline: float,
    ) -> None:
        self._engine = engine
        self._description = description
        self._layout = layout
        self._pieces = pieces
        self._refresh = refresh
        self._piece_timeout_ms = piece_timeout_ms
        self._deadline = deadline
        self._changed = threading.Condition()
        order = list(range(len(description.checksums)))
        # Each reader in an order of its own, so that readers have different pieces to give.
        random.shuffle(order)
        self._todo = dict.fromkeys(order)
        self._moving: set[int] = set()
        self._bad: dict[int, set[str]] = {}
        self._peers: dict[str, Peer] = {}
        self._given: dict[str, int] = {}
        self._threads: list[tuple[Peer, list[threading.Thread]]] = []
        self._bytes_done = 0
        self._is_stopped = False
        self._failure: Error | None = None

    def run(self, sources: Sequence[Source], progress: Progress | None = None) -> dict[str, int]:
        """Fetch everything; return how many bytes each address gave.

        Raises:
            UnavailableError: No source is left that has what is missing.
            CorruptError: So it is, and one sent wrong bytes.
            TimeoutError_: The deadline passed.
            ClosedError: The engine was closed meanwhile.
        """
        told, moved = -1, 0
        refreshed_s = moved_s = time.monotonic()
        try:
            self._add(sources)
            while True:
                with self._changed:
                    if not self._is_over():
                        self._changed.wait(STEP_S)
                    done, now_s = self._bytes_done, time.monotonic()
                if done != told and progress is not None:
                    progress(done, self._description.size_bytes)
                    told = done
                if self._failure is not None:
                    raise self._failure
                if done == self._description.size_bytes:
                    return dict(self._given)
                if done != moved:
                    moved, moved_s = done, now_s
                if now_s >= self._deadline:
                    raise self._timeout()
                if now_s - refreshed_s >= (REFRESH_S if self._has_whole() else REFRESH_MIN_S):
                    refreshed_s = now_s
                    self._look_for_more()
                    self._give_up_if_hopeless(now_s - moved_s)
        finally:
            self._end()

    # ---- what the caller's thread does

    def _add(self, sources: Sequence[Source]) -> None:
        """Read from these too, as far as there is room: a whole one first, others at random."""
        with self._changed:
            new = [one for one in sources if self._is_worth_a_try(one)]
            living = sum(not peer.is_lost for peer in self._peers.values())
            random.shuffle(new)
            room = max(0, PEERS_MAX - living)
            if not self._has_whole():
                new.sort(key=lambda source: not source.is_whole)
                if new and new[0].is_whole:
                    room = max(1, room)
            for source in new[:room]:
                before = self._peers.get(source.id)
                peer = Peer(self._engine, source, len(self._pieces), before)
                self._peers[source.id] = peer
                threads = [
                    threading.Thread(
                        target=self._work, args=(peer,), name="hicache-p2p-fetch", daemon=True
                    )
                    for _ in range(THREADS_PER_PEER)
                ]
                self._threads.append((peer, threads))
                for thread in threads:
                    thread.start()

    def _is_worth_a_try(self, source: Source) -> bool:
        """Whether it is new; or was lost but is in the catalogue still, so that it may live."""
        peer = self._peers.get(source.id)
        if peer is None:
            return True
        return peer.is_lost and peer.bad_count < BAD_MAX and peer.tries < TRIES_MAX

    def _look_for_more(self) -> None:
        try:
            self._add(self._refresh())
        except Error as error:  # What is known may be enough.
            _log.debug("looking for more sources: %s", error)

    def _has_whole(self) -> bool:
        return any(peer.source.is_whole and not peer.is_lost for peer in self._peers.values())

    def _give_up_if_hopeless(self, idle_s: float) -> None:
        with self._changed:
            living = [peer for peer in self._peers.values() if not peer.is_lost]
            if self._moving or not self._todo or self._has_whole():
                return
            if living and idle_s < STALL_S:
                return
            lost = [peer for peer in self._peers.values() if peer.is_lost]
            said = "; ".join(f"{peer.source.address}: {peer.why_lost}" for peer in lost[:4])
            missing = len(self._todo)
            text = (
                f"{missing} of {len(self._pieces)} pieces of {self._name()} cannot be had: "
                + (f"{said or 'it has gone'}" if not living else "no source has all of it any more")
                + (f"; {said}" if living and said else "")
            )
            kind = CorruptError if any(peer.bad_count for peer in lost) else UnavailableError
        raise kind(text)

    def _timeout(self) -> TimeoutError_:
        lost = [peer for peer in self._peers.values() if peer.is_lost]
        said = "".join(f"; {peer.source.address}: {peer.why_lost}" for peer in lost[:4])
        return TimeoutError_(
            f"{self._bytes_done} of {self._description.size_bytes} bytes of {self._name()} were "
            f"there at the deadline, from {len(self._peers)} sources{said}; give it a longer "
            "timeout_ms"
        )

    def _name(self) -> str:
        return next((peer.source.name for peer in self._peers.values()), "it")

    def _end(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        for peer, threads in self._threads:
            # First the connection: a read from somebody who hangs would be waited for otherwise.
            # Who is still connecting finds that it is over; none of its bytes is under way.
            if peer.close():
                for thread in threads:
                    thread.join()

    # ---- what the threads of the sources do

    def _work(self, peer: Peer) -> None:
        try:
            peer.open(self._left_ms())
            while (piece := self._take(peer)) is not None:
                self._move(peer, piece)
        except ClosedError as error:
            self._fail(error)
        except Error as error:
            with self._changed:
                peer.is_lost = True
                peer.why_lost = peer.why_lost or str(error)
                self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised by the thread that called.
            self._fail(InternalError(f"a thread of the fetch failed: {error!r}"))

    def _take(self, peer: Peer) -> int | None:
        """Wait for a piece that this source can give; None: there will be none."""
        while True:
            with self._changed:
                if self._is_over() or peer.is_lost:
                    return None
                for piece in self._todo:
                    if peer.has(piece) and self._may_give(peer, piece):
                        del self._todo[piece]
                        self._moving.add(piece)
                        return piece
                self._changed.wait(STEP_S)
            peer.look(self._left_ms())

    def _may_give(self, peer: Peer, piece: int) -> bool:
        """Whether it has not failed at this piece, or everybody who has it failed too."""
        bad = self._bad.get(piece)
        if not bad or peer.source.id not in bad:
            return True
        return all(
            one.source.id in bad or one.is_lost or not one.has(piece)
            for one in self._peers.values()
        )

    def _move(self, peer: Peer, piece: int) -> None:
        """Read and verify a piece; what does not succeed is to do again."""
        piece_size = self._description.piece_size_bytes
        start = piece * piece_size
        end = min(start + piece_size, self._description.size_bytes)
        is_good = False
        try:
            if self._read(peer, start, end):
                checksum = self._layout.checksum(start, end)
                is_good = checksum == int(self._description.checksums[piece])
                if not is_good:
                    self._count_bad(peer, piece, "its bytes do not match their checksum")
        except CorruptError as error:
            self._count_bad(peer, piece, str(error))
        except BusyError:
            with self._changed:
                self._changed.wait(STEP_S)
        finally:
            with self._changed:
                self._moving.discard(piece)
                if is_good:
                    self._pieces[piece] = 1
                    self._bytes_done += end - start
                    address = peer.source.address
                    self._given[address] = self._given.get(address, 0) + end - start
                else:
                    self._todo[piece] = None
                self._changed.notify_all()

    def _read(self, peer: Peer, start: int, end: int) -> bool:
        """Read bytes; False if the fetch was stopped meanwhile."""
        timeout_ms = max(1, min(self._left_ms(), self._piece_timeout_ms))
        segment = peer.open(timeout_ms)
        ranges = overlay(self._layout, peer.layout, start, end)
        with segment.submit_read(*ranges, timeout_ms=timeout_ms) as batch:
            while not batch.wait(timeout_ms=int(STEP_S * 1000)):
                if self._is_stopped:
                    return False
        return True

    def _count_bad(self, peer: Peer, piece: int, why: str) -> None:
        with self._changed:
            self._bad.setdefault(piece, set()).add(peer.source.id)
            peer.bad_count += 1
            if peer.bad_count >= BAD_MAX and not peer.is_lost:
                peer.is_lost = True
                peer.why_lost = f"{peer.bad_count} pieces were wrong ({why})"
        _log.warning(
            "piece %d of %s from %s (%s) is wrong: %s",
            piece,
            peer.source.name,
            peer.source.address,
            peer.source.owner,
            why,
        )

    def _fail(self, error: Error) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _is_over(self) -> bool:
        is_done = not self._todo and not self._moving
        return is_done or self._is_stopped or self._failure is not None

    def _left_ms(self) -> int:
        return max(1, int((self._deadline - time.monotonic()) * 1000))
