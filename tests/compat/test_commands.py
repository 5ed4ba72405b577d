"""The programs that come with the drop-in, with the original's flags."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mooncake_hicache.compat.flags import Flag, Flags
from mooncake_hicache.compat.http_metadata_server import KVBootstrapServer, KVPoll
from mooncake_hicache.compat.topology_dump import main as topology_dump
from mooncake_hicache.compat.transfer_engine_bench import main as bench
from mooncake_hicache.errors import InvalidArgumentError
from tests.compat.processes import environment
from tests.metadata.servers import ask, free_port
from tests.processes import wait_for

KNOWN = {
    "mode": Flag("initiator", "", ("initiator", "target")),
    "size": Flag(7, ""),
    "name": Flag("", ""),
    "fast": Flag(False, ""),
}


# ---- flags


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("-size=1 --size 2", {"size": 2}),
        ("-mode target --name=a=b", {"mode": "target", "name": "a=b"}),
        ("--fast", {"fast": True}),
        ("--fast --nofast", {"fast": False}),
        ("--fast=true --size 3", {"fast": True, "size": 3}),
        ("--name --fast", {"name": "--fast"}),
        ("--size=1 --undefok=foo,bar --foo=2 --bar", {"size": 1}),
        ("--fromenv=size,fast", {"size": 12, "fast": True}),
        ("--tryfromenv=name,size", {"size": 12}),
    ],
)
def test_flags_in_the_style_of_gflags(line: str, expected: dict[str, object]) -> None:
    flags = Flags(KNOWN, {"FLAGS_size": "12", "FLAGS_fast": "1"})
    flags.parse(line.split())
    defaults = {name: flag.default for name, flag in KNOWN.items()}
    assert flags.values == {**defaults, **expected}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--foo=1", "--foo is unknown"),
        ("--nosize", "--nosize is unknown"),
        ("--size", "needs a value"),
        ("--size=-1", "--size=-1"),
        ("--size=abc", "whole number"),
        ("--mode=both", "initiator, target"),
        ("--fast=maybe", "true or false"),
        ("target", "'target' is no flag"),
        ("--", "no flag"),
        ("--fromenv=name", "FLAGS_name"),
        ("--flagfile=/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_flags_that_are_wrong_are_named(line: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(why)):
        Flags(KNOWN, {}).parse(line.split())


def test_flags_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flags"
    path.write_text("# what this machine is\n\n--size=3\n  -mode=target\n", encoding="utf-8")
    flags = Flags(KNOWN, {})
    flags.parse([f"--flagfile={path}", "--size=4"])
    assert flags.values["size"] == 4
    assert flags.values["mode"] == "target"
    path.write_text(f"--flagfile={path}", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="name each other"):
        flags.parse([f"--flagfile={path}"])


# ---- http_metadata_server


def test_a_metadata_server_in_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    server = KVBootstrapServer(0, "127.0.0.1")
    assert server.poll() is KVPoll.Failed
    with caplog.at_level("INFO"):
        thread = server.run()
    assert thread.is_alive()
    # Scripts wait for these words.
    assert "HTTP Metadata Server started" in caplog.text
    assert server.poll() is KVPoll.Success
    where = f"http://127.0.0.1:{server.port}/metadata?key=k"
    assert ask(where, "PUT", b"{}")[0] == 200
    assert ask(where)[1] == b"{}"
    taken = KVBootstrapServer(server.port, "127.0.0.1")
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(OSError, match="cannot listen"):
        taken.run()
    assert "started" not in caplog.text
    assert taken.poll() is KVPoll.Failed
    server.close()
    server.close()
    assert server.poll() is KVPoll.Failed


def test_the_metadata_servers_command() -> None:
    port = free_port()
    command = [sys.executable, "-m", "mooncake.http_metadata_server"]
    flags = ["--port", str(port), "--host", "127.0.0.1", "--log-level", "DEBUG"]
    with subprocess.Popen([*command, *flags], env=environment(), stderr=subprocess.PIPE) as process:
        try:

            def answers() -> bool:
                assert process.poll() is None
                try:
                    return ask(f"http://127.0.0.1:{port}/health")[0] == 200
                except OSError:
                    return False

            wait_for("the server answers", answers)
            done = subprocess.run([*command, *flags], env=environment(), check=False, timeout=60)
            assert done.returncode == 1  # The port is taken.
        finally:
            process.terminate()
        assert process.wait(30) == 0


# ---- transfer_engine_topology_dump


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, list[list[str]]]:
    head, _, text = capsys.readouterr().out.partition(": ")
    assert head.startswith("Local topology [te/")
    places: dict[str, list[list[str]]] = json.loads(text)
    return places


def test_topology_is_dumped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert topology_dump([]) == 0
    assert all(len(lists) == 2 for lists in told(capsys).values())
    custom = {"cpu:0": [["mlx5_0", "mlx5_1"], ["mlx5_2"]]}
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(custom), encoding="utf-8")
    assert topology_dump(["--custom-topo-json", str(path)]) == 0
    assert told(capsys) == custom
    monkeypatch.setenv("MC_CUSTOM_TOPO_JSON", str(path))
    assert topology_dump(["--backend", "te"]) == 0
    assert told(capsys) != custom
    assert topology_dump(["--use-custom-topo", "--device-name", "mlx5_1,mlx5_2"]) == 0
    assert told(capsys) == {"cpu:0": [["mlx5_1"], ["mlx5_2"]]}
    path.write_text("no json", encoding="utf-8")
    assert topology_dump(["--use-custom-topo"]) == 1
    assert str(path) in capsys.readouterr().err
    with pytest.raises(SystemExit):
        topology_dump(["--backend", "tent"])


# ---- transfer_engine_bench


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--foo", "--foo is unknown"),
        ("", "--segment_id=NAME is needed"),
        ("--segment_id=localhost:1 --buffer_size=1000", "--buffer_size is 1000"),
        ("--segment_id=localhost:1 --threads=0", "--threads=0"),
        ("--backend=tent", "tent"),
        ("--segment_id=localhost:1 --local_server_name=localhost --protocol=tcp "
         "--buffer_size=65536 --threads=1 --batch_size=1", "localhost:1"),
        ("--mode=target --metadata_server=redis://x", "Redis"),
    ],
)  # fmt: skip
def test_bench_says_what_is_wrong(line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(line.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("transfer_engine_bench: ")
    assert why in said


def test_bench_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["-help"]) == 0
    assert "--block_size=65536" in capsys.readouterr().out


@pytest.mark.parametrize("operation", ["read", "write"])
def test_bench_measures_between_two_processes(operation: str) -> None:
    command = [sys.executable, "-m", "mooncake.transfer_engine_bench", "--protocol=tcp"]
    common = ["--buffer_size", str(16 << 20), "--local_server_name=127.0.0.1"]
    with subprocess.Popen(
        [*command, "-mode=target", *common], env=environment(), stdout=subprocess.PIPE, text=True
    ) as target:
        try:
            assert target.stdout is not None
            found = re.search(r"--segment_id=(\S+)", target.stdout.readline())
            assert found is not None
            here = ["--segment_id", found.group(1), "-threads=2", "-batch_size=8", "-duration=1"]
            done = subprocess.run(
                [*command, *common, *here, f"--operation={operation}", "--report_unit=MiB"],
                env=environment(),
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )
            small = subprocess.run(
                [*command, *here, "--buffer_size", str(32 << 20)],
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        finally:
            target.terminate()
        assert target.wait(30) == 0
    said = re.fullmatch(
        r"Test completed: duration ([\d.]+), batch count (\d+), throughput ([\d.]+) MiB/s\n"
        r"latency of a batch, microseconds: p50 (\d+), p90 \d+, p99 \d+, p99.9 \d+, max (\d+)\n",
        done.stdout,
    )
    assert said is not None, done.stdout
    seconds, count, speed = float(said[1]), int(said[2]), float(said[3])
    # A batch is 8 times 64 KiB.
    assert speed == pytest.approx(count * 0.5 / seconds, rel=0.02)
    assert int(said[4]) <= int(said[5])
    assert small.returncode == 1
    assert "--buffer_size" in small.stderr
