"""What goes wrong is told to who has set up no logging, as the original does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.metadata.servers import free_port

PROGRAM = """
import logging, sys
from mooncake_hicache.compat.store import MooncakeDistributedStore
if sys.argv[2] == "log":
    logging.basicConfig(filename="/dev/null")
store = MooncakeDistributedStore()
print(store.setup("localhost", "P2PHANDSHAKE", 1 << 24, 1 << 24, "tcp", "", sys.argv[1]))
"""


def run(tmp_path: Path, master: str, logging: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MOONCAKE_HICACHE_RUNTIME_DIR": str(tmp_path)}
    tmp_path.chmod(0o700)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, master, logging],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )


def test_a_set_up_without_a_master_says_which_host_and_port_and_why(tmp_path: Path) -> None:
    port = free_port()
    done = run(tmp_path, f"127.0.0.1:{port}", "")
    assert done.stdout == "-1\n"
    assert f"127.0.0.1:{port}" in done.stderr
    assert "refused" in done.stderr


def test_a_program_that_logs_decides_where(tmp_path: Path) -> None:
    done = run(tmp_path, f"127.0.0.1:{free_port()}", "log")
    assert (done.stdout, done.stderr) == ("-1\n", "")
