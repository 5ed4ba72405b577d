"""`mooncake.http_metadata_server` over our metadata server: the original's class and flags.

    mooncake_http_metadata_server --port 8080 --host 127.0.0.1

It listens on every address unless told otherwise, as the original does; `mooncake-hicache metadata`
is the same server with loopback as default, limits and a token file. A token of the environment
(MC_METADATA_HTTP_TOKEN) counts here too.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from enum import Enum

from mooncake_hicache.errors import Error
from mooncake_hicache.metadata.http import TOKEN_ENVIRONMENT
from mooncake_hicache.metadata.server import MetadataServer, listen

__all__ = ["KVBootstrapServer", "KVPoll", "main", "parse_args"]

_log = logging.getLogger(__name__)


class KVPoll(Enum):
    """How far a server is."""

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


class KVBootstrapServer:
    """A metadata server in threads of this process. One thread may call."""

    def __init__(self, port: int, host: str = "0.0.0.0") -> None:
        self.port = port
        self.host = host
        self._server: MetadataServer | None = None

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that answers; None while it does not run."""
        return self._server.thread if self._server is not None else None

    def run(self) -> threading.Thread:
        """Start, and return the thread that answers.

        Raises:
            OSError: It cannot listen there; `poll` says so too.
        """
        if self._server is None:
            listener = listen(self.host, self.port)
            self.port = int(listener.getsockname()[1])
            self._server = MetadataServer(listener, token=os.environ.get(TOKEN_ENVIRONMENT, ""))
            _log.info("HTTP Metadata Server started on %s:%d", self.host, self.port)
        return self._server.thread

    def poll(self) -> KVPoll:
        """Return Success while it answers, otherwise Failed."""
        is_running = self._server is not None and self._server.is_running()
        return KVPoll.Success if is_running else KVPoll.Failed

    def close(self) -> None:
        """End it. May be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.close()


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; ends the process for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="mooncake_http_metadata_server",
        description="The metadata server over HTTP, at which transfer engines find each other.",
    )
    parser.add_argument("--port", type=int, default=8080, help="to listen on; default %(default)s")
    parser.add_argument("--host", default="0.0.0.0", help="to listen at; default %(default)s")
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        help="default %(default)s",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    flags = parse_args(arguments)
    logging.basicConfig(level=flags.log_level, format="%(asctime)s %(levelname)s %(message)s")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = KVBootstrapServer(flags.port, flags.host)
    try:
        server.run()
    except Error as error:
        _log.error("%s", error)
        return 1
    stopped.wait()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
