"""The secret that transfer engines prove to each other that they know.

An option says where it comes from: nothing (a file that belongs to this user on this machine, made
when it is first needed), a path, a text, or `none`. With nothing the processes of one user on one
machine talk to each other and to nobody else, without any setting; machines that are to talk to
each other are given the same file or text.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from mooncake_hicache.config import NodeOptions, environment_name
from mooncake_hicache.errors import InvalidArgumentError, IoError
from mooncake_hicache.node.paths import node_paths

__all__ = ["SECRET_FILE", "resolve_secret"]

SECRET_FILE = "transfer.secret"
"""The name of the file in the runtime folder."""

_SIZE_MAX = 64 * 1024
_REMEDY = (
    f"set the option secret ({environment_name('transfer_secret')}) to the same text, or to a file "
    "with the same content, wherever engines are to talk to each other"
)


def resolve_secret(option: str) -> str:
    """Return the secret that an option means.

    Args:
        option: Empty: this user's file, made if it is missing. `none`: no secret; whoever reaches
            the port is let in. Something with a slash: a file. Anything else: the secret.

    Raises:
        InvalidArgumentError: The file is not this user's alone, is empty, or too large.
        IoError: The file cannot be read or made.
    """
    option = option.strip()
    if option.lower() == "none":
        return ""
    if not option:
        return _own_secret()
    if "/" in option:
        return _read(Path(option).expanduser())
    return option


def _own_secret() -> str:
    path = node_paths(NodeOptions(), create=True).folder / SECRET_FILE
    if not path.exists():
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Make the file with its content in one step: somebody else may do the same right now."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as error:
        raise IoError(
            f"cannot make the file of the transfer secret {path}: {error.strerror}; {_REMEDY}"
        ) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise IoError(
            f"cannot read the file of the transfer secret {path}: {error.strerror}; {_REMEDY}"
        ) from None
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise InvalidArgumentError(
            f"the file of the transfer secret {path} is open to others (mode "
            f"{stat.S_IMODE(status.st_mode):04o}, user {status.st_uid}): `chmod 600 {path}` as its "
            "owner"
        )
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = content.hex()
    if not text or len(content) > _SIZE_MAX:
        raise InvalidArgumentError(
            f"the file of the transfer secret {path} has {len(content)} bytes: it must hold a "
            f"secret of 1 to {_SIZE_MAX}"
        )
    return text
