"""One thread that renews what was published, before it ends.

It never raises and never gives up: what fails is tried again, and is logged once when it begins and
once when it is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Renewer", "TakenError"]

_log = logging.getLogger(__name__)

RENEWALS_PER_TTL = 3
RETRIES_PER_TTL = 10
RETRY_STEP_MIN_S = 0.2


class TakenError(Exception):
    """Another engine goes by the name now; says which."""


@dataclass
class _Kept:
    ttl_s: float
    due: float
    has_failed: bool = False


class Renewer:
    """Calls `renew(name)` for each name that is kept, three times in its time to live.

    Threads: any may call `keep`, `drop` and `close`; `renew` is called from the renewer's own.
    """

    def __init__(self, renew: Callable[[str], None], where: str) -> None:
        self._renew = renew
        self._where = where
        self._names: dict[str, _Kept] = {}
        self._changed = threading.Condition()
        # Held during a renewal, so that after drop() none is under way.
        self._renewing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def keep(self, name: str, ttl_s: float) -> None:
        """Renew a name from now on."""
        with self._changed:
            if self._is_closed:
                return
            self._names[name] = _Kept(ttl_s, time.monotonic() + ttl_s / RENEWALS_PER_TTL)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hicache-renew", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drop(self, name: str) -> bool:
        """Stop renewing a name; return whether it was kept. Waits for a renewal under way."""
        with self._renewing, self._changed:
            return self._names.pop(name, None) is not None

    def kept(self) -> list[str]:
        """Return the names that are renewed."""
        with self._changed:
            return list(self._names)

    def close(self) -> None:
        """Stop. Waits for a renewal under way. May be called again."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and (wait_s := self._next_due_s()) != 0:
                    self._changed.wait(wait_s)
                if self._is_closed:
                    return
                now = time.monotonic()
                due = [name for name, kept in self._names.items() if kept.due <= now]
            for name in due:
                self._renew_one(name)

    def _next_due_s(self) -> float | None:
        if not self._names:
            return None
        return max(0.0, min(kept.due for kept in self._names.values()) - time.monotonic())

    def _renew_one(self, name: str) -> None:
        with self._renewing:
            with self._changed:
                kept = self._names.get(name)
                if kept is None or self._is_closed:
                    return
            try:
                self._renew(name)
            except TakenError as error:
                with self._changed:
                    self._names.pop(name, None)
                _log.error(
                    "the name %s at %s was taken over by %s; this engine is no longer found by it: "
                    "give each engine a name of its own",
                    name,
                    self._where,
                    error,
                )
                return
            except Exception as error:  # noqa: BLE001 - nobody is there to catch it.
                if not kept.has_failed:
                    _log.warning("cannot renew %s: %s; trying on", name, error)
                kept.has_failed = True
                step_s = max(RETRY_STEP_MIN_S, kept.ttl_s / RETRIES_PER_TTL)
                kept.due = time.monotonic() + step_s
                return
            if kept.has_failed:
                _log.info("%s is renewed again at %s", name, self._where)
            kept.has_failed = False
            kept.due = time.monotonic() + kept.ttl_s / RENEWALS_PER_TTL
