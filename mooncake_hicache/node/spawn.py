"""Find the node of this machine, or start it: exactly one, however many processes ask at once.

A client first simply connects. Only when nothing answers it takes the start lock, and whoever holds
that lock decides alone: connect once more, start a node if no process holds the node lock, or
replace the one that holds it and does not answer. The others go on trying to connect meanwhile, so
all of them are served as soon as the node is ready.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mooncake_hicache import errors
from mooncake_hicache.config import NodeOptions, StoreOptions, environment_name
from mooncake_hicache.errors import (
    BusyError,
    InternalError,
    TimeoutError_,
    TransientError,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.node.paths import NodePaths, cannot_log, node_paths
from mooncake_hicache.node.state import NodeState, hold_lock, is_locked, read_state

__all__ = ["Connect", "find_or_start", "start_detached"]

_log = logging.getLogger(__name__)

Connect = Callable[[str, int], None]
"""`connect(socket_path, timeout_ms)`: returns once a node has answered, raises otherwise."""

RETRY_S = 0.02
LAST_ASK_MS = 100
CANCEL_LOOK_MS = 100
LOG_TAIL_SIZE_BYTES = 2000
LOG_SIZE_MAX_BYTES = 8 << 20
KILL_WAIT_S = 10.0


def find_or_start(
    options: StoreOptions,
    connect: Connect,
    *,
    cancelled: threading.Event | None = None,
) -> None:
    """Connect to the node, starting or replacing it if need be and if the options allow it.

    Blocks for at most `start_timeout_ms`, or until `cancelled` is set. Any thread may call, several
    at once too.

    Raises:
        BusyError: The node has as many clients as it takes.
        UnavailableError: No node answers, and none may be started, or it ended while starting.
        TimeoutError_: The node did not become ready in time.
        InvalidArgumentError, NoSpaceError, IoError, UnsupportedError: The node refuses to start
            with these options on this machine, or the folder is not private.
    """
    may_start = options.autostart and not options.socket
    paths = node_paths(options, create=may_start)
    finder = _Finder(options, paths, connect, cancelled or threading.Event())
    if not may_start:
        finder.connect_only()
        return
    finder.run()


class _Finder:
    """One search with one deadline."""

    def __init__(
        self, options: StoreOptions, paths: NodePaths, connect: Connect, cancelled: threading.Event
    ) -> None:
        self._options = options
        self._paths = paths
        self._connect = connect
        self._cancelled = cancelled
        self._deadline = time.monotonic() + options.start_timeout_ms / 1000
        self._suspect: NodeState | None = None
        self._suspect_since = 0.0

    def connect_only(self) -> None:
        try:
            self._connect(self._paths.socket, self._options.node_unresponsive_ms)
        except TransientError as error:
            raise UnavailableError(
                f"no node answers at {self._paths.socket} ({error}), and none is started because "
                + ("socket is set" if self._options.socket else "autostart is off")
                + ": start one with `mooncake-hicache node`"
            ) from None

    def run(self) -> None:
        while True:
            self._suspect, self._suspect_since = read_state(self._paths.state), time.monotonic()
            if self._try_connect(self._options.node_unresponsive_ms):
                return
            with hold_lock(self._paths.start_lock) as is_ours:
                if is_ours:
                    self._start_or_replace()
                    return
            self._pause("another process is starting the node")

    def _remaining_ms(self) -> int:
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def _try_connect(self, timeout_ms: int) -> bool:
        try:
            self._connect(self._paths.socket, max(1, min(timeout_ms, self._remaining_ms())))
        except BusyError:
            raise  # An answer: it lives, and wants no more of us for now.
        except TransientError:
            return False
        return True

    def _pause(self, what: str) -> None:
        if self._cancelled.wait(RETRY_S):
            raise UnavailableError(f"gave up while {what}: the store was closed")
        if self._remaining_ms() == 0:
            raise TimeoutError_(
                f"no node answered at {self._paths.socket} within start_timeout_ms "
                f"{self._options.start_timeout_ms}, while {what}: see {self._paths.log}"
            )

    def _start_or_replace(self) -> None:
        """Runs in the one process that holds the start lock."""
        if is_locked(self._paths.node_lock) and self._outlive_or_kill():
            return
        start_detached(self._options, timeout_ms=self._remaining_ms(), cancelled=self._cancelled)
        while not self._try_connect(self._options.node_unresponsive_ms):
            self._pause("the node that was just started does not answer")

    def _outlive_or_kill(self) -> bool:
        """Deal with a process that holds the node lock.

        Returns:
            True once it has answered, False once it is gone.
        """
        began = time.monotonic()
        while is_locked(self._paths.node_lock):
            state = read_state(self._paths.state)
            if state is not None and state == self._suspect:
                began = min(began, self._suspect_since)
            # One that saves its pages before it ends serves like any other: asked, it answers.
            is_starting = state is None or state.phase == "starting"
            patience_ms = (
                self._options.start_timeout_ms
                if is_starting
                else self._options.node_unresponsive_ms
            )
            left_ms = patience_ms - int((time.monotonic() - began) * 1000)
            # Asked at least once under the lock: somebody else may have replaced the node
            # meanwhile.
            if self._try_connect(max(LAST_ASK_MS, left_ms)):
                return True
            if time.monotonic() - began >= patience_ms / 1000:
                if _turns_clients_away(self._paths.socket):
                    raise BusyError(
                        f"the node at {self._paths.socket} turns clients away: it has as many as "
                        f"clients_max ({environment_name('clients_max')}) allows"
                    )
                self._kill(state, patience_ms)
                return False
            self._pause("a node that holds the lock does not answer")
        return False

    def _kill(self, state: NodeState | None, patience_ms: int) -> None:
        lock = self._paths.node_lock
        if state is None or not state.send(signal.SIGKILL):
            if not is_locked(lock):
                return
            raise UnavailableError(
                f"a process holds {lock} and does not answer at {self._paths.socket}, and it is "
                "not the one "
                f"that {self._paths.state} names: find it with `fuser {lock}` and end it"
            )
        _log.warning(
            "node %d did not answer for %d ms: killed, a new one is started", state.pid, patience_ms
        )
        # The kernel may take a while to free a large pool; the lock goes when it has.
        give_up = time.monotonic() + KILL_WAIT_S
        while is_locked(lock):
            if time.monotonic() > give_up:
                raise UnavailableError(
                    f"node {state.pid} was killed and still holds {lock} after {KILL_WAIT_S:.0f} s"
                )
            self._pause("the node that was killed does not go")


def _turns_clients_away(path: str) -> bool:
    """Return whether somebody takes a connection and closes it at once: a sign of life."""
    if path.startswith("@"):
        path = "\0" + path[1:]
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(LAST_ASK_MS / 1000)
        try:
            probe.connect(path)
            return probe.recv(1) == b""
        except OSError:
            return False


def start_detached(
    options: NodeOptions, *, timeout_ms: int, cancelled: threading.Event | None = None
) -> None:
    """Start a node in a process of its own that outlives this one; return when it answers.

    The process has its own session, no terminal, none of our files, and is no child of ours:
    engines end by killing all their children, and the node is to outlive them. Blocks for at most
    `timeout_ms`, or until `cancelled` is set; the node may come up all the same.

    Raises:
        BusyError: A node holds the lock already.
        TimeoutError_: The node is not ready in time; it may still become so.
        UnavailableError: The node ended while starting; the message holds the end of its log.
        InvalidArgumentError, NoSpaceError, IoError, UnsupportedError: The node refused its options.
    """
    if not sys.executable:
        raise UnsupportedError(
            "cannot start a node: sys.executable is empty in this interpreter; run "
            "`mooncake-hicache node`"
        )
    paths = node_paths(options, create=True)
    values = {name: getattr(options, name) for name in NodeOptions.model_fields}
    with _open_log(paths.log) as log:
        reader, writer = os.pipe()
        try:
            command = [sys.executable, "-m", "mooncake_hicache.node", "--detached", str(writer)]
            process = subprocess.Popen(
                [*command, json.dumps(values)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                cwd=paths.folder,
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise UnavailableError(f"cannot start a node with {sys.executable}: {error}") from None
        finally:
            os.close(writer)
    try:
        answer = _read_line(reader, timeout_ms, cancelled or threading.Event())
    finally:
        os.close(reader)
        # The process forks at once and this first one ends; reap it whatever happened.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
    _raise_unless_ready(answer, paths, timeout_ms)


def _open_log(path: Path) -> BinaryIO:
    try:
        if path.exists() and path.stat().st_size > LOG_SIZE_MAX_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_log(path, error) from None
    return os.fdopen(descriptor, "ab")


def _read_line(reader: int, timeout_ms: int, cancelled: threading.Event) -> bytes | None:
    """Return what the node reported; empty if it ended before, None if it took too long."""
    deadline = time.monotonic() + timeout_ms / 1000
    # Not select(): an engine's descriptors go beyond its 1024.
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        left_ms = int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0 or cancelled.is_set():
            return None
        if not poller.poll(min(left_ms, CANCEL_LOOK_MS)):
            continue
        piece = os.read(reader, 65536)
        if not piece:
            break
        line += piece
    return line


def _raise_unless_ready(answer: bytes | None, paths: NodePaths, timeout_ms: int) -> None:
    if answer is None:
        raise TimeoutError_(f"the node was not ready within {timeout_ms} ms: see {paths.log}")
    if not answer.endswith(b"\n"):
        raise UnavailableError(f"the node ended while starting: {_log_tail(paths.log)}")
    report = json.loads(answer)
    if report["error"] == "":
        return
    kind = getattr(errors, report["error"], InternalError)
    raise kind(report["message"])


def _log_tail(path: Path) -> str:
    try:
        text = path.read_bytes()[-LOG_TAIL_SIZE_BYTES:].decode(errors="replace")
    except OSError as error:
        return f"and its log {path} cannot be read ({error.strerror})"
    return f"the end of {path} is:\n{text}"
