"""The node as a process: options in, pool and socket up, HTTP beside it, until asked to stop or
idle; then what is only in memory goes to SSD.

It goes on serving while it does that: nobody waits for a node that is flushing, and an engine that
is just being started finds one that answers. A second signal ends it at once, and so does SIGQUIT.

Start-up is ordered for speed: the engine (`_core.Node`) answers clients before the HTTP library is
even imported. While nobody asks anything the process sleeps in the kernel; it wakes once a minute
to see whether it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from mooncake_hicache import _core
from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import BusyError, Error, InvalidArgumentError, UnavailableError
from mooncake_hicache.node.engine import StartedEngine, engine_from_options, engine_stats
from mooncake_hicache.node.last_work import DRAIN, FLUSH, LastWork, Task
from mooncake_hicache.node.paths import NodePaths, cannot_log, node_paths
from mooncake_hicache.node.state import (
    NodeState,
    Phase,
    hold_lock,
    lives_already,
    process_start_time,
    read_state,
)
from mooncake_hicache.units import format_duration_ms, format_size
from mooncake_hicache.version import __version__

__all__ = ["run", "run_from_json"]

_log = logging.getLogger("mooncake_hicache.node")

WAKE_MS = 5_000
"""How often to look for what went wrong, such as a disk that failed: the log tells."""
LOCK_TRIES = 10
LOCK_RETRY_S = 0.03
OOM_SCORE_ADJ = 500


def run_from_json(options_json: str, report_descriptor: int) -> int:
    """Run a detached node, reporting to its starter through a pipe; return the exit status."""
    if report_descriptor >= 0:
        _forget_the_starter()
    with _Report(report_descriptor) as report:
        return run(NodeOptions(**json.loads(options_json)), report)
    return 1


def run(options: NodeOptions, report: _Report | None = None) -> int:
    """Run a node until it is stopped, is idle for too long, or gets SIGTERM, SIGINT or SIGQUIT.

    Before it ends it gives its pages to other nodes, for at most `drain_timeout_s`, and writes to
    SSD what is only in memory, for at most `flush_timeout_s`; not after SIGQUIT. Blocks; for the
    main thread of a process only. Returns the exit status.

    Raises:
        BusyError: A node lives already at this place.
        InvalidArgumentError, NoSpaceError, IoError, UnsupportedError: The options cannot be met
    here.
    """
    paths = node_paths(options, create=True)
    _set_up_log(options, is_detached=report is not None)
    os.umask(0o077)
    with _node_lock(paths), _http_socket(options) as http_socket:
        state = NodeState(
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()) or 0,
            phase="starting",
            version=__version__,
            socket=paths.socket,
            log=str(paths.log),
            started_at=time.time(),
            http_url=_http_url(http_socket),
        )
        state.write(paths.state)
        try:
            return asyncio.run(_Daemon(options, paths, state, http_socket).run(report))
        finally:
            paths.state.unlink(missing_ok=True)


class _Daemon:
    """What lives between the lock being taken and being given back."""

    def __init__(
        self,
        options: NodeOptions,
        paths: NodePaths,
        state: NodeState,
        http_socket: socket.socket | None,
    ) -> None:
        self._options = options
        self._paths = paths
        self._state = state
        self._http_socket = http_socket
        self._started: StartedEngine | None = None
        self._signalled = asyncio.Event()
        self._hurried = asyncio.Event()
        self._idle_timeout_ms = options.idle_timeout_s * 1000
        self._socket_inode: int | None = None
        self._known_notices = 0

    async def run(self, report: _Report | None) -> int:
        # Before anybody can know of this node.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        _log.info("node starts: version %s, pid %d", __version__, os.getpid())
        _lose_the_race_for_memory()
        _clear_stale_socket(self._paths)
        self._started = engine_from_options(self._options, self._paths.socket, automatic_ssd=True)
        try:
            reason = await self._serve(self._started, report)
            self._enter("stopping")
        finally:
            # Both here, while the locks are held: the engine removes its socket and closes its
            # files when it goes, and after the locks are free those could be the next node's.
            self._started.engine.stop()
            self._started = None
        _log.info("node stopped: %s", reason)
        return 0

    async def _serve(self, started: StartedEngine, report: _Report | None) -> str:
        """Serve until there is a reason to end and all is written, and return the reason."""
        engine = started.engine
        self._socket_inode = self._inode_of_socket()
        self._state = dataclasses.replace(
            self._state,
            phase="ready",
            incarnation=engine.incarnation,
            pool_size_bytes=engine_stats(engine)["pool_size_bytes"],
            ssd={one.path: one.size_limit_bytes for one in started.ssd.directories},
            ssd_write_budget_bytes=self._options.ssd_write_budget_bytes(),
        )
        self._state.write(self._paths.state)
        if report is not None:
            report.ready()
        self._log_start(started)
        async with self._http():
            reason = await self._reason_to_end(engine)
            await self._save_pages(started)
            return reason

    async def _reason_to_end(self, engine: _core.Node) -> str:
        """Wait until there is a reason to end, and return it."""
        watch = asyncio.get_running_loop().run_in_executor(None, self._wait_until_done, engine)
        signalled = asyncio.ensure_future(self._signalled.wait())
        waited_for: set[asyncio.Future[Any]] = {watch, signalled}
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
        # After a signal the thread watches on until the engine is stopped.
        return "got a signal" if self._signalled.is_set() else await watch

    async def _save_pages(self, started: StartedEngine) -> None:
        if self._options.master:
            await self._do_last(started, "draining", DRAIN, self._options.drain_timeout_s)
        if started.ssd.directories:
            await self._do_last(started, "flushing", FLUSH, self._options.flush_timeout_s)

    async def _do_last(
        self, started: StartedEngine, phase: Phase, task: Task, timeout_s: int
    ) -> None:
        if timeout_s == 0 or self._hurried.is_set():
            return
        self._state = dataclasses.replace(self._state, phase_until=time.time() + timeout_s)
        self._enter(phase)
        await LastWork(started, task, timeout_s).run(self._hurried)
        self._log_notices()  # Why it is not all there, if so.

    def _enter(self, phase: Phase) -> None:
        self._state = self._state.in_phase(phase)
        self._state.write(self._paths.state)

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        if self._http_socket is None:
            yield
            return
        # Imported here and not above: it takes longer than all the rest of the start.
        from mooncake_hicache.node.http import serve

        async with serve(self._stats, self._describe, self._http_socket):
            yield

    def _stats(self) -> dict[str, Any]:
        started = self._started
        if started is None:
            raise UnavailableError("the node is stopping")
        return engine_stats(started.engine)

    def _describe(self) -> dict[str, Any]:
        options = self._options
        return {
            **dataclasses.asdict(self._state),
            "notices": self._notices(),
            "options": {name: getattr(options, name) for name in type(options).model_fields},
        }

    def _notices(self) -> list[str]:
        started = self._started
        if started is None:
            return []
        return [*started.ssd.notices, *started.engine.notices_since(0)[1]]

    def _log_start(self, started: StartedEngine) -> None:
        _log.info(
            "node ready: pid %d, socket %s, pool %s, policy %s, http %s",
            os.getpid(),
            self._paths.socket,
            format_size(self._state.pool_size_bytes),
            self._options.eviction_policy,
            self._state.http_url or "off",
        )
        for notice in started.ssd.notices:
            _log.warning("%s", notice)
        for one in started.ssd.directories:
            _log.info(
                "pages on SSD: %s (%s on %s), at most %s, %s free",
                one.path,
                one.file_system.kind or "not known",
                one.file_system.mount_point or "?",
                format_size(one.size_limit_bytes),
                format_size(one.free_bytes),
            )

    def _log_notices(self) -> None:
        """Log what was found out since the last time, such as memory that could not be had."""
        started = self._started
        if started is None:
            return
        self._known_notices, notices = started.engine.notices_since(self._known_notices)
        for notice in notices:
            _log.warning("%s", notice)

    def _on_signal(self, number: signal.Signals) -> None:
        _log.info("got %s", number.name)
        if number == signal.SIGQUIT or self._signalled.is_set():
            self._hurried.set()
        self._signalled.set()

    def _wait_until_done(self, engine: _core.Node) -> str:
        """Block until there is a reason to end, and return it."""
        while True:
            self._log_notices()
            idle_ms = engine.idle_ms()
            wait_ms = WAKE_MS
            if self._idle_timeout_ms > 0:
                if idle_ms >= self._idle_timeout_ms:
                    return f"no client for {format_duration_ms(idle_ms)} (idle_timeout_s)"
                wait_ms = min(wait_ms, self._idle_timeout_ms - idle_ms + 1)
            if idle_ms > 0 and self._inode_of_socket() != self._socket_inode:
                return f"its socket {self._paths.socket} was removed, no client can come any more"
            if engine.wait_stopped(wait_ms):
                return "asked to"

    def _inode_of_socket(self) -> int | None:
        if self._paths.socket.startswith("@"):
            return None
        try:
            return Path(self._paths.socket).stat().st_ino
        except OSError:
            return -1


class _Report:
    """The pipe to the process that starts this one: one line, then it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Error):
            self._close()
            return False
        _log.error("%s", error)
        self._write({"error": type(error).__name__, "message": str(error)})
        return True

    def ready(self) -> None:
        """Tell the starter that clients may connect."""
        self._write({"error": "", "message": ""})

    def _write(self, answer: dict[str, str]) -> None:
        if self._descriptor < 0:
            return
        # A starter that has given up is no reason to end.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(answer).encode() + b"\n")
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _forget_the_starter() -> None:
    """Drop what was inherited from an engine's process and does not fit a node for all of them."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A rank is often bound to the CPUs of its GPU; the kernel keeps the cpuset's bounds by itself.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _lose_the_race_for_memory() -> None:
    # When memory runs out, the cache should go and not the engine that it serves.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def _set_up_log(options: NodeOptions, *, is_detached: bool) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if options.log_file and not is_detached:
        try:
            handlers.append(logging.FileHandler(options.log_file))
        except OSError as error:
            raise cannot_log(Path(options.log_file), error) from None
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        handlers=handlers,
        force=True,
    )


@contextlib.contextmanager
def _node_lock(paths: NodePaths) -> Iterator[None]:
    for last in [False] * (LOCK_TRIES - 1) + [True]:
        with hold_lock(paths.node_lock) as is_ours:
            if is_ours:
                yield
                return
        # Somebody who only looks whether the lock is held holds it for a moment too.
        if not last:
            time.sleep(LOCK_RETRY_S)
    raise lives_already(paths.node_lock, read_state(paths.state))


def _clear_stale_socket(paths: NodePaths) -> None:
    """Remove the socket of a node that was killed. The node lock is held, so none of ours lives."""
    path = paths.socket
    if path.startswith("@"):
        return
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgumentError(f"{path} is there and is no socket: remove it, or set socket")
    if Path(path).parent != paths.folder:
        # A place of somebody's choice: a node of another folder may live there.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise BusyError(f"somebody listens at {path} already: end that, or set socket")
    Path(path).unlink()


@contextlib.contextmanager
def _http_socket(options: NodeOptions) -> Iterator[socket.socket | None]:
    """Bind the TCP port before anything else, so that a port in use is an error and not a
    surprise."""
    if options.http_port < 0:
        yield None
        return
    place = f"{options.http_host} port {options.http_port}"
    remedy = f"set http_host, or http_port ({environment_name('http_port')}) to 0 (any) or -1 (off)"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.http_host, options.http_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidArgumentError(f"cannot serve HTTP at {place}: {error}; {remedy}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(64)
        except OSError as error:
            raise InvalidArgumentError(
                f"cannot serve HTTP at {place}: {error.strerror}; {remedy}"
            ) from None
        listener.setblocking(False)
        yield listener


def _http_url(listener: socket.socket | None) -> str:
    if listener is None:
        return ""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
