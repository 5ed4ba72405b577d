"""The public API: open a store, get namespaces from it, move pages.

    >>> from mooncake_hicache import Store
    >>> with Store.open(in_process=True, pool_size="64MiB") as store:
    ...     pages = store.namespace({"model": "llama", "dtype": "bfloat16"})
    ...     pages.put("page-0", b"bytes of a page")
    ...     pages.get("page-0")
    True
    b'bytes of a page'

On a machine with a node, or where one may be started, `Store.open()` without anything is enough.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn, cast

from mooncake_hicache import _core
from mooncake_hicache.arguments import check_description_text, milliseconds
from mooncake_hicache.config import StoreOptions
from mooncake_hicache.errors import ClosedError, InvalidArgumentError, TransientError
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.node.engine import StartedEngine, engine_from_options, flush_engine
from mooncake_hicache.node.spawn import find_or_start
from mooncake_hicache.pages.namespace import namespace_digest, namespace_text
from mooncake_hicache.supervisor import Supervisor

__all__ = ["Namespace", "Store"]

_in_process_numbers = itertools.count(1)
_living: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """A connection to this machine's node, kept alive in the background.

    Opened with `Store.open`. Safe to use from many threads. Without a node every call is a miss at
    once; when the node comes back, or another is started, calls find it without being told. Not
    usable after `fork()`: open another one in the child.
    """

    def __init__(self, options: StoreOptions) -> None:
        """Use `Store.open`; this connects to nothing yet."""
        self._options = options
        client = _core.Client(
            copy_threads=options.copy_thread_count(),
            put_copy_threads=options.put_copy_thread_count(),
            call_timeout_ms=options.call_timeout_ms,
            verify=options.verify,
            name=f"pid {os.getpid()}",
            pool_contribution_bytes=options.pool_contribution_bytes(),
        )
        self._client: _core.Client | _Gone = client
        self._started: StartedEngine | None = None
        if options.in_process:
            name = f"@mooncake-hicache/{os.getpid()}/{next(_in_process_numbers)}"
            # Scripts and tests do not share a cache folder with the node of the machine.
            self._started = engine_from_options(options, name, automatic_ssd=False)
        self._connect_client = client.connect
        self._supervisor = Supervisor(client, self._connect)
        self._close_lock = threading.Lock()
        self._is_closed = False
        _living.add(self)

    @classmethod
    def open(
        cls, options: StoreOptions | None = None, *, wait_ms: int | None = None, **overrides: Any
    ) -> Store:
        """Open a store: connect to this machine's node, and start one if there is none.

        Args:
            options: Where and how; by default from the environment and the options file.
            wait_ms: Milliseconds to wait for a node, trying again until then. 0: return at once and
                connect in the background; calls are misses until then. None: wait for the outcome
                of one search, which ends within `start_timeout_ms`.
            **overrides: Single options, by name: `Store.open(pool_size="64GB")`.

        Raises:
            InvalidArgumentError: An option is unknown or does not fit.
            TransientError: No node answered in time.
            NoSpaceError, IoError, UnsupportedError: A node cannot run here with these options.
        """
        if wait_ms is not None:
            wait_ms = milliseconds("wait_ms", wait_ms)
        store = cls((options or StoreOptions()).replaced(**overrides))
        store._supervisor.start()
        if wait_ms == 0:
            return store
        failure = store._supervisor.wait_connected(wait_ms)
        if failure is not None:
            store.close()
            raise failure
        return store

    @property
    def options(self) -> StoreOptions:
        """The options this store was opened with."""
        return self._options

    @property
    def is_connected(self) -> bool:
        """Whether a node is connected now. Without one every call is a miss."""
        return self._client.is_connected()

    def namespace(self, description: Mapping[str, object] | str) -> Namespace:
        """Return the namespace with this description. Does not wait for a node.

        Args:
            description: Everything that makes two equal keys mean different bytes; a mapping of
                None, bool, int, str, lists and mappings, or a name.

        Raises:
            InvalidArgumentError: The description has a value of another kind, or text that has no
                UTF-8 form.
            ClosedError: The store is closed.
        """
        try:
            digest, text = namespace_digest(description), namespace_text(description)
        except TypeError as error:
            raise InvalidArgumentError(str(error)) from None
        check_description_text(text)
        return Namespace(self, self._client.open_namespace(digest, text), digest, text)

    def pin_pool(self, device: int) -> None:
        """Pin the node's memory for GPUs, in the background, for as long as this store is open.

        Copies between pages and memory of a GPU (`Namespace.get_into_addresses`, `put_from`) pin
        what they touch anyway; this spares the first of them some 60 ms per GiB.

        Args:
            device: The number of a CUDA device; what is pinned is pinned for all.

        Raises:
            UnsupportedError: This process does not use CUDA.
            IoError: The CUDA driver refuses.
        """
        self._client.pin_pool(device)

    def stats(self) -> dict[str, Any]:
        """Return what is counted: `{"client": {...}, "node": {...} or None without a node}`.

        Blocks for at most `call_timeout_ms`. The names are those of `mooncake_hicache.metrics`.
        """
        node: dict[str, Any] | None
        try:
            node = cast(dict[str, Any], self._client.node_stats())
        except TransientError:
            node = None
        return {"client": self._client.stats(), "node": node}

    def close(self) -> None:
        """Disconnect. Later calls raise `ClosedError`.

        Calls that are running are broken off, and this waits until they have returned: what they
        have not finished is misses. The node goes on, unless it lives in this process: then this
        also writes to SSD what is only in memory, for at most `flush_timeout_s`, if directories
        were named. May be called again, and from any thread. Blocks for the piece of a copy that
        is under way, and for a few seconds at most if a node is just being started.
        """
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closed = True
        _living.discard(self)
        client, self._client = self._client, _Gone("this store is closed")
        self._supervisor.stop_trying()
        client.close()
        self._supervisor.join()
        client.close()  # The supervisor may have connected once more before it looked.
        # Nothing keeps it now: it ends here with its threads, and not with some later collection of
        # garbage, which might happen in a forked child that has none of them.
        self._connect_client = _refuse
        # Forgotten too: its memory and the locks on its files go with the last reference.
        started, self._started = self._started, None
        if started is not None:
            flush_engine(started, self._options.flush_timeout_s)
            started.engine.stop()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._is_closed:
            return "<Store closed>"
        return f"<Store {'connected' if self.is_connected else 'not connected'}>"

    def _connect(self, cancelled: threading.Event) -> None:
        if self._options.in_process:
            started = self._started
            if started is None or started.engine.wait_stopped(0):
                raise ClosedError("the node in this process was stopped")
            self._connect_client(started.engine.socket_path, self._options.node_unresponsive_ms)
        else:
            find_or_start(self._options, self._connect_client, cancelled=cancelled)

    def _abandon_after_fork(self) -> None:
        """Runs in a forked child, which has the objects and the sockets but none of the threads."""
        # Never destroyed: that would wait for threads which do not exist here.
        for abandoned in (self._client, self._started):
            if abandoned is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(abandoned))
        self._is_closed = True
        self._close_lock = threading.Lock()  # Another thread may have held it at the fork.
        self._client = _Gone(
            f"this store was opened in process {os.getppid()} and is used in its child "
            f"{os.getpid()} after fork(): open a new store in the child"
        )
        self._started = None


def _refuse(socket_path: str, timeout_ms: int) -> None:
    raise ClosedError(f"the store was closed before it was connected to {socket_path}")


class _Gone:
    """Stands where the client was, once it must not be used any more."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise ClosedError(self._why)


def _abandon_all_after_fork() -> None:
    for store in list(_living):
        store._abandon_after_fork()
    _living.clear()


def _close_all_at_exit() -> None:
    # While there still is an interpreter: the supervisors and nodes in this process are threads.
    for store in list(_living):
        store.close()


atexit.register(_close_all_at_exit)
os.register_at_fork(after_in_child=_abandon_all_after_fork)
