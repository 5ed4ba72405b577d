"""What `mooncake-hicache status` says of the pages on SSD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mooncake_hicache.node.state import NodeState
from mooncake_hicache.units import format_duration_ms, format_size

__all__ = ["share", "ssd_rows", "ssd_trouble"]


def share(part: float, whole: float) -> str:
    """Return a share of something as text; a dash if it is nothing."""
    return f"{100 * part / whole:.1f} %" if whole > 0 else "–"


def ssd_rows(state: NodeState | None, stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines: name and text.

    Args:
        state: The node's state file, None if it is another's.
        stats: The node's counts.
    """
    directories = stats["ssd_directories"] + stats["ssd_failed_directories"]
    if directories == 0:
        yield "ssd", "off"
        return
    used, size = stats["ssd_used_bytes"], stats["ssd_size_bytes"]
    yield (
        "ssd",
        f"{format_size(used)} of {format_size(size)} used ({share(used, size)}), "
        f"{stats['ssd_pages']:,} pages",
    )
    for path, limit in (state.ssd if state is not None else {}).items():
        yield "ssd directory", f"{path}, at most {format_size(limit)}"
    yield "ssd recovery", _recovery(stats)
    hits, from_ssd = stats["get_hit_pages"], stats["ssd_hit_pages"]
    yield (
        "hits by tier",
        f"memory {share(hits - from_ssd, hits)}, SSD {share(from_ssd, hits)}; "
        f"{stats['ssd_staged_pages']:,} pages were staged",
    )
    yield "ssd writes", _writes(state, stats)
    if stats["ssd_flush_left_bytes"] and state is not None and state.phase == "flushing":
        yield "flushing", f"{format_size(stats['ssd_flush_left_bytes'])} left, then it ends"
    if stats["ssd_dropped_pages"]:
        age = format_duration_ms(stats["ssd_eviction_age_s"] * 1000)
        yield "ssd dropped", f"{stats['ssd_dropped_pages']:,} pages, now {age} old"


def ssd_trouble(stats: dict[str, Any]) -> dict[str, int]:
    """Return the counts that should be 0."""
    names = (
        "ssd_failed_directories",
        "ssd_corrupt_pages",
        "ssd_read_errors",
        "ssd_write_errors",
        "ssd_overrun_pages",
        "ssd_oversize_pages",
    )
    return {name: stats[name] for name in names}


def _recovery(stats: dict[str, Any]) -> str:
    pages = f"{stats['ssd_recovered_pages']:,} pages"
    if stats["ssd_recovering"]:
        return f"under way, {pages} so far; they are served already"
    return f"{pages} in {format_duration_ms(stats['ssd_recovery_ms'])}"


def _writes(state: NodeState | None, stats: dict[str, Any]) -> str:
    today = format_size(stats["ssd_written_last_day_bytes"])
    text = f"{today} in 24 h"
    if state is not None and state.ssd_write_budget_bytes:
        budget = state.ssd_write_budget_bytes
        text += f" of {format_size(budget)} ({share(stats['ssd_written_last_day_bytes'], budget)})"
        text += f", {format_size(stats['ssd_budget_left_bytes'])} at once"
    elif state is not None:
        text += ", no budget"
    pages = stats["ssd_written_bytes"]
    if pages:
        text += f"; {stats['ssd_device_written_bytes'] / pages:.2f} bytes per byte of pages"
    if stats["ssd_refused_pages"]:
        text += f"; {stats['ssd_refused_pages']:,} pages refused"
    return text
