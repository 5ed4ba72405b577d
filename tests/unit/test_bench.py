"""What the benchmarks and the demo say in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import ssd, ssd_fio
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


def test_the_bench_of_ssds_says_how_to_get_fio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ssd_fio, "program", lambda: None)
    assert ssd.main(["--only", "read"]) == 2
    assert "apt install fio" in capsys.readouterr().err


def test_the_bench_of_ssds_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without fio: what it makes by itself is a log that a node recovers, and requests."""
    arguments = ["--quick", "--only", "recovery,loop", "--directory", str(tmp_path)]
    assert ssd.main(arguments) == 0
    told = capsys.readouterr().out
    assert "recovery: 64 regions" in told
    assert "Hits by round of conversations" in told
    assert list(tmp_path.iterdir()) == []
