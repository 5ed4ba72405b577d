"""Sizes and durations in text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.units import (
    format_duration_ms,
    format_size,
    parse_duration_ms,
    parse_percent,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("64GB", 64 * 10**9),
        ("64 GiB", 64 * 2**30),
        ("64g", 64 * 2**30),
        ("1.5kb", 1500),
        ("0.5MiB", 2**19),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_size(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "12 parsecs", "-1", -1, True, "1e9", "25%", "1,5GB"])
def test_what_is_no_size_is_named_with_an_example(text: str | int) -> None:
    with pytest.raises(InvalidArgumentError, match="64GB") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", [2**62 + 1, "9223372036854775809", "99999999999TB", "9" * 400 + ".5"]
)
def test_a_size_that_no_machine_has_is_refused(text: str | int) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 4 EiB") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)
    assert parse_size("4194304TiB") == parse_size(2**62) == 2**62


@pytest.mark.parametrize(
    ("text", "unit_ms", "duration_ms"),
    [
        (250, 1, 250),
        ("250", 1, 250),
        ("250", 1000, 250_000),
        ("2s", 1, 2000),
        ("1.5s", 1000, 1500),
        ("10min", 1, 600_000),
        ("1h", 1, 3_600_000),
        (0.5, 1000, 500),
    ],
)
def test_duration(text: str | float, unit_ms: int, duration_ms: int) -> None:
    assert parse_duration_ms(text, unit_ms) == duration_ms


@pytest.mark.parametrize("text", ["", "s", "5 weeks", -1, float("inf"), float("nan"), None, True])
def test_what_is_no_duration_is_named_with_an_example(text: object) -> None:
    with pytest.raises(InvalidArgumentError, match="500ms"):
        parse_duration_ms(text)  # type: ignore[arg-type]


def test_percent() -> None:
    assert parse_percent("25%") == 25.0
    assert parse_percent("12.5 %") == 12.5
    assert parse_percent("25") is None
    assert parse_percent(25) is None


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_an_error_that_names_it(text: str) -> None:
    for parse in (parse_size, parse_duration_ms):
        try:
            assert parse(text) >= 0
        except InvalidArgumentError as error:
            assert repr(text) in str(error)


@given(st.integers(min_value=0, max_value=2**62))
def test_a_formatted_size_is_close_to_the_size(size: int) -> None:
    number, unit = format_size(size).split()
    factor = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert abs(float(number) * factor - size) <= max(1, size * 0.001)


def test_durations_for_people() -> None:
    assert format_duration_ms(850) == "850 ms"
    assert format_duration_ms(12_500) == "12.5 s"
    assert format_duration_ms(185_000) == "3 min 5 s"
    assert format_duration_ms(11_100_000) == "3 h 5 min"
    assert format_duration_ms(3 * 86_400_000) == "3 d 0 h"
