"""Sizes and durations as people write them: `64GB`, `512MiB`, `25%`, `2s`, `1h`."""

from __future__ import annotations

import re

from mooncake_hicache.errors import InvalidArgumentError

__all__ = [
    "format_duration_ms",
    "format_size",
    "parse_duration_ms",
    "parse_percent",
    "parse_size",
]

_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z%]*)\s*")

SIZE_MAX = 1 << 62

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_DURATION_UNITS_MS = {
    "ms": 1.0,
    "s": 1000.0,
    "sec": 1000.0,
    "min": 60_000.0,
    "h": 3_600_000.0,
    "d": 86_400_000.0,
}


def _split(text: str) -> tuple[str, str] | None:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    return None if match is None else (match.group(1), match.group(2).lower())


def parse_size(value: int | str) -> int:
    """Return a size in bytes from `4096`, `"64GB"` (10^9), `"64GiB"` or `"64G"` (2^30).

    Raises:
        InvalidArgumentError: It is no size, names an unknown unit, is negative, or beyond 4 EiB.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _checked_size(value, value)
    parts = _split(value) if isinstance(value, str) else None
    if parts is None or parts[1] not in _SIZE_UNITS:
        raise InvalidArgumentError(
            f"{value!r} is not a size: write bytes (4096) or a number with a unit "
            "(512MiB, 64GB; units kB MB GB TB KiB MiB GiB TiB)"
        )
    number, factor = parts[0], _SIZE_UNITS[parts[1]]
    # Through int where it can be, so that a count of bytes beyond 2^53 stays exact.
    size = int(number) * factor if number.isdigit() else float(number) * factor
    return _checked_size(size, value)


def _checked_size(size: float, value: int | str) -> int:
    if size > SIZE_MAX:
        raise InvalidArgumentError(f"{value!r} is more than any machine has: at most 4 EiB")
    return int(size)


def parse_percent(value: object) -> float | None:
    """Return 25.0 for `"25%"`, and None for anything that is not written as a percentage."""
    parts = _split(value) if isinstance(value, str) else None
    return float(parts[0]) if parts is not None and parts[1] == "%" else None


def parse_duration_ms(value: float | str, unit_ms: int = 1) -> int:
    """Return milliseconds from `"2s"`, `"500ms"`, `"1h"`, or a plain number of `unit_ms`.

    Raises:
        InvalidArgumentError: It is no duration, names an unknown unit, or is negative.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value >= 0 and value < float("inf"):
            return int(value * unit_ms)
        parts = None
    else:
        parts = _split(value) if isinstance(value, str) else None
    if parts is None or (parts[1] and parts[1] not in _DURATION_UNITS_MS):
        raise InvalidArgumentError(
            f"{value!r} is not a duration: write a plain number of {_unit_name(unit_ms)}, or one "
            "with a unit (500ms, 2s, 10min, 1h)"
        )
    return int(float(parts[0]) * (_DURATION_UNITS_MS[parts[1]] if parts[1] else unit_ms))


def _unit_name(unit_ms: int) -> str:
    return {1: "milliseconds", 1000: "seconds"}[unit_ms]


def format_size(size: float) -> str:
    """Return a size for people to read, in binary units: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def format_duration_ms(duration_ms: float) -> str:
    """Return a duration for people to read: `850 ms`, `12.5 s`, `3 h 5 min`."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    seconds = duration_ms / 1000
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
