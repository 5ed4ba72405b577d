"""Real metadata servers for the tests: ours, an etcd, and one as simple as the original's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mooncake_hicache.metadata.server import MetadataServer, listen
from tests.processes import wait_for

# Not through a proxy of the environment.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

OWNER = """
import sys
from mooncake_hicache.metadata import Entry, open_metadata
metadata = open_metadata(sys.argv[1])
metadata.publish(sys.argv[2], Entry("10.0.0.1:15001", 7), ttl_s=float(sys.argv[3]))
print("published", flush=True)
sys.stdin.read()
metadata.close()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port whose connections are accepted by the kernel, and never answered."""
    with listen("127.0.0.1", 0) as listener:
        yield int(listener.getsockname()[1])


@contextlib.contextmanager
def owner(where: str, name: str, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has published a name; closing its standard input ends it cleanly."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, where, name, str(ttl_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "published\n"
        yield process
    finally:
        process.kill()
        process.communicate()


class OurServer:
    """Our server at a port that it keeps over restarts."""

    def __init__(self, folder: Path) -> None:
        self._server: MetadataServer | None = MetadataServer(listen("127.0.0.1", 0))
        self.port = self._server.address.port
        self.where = self._server.url

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def start(self) -> None:
        self._server = MetadataServer(listen("127.0.0.1", self.port))


class Etcd:
    """An etcd of one member on loopback."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("etcd") is None:
            pytest.skip("no etcd on this machine: Debian has it in etcd-server")
        self._folder = folder
        self._peer_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.where = f"etcd://127.0.0.1:{self.port}"
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        url, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("etcd", "--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", url, "--advertise-client-urls", url),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        wait_for("etcd is healthy", self._is_healthy)

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "etcd.log").read_text()[-2000:]
        try:
            with direct.open(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def lose_everything(self) -> None:
        """Stop, and forget what was kept."""
        self.stop()
        shutil.rmtree(self._folder / "data")


class OldServer:
    """Knows keys, values and the original's three calls; no times to live, no conditions."""

    def __init__(self) -> None:
        kept: dict[str, bytes] = {}
        self.kept = kept

        class Answers(BaseHTTPRequestHandler):
            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _key(self) -> str:
                return parse_qs(urlsplit(self.path).query)["key"][0]

            def do_GET(self) -> None:
                found = kept.get(self._key())
                self._say(200, found) if found is not None else self._absent()

            def do_PUT(self) -> None:
                kept[self._key()] = self.rfile.read(int(self.headers["Content-Length"]))
                self._say(200, b"metadata updated")

            def do_DELETE(self) -> None:
                if kept.pop(self._key(), None) is None:
                    return self._absent()
                return self._say(200, b"metadata deleted")

            def _absent(self) -> None:
                self._say(404, b"metadata not found")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.where = f"http://127.0.0.1:{self._server.server_port}/metadata"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ask(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Ask as anybody would: status, body, headers in small letters."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, method=method, headers=named)
    try:
        with direct.open(request, timeout=10) as answer:
            return _seen(answer.status, answer.read(), answer.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            return _seen(error.code, error.read(), error.headers.items())


def _seen(
    status: int, body: bytes, headers: list[tuple[str, str]]
) -> tuple[int, bytes, dict[str, str]]:
    return status, body, {name.lower(): value for name, value in headers}
