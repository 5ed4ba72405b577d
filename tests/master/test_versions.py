"""Releases that do not understand each other: what their users are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.master.masters import SECRET, MasterProcess
from tests.master.versions import OTHER_VERSION, OWN_VERSION, frame, greeted, other_master, receive
from tests.processes import wait_for


def names_both(text: str) -> bool:
    flat = " ".join(text.split())
    return (
        f"speaks version {OTHER_VERSION} of" in flat
        and f"this one version {OWN_VERSION}" in flat
        and "install the same release" in flat
    )


def run(*command: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {f"MOONCAKE_HICACHE_{name.upper()}": value for name, value in options.items()}
    return subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "MOONCAKE_HICACHE_TRANSFER_SECRET": SECRET, **environment},
    )


def test_a_master_logs_who_speaks_another_version_and_tells_it_its_own(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "log")
    try:
        with greeted(master.port) as connection:
            connection.sendall(frame(OTHER_VERSION))
            assert receive(connection, 32) == frame(OWN_VERSION)
            assert connection.recv(1) == b""
        wait_for("the master's log", lambda: names_both(master.log))
        assert "127.0.0.1 was refused" in master.log
        assert master.stop() == 0
    finally:
        master.kill()


def test_a_node_and_the_commands_say_why_it_is_no_member(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    with other_master() as port:
        at = f"127.0.0.1:{port}"
        options = {"runtime_dir": str(runtime), "master": at, "pool_size": "64MiB", "ssd": "off"}
        assert run("node", "--detach", **options).returncode == 0
        try:
            wait_for("the status", lambda: names_both(run("status", **options).stdout))
            state = json.loads(run("status", "--json", **options).stdout)
            assert names_both(state["stats"]["cluster"]["trouble"])
            wait_for(
                "the node's log", lambda: names_both(Path(state["state"]["log"]).read_text("utf-8"))
            )
            checks = json.loads(run("doctor", "--json", **options).stdout)["checks"]
            found = {one["name"]: one for one in checks if names_both(one["finding"])}
            assert found["cluster"]["verdict"] == "error"
            assert "same release" in found["cluster"]["remedy"]
            assert found["node"]["verdict"] == "warning"
            done = run("status", f"--cluster={at}")
            assert done.returncode == 3
            assert names_both(done.stdout)
        finally:
            run("stop", **options)
