"""Following what a node does before it ends: what is logged, and what ends it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from mooncake_hicache.machine import FileSystem
from mooncake_hicache.node import last_work
from mooncake_hicache.node.engine import StartedEngine, flush_engine
from mooncake_hicache.node.last_work import FLUSH, LastWork, progress_text
from mooncake_hicache.node.ssd import SsdDirectory, SsdPlan

MIB = 1 << 20
DIRECTORY = SsdDirectory("/kv", 1 << 30, 0, 1 << 30, 0, 1 << 20, FileSystem("ext4", "/dev/x", "/"))


class SlowEngine:
    """Writes nothing, and has a little less left each time it is asked."""

    def __init__(self, steps: int) -> None:
        self.left_bytes = steps * MIB
        self.changed = threading.Condition()
        self.is_stopped = False

    def stats(self) -> dict[str, int]:
        with self.changed:
            answer = {"ssd_flush_left_bytes": self.left_bytes}
            self.left_bytes = max(0, self.left_bytes - MIB)
            self.changed.notify_all()
        return answer

    def flush(self, timeout_ms: int) -> bool:
        with self.changed:
            self.changed.wait_for(
                lambda: self.is_stopped or self.left_bytes == 0, timeout_ms / 1000
            )
            return self.left_bytes == 0

    def stop(self) -> None:
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()


def started(steps: int) -> StartedEngine:
    return StartedEngine(SlowEngine(steps), SsdPlan((DIRECTORY,)))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(last_work, "PROGRESS_S", 0.01)
    caplog.set_level(logging.INFO, "mooncake_hicache.node")


def test_a_flush_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(LastWork(started(3), FLUSH, 60).run(asyncio.Event()))
    assert "flushing to SSD: 0 bytes of 3 MiB" in caplog.text
    assert "1 MiB of 3 MiB, " in caplog.text
    assert "flushed to SSD in " in caplog.text


def test_a_flush_that_takes_too_long_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    assert not asyncio.run(LastWork(started(1 << 20), FLUSH, 1).run(asyncio.Event()))
    assert time.monotonic() - began >= 1
    assert "gave up after" in caplog.text
    assert "go with the node" in caplog.text


def test_a_flush_that_is_hurried_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = started(1 << 20)

    async def hurry_soon() -> bool:
        hurried = asyncio.Event()
        run = asyncio.ensure_future(LastWork(engine, FLUSH, 3600).run(hurried))
        while "flushing to SSD: 1 MiB" not in caplog.text:
            await asyncio.sleep(0)
        hurried.set()
        result = await run
        engine.engine.stop()
        return result

    assert not asyncio.run(hurry_soon())
    assert "hurried after" in caplog.text


def test_without_ssd_or_time_nothing_is_flushed() -> None:
    assert flush_engine(started(1)._replace(ssd=SsdPlan()), 60)
    assert flush_engine(started(1), 0)
    assert not flush_engine(started(1), 1), "nobody asks this one, so it never has less left"


@pytest.mark.parametrize(
    ("left", "total", "took_s", "expected"),
    [
        (0, 0, 0, "0 bytes of 0 bytes"),
        (4 * MIB, 4 * MIB, 2, "0 bytes of 4 MiB"),
        (1 * MIB, 4 * MIB, 2, "3 MiB of 4 MiB, 1.5 MiB/s"),
    ],
)
def test_progress_is_told_for_people(left: int, total: int, took_s: float, expected: str) -> None:
    assert progress_text(left, total, took_s) == expected
