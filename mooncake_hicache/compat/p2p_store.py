"""`mooncake.p2p_store.P2PStore`: values by name, put on one machine and got on any other.

    store = P2PStore()
    store.setup("cluster_node_1", "etcd://metadata-server:2379")
    store.put("training_checkpoint_v1", state_dict)        # on one machine
    state_dict = store.get("training_checkpoint_v1")       # on others, which then have it too

The original has a P2P store in Go only; this is the Python one that articles tell of, over
`mooncake_hicache.p2p`. Unlike the rest of the drop-in its methods raise, because an error here
should not be taken for a value.
"""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.packed import is_packed, pack, unpack
from mooncake_hicache.compat.settings import engine_settings, split_host
from mooncake_hicache.config import environment_name
from mooncake_hicache.errors import ClosedError, CorruptError, InvalidArgumentError, NoSpaceError
from mooncake_hicache.metadata import parse_address
from mooncake_hicache.p2p import Listed, Progress
from mooncake_hicache.p2p import P2PStore as Store
from mooncake_hicache.p2p.memory import new_array

__all__ = ["P2PStore"]

ETCD_PORT = 2379


class P2PStore:
    """Values by name, shared by all who have called `setup` with the same etcd and secret.

    Any thread may call. Errors are those of `mooncake_hicache.errors`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store | None = None

    def setup(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str = "rdma",
        device_name: str = "",
        *,
        cluster: str = "default",
        secret: str = "",
    ) -> int:
        """Start; return 0. Called again, it ends what was and starts anew.

        Args:
            local_hostname: This machine as others reach it, "host" or "host:port" (the port is
                chosen). If it is no address of this machine, that with which it reaches the
                metadata server is used.
            metadata_server: "etcd://host:port[,host:port]".
            protocol: "rdma", with TCP where there is no device; or "tcp".
            device_name: RDMA devices, separated by commas; empty: all.
            cluster: Separates those who share an etcd (ours).
            secret: What all have to know, a text or a file (ours); empty: what
                MOONCAKE_HICACHE_TRANSFER_SECRET says, and without that a file which only
                processes of this user on this machine have.

        Raises:
            UnavailableError, TimeoutError_: etcd does not answer; within 5 s.
            UnsupportedError: The metadata server is no etcd.
            InvalidArgumentError, IoError: An argument, or the secret.
        """
        self.close()
        host = _reachable_host(local_hostname, metadata_server)
        settings = engine_settings(host, protocol, device_name)
        given: dict[str, Any] = {"secret": secret} if secret else {}
        store = Store(
            metadata_server,
            cluster=cluster,
            host=settings.host,
            public_host=settings.public_host,
            ports=settings.ports,
            transports=settings.transports,
            rdma_devices=settings.rdma_devices,
            topology=settings.topology,
            **given,
        )
        with self._lock:
            self._store = store
        return 0

    def put(self, name: str, value: Any) -> int:
        """Make a value known by a name; return 0. What the name stood for before is replaced.

        The value is copied: it may be changed or forgotten at once.

        Args:
            name: 1 to 255 bytes of text.
            value: Bytes or another buffer, a numpy array, a torch tensor (from a GPU too), or
                dicts, lists and tuples of them and of numbers, text and None.

        Raises:
            InvalidArgumentError: Something in it is none of these; the message says where.
            NoSpaceError: There is no memory for the copy.
            UnavailableError, TimeoutError_: etcd does not answer.
        """
        store = self._need_store()
        store.register(name, pack(value, _allocate), replace=True)
        return 0

    def get(
        self,
        name: str,
        timeout_ms: int | None = None,
        *,
        share: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Return the value of a name, fetched from all who have it, every byte verified.

        Arrays and tensors lie in the memory that was fetched, which others read from then on: do
        not write to them (arrays are read-only), or say `share=False`. Buffers come as bytes.

        Args:
            name: What was put, here or elsewhere.
            timeout_ms: Milliseconds; by default 30 s and 10 s per GB.
            share: Become a source of it.
            progress: Called with the bytes that are there, and those of all.

        Raises:
            NotFoundError: Nobody has it.
            UnavailableError, CorruptError, TimeoutError_: It cannot be had; the message says why.
            UnsupportedError: It has tensors, and torch is not installed here.
        """
        replica = self._need_store().get_replica(
            name, share=share, timeout_ms=timeout_ms, progress=progress
        )
        assert replica.array is not None
        if not is_packed(replica.array):
            raise CorruptError(
                f"{name} was not put by a P2PStore of this module: fetch it with "
                "mooncake_hicache.p2p.P2PStore.get_replica"
            )
        return unpack(replica.array)

    def list(self, prefix: str = "") -> list[Listed]:
        """Return the names that begin with a prefix, with sizes and who has them."""
        return self._need_store().list(prefix)

    def remove(self, name: str) -> int:
        """End having a value here; return 0. Others who have it keep it.

        Raises:
            NotFoundError: This process does not have it.
        """
        self._need_store().unregister(name)
        return 0

    def close(self) -> None:
        """End having anything. May be called again."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def __enter__(self) -> P2PStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _need_store(self) -> Store:
        store = self._store
        if store is None:
            raise ClosedError("setup() was not called, has failed, or close() was called")
        return store


def _allocate(size_bytes: int) -> npt.NDArray[np.uint8]:
    try:
        return new_array(size_bytes)
    except MemoryError:
        raise NoSpaceError(f"there is no memory for a copy of {size_bytes} bytes") from None


def _reachable_host(local_hostname: str, metadata_server: str) -> str:
    """Return the host at which to listen.

    A name that stands for no address of this machine is only a name; then it is the address that
    this machine has towards the metadata server: loopback, if that runs here.
    """
    chosen = os.environ.get(environment_name("transfer_host"), "")
    if chosen:
        return f"[{chosen}]" if ":" in chosen else chosen
    host = split_host(local_hostname)
    if _is_ours(host):
        return local_hostname
    rest = metadata_server.rpartition("://")[2].partition(",")[0].rstrip("/")
    try:
        server = parse_address(rest, what="metadata server", port=ETCD_PORT)
        places = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
    except (InvalidArgumentError, OSError):
        return "127.0.0.1"  # What is wrong with it is said when it is used.
    for family, kind, protocol, _, place in places:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)  # Sends nothing: asks which address a packet would have.
                found = str(probe.getsockname()[0])
            except OSError:
                continue
            return f"[{found}]" if ":" in found else found
    return "127.0.0.1"


def _is_ours(host: str) -> bool:
    try:
        places = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, place in places:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(place)
            except OSError:
                continue
            return True
    return False
