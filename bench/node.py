"""A node for one benchmark or demo: private folder, found by every process started inside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "MOONCAKE_HICACHE_"


def command_line(*args: str) -> str:
    """Run our own command line, and return what it prints."""
    command = [sys.executable, "-m", "mooncake_hicache", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextlib.contextmanager
def private_node(pool_size: str) -> Iterator[Path]:
    """Let this process and those it starts find or start a node of their own; stop it at the end.

    No setting of the shell reaches it, and a node of the user is not touched.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    with tempfile.TemporaryDirectory(prefix="hicache-node-") as folder:
        try:
            for name in before:
                del os.environ[name]
            os.environ[PREFIX + "RUNTIME_DIR"] = folder
            os.environ[PREFIX + "POOL_SIZE"] = pool_size
            yield Path(folder)
        finally:
            command_line("stop")
            for name in (PREFIX + "RUNTIME_DIR", PREFIX + "POOL_SIZE"):
                os.environ.pop(name, None)
            os.environ.update(before)
