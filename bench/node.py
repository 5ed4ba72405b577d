"""A node for one benchmark or demo: private folder, found by every process started inside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mooncake_hicache.machine import file_system_of, takes_direct_io

PREFIX = "MOONCAKE_HICACHE_"


def command_line(*args: str) -> str:
    """Run our own command line, and return what it prints."""
    command = [sys.executable, "-m", "mooncake_hicache", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def node_stats() -> dict[str, Any]:
    """Return what the node counts; nothing if there is none."""
    found = json.loads(command_line("status", "--json") or "{}")
    return dict(found.get("stats") or {})


def disk_folder() -> str | None:
    """Return a folder for temporary files that lies on a disk, None if there is none."""
    for folder in (tempfile.gettempdir(), "/var/tmp"):
        # Memory takes direct I/O too, and would only be compared with itself.
        in_memory = file_system_of(Path(folder)).kind in ("tmpfs", "ramfs")
        if not in_memory and takes_direct_io(Path(folder)):
            return folder
    return None


@contextlib.contextmanager
def private_node(pool_size: str, *, parent: str | None = None, **settings: str) -> Iterator[Path]:
    """Let this process and those it starts find or start a node of their own; stop it at the end.

    No setting of the shell reaches it, and neither a node nor a cache folder of the user is
    touched. In memory only, unless one of the `settings`, more options by name, says otherwise;
    "{folder}" in them is the node's private folder, which is made in `parent`.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    with tempfile.TemporaryDirectory(prefix="hicache-node-", dir=parent) as folder:
        try:
            for name in before:
                del os.environ[name]
            own = {"runtime_dir": folder, "pool_size": pool_size, "ssd": "off", **settings}
            for name, value in own.items():
                os.environ[PREFIX + name.upper()] = value.format(folder=folder)
            yield Path(folder)
        finally:
            command_line("stop", "--now")
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                del os.environ[name]
            os.environ.update(before)
