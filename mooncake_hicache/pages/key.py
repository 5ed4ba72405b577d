"""Keys of pages: 32 bytes each.

An engine names a page with a SHA-256 in hexadecimal, which is already unique and uniformly
distributed, so it is decoded and used as it is. Any other name is hashed once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

KEY_SIZE = 32
"""Bytes of a key."""

_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
# Keeps the hash of a name apart from every other use of the same function.
_PERSON = b"hicache-key-1"


def page_key(name: str | bytes) -> bytes:
    """Return the 32-byte key of a page's name.

    A string of 64 hexadecimal digits and 32 bytes are taken as they are; anything else is hashed
    with BLAKE2b-256. A string hashes as its UTF-8 bytes, and a string and bytes never give the
    same hash. Pure and thread-safe.

    Raises:
        TypeError: `name` is neither a string nor bytes.
    """
    if isinstance(name, str):
        if len(name) == 2 * KEY_SIZE and _HEX_KEY.fullmatch(name):
            return bytes.fromhex(name)
        return hashlib.blake2b(
            name.encode("utf-8", "surrogatepass"), digest_size=KEY_SIZE, person=_PERSON, salt=b"str"
        ).digest()
    if isinstance(name, (bytes, bytearray, memoryview)):
        raw = bytes(name)
        if len(raw) == KEY_SIZE:
            return raw
        return hashlib.blake2b(raw, digest_size=KEY_SIZE, person=_PERSON, salt=b"bytes").digest()
    raise TypeError(f"a page's name is a str or bytes, not {type(name).__name__}")


def page_keys(names: Iterable[str | bytes]) -> list[bytes]:
    """Return the 32-byte keys of many names, in order. See `page_key`."""
    return [page_key(name) for name in names]
