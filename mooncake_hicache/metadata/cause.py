"""What is behind an error of a library that wraps it several times."""

from __future__ import annotations

import os
import socket

__all__ = ["cause_of"]

DEPTH_MAX = 16


def cause_of(error: BaseException) -> str:
    """Return what the operating system said, if it did; else what the error says of itself."""
    found = _system_error(error, DEPTH_MAX)
    if isinstance(found, socket.gaierror):
        return f"no such host ({found.strerror})"
    if found is not None and found.errno is not None:
        return os.strerror(found.errno)  # asyncio writes a text of its own.
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _system_error(error: object, depth: int) -> OSError | None:
    if depth == 0 or not isinstance(error, BaseException):
        return None
    # urllib3 puts the cause in `reason` or among the arguments, others chain it.
    behind = (
        getattr(error, "os_error", None),
        getattr(error, "reason", None),
        error.__cause__,
        error.__context__,
        *error.args,
    )
    for one in behind:
        found = _system_error(one, depth - 1)
        if found is not None:
            return found
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return None
