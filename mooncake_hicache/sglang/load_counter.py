"""What a forward pass waits for while its prefix is still being loaded.

SGLang asks before each layer (`wait_until`). On a GPU the answer comes at once: the engine's stream
is told to wait for the copies of that layer, and the CPU goes on launching. In host memory the call
blocks until the load has ended.

A load that fails does not stop the forward pass, which runs on whatever the slots hold: `finish`
says so, and SGLang drops what came of it. The same holds for a forward pass that could not wait any
longer: what it read may have come only after it.

When `finish` returns, SGLang may give the slots to other requests. So a load that has not begun by
then never begins, and one that has is waited for, however late it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from mooncake_hicache._core import LoadStages

__all__ = ["Load", "LoadCounter"]

logger = logging.getLogger(__name__)

_WAIT_MAX_MS = 30_000
"""Longer than any load takes: the node answers within the call's time, the rest is copying."""


class Load:
    """One batch of loads under way."""

    def __init__(self, layer_count: int, part_count: int) -> None:
        self.stages = LoadStages(layer_count, part_count)
        self.landed: Future[bool] = Future()
        """Whether every byte came and was verified."""
        self._waited: dict[int, int] = {}  # Stream to the last layer that it waits for.
        self._was_read_early = False
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_given_up = False

    def may_begin(self) -> bool:
        """Whether the slots may be written: from now until `landed`. Asked once, before the first
        byte."""
        with self._lock:
            self._has_begun = not self._is_given_up
            return self._has_begun

    def wait(self, layer: int, stream: int) -> None:
        """Have a stream wait for a layer, and so for those before it."""
        if self._waited.get(stream, -1) < layer:
            self._was_read_early |= not self.stages.wait(layer, stream, _WAIT_MAX_MS)
            self._waited[stream] = layer

    def finish(self) -> bool:
        """Wait until nothing is written any more. Returns whether all of it is right, and was so
        when it was read."""
        while True:
            try:
                return self.landed.result(_WAIT_MAX_MS / 1000) and not self._was_read_early
            except FutureTimeoutError:
                if self._give_up():
                    logger.error("a load has not begun for %d s: given up", _WAIT_MAX_MS // 1000)
                    return False
                # To go on would give slots away that are still written to. What writes them is
                # bounded by the driver alone; if the GPU hangs, the engine's watchdog ends us.
                logger.error("a load is still copying after %d s", _WAIT_MAX_MS // 1000)

    def _give_up(self) -> bool:
        """Keep a load from beginning. Returns False if it has begun."""
        with self._lock:
            self._is_given_up = not self._has_begun
            return self._is_given_up


class LoadCounter:
    """SGLang's `layer_done_counter`. The scheduler's thread calls everything but `Load`'s methods.

    Args:
        layer_count: layers of a load.
        current_stream: gives the address of the engine's stream; None for host memory.
    """

    def __init__(self, layer_count: int, current_stream: Callable[[], int] | None) -> None:
        self.num_layers = layer_count
        self.consumer_index = -1
        self._current_stream = current_stream
        self._lock = threading.Lock()
        self._loads: dict[int, Load] = {}
        self._next_index = 0

    def begin(self, part_count: int) -> tuple[int, Load]:
        """Return a new load and its number."""
        load = Load(self.num_layers, part_count)
        with self._lock:
            index, self._next_index = self._next_index, self._next_index + 1
            self._loads[index] = load
        return index, load

    def set_consumer(self, index: int) -> None:
        """Note which load the next forward pass uses; -1: none."""
        self.consumer_index = index

    def wait_until(self, threshold: int) -> None:
        """Have the forward pass wait for a layer of its load."""
        load = self._loads.get(self.consumer_index)
        if load is not None:
            load.wait(threshold, self._current_stream() if self._current_stream else 0)

    def finish(self, index: int) -> bool:
        """Wait for the end of a load and forget it. Returns whether all of it is right."""
        load = self._loads.get(index)
        if load is None:
            return True
        landed = load.finish()
        with self._lock:
            self._loads.pop(index, None)
        return landed

    def reset(self) -> None:
        """Wait for all loads and forget them."""
        for index in list(self._loads):
            self.finish(index)
        self.consumer_index = -1
