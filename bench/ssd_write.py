"""Writing pages out beside fio, and what the tier in memory still does meanwhile."""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import ssd_fio
from bench.limits import Area, best_copy, copy_seconds
from bench.pages_copy import MiB, keys_of
from bench.pages_index import node_stats
from bench.ssd_node import (
    OK,
    Scale,
    process_seconds,
    put_pages,
    ssd_node,
    stop_node,
    wait_until,
)
from mooncake_hicache.namespace import Namespace
from mooncake_hicache.store import Store

SIZE, BATCH = 4 * MiB, 32
GROUP_BYTES, GROUPS_IN_FLIGHT = 8 * MiB, 4
"""What the node writes at once (csrc/store/ssd_tier.cc)."""
QUEUED_MAX = 96 * MiB
"""On its way to the disk before puts pause: more than the node has in flight, less than it keeps
free ahead of puts."""
LOOK_S = 0.004
SUSTAINED_S = 3.0
MIN_BYTES = 64 * MiB
WORKING_SET = 512 * MiB


def measure(folder: Path, scale: Scale, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure a flush of a full pool and sustained puts, each in turn with fio.

    "paced": puts go on as long as the disk keeps up, so that no page leaves memory unwritten.
    "unpaced": puts go on at the speed of memory, and take the CPU that goes with it.
    """
    kinds: dict[str, Callable[[], dict[str, float]]] = {
        "flush": lambda: _flush(place, scale),
        "paced": lambda: _sustained(place, scale, QUEUED_MAX),
        "unpaced": lambda: _sustained(place, scale, None),
    }
    place = folder / "write"
    fio: dict[bool, list[ssd_fio.DiskSpeed]] = {True: [], False: []}
    turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for turn in range(max(1, scale.turns // 2)):
        for kind, call in kinds.items():
            tell(f"write-out, turn {turn + 1}: {kind}")
            for huge_pages, found in fio.items():
                found.append(
                    ssd_fio.write(
                        folder,
                        total=scale.write_bytes,
                        size=GROUP_BYTES,
                        depth=GROUPS_IN_FLIGHT,
                        huge_pages=huge_pages,
                    )
                )
            turns[kind].append(call())
            shutil.rmtree(place)
    speeds = {
        huge: statistics.median(one.bytes_per_s for one in found) for huge, found in fio.items()
    }
    is_huge = any(one["pool_is_huge"] for found in turns.values() for one in found)
    reference = speeds[True]  # On small pages the node copies to huge ones first.
    figures: dict[str, Any] = {
        "pool_is_huge": is_huge,
        "fio": reference,
        "fio_huge_pages": speeds[True],
        "fio_small_pages": speeds[False],
        "fio_turns": [one.bytes_per_s for one in fio[True]],
        "fio_cpu_s_per_gb": statistics.median(one.cpu_s_per_gb for one in fio[True]),
    }
    for kind, rows in turns.items():
        names = rows[0].keys()
        medians = {name: statistics.median(one[name] for one in rows) for name in names}
        figures[kind] = {
            **medians,
            "ratio": medians["speed"] / reference,
            "turns": [one["speed"] for one in rows],
        }
    return figures


def _written(store: Store) -> tuple[float, int, float]:
    """Return now, the bytes written, and the CPU seconds of the node."""
    stats = node_stats(store)
    seconds = process_seconds(int(stats["pid"]))
    return time.perf_counter(), stats["ssd_device_written_bytes"], seconds


def _pool_is_huge(store: Store) -> bool:
    """Return whether the node has its pool on huge pages, which the kernel may not offer."""
    smaps = Path(f"/proc/{int(node_stats(store)['pid'])}/smaps").read_text(encoding="utf-8")
    for mapping in smaps.split("VmFlags:"):
        if "memfd:" not in mapping:
            continue
        fields = dict(line.split(":", 1) for line in mapping.splitlines() if ":" in line)
        if int(fields["KernelPageSize"].split()[0]) > 4 or int(fields["ShmemPmdMapped"].split()[0]):
            return True
    return False


def _slope(samples: list[tuple[float, int, float]]) -> dict[str, float]:
    """Return the speed between the first and the last sample that saw progress."""
    moving = [samples[0]]
    for sample in samples:
        if sample[1] > moving[-1][1]:
            moving.append(sample)
    if len(moving) < 3:
        raise RuntimeError(f"no progress of writing in {len(samples)} looks")
    moving = moving[1:]
    first, last = moving[0], moving[-1]
    moved = last[1] - first[1]
    return {
        "speed": moved / (last[0] - first[0]),
        "node_cpu_s_per_gb": (last[2] - first[2]) / (moved / 1e9),
    }


def _flush(place: Path, scale: Scale) -> dict[str, float]:
    """Fill a pool to just below where write-out begins, then stop the node and look on."""
    area = Area(64 * MiB)
    keys = keys_of("flush", scale.write_bytes // SIZE)
    with (
        ssd_node(place, scale.write_bytes * 5 // 4),
        Store.open() as store,
        ThreadPoolExecutor(1) as executor,
    ):
        pages = store.namespace({"bench": "ssd", "case": "flush"})
        for first in range(0, len(keys), 16):
            put_pages(pages, area, keys[first : first + 16], SIZE, first)
        pool_is_huge = _pool_is_huge(store)
        watcher = Store.open(autostart=False)
        store.close()
        samples = [_written(watcher)]
        stopping = executor.submit(stop_node)
        while not stopping.done():
            try:
                samples.append(_written(watcher))
            except (RuntimeError, OSError):
                break  # It is gone.
            time.sleep(LOOK_S)
        stopping.result()
        watcher.close()
    return {**_slope(samples), "pool_is_huge": pool_is_huge}


def _sustained(place: Path, scale: Scale, queued_max: int | None) -> dict[str, float]:
    """Put into a full pool for some seconds."""
    area = Area(WORKING_SET // 4)
    with (
        ssd_node(place, min(1024 * MiB, scale.write_bytes), ssd_size=_limit(scale)),
        Store.open() as store,
    ):
        pages = store.namespace({"bench": "ssd", "case": "sustained"})
        wait_until("writing to begin", lambda: _put_until_written(store, pages, area))
        before = node_stats(store)
        samples = [_written(store)]
        number = 0
        seconds = min(SUSTAINED_S, 4 * scale.seconds)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds or samples[-1][1] < samples[0][1] + MIN_BYTES:
            # Looking costs CPU, too: seldom.
            if time.perf_counter() - samples[-1][0] >= LOOK_S:
                samples.append(_written(store))
            if queued_max is None or node_stats(store)["ssd_writing_bytes"] < queued_max:
                put_pages(pages, area, keys_of(f"sustained/{number}", 4), SIZE, 4 * number)
                number += 1
            else:
                time.sleep(LOOK_S)
        found = {**_slope(samples), "pool_is_huge": float(_pool_is_huge(store))}
        after = node_stats(store)
        stored = after["put_stored_pages"] - before["put_stored_pages"]
        found["put_speed"] = stored * SIZE / (time.perf_counter() - began)
        found["overrun_share"] = (after["ssd_overrun_pages"] - before["ssd_overrun_pages"]) / stored
    return found


def _limit(scale: Scale) -> str:
    """Return an SSD size at which nothing is reclaimed while it is written for some seconds."""
    return f"{max(10 << 30, 2 * scale.write_bytes) // MiB}MiB"


_begun = itertools.count()


def _put_until_written(store: Store, pages: Namespace, area: Area) -> bool:
    put_pages(pages, area, keys_of(f"begin/{next(_begun)}", 8), SIZE, 0)
    return node_stats(store)["ssd_device_written_bytes"] > 0


# ---------------------------------------------------------------- meanwhile, in memory


def measure_meanwhile(folder: Path, scale: Scale, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the share of the best copy that put and get reach, undisturbed and during write-out.

    Undisturbed there is no SSD. During write-out another thread puts pages at the pace of the disk,
    and the reference copies run during the same write-out: both have as much CPU left.
    """
    figures: dict[str, Any] = {}
    rounds = 24 if scale.seconds >= 1 else 3
    place = folder / "meanwhile"
    pool = 3 * WORKING_SET
    for state in ("alone", "write_out"):
        settings = {"ssd_size": _limit(scale)}
        tell(f"in memory, {state.replace('_', '-')}")
        where = "off" if state == "alone" else place
        with ssd_node(where, pool, **settings), Store.open() as store:
            figures[state] = _ratios(store, rounds, state == "write_out")
    for operation in ("get", "put"):
        alone, meanwhile = figures["alone"][operation], figures["write_out"][operation]
        figures[f"{operation}_kept"] = meanwhile["ratio"] / alone["ratio"]
    shutil.rmtree(place, ignore_errors=True)
    return figures


def _ratios(store: Store, rounds: int, is_disturbed: bool) -> dict[str, Any]:
    ours, other = Area(WORKING_SET), Area(WORKING_SET)
    pages = store.namespace({"bench": "ssd", "case": "meanwhile"})
    sets = WORKING_SET // (SIZE * BATCH)
    stored = [keys_of(f"stored/{number}", BATCH) for number in range(sets)]
    sizes = np.array([SIZE], dtype=np.uint64)
    fresh = itertools.count()

    def addresses(number: int) -> Any:
        return ours.addresses(SIZE, number * BATCH, BATCH).reshape(-1, 1)

    def get(number: int) -> Any:
        return pages.get_into_addresses(stored[number], addresses(number), sizes)

    def put(number: int) -> Any:
        keys = keys_of(f"fresh/{next(fresh)}", BATCH)
        return pages.put_from(keys, addresses(number), sizes, chained=False)

    for number, keys in enumerate(stored):  # Pinned: they are what is read from memory.
        pages.put_from(keys, addresses(number), sizes, chained=False, pin="soft")
    threads = store.options.copy_thread_count()
    warm = 3 * WORKING_SET // (SIZE * BATCH)
    for number in range(warm):  # The pool is touched, and full.
        put(number % sets)
        get(number % sets)
    found: dict[str, Any] = {}
    for operation, call in (("get", get), ("put", put)):
        with _background(store) if is_disturbed else _nothing() as written:
            pieces = ours.addresses(SIZE, 0, BATCH), other.addresses(SIZE, 0, BATCH)
            kind, copy_threads = best_copy(threads, *pieces, SIZE)
            call_s, copy_s = [], []
            for number in range(rounds):
                near, far = number % sets, (number + sets // 2) % sets
                target, source = (
                    area.addresses(SIZE, far * BATCH, BATCH) for area in (ours, other)
                )
                copy_s.append(copy_seconds(kind, copy_threads, target, source, SIZE))
                began = time.perf_counter()
                codes = np.asarray(call(near))
                call_s.append(time.perf_counter() - began)
                if (codes != OK).any():
                    raise RuntimeError(f"{operation}: codes {np.unique(codes)}")
            disk_speed = written()
        call_median, copy_median = statistics.median(call_s), statistics.median(copy_s)
        found[operation] = {
            "speed": SIZE * BATCH / call_median,
            "copy_speed": SIZE * BATCH / copy_median,
            "ratio": copy_median / call_median,
            "written_per_s": disk_speed,
        }
    return found


@contextmanager
def _nothing() -> Iterator[Callable[[], float]]:
    yield lambda: 0.0


@contextmanager
def _background(store: Store) -> Iterator[Callable[[], float]]:
    """Put pages from another thread as fast as the disk takes them; tells how fast that was."""
    ended = threading.Event()
    source = Area(64 * MiB)

    def work() -> None:
        with Store.open(copy_threads=1) as own:
            pages = own.namespace({"bench": "ssd", "case": "background"})
            for number in itertools.count():
                if ended.is_set():
                    return
                keys = keys_of(f"background/{number}/{time.monotonic_ns()}", 2)
                put_pages(pages, source, keys, SIZE, 2 * number)
                while not ended.is_set() and node_stats(own)["ssd_writing_bytes"] > 32 * MiB:
                    time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun = node_stats(store)["ssd_device_written_bytes"]
        wait_until(
            "write-out", lambda: node_stats(store)["ssd_device_written_bytes"] > begun + 16 * MiB
        )
        began, before, _ = _written(store)

        def speed() -> float:
            now, written, _ = _written(store)
            return (written - before) / (now - began)

        yield speed
    finally:
        ended.set()
        thread.join()
