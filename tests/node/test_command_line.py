"""The command line against real nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mooncake_hicache import Store
from mooncake_hicache.config import StoreOptions, options_file_text
from mooncake_hicache.metrics import NODE_METRICS
from mooncake_hicache.node.paths import SOCKET_PATH_SIZE_MAX
from tests.node.conftest import NodeFolder
from tests.processes import wait_for

RUNNING, NOT_RUNNING, UNRESPONSIVE = 0, 3, 4


@contextmanager
def foreground_node(folder: NodeFolder, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mooncake_hicache", "node", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(
            "the node is ready",
            lambda: folder.state is not None and folder.state.phase == "ready",
        )
        yield process
    finally:
        process.kill()
        process.communicate()


def fetch(url: str) -> tuple[int, str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


# ---- node and stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_in_the_foreground_ends_cleanly_on_a_signal(
    folder: NodeFolder, number: signal.Signals
) -> None:
    with foreground_node(folder) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "node ready" in errors
    assert f"got {number.name}" in errors
    assert "node stopped" in errors
    assert not Path(folder.paths.socket).exists()
    assert not folder.paths.state.exists()
    assert not folder.is_held


def test_a_signal_right_after_the_start_ends_it_too(folder: NodeFolder) -> None:
    """HTTP is still being imported then."""
    with foreground_node(folder) as process:
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_what_could_not_be_had_is_said_with_a_remedy(folder: NodeFolder) -> None:
    huge = int(Path("/proc/meminfo").read_text().split("HugePages_Free:")[1].split()[0])
    with foreground_node(folder) as process:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    if huge == 0:
        assert "nr_hugepages" in errors


def test_a_second_node_in_one_place_is_refused(folder: NodeFolder) -> None:
    with foreground_node(folder):
        for extra in ([], ["--detach"]):
            done = folder.run("node", *extra)
            assert done.returncode == 1
            assert "already holds" in done.stderr
            assert "mooncake-hicache stop" in done.stderr
            assert "MOONCAKE_HICACHE_RUNTIME_DIR" in done.stderr
            assert str(folder.pid) in done.stderr


def test_detached_node_status_and_stop(folder: NodeFolder) -> None:
    assert folder.run("status").returncode == NOT_RUNNING
    done = folder.run("node", "--detach", "--pool-size", "32MiB", "--eviction-policy", "lru")
    assert done.returncode == 0, done.stderr
    assert str(folder.pid) in done.stdout
    with Store.open() as store:
        store.namespace({"model": "m1"}).put("page", b"x" * 10_000)
        status = folder.run("status")
        assert status.returncode == RUNNING
        for part in (str(folder.pid), "32 MiB", "lru", "model=m1", "1 in 1 namespaces"):
            assert part in status.stdout, part
        report = json.loads(folder.run("status", "--json").stdout)
    assert report["node"] == "running"
    assert report["stats"]["pages"] == 1
    assert report["state"]["pid"] == folder.pid == report["stats"]["pid"]
    stopped = folder.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "node stopped\n")
    assert not folder.is_held
    assert folder.run("status").returncode == NOT_RUNNING
    assert json.loads(folder.run("status", "--json").stdout)["node"] == "not running"
    assert folder.run("stop").returncode == 0


def test_stop_warns_of_clients_that_may_start_another(folder: NodeFolder) -> None:
    with Store.open(autostart=True, wait_ms=None):
        done = folder.run("stop")
        assert done.returncode == 0
        assert "1 clients are connected" in done.stderr


def test_a_node_that_does_not_answer_is_told_apart_and_killed_by_force(folder: NodeFolder) -> None:
    quick = {"MOONCAKE_HICACHE_NODE_UNRESPONSIVE_MS": "300"}
    Store.open().close()
    pid = folder.pid
    folder.freeze()
    status = folder.run("status", env=quick)
    assert status.returncode == UNRESPONSIVE
    assert str(pid) in status.stdout
    doctor = folder.run("doctor", env=quick)
    assert doctor.returncode == 1
    assert "stop --force" in doctor.stdout
    stopped = folder.run("stop", env=quick)
    assert stopped.returncode == UNRESPONSIVE
    waited = re.search(r"did not end within ([\d.]+) s", stopped.stderr)
    assert waited is not None
    assert 0.3 <= float(waited[1]) < 10
    assert folder.run("stop", "--force", env=quick).returncode == 0
    assert not folder.is_held


# ---- HTTP


def test_http_endpoints(folder: NodeFolder) -> None:
    with Store.open() as store:
        store.namespace("x").put("page", b"x" * 5000)
        state = folder.state
        assert state is not None
        assert state.http_url.startswith("http://127.0.0.1:")
        code, kind, text = fetch(state.http_url + "/metrics")
        assert (code, kind.split(";")[0]) == (200, "text/plain")
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {metric.name for metric in NODE_METRICS if metric.kind != "info"} <= families
        assert json.loads(fetch(state.http_url + "/health")[2]) == {"status": "ok"}
        code, kind, text = fetch(state.http_url + "/status")
        assert kind.startswith("application/json")
        status = json.loads(text)
        assert status["stats"]["pages"] == 1
        assert status["pid"] == folder.pid
        assert status["phase"] == "ready"
        assert status["options"]["pool_size"] == "64MiB"
        assert isinstance(status["notices"], list)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(state.http_url + "/nothing")
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(state.http_url + "/status", data=b"", timeout=10)


def test_http_can_be_turned_off(folder: NodeFolder) -> None:
    with Store.open(http_port=-1):
        state = folder.state
        assert state is not None
        assert state.http_url == ""
        tcp = Path(f"/proc/{state.pid}/net/tcp").read_text()
        inodes = {
            str(entry.readlink())[8:-1]
            for entry in Path(f"/proc/{state.pid}/fd").iterdir()
            if str(entry.readlink()).startswith("socket:")
        }
        assert not inodes & {line.split()[9] for line in tcp.splitlines()[1:]}


# ---- doctor, config, mistakes


def test_doctor_examines_and_starts_nothing(folder: NodeFolder) -> None:
    done = folder.run("doctor", "--json")
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"versions", "options", "memory", "shared memory", "huge pages", "NUMA"} <= set(checks)
    assert {"runtime folder", "limits", "node", "SGLang plugin"} <= set(checks)
    assert checks["node"]["verdict"] == "note"
    assert done.returncode == 0
    for check in report["checks"]:
        if check["verdict"] in ("warning", "error"):
            assert check["remedy"] or "set " in check["finding"], check
    assert list(folder.path.iterdir()) == []
    assert "versions" in folder.run("doctor").stdout


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"MOONCAKE_HICACHE_POOL_SIZE": "900TB"}, "MOONCAKE_HICACHE_POOL_SIZE"),
        ({"MOONCAKE_HICACHE_POOL_SIZE": "lots"}, "not a size"),
        ({"MOONCAKE_HICACHE_POOLSIZE": "1GB"}, "MOONCAKE_HICACHE_POOL_SIZE?"),
        ({"MOONCAKE_HICACHE_NUMA_NODE": "900"}, "numa_node"),
        ({"MOONCAKE_HICACHE_RUNTIME_DIR": "/dev/null/x"}, "MOONCAKE_HICACHE_RUNTIME_DIR"),
        ({"MOONCAKE_HICACHE_RUNTIME_DIR": "/tmp/" + "x" * 120}, str(SOCKET_PATH_SIZE_MAX)),
        ({"MOONCAKE_HICACHE_AUTOSTART": "0"}, "node --detach"),
    ],
)
def test_doctor_names_what_is_wrong(folder: NodeFolder, setting: dict[str, str], told: str) -> None:
    done = folder.run("doctor", env=setting)
    assert done.returncode == 1, done.stdout
    assert told in done.stdout
    assert done.stdout.count("versions") == 1, "one mistake must not hide the other checks"
    assert "SGLang plugin" in done.stdout


def test_doctor_leaves_out_only_what_is_wrong(folder: NodeFolder) -> None:
    with Store.open():
        done = folder.run("doctor", "--json", "--numa-node", "x", env={"MOONCAKE_HICACHE_A": "1"})
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert (done.returncode, checks["options"]["verdict"]) == (1, "error")
        assert str(folder.path) in checks["node"]["finding"]
        assert checks["node"]["verdict"] == "ok"


def test_doctor_finds_a_node_that_runs(folder: NodeFolder) -> None:
    with Store.open():
        done = folder.run("doctor", "--json")
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert checks["node"]["verdict"] == "ok"
        assert str(folder.pid) in checks["node"]["finding"]


def test_config_shows_sources(folder: NodeFolder) -> None:
    shown = json.loads(folder.run("config", "--json").stdout)
    assert set(shown) == set(StoreOptions.model_fields)
    assert shown["pool_size"] == {
        "value": "64MiB",
        "source": "environment MOONCAKE_HICACHE_POOL_SIZE",
    }
    assert shown["verify"] == {"value": True, "source": "default"}
    assert "call_timeout_ms" in folder.run("config").stdout
    assert folder.run("config", "--template").stdout == options_file_text()


def test_config_file_by_flag(folder: NodeFolder) -> None:
    file = folder.path / "options.toml"
    file.write_text("clients_max = 3\n")
    shown = json.loads(folder.run("config", "--json", "--config", str(file)).stdout)
    assert shown["clients_max"] == {"value": 3, "source": f"file {file}"}


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["nod"], 2, "nod"),
        (["node", "--pool-sizes", "1GB"], 2, "--pool-size"),
        (["status", "--no-such"], 2, "--no-such"),
        (["node", "--pool-size", "64 apples"], 1, "not a size"),
        (["node", "--huge-pages", "maybe"], 1, "'auto', 'never' or 'always'"),
        (["node", "--http-port", "70000"], 1, "http_port"),
        (["node", "--config", "/nonexistent.toml"], 1, "/nonexistent.toml"),
        (["node", "--log-file", "/nonexistent/x"], 1, "MOONCAKE_HICACHE_LOG_FILE"),
        (["node", "--detach", "--log-file", "/nonexistent/x"], 1, "MOONCAKE_HICACHE_LOG_FILE"),
        (["status", "--runtime-dir", "/dev/null/x"], 1, "MOONCAKE_HICACHE_RUNTIME_DIR"),
        (["stop", "--runtime-dir", "/dev/null/x"], 1, "MOONCAKE_HICACHE_RUNTIME_DIR"),
        (["stop", "--socket", "/dev/null/x"], 1, "MOONCAKE_HICACHE_SOCKET"),
        (["node", "--socket", "/tmp/" + "x" * 120], 1, "107"),
        (["status", "--runtime-dir", "/tmp/" + "x" * 120], 1, "107"),
    ],
)
def test_mistakes_are_named(
    folder: NodeFolder, arguments: list[str], status: int, told: str
) -> None:
    done = folder.run(*arguments)
    assert done.returncode == status
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(folder: NodeFolder) -> None:
    assert folder.run("--version").stdout.startswith("mooncake-hicache ")
    for command in ("node", "status", "stop", "doctor", "config"):
        assert command in folder.run("--help").stdout
        done = folder.run(command, "--help", env={"COLUMNS": "200"})
        assert done.returncode == 0
    shown = folder.run("node", "--help", env={"COLUMNS": "200"}).stdout
    for name in ("pool-size", "huge-pages", "idle-timeout-s", "detach"):
        assert f"--{name}" in shown
    assert "auto|never|always" in shown


def test_the_installed_command_is_the_module(folder: NodeFolder) -> None:
    command = Path(sys.executable).with_name("mooncake-hicache")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.stdout == folder.run("--version").stdout
