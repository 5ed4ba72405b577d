"""Whether requests decode in this process now, so that reads leave them CPUs and memory bandwidth.

A step of decoding is launched by the scheduler's thread. Copy threads on all CPUs hold it up: on an
H200 machine with 16 of them requests decoded at 0.83 to 0.91 of their pace while a hit was read,
with half as many threads at their full pace. So a hook on the scheduler notes each step that
decodes, and who reads asks here before each piece. Nothing of the scheduler is looked at from
another thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["HOOK_TARGET", "Decoding", "live", "watch"]

_SCHEDULER = "sglang.srt.managers.scheduler"

HOOK_TARGET = f"{_SCHEDULER}.Scheduler.run_batch"

# Steps take some milliseconds to some tens of them; after a longer pause nobody waits for the next.
_RECENT_S = 0.25


class Decoding:
    """When a step that decodes was last begun in this process. Thread-safe; never blocks."""

    def __init__(self) -> None:
        self._last_s = float("-inf")

    def note(self) -> None:
        """Note that a step that decodes begins."""
        self._last_s = time.monotonic()

    def is_on(self) -> bool:
        """Whether requests decode now."""
        return time.monotonic() - self._last_s < _RECENT_S


_live = Decoding()


def live() -> Decoding:
    """Return what is known of this process."""
    return _live


def _before_run_batch(_scheduler: Any, batch: Any = None, *_args: Any, **_kwargs: Any) -> None:
    try:
        mode = batch.forward_mode
        if mode.is_decode() or mode.is_mixed():
            _live.note()
    except Exception:  # noqa: BLE001 - another version's batch: reads are as fast as they can be
        return


def watch() -> bool:
    """Register the hook in a process that has a scheduler. Returns whether it has. May be called
    again. It takes effect when SGLang applies the hooks of its plugins."""
    # Importing the scheduler where there is none would cost other processes seconds.
    if _SCHEDULER not in sys.modules:
        return False
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    known = HookRegistry._hooks.get(HOOK_TARGET, ())
    if not any(hook is _before_run_batch for _, hook, *_ in known):
        HookRegistry.register(HOOK_TARGET, _before_run_batch, HookType.BEFORE)
    return True
