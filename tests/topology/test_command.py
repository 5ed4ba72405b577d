"""`mooncake-hicache topology`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mooncake_hicache.topology import parse_topology
from tests.topology import machines


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", "topology", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def row_of(text: str, first: str) -> str:
    return next(line for line in reversed(text.splitlines()) if line.startswith(first))


def test_a_dgx_is_printed_as_a_matrix(tmp_path: Path) -> None:
    machines.dgx(tmp_path)
    done = run("--root", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    header = row_of(done.stdout, "from").split()
    assert header == ["from", *(f"mlx5_{n}" for n in range(9))]
    cells = row_of(done.stdout, "cuda:5").split("us")
    assert "* switch" in cells[5]
    assert "* " not in "".join(cells[:5] + cells[6:])
    for part in ("112-167", "H100", "InfiniBand", "400 Gb/s", "RoCE v2", "ens6f0", "MTU 9000"):
        assert part in done.stdout
    assert "→" not in done.stdout, "nothing is wrong"


def test_what_is_wrong_is_printed_with_the_remedy_and_exit_status(tmp_path: Path) -> None:
    machines.broken(tmp_path)
    done = run("--root", str(tmp_path))
    assert done.returncode == 1
    assert "→ give ens2 an address" in done.stdout
    assert "- node" in row_of(done.stdout, "cpu:0")


def test_json_is_a_topology_file_again(tmp_path: Path) -> None:
    machines.dual_socket(tmp_path)
    done = run("--root", str(tmp_path), "--json")
    tree = json.loads(done.stdout)
    assert tree["findings"] == []
    assert [device["name"] for device in tree["machine"]["rdma"]] == ["mlx5_0", "mlx5_1"]
    del tree["findings"], tree["machine"]
    assert parse_topology(json.dumps(tree)).locations["cpu:1"].preferred == ("mlx5_1",)
    file = tmp_path / "own.json"
    file.write_text(done.stdout)
    again = run("--root", str(tmp_path), "--check", str(file))
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ('{"cpu:0": [["mlx5_0"], ["mlx5_1"]], "*": [["mlx5_1"], []]}', 0, "* node"),
        ('{"cpu:0": [["mlx5_1"], []], "*": [["mlx5_0"], []]}', 0, "mlx5_1 is preferred here"),
        ('{"cpu:0": [["mlx5_7"], []], "*": [[], []]}', 1, "no such device (mlx5_0, mlx5_1)"),
        ('{"cpu:0": ["mlx5_0"]}', 1, "custom.json, location cpu:0: two lists are expected"),
        ("{", 1, "custom.json: not valid JSON"),
    ],
)
def test_a_file_is_checked_against_the_machine(
    tmp_path: Path, text: str, status: int, told: str
) -> None:
    machines.dual_socket(tmp_path)
    file = tmp_path / "custom.json"
    file.write_text(text)
    done = run("--root", str(tmp_path), "--check", str(file))
    assert done.returncode == status, done.stdout
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_this_machine_is_printed_and_a_missing_file_named() -> None:
    done = run()
    assert done.stderr == ""
    assert "cpu:0" in done.stdout
    missing = run("--check", "/nonexistent.json")
    assert missing.returncode == 1
    assert "/nonexistent.json: No such file" in missing.stderr
