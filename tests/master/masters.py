"""Masters as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mooncake_hicache import _core
from tests.metadata.servers import direct
from tests.processes import wait_for

SECRET = "of the cluster"


class MasterProcess:
    """`mooncake-hicache master` on loopback; ends with stop() or kill()."""

    def __init__(self, log: Path, *flags: str, port: int = 0, module: str = "") -> None:
        self.log_path = log
        command = [sys.executable, "-m", module or "mooncake_hicache"]
        command += flags if module else ["master", f"--port={port}", "--http-port=0", *flags]
        environment = {**os.environ, "MOONCAKE_HICACHE_TRANSFER_SECRET": SECRET}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )
        try:
            wait_for("a master that answers", lambda: "shows the cluster" in self.log or self.ended)
            assert not self.ended, self.log
        except BaseException:
            self.kill()
            raise
        self.port = int(self._found(r"master answers at \S+:(\d+)"))
        self.url = self._found(r"shows the cluster at (\S+)/")

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def _found(self, pattern: str) -> str:
        found = re.findall(pattern, self.log)
        assert found, self.log
        return str(found[-1])

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Return status and text."""
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with direct.open(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def epoch(self) -> int:
        """The epoch it leads with; 0: it does not."""
        return int(self.cluster()["epoch"])

    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/cluster")[1])
        return found

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def client_of(*masters: MasterProcess, secret: str = SECRET) -> _core.DirectoryClient:
    addresses = [("127.0.0.1", master.port) for master in masters]
    return _core.DirectoryClient(addresses=addresses, secret=secret)
