"""The transfer engine: memory moves between processes and machines, one-sided.

    >>> import numpy as np
    >>> from mooncake_hicache import TransferEngine
    >>> with TransferEngine() as server, TransferEngine() as client:
    ...     memory = np.arange(1024, dtype=np.uint8)
    ...     address = server.register(memory)
    ...     segment = client.open(server.address)
    ...     here = bytearray(4)
    ...     segment.read(here, address + 100)
    ...     segment.write(b"hello", address)
    >>> here, memory[:5].tobytes()
    (bytearray(b'defg'), b'hello')

One process registers memory and tells others two numbers: the address of its engine and the address
of the memory. They read and write it without its help: through shared memory on the same machine,
by RDMA, or over TCP. What is not registered cannot be touched, and engines that do not know the
same secret do not talk.

When a call returns or raises, nothing of it is in flight in the caller's memory any more.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import weakref
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mooncake_hicache import _core
from mooncake_hicache.arguments import milliseconds
from mooncake_hicache.buffers import spans_of
from mooncake_hicache.config import TransferOptions
from mooncake_hicache.errors import TimeoutError_
from mooncake_hicache.segment import Batch, Segment
from mooncake_hicache.transfer_core import (
    Gone,
    address_of,
    core_options,
    host_port,
    number_of,
    public_host,
)

__all__ = ["Batch", "Notice", "Segment", "TransferEngine"]

_log = logging.getLogger(__name__)

_living: weakref.WeakSet[TransferEngine] = weakref.WeakSet()

# Buffers of closed engines that a stopped process may still touch.
_touched: list[dict[int, object]] = []


class Notice(NamedTuple):
    """A message that a peer left."""

    sender: str
    """The name of the peer's segment."""
    name: str
    message: str


