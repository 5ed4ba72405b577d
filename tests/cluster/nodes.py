"""A master and nodes on machines of their own, and stores of this process that use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mooncake_hicache import Store
from tests.cluster.machines import Machines
from tests.processes import wait_for

SECRET = "of the cluster"
PORT = 50051
PREFIX = "MOONCAKE_HICACHE_"


class Cluster:
    """`machines` has one called "master"; a node runs on each of the others."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines, self._folder = machines, folder
        self.master = self.start_master()
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start_master(self) -> subprocess.Popen[bytes]:
        """Start the master, anew if it ran before."""
        flags = ["--host=0.0.0.0", f"--port={PORT}", "--http-port=-1"]
        return self.machines.start(
            "master",
            [sys.executable, "-m", "mooncake_hicache", "master", *flags],
            self._folder / "master.log",
            {f"{PREFIX}TRANSFER_SECRET": SECRET},
        )

    def environment(self, name: str, **options: str) -> dict[str, str]:
        """Return the settings of whoever uses the node of a machine."""
        runtime = self._folder / name
        runtime.mkdir(mode=0o700, exist_ok=True)
        known = {"runtime_dir": str(runtime), "transfer_secret": SECRET, **options}
        return {PREFIX + option.upper(): value for option, value in known.items()}

    def start_node(self, name: str, pool_size: str = "256MiB", **options: str) -> None:
        """Start a machine's node, and wait until it answers."""
        given = {
            "master": f"{self.machines.address('master')}:{PORT}",
            "node_name": name,
            "pool_size": pool_size,
            "ssd": "off",
            "remote_lookup_timeout_ms": "900",
            **options,
        }
        log = self._folder / f"{name}.log"
        command = [sys.executable, "-m", "mooncake_hicache", "node"]
        node = self.machines.start(name, command, log, self.environment(name, **given))
        self.nodes[name] = node
        socket = self._folder / name / "node.sock"

        def answers() -> bool:
            assert node.poll() is None, log.read_text()
            return socket.exists()

        wait_for(f"node {name} answers", answers)

    def kill_node(self, name: str) -> None:
        """As a crash would."""
        os.killpg(self.nodes[name].pid, signal.SIGKILL)
        self.nodes[name].wait()
        (self._folder / name / "node.sock").unlink(missing_ok=True)

    def stop_node(self, name: str) -> None:
        """As a service manager would, and wait for its end."""
        self.nodes[name].terminate()
        assert self.nodes[name].wait(timeout=90) == 0

    def log(self, name: str) -> str:
        """What a machine's node has logged."""
        return (self._folder / f"{name}.log").read_text()

    def members(self) -> dict[str, str]:
        """Return the state of each node, as the master knows it."""
        command = ["status", f"--cluster={self.machines.address('master')}:{PORT}", "--json"]
        done = subprocess.run(
            ["ip", "netns", "exec", self.machines.space("master")]
            + [sys.executable, "-m", "mooncake_hicache", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, f"{PREFIX}TRANSFER_SECRET": SECRET},
        )
        found: dict[str, Any] = json.loads(done.stdout or "{}")
        return {one["name"]: one["state"] for one in found.get("members", [])}

    def wait_for(self, **states: str) -> None:
        """Wait until the master knows these nodes in these states."""
        wait_for(f"members {states}", lambda: states.items() <= self.members().items())

    @contextmanager
    def store(self, name: str, **options: Any) -> Iterator[Store]:
        """A store of this process that uses a machine's node, which must run."""
        with Store.open(runtime_dir=str(self._folder / name), autostart=False, **options) as opened:
            yield opened
