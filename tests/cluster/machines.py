"""Machines of a cluster on this one: network namespaces, each with an address, joined by a switch.

with Machines("a", "b", "master") as machines:
    process = machines.start("a", [sys.executable, "-m", "mooncake_hicache", "node", ...])
    machines.cut("b")

A machine has its own loopback and its own abstract unix sockets, so that nothing reaches another
machine but over the network; folders are shared, so unix sockets with a path are reached from
anywhere: engines need not run inside. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


def why_not() -> str:
    """Tell why this process cannot have machines; empty where it can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"hc{os.getpid()}probe"
    made = _ip("netns", "add", name, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Machines:
    """The namespaces and the processes in them; all end with it."""

    def __init__(self, *names: str) -> None:
        self._prefix = f"hc{os.getpid()}"
        self._names = names
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Machines:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._remove()

    def address(self, name: str) -> str:
        """Return the machine's address on the switch."""
        return f"10.201.7.{self._names.index(name) + 1}"

    def start(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process there; what it prints is added to `log`. Does not wait."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def run(self, name: str, command: Sequence[str], timeout_s: float = 60) -> str:
        """Run a command there to its end; return what it printed. Raises CalledProcessError."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space(name), *command],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return done.stdout

    def cut(self, name: str) -> None:
        """Pull the machine's network cable: nobody is told, packets are lost."""
        _ip("-n", self.space("switch"), "link", "set", self._port(name), "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        _ip("-n", self.space("switch"), "link", "set", self._port(name), "up")

    def space(self, name: str) -> str:
        """Return the name of its network namespace."""
        return f"{self._prefix}-{name}"

    def _port(self, name: str) -> str:
        return f"port{self._names.index(name)}"

    def _make(self) -> None:
        switch = self.space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for name in self._names:
            space = self.space(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip(
                *["-n", space, "link", "add", "eth0", "type", "veth"],
                *["peer", "name", self._port(name), "netns", switch],
            )
            _ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", switch, "link", "set", self._port(name), "master", "switch", "up")

    def _remove(self) -> None:
        for name in (*self._names, "switch"):
            _ip("netns", "del", self.space(name), check=False)


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done
