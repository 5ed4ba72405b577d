"""Where the time of a request goes inside SGLang: a plugin that notes when steps begin and end.

Installed beside the benchmark as a module and an entry point of its own; it does nothing unless
`HICACHE_BENCH_EVENTS` names a file. Then one line of JSON is appended for each call of a step:
name, begin and end (seconds of the monotonic clock, which all processes share), and pages.

Two more variables change what is measured: `HICACHE_BENCH_SWITCH_INTERVAL_S`, after how long a
thread that wants the interpreter's lock gets it, and `HICACHE_BENCH_LOOKUP_POLL_US`, how long a
look-up keeps it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "HICACHE_BENCH_EVENTS"
SWITCH_VARIABLE = "HICACHE_BENCH_SWITCH_INTERVAL_S"
POLL_VARIABLE = "HICACHE_BENCH_LOOKUP_POLL_US"


class _Log:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, name: str, begin: float, end: float, count: int) -> None:
        os.write(self._file, (json.dumps([name, begin, end, count]) + "\n").encode())


def _count(args: tuple[Any, ...]) -> int:
    first = args[1] if len(args) > 1 else None
    if first is None:
        return 0
    try:
        return len(first)
    except TypeError:
        return 0


def _wrap(owner: Any, method: str, log: _Log, keep: Callable[[Any], bool] | None = None) -> None:
    original = getattr(owner, method, None)
    if original is None or getattr(original, "is_timed", False):
        return

    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.monotonic()
        result = original(*args, **kwargs)
        end = time.monotonic()
        if keep is None or keep(result):
            log.note(f"{owner.__name__}.{method}", begin, end, _count(args))
        return result

    timed.is_timed = True  # type: ignore[attr-defined]
    setattr(owner, method, timed)


def _wrap_progress(tree: Any, log: _Log) -> None:
    """Note only the call that ends a prefetch; the others come at every scheduler step."""
    original = tree.check_prefetch_progress

    @functools.wraps(original)
    def timed(self: Any, request: str) -> bool:
        ongoing = request in self.ongoing_prefetch
        begin = time.monotonic()
        done = bool(original(self, request))
        if ongoing and done:
            log.note(f"{tree.__name__}.check_prefetch_progress", begin, time.monotonic(), 0)
        return done

    tree.check_prefetch_progress = timed


def _wrap_scheduler(log: _Log) -> None:
    from sglang.srt.managers.scheduler import Scheduler

    for method in ("handle_generate_request", "run_batch", "process_batch_result"):
        _wrap(Scheduler, method, log)


def _wrap_all(backend: type, log: _Log) -> None:
    try:
        from sglang.srt.managers.cache_controller import HiCacheController
        from sglang.srt.mem_cache.hiradix_cache import HiRadixCache
    except ImportError:  # A release that has other steps.
        return
    for method in ("batch_exists", "batch_get_v1", "batch_set_v1", "batch_get", "batch_set"):
        _wrap(backend, method, log)
    for method in ("_storage_hit_query", "_page_transfer", "start_loading", "reset"):
        _wrap(HiCacheController, method, log)
    for method in ("prefetch_from_storage", "load_back"):
        _wrap(HiRadixCache, method, log)
    _wrap_progress(HiRadixCache, log)
    if backend.__module__.startswith("mooncake_hicache"):
        from mooncake_hicache import namespace
        from mooncake_hicache.namespace import Namespace

        if POLL_VARIABLE in os.environ:
            namespace._LOOKUP_POLL_US = int(os.environ[POLL_VARIABLE])

        for method in ("lookup", "get_into_addresses", "put_from"):
            _wrap(Namespace, method, log)


def register() -> None:
    """Called by SGLang in each of its processes; waits for the one that creates a backend."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    if SWITCH_VARIABLE in os.environ:
        sys.setswitchinterval(float(os.environ[SWITCH_VARIABLE]))
    log = _Log(path)
    # A scheduler loads plugins once it is imported itself; it has one without a backend, too.
    if "sglang.srt.managers.scheduler" in sys.modules:
        _wrap_scheduler(log)
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    original = StorageBackendFactory.create_backend

    @functools.wraps(original)
    def create(*args: Any, **kwargs: Any) -> Any:
        backend = original(*args, **kwargs)
        _wrap_all(type(backend), log)
        return backend

    StorageBackendFactory.create_backend = create
