"""The token that must come with every change over HTTP, kept in a file."""

from __future__ import annotations

from pathlib import Path

from mooncake_hicache.errors import InvalidArgumentError

__all__ = ["read_token"]


def read_token(path: str) -> str:
    """Return the first line of a file, without spaces around it.

    Raises:
        InvalidArgumentError: It cannot be read, or has no token there.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the token file {path}: {error}") from None
    token = lines[0].strip() if lines else ""
    if not token:
        raise InvalidArgumentError(f"the token file {path} has no token in its first line")
    return token
