"""Programs that were written for the original, each in a process of its own with the drop-in.

A program talks to its test in lines of JSON: `say(...)` there is `hear()` here, and the other way
round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DROPIN = ROOT / "dropin"

_TALK = """
import json as _json, sys as _sys
def say(*what):
    print(_json.dumps(what), flush=True)
def hear():
    line = _sys.stdin.readline()
    return _json.loads(line) if line else None
"""

SERVER = """
import numpy as np
from mooncake.engine import TransferEngine

engine = TransferEngine()
assert engine.initialize(HOST, METADATA, "tcp") == 0, engine.last_error
memory = np.arange(SIZE, dtype=np.uint64).view(np.uint8)[:SIZE].copy()
assert engine.register_memory(memory.ctypes.data, memory.nbytes) == 0
say(engine.get_rpc_port(), memory.ctypes.data)
while (asked := hear()) is not None:
    say(eval(asked[0]) if asked else None)
"""
"""Has `memory`, filled with a pattern (`content_of`); what it is told it evaluates."""


def content_of(size: int) -> bytes:
    """Return what SERVER's memory holds at first."""
    import numpy as np

    return np.arange(size, dtype=np.uint64).view(np.uint8)[:size].tobytes()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with the drop-in importable."""
    path = os.pathsep.join(filter(None, [str(DROPIN), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


class Program:
    """A program that runs; killed at the end of the `with` statement."""

    def __init__(self, text: str, extra: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TALK + text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(extra),
        )

    def hear(self) -> Any:
        """Return what it says next; fails if it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program has ended with status {self.process.wait()}"
        return json.loads(line)

    def say(self, *what: Any) -> None:
        """Tell it something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def ask(self, expression: str) -> Any:
        """Let SERVER evaluate an expression, and return its value."""
        self.say(expression)
        return self.hear()[0]

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Server(Program):
    """SERVER, which has said where it is."""

    def __init__(
        self,
        size: int = 1 << 20,
        *,
        host: str = "localhost",
        metadata: str = "P2PHANDSHAKE",
        extra: Mapping[str, str] | None = None,
    ) -> None:
        settings = f"HOST, METADATA, SIZE = {host!r}, {metadata!r}, {size}\n"
        super().__init__(settings + SERVER, extra)
        self.port, self.memory = self.hear()
        self.size = size
        bare = host.partition(":")[0] if host.count(":") == 1 else host
        self.session = f"[{bare}]:{self.port}" if ":" in bare else f"{bare}:{self.port}"

    def content(self) -> bytes:
        """Return what its memory holds now."""
        return bytes.fromhex(self.ask("memory.tobytes().hex()"))
