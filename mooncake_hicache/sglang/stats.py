"""Figures about storage traffic, for the engine's own metrics and for the log."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

__all__ = ["OccasionalLog", "TrafficLog"]

_SAMPLES_MAX = 4096
_LOG_INTERVAL_S = 60.0


class TrafficLog:
    """Samples of reads and writes since they were last taken. Thread-safe; hardly ever blocks."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._lock = threading.Lock()
        self._reads: list[tuple[int, float]] = []
        self._writes: list[tuple[int, float]] = []

    def record(self, *, is_write: bool, pages: int, size_bytes: int, seconds: float) -> None:
        """Note that `pages` pages of `size_bytes` in all were moved in `seconds`."""
        if not self._enabled or pages < 1 or seconds <= 0:
            return
        sample = (pages, size_bytes / seconds / 1e9)
        with self._lock:
            samples = self._writes if is_write else self._reads
            # Nobody takes them while the engine is busy with one long step: keep the newest.
            if len(samples) >= _SAMPLES_MAX:
                del samples[: _SAMPLES_MAX // 2]
            samples.append(sample)

    def take(self) -> Any | None:
        """Return what came since the last call as SGLang's `StorageMetrics`, None if nothing."""
        if not self._enabled:
            return None
        with self._lock:
            reads, self._reads = self._reads, []
            writes, self._writes = self._writes, []
        if not reads and not writes:
            return None
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            return None
        metrics = StorageMetrics()
        metrics.prefetch_pgs.extend(pages for pages, _ in reads)
        metrics.prefetch_bandwidth.extend(rate for _, rate in reads)
        metrics.backup_pgs.extend(pages for pages, _ in writes)
        metrics.backup_bandwidth.extend(rate for _, rate in writes)
        return metrics


class OccasionalLog:
    """Logs each kind of trouble at most once a minute, with how often it came up. Thread-safe."""

    def __init__(self, logger: logging.Logger, interval_s: float = _LOG_INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._next_s: dict[str, float] = {}
        self._unseen: dict[str, int] = {}

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Log a warning of a kind, unless one of that kind was logged in the last minute."""
        now = time.monotonic()
        with self._lock:
            if now < self._next_s.get(kind, 0.0):
                self._unseen[kind] = self._unseen.get(kind, 0) + 1
                return
            self._next_s[kind] = now + self._interval_s
            unseen = self._unseen.pop(kind, 0)
        if unseen:
            message += f" (and {unseen} more like it since the last message)"
        self._logger.warning(message, *args)
