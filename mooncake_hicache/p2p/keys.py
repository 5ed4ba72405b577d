"""The keys of the catalogue in etcd, and the ranges that stand for a name or a prefix.

A name is written as in URLs, so that it has no slash and nothing that could be taken for another
part of the key; generations have a fixed width, so that keys sort by them. Pure.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

from mooncake_hicache.metadata.names import check_name

__all__ = ["GENERATION_MAX", "Keys", "delete", "encoded", "no_key_in", "put"]

GENERATION_MAX = (1 << 63) - 1


class Keys:
    """The keys of one cluster.

    Raises:
        InvalidArgumentError: The cluster's name is none.
    """

    def __init__(self, cluster: str) -> None:
        self._root = f"mooncake-hicache/p2p/{_quoted(check_name(cluster))}/"

    def source(self, name: str, generation: int, identity: str, *, is_whole: bool = True) -> str:
        """Return the key of a source's entry: of one generation those that have all come last."""
        return f"{self._sources(name)}{generation:016x}/{is_whole:d}{identity}"

    def pieces(self, name: str, generation: int, identity: str) -> str:
        """Return the key of a source's description."""
        return f"{self._pieces(name)}{generation:016x}/{identity}"

    def of_name(self, name: str) -> tuple[str, str]:
        """Return the range of all sources of a name: the first key, and one after the last."""
        return _range(self._sources(name))

    def with_prefix(self, prefix: str) -> tuple[str, str]:
        """Return the range of all sources of the names that begin like this."""
        return _range(f"{self._root}source/{_quoted(prefix)}")

    def from_generation(self, name: str, generation: int) -> tuple[str, str]:
        """Return the range of all sources of a generation and later ones."""
        return f"{self._sources(name)}{generation:016x}", _range(self._sources(name))[1]

    def before_generation(self, name: str, generation: int) -> list[tuple[str, str]]:
        """Return the ranges of everything that there is of earlier generations."""
        end = f"{generation:016x}"
        return [(start, start + end) for start in (self._sources(name), self._pieces(name))]

    def _sources(self, name: str) -> str:
        return f"{self._root}source/{_quoted(name)}/"

    def _pieces(self, name: str) -> str:
        return f"{self._root}pieces/{_quoted(name)}/"


def encoded(key: str | bytes) -> str:
    """Return a key or value as etcd's JSON has it."""
    return base64.b64encode(key.encode() if isinstance(key, str) else key).decode()


def no_key_in(start: str, end: str) -> dict[str, Any]:
    """Return the condition of a transaction that there is no key in a range."""
    return {
        "key": encoded(start),
        "range_end": encoded(end),
        "target": "CREATE",
        "result": "EQUAL",
        "create_revision": 0,
    }


def put(key: str, value: bytes, lease: int) -> dict[str, Any]:
    """Return the operation of a transaction that puts a value under a lease."""
    return {"request_put": {"key": encoded(key), "value": encoded(value), "lease": lease}}


def delete(start: str, end: str = "") -> dict[str, Any]:
    """Return the operation of a transaction that deletes a key, or a range."""
    found = {"key": encoded(start)} | ({"range_end": encoded(end)} if end else {})
    return {"request_delete_range": found}


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _range(start: str) -> tuple[str, str]:
    # Keys are ASCII here, so there is always a next letter.
    return start, start[:-1] + chr(ord(start[-1]) + 1)
