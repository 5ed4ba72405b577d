"""REST services under test: as the program that people start, and in this process with small
limits."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.compat.store.rest import RestLimits, StorePages
from mooncake_hicache.metadata.server import listen
from mooncake_hicache.web import WebThread
from tests.compat.processes import environment
from tests.metadata.servers import ask, free_port
from tests.processes import wait_for

SUCCESS = {"status": "success"}


def why(answer: tuple[int, Any]) -> str:
    """Return the reason of an answer that is none of success."""
    assert list(answer[1]) == ["error"], answer
    return str(answer[1]["error"])


def is_refused(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) != 0


class Caller:
    """Whoever asks a REST service."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.headers = headers

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
        """Return status and body; the body of JSON as an object."""
        status, found, headers = ask(self.url + path, method, body, **self.headers)
        if headers["content-type"].startswith("application/json"):
            return status, json.loads(found)
        return status, found

    def put(self, key: str, value: str) -> tuple[int, Any]:
        return self.ask("/api/put", "PUT", json.dumps({"key": key, "value": value}).encode())

    def get(self, key: str) -> tuple[int, Any]:
        return self.ask(f"/api/get/{quote(key, safe='')}")

    def exist(self, key: str) -> tuple[int, Any]:
        return self.ask(f"/api/exist/{quote(key, safe='')}")

    def remove(self, key: str) -> tuple[int, Any]:
        return self.ask(f"/api/remove/{quote(key, safe='')}", "DELETE")

    @contextlib.contextmanager
    def half_a_put(self, key: str, value: str) -> Iterator[tuple[socket.socket, bytes]]:
        """A connection on which half of a request has been sent, and the other half."""
        body = json.dumps({"key": key, "value": value}).encode()
        head = f"PUT /api/put HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(head.encode() + b"\r\n" + body[:9])
            yield line, body[9:]


class RestProcess(Caller):
    """`mc_store_rest_server` on loopback; ended by the `with` statement."""

    def __init__(self, folder: Path, master: str, *flags: str, **headers: str) -> None:
        super().__init__(free_port(), **headers)
        self._log = folder / f"rest-{self.port}.log"
        command = [sys.executable, "-m", "mooncake.mooncake_store_service", f"--port={self.port}"]
        extra = {"MOONCAKE_MASTER": master, "MOONCAKE_GLOBAL_SEGMENT_SIZE": str(64 << 20)}
        with self._log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *flags], env=environment(extra), stdout=file, stderr=file
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def ended(self) -> int:
        """Return the exit status, once it has ended."""
        return self.process.wait(60)

    def stop(self) -> int:
        self.process.terminate()
        return self.ended()

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log
            return "the store answers at" in self.log

        wait_for("a REST service that answers", answers)

    def __enter__(self) -> RestProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving_with(
    store: MooncakeDistributedStore, *, has_ssd: bool = False, **limits: float
) -> Iterator[Caller]:
    """A service in this process, which has these limits."""
    pages = StorePages(store, has_ssd=has_ssd, limits=RestLimits(**limits))
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = WebThread(pages.application(), listener, "rest-under-test", pages.drain)
    try:
        yield Caller(port)
    finally:
        server.close()
        pages.close()
