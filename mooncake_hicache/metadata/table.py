"""The metadata server's memory: keys and values, some with a time to live, all of it bounded.

Pure: time comes in as an argument, nothing blocks, one thread.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

__all__ = ["KEY_SIZE_MAX", "Limits", "Outcome", "Table", "tag_of"]

KEY_SIZE_MAX = 1024
SWEEP_STEP_S = 10.0


@dataclass(frozen=True)
class Limits:
    """What the table may hold."""

    value_size_bytes: int = 1 << 20
    """Of one value: a descriptor of the original has every buffer in it."""
    total_size_bytes: int = 256 << 20
    """Of all keys and values."""
    count: int = 65_536


class Outcome(Enum):
    """What became of a change."""

    DONE = "done"
    SAME = "it was there already"
    REFUSED = "the condition does not hold"
    DUPLICATE = "a key that is not replaced has another value"
    ABSENT = "there is nothing"
    FULL = "there is no room"
    TOO_LARGE = "key or value is too large"


@dataclass
class _Kept:
    value: bytes
    expires_s: float | None


def tag_of(value: bytes) -> str:
    """Return what stands for a value in conditions (an entity tag of HTTP)."""
    return f'"{hashlib.sha256(value).hexdigest()[:32]}"'


class Table:
    """Keys and values. What has expired is not there, whether or not it was removed already."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._kept: dict[str, _Kept] = {}
        self._size_bytes = 0
        self._next_sweep_s = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values, expired ones included until they are removed."""
        return self._size_bytes

    def get(self, key: str, now_s: float) -> bytes | None:
        """Return the value; None if there is none."""
        kept = self._living(key, now_s)
        return kept.value if kept else None

    def put(
        self,
        key: str,
        value: bytes,
        now_s: float,
        *,
        ttl_s: float | None = None,
        if_tag: str | None = None,
        if_absent: bool = False,
        is_once: bool = False,
    ) -> Outcome:
        """Put a value in place of what is there.

        Args:
            key: Its key.
            value: The value.
            now_s: The time.
            ttl_s: Seconds until it expires; None: never.
            if_tag: Only if what is there has this tag.
            if_absent: Only if nothing is there.
            is_once: Not over another value.
        """
        size = len(key.encode(errors="replace"))
        if size > KEY_SIZE_MAX or len(value) > self.limits.value_size_bytes:
            return Outcome.TOO_LARGE
        kept = self._living(key, now_s)
        if if_absent and kept is not None:
            return Outcome.REFUSED
        if if_tag is not None and (kept is None or tag_of(kept.value) != if_tag):
            return Outcome.REFUSED
        if is_once and kept is not None and kept.value != value:
            return Outcome.DUPLICATE
        added = len(value) + size - (len(kept.value) + size if kept else 0)
        if now_s >= self._next_sweep_s or not self._fits(added, is_new=kept is None):
            self._sweep(now_s)
            if not self._fits(added, is_new=kept is None):
                return Outcome.FULL
        self._kept[key] = _Kept(value, None if ttl_s is None else now_s + ttl_s)
        self._size_bytes += added
        return Outcome.SAME if kept is not None and kept.value == value else Outcome.DONE

    def remove(self, key: str, now_s: float, *, if_tag: str | None = None) -> Outcome:
        """Remove a key; with `if_tag` only if its value has that tag."""
        kept = self._living(key, now_s)
        if kept is None:
            return Outcome.ABSENT
        if if_tag is not None and tag_of(kept.value) != if_tag:
            return Outcome.REFUSED
        self._drop(key)
        return Outcome.DONE

    def _fits(self, added: int, *, is_new: bool) -> bool:
        is_counted = len(self._kept) + is_new <= self.limits.count
        return is_counted and self._size_bytes + added <= self.limits.total_size_bytes

    def _living(self, key: str, now_s: float) -> _Kept | None:
        kept = self._kept.get(key)
        if kept is not None and kept.expires_s is not None and kept.expires_s <= now_s:
            self._drop(key)
            return None
        return kept

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key)
        self._size_bytes -= len(kept.value) + len(key.encode(errors="replace"))

    def _sweep(self, now_s: float) -> None:
        # What expires and is asked for by nobody goes here; 65536 keys take milliseconds.
        self._next_sweep_s = now_s + SWEEP_STEP_S
        expired = [
            key
            for key, kept in self._kept.items()
            if kept.expires_s is not None and kept.expires_s <= now_s
        ]
        for key in expired:
            self._drop(key)
