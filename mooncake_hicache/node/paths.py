"""The node's private folder and the files in it.

    $XDG_RUNTIME_DIR/mooncake-hicache  or  /tmp/mooncake-hicache-<uid>      mode 0700, ours
    ├── node.sock    the unix socket
    ├── node.lock    held (flock) by the node for its whole life
    ├── start.lock   held (flock) by the one client that is starting or replacing a node
    ├── node.json    who holds node.lock: pid, start time, state, HTTP address
    └── node.log     what a detached node says

Whoever can write here can pose as the node, so the folder must be ours, a real folder, and closed
to others. That is checked every time, because /tmp belongs to everybody.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError, IoError

__all__ = [
    "SOCKET_PATH_SIZE_MAX",
    "NodePaths",
    "cannot_log",
    "check_socket_path",
    "check_visible",
    "default_runtime_dir",
    "node_paths",
]

SOCKET_PATH_SIZE_MAX = 107
"""Bytes of a socket's path: `sun_path` of unix(7) has 108, the last of them is 0."""


@dataclass(frozen=True)
class NodePaths:
    """The places of one node. Nothing is created by making one."""

    folder: Path
    socket: str
    """A path, or `@name` for a socket without a file."""
    log: Path

    @property
    def node_lock(self) -> Path:
        """The lock of the node that lives."""
        return self.folder / "node.lock"

    @property
    def start_lock(self) -> Path:
        """The lock of the client that starts a node."""
        return self.folder / "start.lock"

    @property
    def state(self) -> Path:
        """The state file of the node that lives."""
        return self.folder / "node.json"


def default_runtime_dir() -> Path:
    """Return the folder of this user's node when no option names one."""
    session_dir = os.environ.get("XDG_RUNTIME_DIR")
    # After `su` the variable may still name the folder of the user before.
    if session_dir and _is_our_folder(Path(session_dir)):
        return Path(session_dir) / "mooncake-hicache"
    return Path(f"/tmp/mooncake-hicache-{os.getuid()}")


def _is_our_folder(folder: Path) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def check_socket_path(path: str) -> None:
    """Check that a socket can have this path.

    Raises:
        InvalidArgumentError: It is too long.
    """
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_SIZE_MAX:
        raise InvalidArgumentError(
            f"the socket path {path} has {size} bytes, and the kernel takes "
            f"{SOCKET_PATH_SIZE_MAX}: set "
            f"runtime_dir ({environment_name('runtime_dir')}) or socket "
            f"({environment_name('socket')}) to a shorter one, such as /tmp/hicache"
        )


def node_paths(options: NodeOptions, *, create: bool = False) -> NodePaths:
    """Return the places of the node that the options mean.

    Args:
        options: Names the folder and the socket, or leaves them to the defaults.
        create: Make the folder if it is missing, and check that it is private.

    Raises:
        InvalidArgumentError: The socket's path is too long, or the folder is not ours alone.
        IoError: The folder cannot be made.
    """
    folder = Path(options.runtime_dir) if options.runtime_dir else default_runtime_dir()
    socket = options.socket or str(folder / "node.sock")
    check_socket_path(socket)
    if create:
        _make_private(folder)
    log = Path(options.log_file) if options.log_file else folder / "node.log"
    return NodePaths(folder, socket, log)


def cannot_log(path: Path, error: OSError) -> IoError:
    """Return the error for a log that cannot be opened, with the remedy."""
    return IoError(
        f"cannot open the log file {path}: {error.strerror}; set log_file "
        f"({environment_name('log_file')}) to a file in a folder that is there and may be written "
        "to"
    )


def check_visible(paths: NodePaths) -> None:
    """Check that a node at these places would be seen. Where there is nothing, none hides.

    Raises:
        InvalidArgumentError: The folder is no plain folder, or somebody else's.
        IoError: The folder or the socket cannot be looked at.
    """
    own = paths.socket == str(paths.folder / "node.sock")
    option = "runtime_dir" if own else "socket"
    remedy = f"run this as its owner, or set {option} ({environment_name(option)}) to a place of "
    remedy += "your own"
    if own:
        status = _status_of(paths.folder, remedy)
        if status is None:
            return
        _check_owner(paths.folder, status, remedy)
    if paths.socket.startswith("@"):
        return
    place = Path(paths.socket)
    if _status_of(place, remedy) is not None and not os.access(place, os.R_OK | os.W_OK):
        raise IoError(f"the socket {place} is closed to user {os.getuid()}: {remedy}")


def _status_of(path: Path, remedy: str) -> os.stat_result | None:
    """Return what lstat says; None if there is nothing."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IoError(f"cannot look at {path}: {error.strerror}; {remedy}") from None


def _check_owner(folder: Path, status: os.stat_result, remedy: str) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidArgumentError(f"the runtime folder {folder} is not a plain folder: {remedy}")
    if status.st_uid != os.getuid():
        raise InvalidArgumentError(
            f"the runtime folder {folder} belongs to user {status.st_uid} and not to "
            f"{os.getuid()}: {remedy}"
        )


def _make_private(folder: Path) -> None:
    remedy = (
        f"remove it, or set runtime_dir ({environment_name('runtime_dir')}) to a folder of your own"
    )
    try:
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise IoError(
            f"cannot make the runtime folder {folder}: {error.strerror}; {remedy}"
        ) from None
    _check_owner(folder, status, remedy)
    if status.st_mode & 0o022:
        raise InvalidArgumentError(
            f"the runtime folder {folder} can be written by others (mode "
            f"{stat.S_IMODE(status.st_mode):04o}): `chmod 700 {folder}`, or {remedy}"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
