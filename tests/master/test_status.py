"""`mooncake-hicache status --cluster`, beside a master and without one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.master.masters import SECRET, MasterProcess
from tests.metadata.servers import free_port


def status_of(*flags: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mooncake_hicache", "status", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "MOONCAKE_HICACHE_TRANSFER_SECRET": secret},
    )


def test_a_cluster_without_nodes_is_shown(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "log")
    try:
        done = status_of(f"--cluster=127.0.0.1:{master.port}")
        assert done.returncode == 0
        assert "0 nodes" in done.stdout
        found = json.loads(status_of(f"--cluster=127.0.0.1:{master.port}", "--json").stdout)
        assert (found["members"], found["epoch"]) == ([], master.epoch())
        assert status_of(f"--cluster=127.0.0.1:{master.port}", secret="other").returncode == 3
    finally:
        master.kill()


def test_without_a_master_it_says_so_soon_and_names_host_port_and_cause() -> None:
    port = free_port()
    began = time.monotonic()
    done = status_of(f"--cluster=127.0.0.1:{port}")
    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stdout
    assert "refused" in done.stdout
    assert time.monotonic() - began < 30


def test_what_is_no_address_is_named() -> None:
    done = status_of("--cluster=127.0.0.1:port")
    assert done.returncode == 1
    assert "127.0.0.1:port" in done.stderr
