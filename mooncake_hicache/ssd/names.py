"""What the namespaces on an SSD are called: a file beside the log that people may read.

    namespaces.tsv     one line each: the digest as 64 hex digits, a tab, the description

On the disk a namespace is its digest alone; the descriptions are for the operator, and the log does
without them.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_descriptions"]

_FILE_NAME = "namespaces.tsv"
_FILE_SIZE_MAX = 64 * 1024 * 1024
_LINE_SIZE_MAX = 64 * 1024
_DIGEST_SIZE = 32


def read_descriptions(directory: str | os.PathLike[str]) -> dict[bytes, str]:
    """Return the descriptions by digest.

    What is no such line is left out: a file that is missing, not readable or full of nonsense gives
    none. Characters that a terminal would obey are replaced.
    """
    found: dict[bytes, str] = {}
    try:
        with (Path(directory) / _FILE_NAME).open("rb") as file:
            left = _FILE_SIZE_MAX
            while left > 0 and (line := file.readline(_LINE_SIZE_MAX)):
                left -= len(line)
                entry = _entry(line)
                if entry is not None:
                    found[entry[0]] = entry[1]
    except OSError:
        return found
    return found


def _entry(line: bytes) -> tuple[bytes, str] | None:
    digits, tab, description = line.rstrip(b"\n").partition(b"\t")
    if not tab or len(digits) != 2 * _DIGEST_SIZE:
        return None
    try:
        digest = bytes.fromhex(digits.decode("ascii"))
        text = description.decode()
    except ValueError:
        return None
    if len(digest) != _DIGEST_SIZE:  # fromhex() passes over spaces.
        return None
    return digest, "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
