"""What the benchmarks and the demo say in words."""

from __future__ import annotations

import importlib.util

import pytest

from bench import __main__ as bench
from bench.demo import last_line


def test_the_list_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    listed = capsys.readouterr().out
    for name in bench.BENCHES:
        assert f"  {name} " in listed
        assert importlib.util.find_spec(f"bench.{name}") is not None
    for name in bench.MODULES:
        assert f"  {name} " in listed
        assert importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(
    ("wrong", "ties", "told"),
    [
        (0, 0, "72 outputs compared with those without a cache: 0 wrong, every token equal"),
        (0, 1, "0 wrong, 1 near tie (another token, whose log-probability is within 0.15)"),
        (0, 5, "0 wrong, 5 near ties ("),
        (2, 0, "2 wrong; log-probabilities may differ by 0.15"),
    ],
)
def test_the_demo_ends_with_the_number_of_near_ties(wrong: int, ties: int, told: str) -> None:
    verdict: dict[str, object] = {"requests": 72, "wrong_outputs": wrong, "near_ties": ties}
    assert told in last_line(verdict, 0.15)
