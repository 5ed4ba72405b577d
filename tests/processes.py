"""Processes that tests start: waiting for what they do, and seeing to it that none is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["DEADLINE_S", "end_all_with", "freeze", "wait_for"]

DEADLINE_S = 60.0
"""For what takes a moment, on a machine that does much else: passed only by what never comes."""


def wait_for(what: str, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> float:
    """Wait for a condition; return the seconds it took, fail with its name after the deadline."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline_s, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def freeze(pid: int) -> None:
    """Stop a process, and return once each of its threads stands still.

    The signal alone is not enough: on a busy machine its threads go on answering until one of them
    comes to see it.
    """
    os.kill(pid, signal.SIGSTOP)
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    wait_for(
        f"process {pid} stands still",
        lambda: all((t / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for t in tasks),
    )


def end_all_with(mark: str) -> None:
    """End each process of the project that has `mark` in its environment or its command line.

    By the mark and not by a number from a file: a node that was just started has written none, and
    the file names the one before it.
    """

    def are_gone() -> bool:
        found = _processes_with(mark.encode())
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not found

    wait_for(f"no process with {mark}", are_gone)


def _processes_with(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if b"mooncake_hicache" in command and (
                mark in command or mark in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:  # It ended, or belongs to another user.
            continue
    return found
