"""`mc_store_rest_server`: a store over HTTP, with the original's flags.

    mc_store_rest_server --config /etc/mooncake.json -D global_segment_size=4GB --port 8080

Unlike the original's it listens on loopback, and elsewhere only where callers must know a token.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence

from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.compat.store.config import MooncakeConfig
from mooncake_hicache.compat.store.failures import failures
from mooncake_hicache.compat.store.rest import StorePages
from mooncake_hicache.errors import Error, InvalidArgumentError
from mooncake_hicache.metadata.names import Address, is_loopback
from mooncake_hicache.metadata.server import Bound
from mooncake_hicache.metadata.token import read_token
from mooncake_hicache.web import WebThread

__all__ = ["main"]

PROGRAM = "mc_store_rest_server"
PAUSE_S = 1.0
"""Seconds between two attempts to set the store up."""
PORT_MAX = 65535
_SERVICE = f"the REST service ({PROGRAM})"
_PORT_REMEDY = (
    "choose another --port or --host (8080 is also where a metadata server listens by default)"
)

_log = logging.getLogger("mooncake_hicache.rest")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    flags = _parse(arguments)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    stop = _Stop()
    try:
        _serve(flags, stop)
    except (Error, OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


class _Stop:
    """Ends waiting: for a signal, or for what a thread does."""

    def __init__(self) -> None:
        self._woken = threading.Event()
        self.is_asked = threading.Event()
        """Somebody wants the program to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.is_asked.set()
        self._woken.set()

    def wake(self) -> None:
        """End the next `wait`."""
        self._woken.set()

    def wait(self) -> None:
        """Return once there is something to look at."""
        self._woken.wait()


def _serve(flags: argparse.Namespace, stop: _Stop) -> None:
    if not 0 <= flags.port <= PORT_MAX:
        raise InvalidArgumentError(f"--port={flags.port}: give 0 (any free one) to {PORT_MAX}")
    config = _config(flags)
    token = read_token(flags.token_file) if flags.token_file else ""
    _check_token(token, flags.host)
    # A port that is taken is known before a master has been waited for; but that somebody listens
    # there says that the store is set up, which probes rely on.
    bound = Bound(flags.host, flags.port, _SERVICE, _PORT_REMEDY)
    store = MooncakeDistributedStore()
    try:
        _check_token(token, bound.host)  # A name may mean any address.
        if _set_up(store, config, flags.max_wait_time, stop):
            pages = StorePages(store, token=token, has_ssd=config.enable_ssd_offload)
            _answer(pages, bound, stop)
            store.close()  # Breaks off what is still under way.
            pages.close()
    finally:
        store.close()
        bound.close()


def _answer(pages: StorePages, bound: Bound, stop: _Stop) -> None:
    listener = bound.listen()
    host, port = listener.getsockname()[:2]
    web = WebThread(pages.application(), listener, "hicache-rest", pages.drain)
    _log.info("the store answers at http://%s/api", Address(host, port))
    stop.is_asked.wait()
    web.close()


def _check_token(token: str, host: str) -> None:
    if not token and not is_loopback(host):
        raise InvalidArgumentError(
            f"--host={host} is reached from other machines, so whoever reads and writes there must "
            "know a token: give --token-file"
        )


def _set_up(
    store: MooncakeDistributedStore, config: MooncakeConfig, wait_s: float, stop: _Stop
) -> bool:
    """Set a store up, for so long that a master may come up meanwhile; False if it shall end."""
    until_s = time.monotonic() + wait_s
    failed: list[str] = []

    def attempt() -> None:
        while not stop.is_asked.is_set():
            with failures() as heard:
                if store.setup(config.setup_arguments()) == 0:
                    return
            # Waiting changes nothing about a setting that is wrong, or memory that is not there.
            if not heard[-1].is_transient or time.monotonic() + PAUSE_S > until_s:
                failed.append(heard[-1].text)
                return
            stop.is_asked.wait(PAUSE_S)

    def run() -> None:
        try:
            attempt()
        except TypeError as error:  # A number that is none of its kind.
            failed.append(str(error))
        finally:
            stop.wake()

    # A daemon: whoever ends the program does not wait for a master that does not answer.
    threading.Thread(target=run, name="hicache-rest-setup", daemon=True).start()
    stop.wait()
    if failed:
        raise Error(failed[0])
    return not stop.is_asked.is_set()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="A store of objects over HTTP.")
    parser.add_argument("--config", help="a JSON file of settings; default: the environment")
    parser.add_argument(
        *("-D", "--define"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting that counts more than the file's or the environment's",
    )
    parser.add_argument("--port", type=int, default=8080, help="default %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at; default %(default)s")
    parser.add_argument(
        "--token-file",
        help="its first line must come with every request (Authorization: Bearer); needed where "
        "other machines reach --host",
    )
    parser.add_argument(
        "--max-wait-time",
        type=float,
        default=60,
        help="seconds in which the master may come up; default %(default)s",
    )
    return parser.parse_args(arguments)


def _config(flags: argparse.Namespace) -> MooncakeConfig:
    config = (
        MooncakeConfig.from_file(flags.config) if flags.config else MooncakeConfig.load_from_env()
    )
    given = {}
    for setting in flags.define:
        name, is_set, value = setting.partition("=")
        if not is_set:
            raise InvalidArgumentError(f"-D {setting}: give NAME=VALUE")
        given[name] = value
    return config.changed(given)


if __name__ == "__main__":
    sys.exit(main())
