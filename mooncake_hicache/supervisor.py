"""Keeps a client connected: finds, starts and restarts the node in the background.

One daemon thread per store. It sleeps in the core while the connection lives, so it costs nothing;
when the connection breaks it searches at once, then at growing intervals. Calls never wait for it:
without a connection they are misses.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from mooncake_hicache import _core
from mooncake_hicache.errors import Error, InternalError, TimeoutError_, TransientError

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

WAIT_MS = 60_000
RETRY_FIRST_S = 0.05
RETRY_TRANSIENT_MAX_S = 2.0
RETRY_PERMANENT_S = 30.0
JOIN_TIMEOUT_S = 5.0


class Supervisor:
    """The thread that keeps one client connected.

    Args:
        client: Whose connection is kept.
        connect: Connects the client, starting a node if it may; blocks for a bounded time, and
            gives up early once the event is set.
    """

    def __init__(self, client: _core.Client, connect: Callable[[threading.Event], None]) -> None:
        self._client = client
        self._connect = connect
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._attempts = 0
        self._failure: Error | None = None
        self._thread = threading.Thread(
            target=self._run, name="mooncake-hicache-supervisor", daemon=True
        )

    def start(self) -> None:
        """Start the thread; it connects at once."""
        self._thread.start()

    def wait_connected(self, timeout_ms: int | None) -> Error | None:
        """Block until connected, until it is clear that this fails, or until the time is over.

        Args:
            timeout_ms: Try again and again until then; None: the first attempt decides.

        Returns:
            None once connected, otherwise why not.
        """
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        with self._changed:
            while True:
                if self._attempts > 0:
                    failure = self._failure
                    is_final = not isinstance(failure, TransientError) or deadline is None
                    if failure is None or is_final:
                        return failure
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return self._failure or TimeoutError_(
                        f"no node answered within {timeout_ms} ms; the search goes on"
                    )
                self._changed.wait(left)

    def stop_trying(self) -> None:
        """Tell the thread to end. Closing the client then wakes it. Does not block."""
        self._closing.set()

    def join(self) -> None:
        """Wait for the thread to end, a few seconds at most, and let go of the client."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT_S)
        if not self._thread.is_alive():
            del self._client, self._connect

    def _run(self) -> None:
        retry_s = RETRY_FIRST_S
        while not self._closing.is_set():
            failure = self._try_connect()
            self._settle(failure)
            if failure is None:
                retry_s = RETRY_FIRST_S
                self._sleep_while_connected()
            else:
                # Ranks that lost the same node should not all come back in the same instant.
                is_transient = isinstance(failure, TransientError)
                pause_s = retry_s * random.uniform(0.5, 1.5) if is_transient else RETRY_PERMANENT_S
                retry_s = min(2 * retry_s, RETRY_TRANSIENT_MAX_S)
                self._closing.wait(pause_s)

    def _try_connect(self) -> Error | None:
        try:
            self._connect(self._closing)
        except Error as error:
            return error
        except Exception as error:  # noqa: BLE001 - see below
            # A bug must not end the thread silently: the store would be a miss for ever.
            _log.exception("connecting to the node failed in an unforeseen way")
            return InternalError(f"connecting to the node failed: {error!r}")
        return None

    def _settle(self, failure: Error | None) -> None:
        before = self._failure
        with self._changed:
            self._failure = failure
            self._attempts += 1
            is_first = self._attempts == 1
            self._changed.notify_all()
        if self._closing.is_set():
            return
        if failure is not None and str(failure) != str(before):
            _log.warning("no node, so every page is a miss: %s", failure)
        elif failure is None and not is_first:
            _log.info("connected to a node again")

    def _sleep_while_connected(self) -> None:
        while not self._closing.is_set():
            if self._client.wait_disconnected(WAIT_MS):
                if not self._closing.is_set():
                    _log.warning("lost the node: every page is a miss until one answers again")
                return