class TransferEngine:
    """Registers memory for peers, and opens theirs.

    Safe to use from many threads; calls that move bytes release the GIL. Not usable after `fork()`:
    make another one in the child.
    """

    def __init__(self, options: TransferOptions | None = None, **overrides: Any) -> None:
        """Start an engine: it listens from now on.

        Args:
            options: Where and how; by default from the environment and the options file.
            **overrides: Single options, by name: `TransferEngine(host="0.0.0.0")`.

        Raises:
            InvalidArgumentError: An option is unknown or does not fit.
            UnsupportedError: None of the transports can run here.
            IoError: The port is taken, or the secret cannot be read.
        """
        self._options = (options or TransferOptions()).replaced(**overrides)
        self._core: _core.TransferEngine | Gone = _core.TransferEngine(core_options(self._options))
        self._name = self._core.name
        self._port, self._epoch = self._core.port, self._core.epoch
        host = public_host(self._options.host, self._options.public_host)
        self._address = host_port(host, self._port)
        self._notices = list(self._core.notices)
        for notice in self._notices:
            _log.info("%s", notice)
        self._registered: dict[int, object] = {}
        self._close_lock = threading.Lock()
        _living.add(self)

    @property
    def options(self) -> TransferOptions:
        """The options this engine was started with."""
        return self._options

    @property
    def name(self) -> str:
        """The name of this engine's segment."""
        return self._name

    @property
    def address(self) -> str:
        """What peers open: "host:port"."""
        return self._address

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def epoch(self) -> int:
        """The number of this incarnation, drawn at its start: another process that listens at the
        same address has another one."""
        return self._epoch

    @property
    def notices(self) -> list[str]:
        """What was asked for and could not be had: transports that do not run on this machine."""
        return list(self._notices)

    # ---- memory

    def register(self, buffer: Any, *, location: str = "*", writable: bool = True) -> int:
        """Make a buffer reachable for peers, and return its address.

        The buffer is kept alive until it is unregistered. Blocks while it is pinned, where there is
        RDMA: about 0.3 s per GiB.

        Args:
            buffer: Contiguous memory: an array, a bytearray, a CPU tensor.
            location: The place of the memory ("cpu:0"), for choosing rails; "*": not known.
            writable: Peers may write to it, and not only read.

        Raises:
            InvalidArgumentError: It is no such buffer.
            AlreadyExistsError: It overlaps what is registered.
            NoSpaceError: It cannot be pinned, or too many buffers are registered.
        """
        spans = spans_of([buffer], writable=writable)
        address, size = int(spans.addresses[0, 0]), int(spans.sizes[0, 0])
        self._core.register_memory(address, size, location, writable)
        self._registered[address] = spans.held
        return address

    def register_memory(
        self, address: int, size: int, *, location: str = "*", writable: bool = True
    ) -> None:
        """Make memory reachable that this process keeps mapped until it is unregistered.

        Args:
            address: Where it begins.
            size: In bytes.
            location: As in `register`.
            writable: As in `register`.

        Raises:
            InvalidArgumentError, AlreadyExistsError, NoSpaceError: As `register`.
        """
        self._core.register_memory(
            number_of("address", address), number_of("size", size), location, writable
        )

    def unregister(self, buffer: Any) -> None:
        """End that. Once this returns no peer touches the memory any more.

        Args:
            buffer: What was registered, or its address.

        Raises:
            NotFoundError: It is not registered.
            TimeoutError_: A process of this machine was stopped in the middle of touching it; the
                message says which. The memory stays alive; try again once that process goes on.
        """
        address = address_of(buffer)
        self._core.unregister_memory(address)
        self._registered.pop(address, None)

    def allocate(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return new registered memory that peers on this machine map, and so reach fastest.

        It stays until `free`, or until both the engine and the array are gone. Blocks for about
        0.5 s per GiB.

        Raises:
            NoSpaceError: There is no memory for it.
        """
        return self._core.allocate_memory(number_of("size_bytes", size_bytes))

    def free(self, array: npt.NDArray[np.uint8]) -> None:
        """Give back what `allocate` returned. Nothing may look at the array any more.

        Raises:
            NotFoundError: It does not begin where allocated memory begins.
            TimeoutError_: As in `unregister`; the array stays.
        """
        self._core.free_memory(address_of(array))

    # ---- peers

    def open(self, address: str, *, timeout_ms: int | None = None) -> Segment:
        """Connect to the engine at an address. Opened twice, both segments share the connection.

        Args:
            address: "host:port", as that engine's `address` says.
            timeout_ms: Milliseconds; by default the option `timeout_ms`.

        Raises:
            InvalidArgumentError: That is no address, or there is no such host.
            UnavailableError: Nobody answers there, or it does not know the secret.
            TimeoutError_: It did not answer in time.
        """
        number = self._core.open_segment(address, self._timeout(timeout_ms))
        return Segment(self, number, address)

    def take_notices(self) -> list[Notice]:
        """Return the messages that peers have left since the last call, oldest first.

        At most 4096 wait; the oldest go first.
        """
        return [Notice(*notice) for notice in self._core.take_notices()]

    def set_topology(self, text: str) -> None:
        """Prefer rails that are near to the memory they move, from now on.

        Args:
            text: JSON as `mooncake-hicache topology --json` prints it, or the original's form.
                Empty: rails are chosen by what is measured alone.

        Raises:
            InvalidArgumentError: It is no topology; the message says where and why.
        """
        self._core.set_topology(text)

    def stats(self) -> dict[str, Any]:
        """Return what is counted: peers, paths with health, cost and bytes, transports."""
        return self._core.stats()

    # ---- end

    def close(self) -> None:
        """End everything: batches fail with `ClosedError`, peers see that this engine is gone.

        Blocks until no byte is in flight, for a second or so. May be called again.

        A process of this machine that was stopped in the middle of reading or writing registered
        memory may go on with that later: then a warning names it, and the buffers that `register`
        took are kept alive as long as this process.
        """
        with self._close_lock:
            _living.discard(self)
            # Stopped first: whoever finds it gone may rely on nothing being in flight any more.
            if isinstance(self._core, _core.TransferEngine):
                try:
                    self._core.stop()
                except TimeoutError_ as error:
                    _log.warning("closing the transfer engine %s: %s", self._name, error)
                    _touched.append(dict(self._registered))
            self._core = Gone("this transfer engine is closed")
            self._registered.clear()

    def __enter__(self) -> TransferEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if isinstance(self._core, Gone) else ""
        return f"<TransferEngine {self._name} at {self._address}{state}>"

    def _timeout(self, timeout_ms: int | None) -> int:
        if timeout_ms is None:
            return self._options.timeout_ms
        return milliseconds("timeout_ms", timeout_ms)

    def _abandon_after_fork(self) -> None:
        """Runs in a forked child, which has the objects and the sockets but none of the threads."""
        # Never destroyed: that would wait for threads which do not exist here.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._core))
        self._close_lock = threading.Lock()  # Another thread may have held it at the fork.
        self._core = Gone(
            f"this transfer engine was started in process {os.getppid()} and is used in its child "
            f"{os.getpid()} after fork(): start a new one in the child"
        )


def _abandon_all_after_fork() -> None:
    for engine in list(_living):
        engine._abandon_after_fork()
    _living.clear()


def _close_all_at_exit() -> None:
    for engine in list(_living):
        engine.close()


atexit.register(_close_all_at_exit)
os.register_at_fork(after_in_child=_abandon_all_after_fork)
