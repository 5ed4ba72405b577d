"""A P2P store in a process of its own: `python -m tests.p2p.peer ETCD OPTIONS`.

It says where it is, then does what it is told: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import Error
from mooncake_hicache.p2p import P2PStore
from tests.processes import freeze

Bytes = npt.NDArray[np.uint8]


def content_of(seed: int, size: int) -> Bytes:
    """Bytes that only this seed has, from the first one on."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def digest_of(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


class Peer:
    """Such a process, as its parent sees it. Killed at the end of the `with` statement."""

    def __init__(self, where: str, **options: Any) -> None:
        options = {"transports": "tcp", **options}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.p2p.peer", where, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address: str = self.hear()

    def tell(self, *command: Any) -> None:
        """Send a command; the answer is `hear()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the peer has ended with status {self.process.wait()}"
        return json.loads(line)

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.hear()

    def register(self, name: str, seed: int, size: int, **more: Any) -> int:
        """Register `content_of(seed, size)`; return the generation."""
        answer = self.ask("register", name, seed, size, more)
        assert isinstance(answer, int), answer
        return answer

    def signal(self, number: int) -> None:
        if number == signal.SIGSTOP:
            freeze(self.process.pid)
        else:
            self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

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


class _Answers:
    def __init__(self, store: P2PStore) -> None:
        self._store = store
        self._memory: dict[str, Bytes] = {}

    def register(self, name: str, seed: int, size: int, more: dict[str, Any]) -> int:
        self._memory[name] = content_of(seed, size)
        return self._store.register(name, self._memory[name], **more).generation

    def unregister(self, name: str) -> None:
        self._store.unregister(name)

    def scribble(self, name: str) -> None:
        """Change memory that is registered, which nobody should do."""
        self._memory[name] ^= 255

    def get(self, name: str, more: dict[str, Any]) -> Any:
        replica = self._store.get_replica(name, **more)
        assert replica.array is not None
        self._memory[name] = replica.array
        return [digest_of(replica.array), replica.generation, replica.bytes_by_source]

    def names(self) -> list[str]:
        return [one.name for one in self._store.list()]

    def fork(self) -> int:
        """Fork a child that ends like a program; return its exit status."""
        child = os.fork()
        if child == 0:
            try:
                self._store.list()
            except Error:
                sys.exit(7)  # With everything that is done at the end of a program.
            sys.exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Run the peer."""
    with P2PStore(sys.argv[1], **json.loads(sys.argv[2])) as store:
        answers = _Answers(store)
        said: Any = store.engine.address
        while True:
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line:
                return
            command, *arguments = json.loads(line)
            try:
                said = getattr(answers, command)(*arguments)
            except Error as error:
                said = {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()
