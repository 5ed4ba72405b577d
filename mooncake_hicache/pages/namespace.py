"""Namespaces: everything that makes two equal page names mean different bytes.

A page's name is a hash of tokens alone. What the bytes under it look like also depends on the
model, its weights, the number format, the layout in memory and the rank's share of the heads and
layers. A *description* is a mapping with all of that in it; its digest is the namespace. Two
descriptions have one digest if and only if they are the same description, so a page written under
one can never be read under another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

DIGEST_SIZE = 32
"""Bytes of a namespace's digest."""

# Changing the canonical form changes every digest: old pages become unreachable, never misread.
_PERSON = b"hicache-ns-1"


def canonical(description: Mapping[str, object] | str) -> str:
    """Return the one text that stands for a description.

    The order of a mapping's items does not matter; the order of a list's does. A plain string is
    a description of its own, different from every mapping.

    Raises:
        TypeError: a value is not made of None, bool, int, str, lists and mappings with str keys.
            Floats are refused: the same number can be written in more than one way.
    """
    return json.dumps(_plain(description, "description"), sort_keys=True, separators=(",", ":"))


def namespace_digest(description: Mapping[str, object] | str) -> bytes:
    """Return the 32-byte BLAKE2b digest of a description. Raises `TypeError` like `canonical`."""
    return hashlib.blake2b(
        canonical(description).encode(), digest_size=DIGEST_SIZE, person=_PERSON
    ).digest()


def namespace_text(description: Mapping[str, object] | str) -> str:
    """Return a description as one readable line, for logs and status pages.

    Items stand in the order in which they were given; those that are None are left out (here, never
    in the digest).
    """
    plain = _plain(description, "description")
    if isinstance(plain, dict):
        return " ".join(
            f"{key}={_readable(value)}" for key, value in plain.items() if value is not None
        )
    return str(plain)


def _readable(value: object) -> str:
    if isinstance(value, str):
        # What begins as JSON does is JSON: items are told apart by that.
        is_plain = value and value[0] not in '"{[' and not any(c.isspace() for c in value)
        return value if is_plain else json.dumps(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _plain(value: object, where: str) -> object:
    # bool before int: a bool is an int, and True and 1 must not be mixed up; JSON keeps them apart.
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where}: the key {key!r} is a {type(key).__name__}, not a str")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where}: a {type(value).__name__} has no canonical form; use None, bool, int, str, "
        "a list or a mapping"
    )
