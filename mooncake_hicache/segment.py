"""What a transfer engine opens: a peer's segment, and batches of requests to it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache._core import Code
from mooncake_hicache._core import TransferEngine as CoreEngine
from mooncake_hicache.arguments import milliseconds, uint64_array
from mooncake_hicache.buffers import spans_of
from mooncake_hicache.errors import (
    CLASS_BY_CODE_NAME,
    ClosedError,
    Error,
    InvalidArgumentError,
    NotFoundError,
)
from mooncake_hicache.transfer_core import Gone, number_of

if TYPE_CHECKING:
    from mooncake_hicache.transfer import TransferEngine

__all__ = ["Batch", "Segment"]

Addresses = npt.NDArray[np.uint64] | Sequence[int]
"""Addresses or sizes: a uint64 array, which is taken as it is, or a list of integers."""

# As long as the core waits at once: signals such as Ctrl-C are seen in between.
_WAIT_MS = 500


class Segment:
    """A peer's registered memory, opened with `TransferEngine.open`.

    Safe to use from many threads. A peer that dies stays dead: every call raises
    `UnavailableError`, and opening the address again finds whoever listens there then.
    """

    def __init__(self, engine: TransferEngine, number: int, address: str) -> None:
        """Use `TransferEngine.open`."""
        self._engine = engine
        self._number = number
        self._address = address
        self._is_closed = False

    @property
    def address(self) -> str:
        """The address that was opened."""
        return self._address

    @property
    def number(self) -> int:
        """The engine's number for this peer, for the functions of `_core`."""
        return self._number

    @property
    def is_lost(self) -> bool:
        """Whether the peer is known to be gone: only opening it again can help. Asks nobody."""
        return self._core.is_lost(self._number)

    def read(
        self,
        local: Any,
        remote_address: int,
        size: int | None = None,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
    ) -> None:
        """Read the peer's memory into local memory. Blocks until it is there.

        Args:
            local: A buffer that is filled whole, or the address of memory; it need not be
                registered but for RDMA, which is not used then.
            remote_address: Where the peer's memory begins.
            size: Bytes, if `local` is an address.
            timeout_ms: Milliseconds; by default the option `timeout_ms`.
            background: What is urgent goes first.

        Raises:
            InvalidArgumentError: The peer has not registered that range.
            UnavailableError: The peer is gone, or no path to it works.
            TimeoutError_: The deadline passed.
            CorruptError: The bytes arrived damaged again and again.
            BusyError: Too much is queued for this peer.
        """
        self._transfer_one(False, local, remote_address, size, timeout_ms, background)

    def write(
        self,
        local: Any,
        remote_address: int,
        size: int | None = None,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
    ) -> None:
        """Write local memory to the peer's. When this returns, the peer can read it there.

        After an error the range may hold anything. Arguments and errors are those of `read`; a
        range that the peer registered for reading only is refused.
        """
        self._transfer_one(True, local, remote_address, size, timeout_ms, background)

    def read_batch(
        self,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
    ) -> None:
        """Read many ranges at once. Blocks until all are there, or one has failed.

        Args:
            local_addresses: Where each goes.
            remote_addresses: Where each is.
            sizes: How many bytes each has.
            timeout_ms: As in `read`.
            background: As in `read`.

        Raises:
            Error: As `read`.
        """
        self._transfer(False, local_addresses, remote_addresses, sizes, timeout_ms, background)

    def write_batch(
        self,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
    ) -> None:
        """Write many ranges at once: as `read_batch`, the other way."""
        self._transfer(True, local_addresses, remote_addresses, sizes, timeout_ms, background)

    def submit_read(
        self,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
        keep: object = None,
    ) -> Batch:
        """Begin to read many ranges, and return at once.

        Args:
            local_addresses: Where each goes. The memory must stay until the batch is released.
            remote_addresses: Where each is.
            sizes: How many bytes each has.
            timeout_ms: The batch's; as in `read`.
            background: As in `read`.
            keep: What holds the memory: kept alive until the batch is released.

        Raises:
            InvalidArgumentError, UnavailableError, BusyError: As `read`; nothing was begun.
        """
        return self._submit(
            False, local_addresses, remote_addresses, sizes, timeout_ms, background, keep
        )

    def submit_write(
        self,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        *,
        timeout_ms: int | None = None,
        background: bool = False,
        keep: object = None,
    ) -> Batch:
        """Begin to write many ranges, and return at once: as `submit_read`, the other way."""
        return self._submit(
            True, local_addresses, remote_addresses, sizes, timeout_ms, background, keep
        )

    def describe(self, *, timeout_ms: int | None = None) -> dict[str, Any]:
        """Return what the peer has registered now: `name`, `epoch`, `version`, `buffers`.

        Raises:
            UnavailableError, TimeoutError_: The peer does not answer.
        """
        return self._core.describe(self._number, self._engine._timeout(timeout_ms))

    def probe(self, *, timeout_ms: int | None = None) -> None:
        """Ask whether the peer answers.

        Raises:
            UnavailableError, TimeoutError_: It does not.
        """
        self._core.probe(self._number, self._engine._timeout(timeout_ms))

    def notify(self, name: str, message: str, *, timeout_ms: int | None = None) -> None:
        """Leave a message that the peer's `take_notices` returns, after what was moved before.

        Raises:
            UnavailableError, TimeoutError_: The peer does not answer.
            InvalidArgumentError: The message is longer than about 64 KiB.
        """
        self._core.notify(self._number, name, message, self._engine._timeout(timeout_ms))

    def close(self) -> None:
        """Close the connection, if nobody else has opened it. Its batches fail.

        Blocks until none of their bytes is in flight. May be called again.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(ClosedError):  # The engine has closed it.
            self._core.close_segment(self._number)

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Segment {self._address}{' closed' if self._is_closed else ''}>"

    @property
    def _core(self) -> CoreEngine | Gone:
        return self._engine._core

    def _transfer_one(
        self,
        write: bool,
        local: Any,
        remote_address: int,
        size: int | None,
        timeout_ms: int | None,
        background: bool,
    ) -> None:
        held: object = None
        if isinstance(local, (int, np.integer)):
            if size is None:
                raise InvalidArgumentError("local is an address: give the size in bytes too")
            address = number_of("local", local)
        else:
            spans = spans_of([local], writable=not write)
            held = spans.held
            address = int(spans.addresses[0, 0])
            own_size = int(spans.sizes[0, 0])
            if size is None:
                size = own_size
            if size > own_size:
                raise InvalidArgumentError(f"size is {size}, and local has {own_size} bytes")
        self._core.transfer_one(
            self._number,
            write,
            address,
            number_of("remote_address", remote_address),
            number_of("size", size),
            background,
            self._engine._timeout(timeout_ms),
        )
        del held

    def _transfer(
        self,
        write: bool,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        timeout_ms: int | None,
        background: bool,
    ) -> None:
        self._core.transfer(
            self._number,
            write,
            uint64_array("local_addresses", local_addresses),
            uint64_array("remote_addresses", remote_addresses),
            uint64_array("sizes", sizes),
            background,
            self._engine._timeout(timeout_ms),
        )

    def _submit(
        self,
        write: bool,
        local_addresses: Addresses,
        remote_addresses: Addresses,
        sizes: Addresses,
        timeout_ms: int | None,
        background: bool,
        keep: object,
    ) -> Batch:
        number = self._core.submit(
            self._number,
            write,
            uint64_array("local_addresses", local_addresses),
            uint64_array("remote_addresses", remote_addresses),
            uint64_array("sizes", sizes),
            background,
            self._engine._timeout(timeout_ms),
        )
        return Batch(self._engine, number, keep)


class Batch:
    """Requests that were begun together. Release it, or use it in a `with` statement.

    A batch that is forgotten without being released is released when it is collected, which then
    blocks as `release` does.
    """

    def __init__(self, engine: TransferEngine, number: int, keep: object) -> None:
        """Use `Segment.submit_read` and `Segment.submit_write`."""
        self._engine = engine
        self._number: int | None = number
        self._keep = keep
        self._bytes_done = 0

    @property
    def number(self) -> int:
        """The engine's number for this batch, for the functions of `_core`.

        Raises:
            NotFoundError: It was released.
        """
        if self._number is None:
            raise NotFoundError("this batch was released")
        return self._number

    @property
    def bytes_done(self) -> int:
        """The bytes that have been moved so far; after `release`, as of then."""
        if self._number is not None:
            self._bytes_done = self._core.poll(self._number)[1]
        return self._bytes_done

    def poll(self) -> bool:
        """Return whether all of it is done. Does not block.

        Raises:
            Error: It is done, and something failed: as `Segment.read`.
            NotFoundError: It was released.
        """
        return self._outcome(self._core.poll(self.number))

    def wait(self, *, timeout_ms: int | None = None) -> bool:
        """Block until it is done (True) or the time-out (False), after which it goes on.

        Args:
            timeout_ms: Milliseconds. None: until it is done, which its own time-out bounds.

        Raises:
            Error: It is done, and something failed: as `Segment.read`.
            NotFoundError: It was released.
        """
        if timeout_ms is not None:
            timeout_ms = milliseconds("timeout_ms", timeout_ms)
            return self._outcome(self._core.wait(self.number, timeout_ms))
        while not self._outcome(self._core.wait(self.number, _WAIT_MS)):
            pass
        return True

    def release(self) -> None:
        """Forget it; what still runs is cancelled. May be called again.

        Blocks until nothing of it is in flight, which its own time-out bounds.
        """
        number = self._number
        if number is None:
            return
        # After the engine was closed nothing is in flight any more.
        with contextlib.suppress(ClosedError, NotFoundError):
            self._bytes_done = self._core.poll(number)[1]
            self._core.release(number)
        self._number = None
        self._keep = None

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_number", None) is not None:
            self.release()

    def __repr__(self) -> str:
        return "<Batch released>" if self._number is None else f"<Batch {self._number:#x}>"

    @property
    def _core(self) -> CoreEngine | Gone:
        return self._engine._core

    @staticmethod
    def _outcome(state: tuple[bool, int, Code, str]) -> bool:
        is_done, _, code, message = state
        if is_done and code != Code.OK:
            raise CLASS_BY_CODE_NAME.get(code.name, Error)(message)
        return is_done
