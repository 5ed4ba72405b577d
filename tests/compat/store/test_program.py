"""The programs that articles print, as they print them, against a real mooncake_master."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.processes import environment
from tests.compat.store.stores import machine
from tests.metadata.servers import free_port
from tests.processes import wait_for

PROGRAM = """
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("localhost", "http://localhost:{http}/metadata", 512*1024*1024, 128*1024*1024,
            "tcp", {device}"localhost:{port}") == 0
store.put("demo_key", b"Hello Mooncake!")
print(store.get("demo_key").decode())
"""


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    port, http, metrics = free_port(), free_port(), free_port()
    with machine() as folder:
        log = folder / "mooncake_master.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mooncake.master",
                    "--enable_http_metadata_server=true",
                    f"--rpc_port={port}",
                    f"--http_metadata_server_port={http}",
                    f"--metrics_port={metrics}",
                ],
                env=environment(),
                stdout=file,
                stderr=file,
            )
        try:
            wait_for("mooncake_master", lambda: "answers at" in Path(log).read_text())
            yield port, http
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("device", ['"", ', ""], ids=["with device", "without device"])
def test_the_program_says_hello(ports: tuple[int, int], device: str) -> None:
    text = PROGRAM.format(port=ports[0], http=ports[1], device=device)
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "Hello Mooncake!\n", done.stderr
