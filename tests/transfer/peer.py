"""A transfer engine in a process of its own: `python -m tests.transfer.peer TRANSPORTS SIZE KIND`.

Says its address and that of its memory in one line of JSON, then serves until its input ends. Lines
of input are commands: `sum` prints a digest of the memory, `fill N` fills it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from types import TracebackType

import numpy as np

from mooncake_hicache import TransferEngine


class Peer:
    """Such a process, as its parent sees it."""

    def __init__(self, transports: str = "tcp", size: int = 1 << 20, kind: str = "plain") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.transfer.peer", transports, str(size), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = json.loads(self._line())
        self.address: str = said["address"]
        self.memory: int = said["memory"]
        self.size = size

    def ask(self, command: str) -> str:
        """Send a command and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line()

    def content(self) -> bytes:
        """The memory of a peer that `fill 0` has filled."""
        return content_of(0, self.size).tobytes()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the peer has died"
        return line.strip()

    def __enter__(self) -> Peer:
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


def content_of(seed: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Bytes that only this seed has."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def digest_of(content: bytes) -> str:
    """What `sum` prints."""
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Run the peer."""
    transports, size, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with TransferEngine(transports=transports) as engine:
        if kind == "allocated":
            memory = engine.allocate(size)
        else:
            memory = np.zeros(size, np.uint8)
            engine.register(memory, writable=kind != "read_only")
        memory[:] = content_of(0, size)
        address = memory.ctypes.data
        sys.stdout.write(json.dumps({"address": engine.address, "memory": address}) + "\n")
        sys.stdout.flush()
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            answer = "?"
            if command == "sum":
                answer = digest_of(memory.tobytes())
            elif command == "fill":
                memory[:] = content_of(int(argument), size)
                answer = "filled"
            elif command == "notices":
                answer = json.dumps(engine.take_notices())
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
