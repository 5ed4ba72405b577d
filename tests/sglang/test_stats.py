"""Figures for the engine's metrics are whole, and the log is not flooded."""

from __future__ import annotations

import logging
import threading

import pytest

pytest.importorskip("sglang")

from mooncake_hicache.sglang.stats import OccasionalLog, TrafficLog


def test_every_sample_is_taken_once():
    traffic = TrafficLog(True)
    pages: list[int] = []

    def record():
        for number in range(500):
            traffic.record(is_write=False, pages=number + 1, size_bytes=10**9, seconds=0.5)

    writers = [threading.Thread(target=record) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        taken = traffic.take()
        pages += taken.prefetch_pgs if taken else []
    taken = traffic.take()
    pages += taken.prefetch_pgs if taken else []
    assert sorted(pages) == sorted([*range(1, 501)] * 4)


def test_rates_are_gigabytes_per_second():
    traffic = TrafficLog(True)
    traffic.record(is_write=True, pages=3, size_bytes=3 * 10**9, seconds=1.5)
    taken = traffic.take()
    assert (taken.backup_pgs, taken.backup_bandwidth, taken.prefetch_pgs) == ([3], [2.0], [])
    assert traffic.take() is None


def test_nothing_is_kept_without_metrics_or_without_a_reader():
    silent = TrafficLog(False)
    silent.record(is_write=True, pages=1, size_bytes=1, seconds=1)
    assert silent.take() is None
    unread = TrafficLog(True)
    for _ in range(20_000):
        unread.record(is_write=True, pages=1, size_bytes=1, seconds=1)
    assert len(unread.take().backup_pgs) <= 4096


def test_same_trouble_is_logged_once_in_a_while(caplog):
    trouble = OccasionalLog(logging.getLogger("t"), interval_s=1000)
    for _ in range(5):
        trouble.warning("a", "trouble %d", 1)
    trouble.warning("b", "other")
    assert [r.getMessage() for r in caplog.records] == ["trouble 1", "other"]
    trouble._next_s["a"] = 0.0
    trouble.warning("a", "trouble %d", 2)
    assert (
        caplog.records[-1].getMessage() == "trouble 2 (and 4 more like it since the last message)"
    )
