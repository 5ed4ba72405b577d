"""What goes wrong in calls to a store, told to whoever makes them.

The original's methods give numbers, and `last_error` is that of all threads. Here the caller of one
method hears what that call has to say, and nothing of others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from mooncake_hicache.errors import Error, InvalidArgumentError, TransientError

__all__ = ["Failure", "failures", "tell"]


@dataclass(frozen=True)
class Failure:
    """One call that failed."""

    text: str
    """Which, and why."""
    error: Error | None
    """What was raised, if anything."""

    @property
    def is_mistake(self) -> bool:
        """Whether what the caller gave cannot be right."""
        return isinstance(self.error, InvalidArgumentError)

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later."""
        return isinstance(self.error, TransientError)


_heard: ContextVar[list[Failure] | None] = ContextVar("hicache_store_failures", default=None)


@contextlib.contextmanager
def failures() -> Iterator[list[Failure]]:
    """Return a list that has, once the `with` is over, what failed in the calls made in it.

    Of this thread's calls (or this task's), to whatever store.
    """
    heard: list[Failure] = []
    before = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(before)


def tell(failure: Failure) -> None:
    """Say that a call fails, if somebody wants to hear it."""
    heard = _heard.get()
    if heard is not None:
        heard.append(failure)
