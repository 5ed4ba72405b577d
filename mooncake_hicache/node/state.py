"""The state file: which process is the node, and how far it has come."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from mooncake_hicache.config import environment_name
from mooncake_hicache.errors import BusyError, IoError

__all__ = [
    "LAST_PHASES",
    "NodeState",
    "Phase",
    "hold_lock",
    "is_locked",
    "lives_already",
    "process_start_time",
    "read_state",
]


Phase = Literal["starting", "ready", "draining", "flushing", "stopping"]
"""While draining, which is giving pages to other nodes, and while flushing, which is writing to SSD
what is only in memory, a node serves as when ready."""

LAST_PHASES: tuple[Phase, ...] = ("draining", "flushing")
"""Those in which it saves its pages, before it ends."""


@dataclass(frozen=True)
class NodeState:
    """What a node says of itself in its state file."""

    pid: int
    start_time: int
    """Clock ticks after boot, from /proc/<pid>/stat: with the pid it names one process for good."""
    phase: Phase
    version: str
    socket: str
    log: str
    started_at: float
    """Seconds of Unix time."""
    incarnation: int = 0
    pool_size_bytes: int = 0
    http_url: str = ""
    """Empty when the node serves no HTTP."""
    ssd: dict[str, int] = field(default_factory=dict)
    """The limit in bytes of each directory on SSD."""
    ssd_write_budget_bytes: int = 0
    """Per day; 0: no limit."""
    phase_until: float = 0.0
    """Seconds of Unix time at which what it does before it ends is given up."""

    def write(self, path: Path) -> None:
        """Write the file so that a reader sees the old or the new one, whole."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)

    def in_phase(self, phase: Phase) -> NodeState:
        """Return the same state in another phase."""
        return replace(self, phase=phase)

    def is_our_living_process(self) -> bool:
        """Return whether the process that wrote this lives, is the same one, and runs as our
        user."""
        try:
            owner = Path(f"/proc/{self.pid}").stat().st_uid
        except OSError:
            return False
        return owner == os.getuid() and process_start_time(self.pid) == self.start_time

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process. Return False if it is gone or not ours."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # Looked at after the descriptor was opened, the number cannot be reused in between.
            if not self.is_our_living_process():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def read_state(path: Path) -> NodeState | None:
    """Return the state in a file; None if there is none, or it is not one that we wrote."""
    try:
        return NodeState(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def lives_already(lock: Path, state: NodeState | None) -> BusyError:
    """Return the error for a second node in one place, with the remedy."""
    who = f"node {state.pid}" if state is not None else "a process"
    return BusyError(
        f"{who} already holds {lock}: end it with `mooncake-hicache stop`, or set another "
        f"runtime_dir ({environment_name('runtime_dir')})"
    )


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it does not live."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets; the third field comes after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    # One that has ended and was not waited for by its parent is still listed.
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Try to take a lock file and hold it inside the `with`. Never blocks.

    Yields:
        Whether the lock was taken. It goes with the process that holds it, however that ends.

    Raises:
        IoError: The file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise IoError(f"cannot open the lock file {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except BlockingIOError:
        is_ours = False
    try:
        yield is_ours
    finally:
        if is_ours:
            # Closing is not enough: a child forked meanwhile by another thread has a copy.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether some process holds a lock file. Never creates it, never blocks.

    Raises:
        IoError: The file is there and cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise IoError(f"cannot open the lock file {path}: {error.strerror}") from None
    try:
        # A shared try: two processes that only look do not see each other as holders.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
