"""A node folder of its own for each test, with whatever lives in it ended afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mooncake_hicache.config import StoreOptions
from mooncake_hicache.node.paths import NodePaths, node_paths
from mooncake_hicache.node.state import NodeState, is_locked, read_state
from tests.processes import end_all_with, freeze, wait_for

POOL_SIZE = "64MiB"


@dataclass(frozen=True)
class NodeFolder:
    """The folder of a test's node, and what can be seen of the node in it."""

    path: Path

    @property
    def paths(self) -> NodePaths:
        return node_paths(StoreOptions(runtime_dir=str(self.path)))

    @property
    def state(self) -> NodeState | None:
        return read_state(self.paths.state)

    @property
    def pid(self) -> int:
        state = self.state
        assert state is not None, "no node has written its state"
        return state.pid

    @property
    def is_held(self) -> bool:
        return is_locked(self.paths.node_lock)

    @property
    def log(self) -> str:
        return self.paths.log.read_text()

    @property
    def start_count(self) -> int:
        """How many nodes have started here: each has told so before anybody can reach it."""
        return self.log.count("node starts:")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop the node's process, and return once each of its threads stands still."""
        freeze(self.pid)

    def run(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line, and return what it said."""
        return subprocess.run(
            [sys.executable, "-m", "mooncake_hicache", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **(env or {})},
        )

    def end(self) -> None:
        """End the node that lives here, or is about to, however it is."""
        end_all_with(str(self.path))
        wait_for("what it held is free", lambda: not self.is_held)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeFolder]:
    # Not tmp_path: its paths are too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="hicache-"))
    monkeypatch.setenv("MOONCAKE_HICACHE_RUNTIME_DIR", str(path))
    monkeypatch.setenv("MOONCAKE_HICACHE_POOL_SIZE", POOL_SIZE)
    found = NodeFolder(path)
    yield found
    found.end()
    shutil.rmtree(path, ignore_errors=True)
