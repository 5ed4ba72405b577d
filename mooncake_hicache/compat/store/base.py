"""What the methods of `mooncake.store.MooncakeDistributedStore` have in common: life and errors."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from mooncake_hicache import _core
from mooncake_hicache.compat.settings import split_host
from mooncake_hicache.compat.store.clients import find_client
from mooncake_hicache.compat.store.codes import (
    INTERNAL,
    INVALID_PARAMS,
    OBJECT_NOT_FOUND,
    OK,
    code_of_error,
)
from mooncake_hicache.compat.store.connect import (
    SETUP_TIMEOUT_S,
    check_master,
    check_reached,
    open_store,
)
from mooncake_hicache.compat.store.failures import Failure, tell
from mooncake_hicache.compat.store.settings import Setup, setup_of
from mooncake_hicache.errors import ClosedError, Error, InvalidArgumentError
from mooncake_hicache.store import Store

if TYPE_CHECKING:
    from mooncake_hicache.compat.store.client_http import ClientHttp

__all__ = ["StoreBase"]

_log = logging.getLogger(__name__)

NOT_SET_UP, MASTER_UNREACHABLE = 1, 2
NODE_TIMEOUT_S = 15.0
_PORT_MIN, _PORT_MAX = 12300, 14300
_PORT_TRIES = 64
_LOG_INTERVAL_S = 10.0
_LOGGED_MAX = 256


class StoreBase:
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._pages = 0
        self._setup: Setup | None = None
        self._hostname = ""
        self._port: socket.socket | None = None
        self._http: ClientHttp | None = None
        self._registered: dict[int, int] = {}
        self._logged: dict[str, float] = {}
        self.last_error = ""
        """What went wrong in the call that failed last, in words (ours)."""

    # ---- life

    def setup(self, *args: Any, **kwargs: Any) -> int:
        """Start: 0, or a negative number within 5 s; `last_error` says why, and so does the log.

        Called again, it ends what was and starts anew. The arguments, by place or by name, or all
        in one dict (where sizes may be written "16MB"):

            local_hostname        this machine: "host" or "host:port"
            metadata_server       not used: what nodes have to know of each other the master knows
            global_segment_size   bytes that the node's pool has on this store's behalf
            local_buffer_size     not used: values go to and from the node without a buffer
            protocol              "tcp" or "rdma", between nodes
            rdma_devices          devices, separated by commas; may be left out
            master_server_addr    "host:port"
            engine                not used: a node has its own
            enable_ssd_offload, ssd_offload_path    a folder on an SSD for what leaves memory; by
                                  default the one that MOONCAKE_OFFLOAD_FILE_STORAGE_PATH names
            tenant_id             tenants do not see each other's objects
            enable_client_http_server, client_http_port    /health, /metrics and /metrics/summary
                                  over HTTP; where the option http_host says, loopback by default
            enable_standalone     by name only: no master, whatever master_server_addr says; what
                                  is stored is this machine's (also MOONCAKE_ENABLE_STANDALONE)
            enable_ssd_prefetch, ssd_get_wait_ms    by name only; not used: see ExistOptions

        Raises:
            TypeError: An argument is missing, unknown or of another type.
        """
        try:
            setup = setup_of(args, kwargs)
        except InvalidArgumentError as error:
            return self._fail("setup", error, INVALID_PARAMS)
        return self._call("setup", lambda: self._start(setup), INTERNAL)

    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """Share the node of a `mooncake_client` that runs on this machine: 0, or a negative number.

        Args:
            mem_pool_size: Not used: memory need not be allocated in a certain way.
            local_buffer_size: Not used.
            server_address: Its "host:port"; it must run as the same user.
        """
        del mem_pool_size, local_buffer_size
        return self._call("setup_dummy", lambda: self._start(find_client(server_address)), INTERNAL)

    def init_all(self, protocol: str, device: str, mount_size: int) -> int:
        """Start with what the environment says (MOONCAKE_MASTER and so on): 0, or a negative
        number. Kept for old programs."""
        from mooncake_hicache.compat.store.config import MooncakeConfig

        config = MooncakeConfig.load_from_env()
        return self.setup(
            config.local_hostname,
            config.metadata_server,
            mount_size,
            config.local_buffer_size,
            protocol,
            device,
            config.master_server_address,
        )

    def _start(self, setup: Setup) -> int:
        self.close()
        if setup.master:
            check_master(setup.master, SETUP_TIMEOUT_S)
        store = open_store(setup, timeout_s=NODE_TIMEOUT_S)
        pages = store.namespace({"store": "mooncake", "tenant": setup.tenant})
        port = None
        hostname = setup.hostname
        if split_host(hostname) == hostname.strip("[]"):
            port, number = _take_port()
            hostname = f"{hostname}:{number}"
        with self._lock:
            self._store, self._pages, self._setup = store, pages._number, setup
            self._hostname, self._port = hostname, port
        if setup.http_port is not None:
            self._start_http(store, setup)
        return OK

    def _start_http(self, store: Store, setup: Setup) -> None:
        from mooncake_hicache.compat.store.client_http import ClientHttp  # Few have a use for it.

        try:
            http = ClientHttp(store, setup)
        except Error as error:  # As with the original, that is no reason to do without objects.
            self._fail("setup", error, OK)
            return
        with self._lock:
            self._http = http

    def close(self) -> int:
        """End everything: 0. May be called again. Objects stay in the node."""
        with self._lock:
            store, self._store = self._store, None
            port, self._port = self._port, None
            http, self._http = self._http, None
            self._setup = None
            self._hostname = ""
            self._registered.clear()
        self._ended()
        if http is not None:
            http.close()
        if port is not None:
            port.close()
        if store is not None:
            store.close()
        return OK

    def _ended(self) -> None:
        """What else ends with a store."""

    teardown = close

    def __del__(self) -> None:
        if getattr(self, "_store", None) is not None:
            self.close()

    def health_check(self) -> int:
        """Return 0; 1: `setup` was not called; 2: the master or the node does not answer."""
        store, setup = self._store, self._setup
        if store is None or setup is None:
            return NOT_SET_UP
        try:
            check_reached(store, setup)
        except Error as error:
            return self._fail("health_check", error, MASTER_UNREACHABLE)
        return OK

    def get_hostname(self) -> str:
        """Return "host:port", the name of this store among others; empty before `setup`."""
        return self._hostname

    def stats(self) -> dict[str, Any]:
        """Return what this store and its node have counted (ours); see `Store.stats`."""
        store = self._store
        if store is None:
            raise ClosedError("setup() was not called, or has failed")
        return store.stats()

    # ---- what all calls do

    def _call(self, name: str, call: Callable[[], int], failed: int | None = None) -> int:
        """Return what the call returns, or the code that stands for what it raises."""
        try:
            return call()
        except UnicodeEncodeError as error:
            raise TypeError(f"{name}: a key is no text that has a UTF-8 form: {error}") from None
        except Error as error:
            return self._fail(name, error, code_of_error(error) if failed is None else failed)

    def _call_batch(self, name: str, count: int, call: Callable[[], list[int]]) -> list[int]:
        """The same with a code per item."""
        codes: list[int] = []

        def kept() -> int:
            codes.extend(call())
            return OK

        code = self._call(name, kept)
        return codes if code == OK else [code] * count

    def _fail(self, name: str, why: Error | str, code: int) -> int:
        self.last_error = text = f"{name}: {why}"
        tell(Failure(text, why if isinstance(why, Error) else None))
        now_s = time.monotonic()
        with self._lock:
            # A caller that asks a dead node again and again shall not fill the disk.
            if now_s - self._logged.get(text, -_LOG_INTERVAL_S) < _LOG_INTERVAL_S:
                return code
            if len(self._logged) >= _LOGGED_MAX:
                self._logged.clear()
            self._logged[text] = now_s
        _log.warning("%s", text)
        return code

    def _settle(
        self, name: str, codes: Any, meaning: Callable[[int], int], keys: Sequence[Any]
    ) -> list[int]:
        """Return the original's codes for ours, and say once what the first failure is."""
        if not codes.any():
            return [OK] * len(codes)
        found = [meaning(code) for code in codes.tolist()]
        for index, code in enumerate(found):
            if code not in (OK, OBJECT_NOT_FOUND):
                what = _core.Code(int(codes[index])).name
                self._fail(name, f"{what} for key {keys[index]!r:.200} ({len(codes)} keys)", code)
                break
        return found

    def _need(self) -> tuple[_core.Client, int]:
        store = self._store
        if store is None:
            raise ClosedError("setup() was not called, has failed, or close() was called")
        # Once closed it is something that raises ClosedError for whatever it is asked.
        return cast(_core.Client, store._client), self._pages


def _take_port() -> tuple[socket.socket | None, int]:
    """Return a port that no other store of this machine has taken, kept as long as the socket."""
    for _ in range(_PORT_TRIES):
        number = random.randrange(_PORT_MIN, _PORT_MAX)
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", number))
        except OSError:
            taken.close()
            continue
        return taken, number
    return None, _PORT_MIN
