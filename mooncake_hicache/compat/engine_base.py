"""What the methods of `mooncake.engine.TransferEngine` have in common: life, memory, peers."""

from __future__ import annotations

import ctypes
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.kinds import (
    ADDRESS_NOT_REGISTERED,
    ADDRESS_OVERLAPPED,
    FAILED,
    OK,
    PEER_UNREACHABLE,
    TransferNotify,
)
from mooncake_hicache.compat.peers import Peers
from mooncake_hicache.compat.settings import engine_settings
from mooncake_hicache.errors import (
    AlreadyExistsError,
    ClosedError,
    Error,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.metadata import HANDSHAKE, Entry, Metadata, open_metadata, owner_here
from mooncake_hicache.topology import detect, topology_of
from mooncake_hicache.transfer import Batch, Segment
from mooncake_hicache.transfer import TransferEngine as Engine

__all__ = ["CONNECT_TIMEOUT_MS", "EngineBase"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_MS = 5000
_LOG_INTERVAL_S = 10.0


class EngineBase:
    """See `mooncake_hicache.compat.engine.TransferEngine`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._metadata: Metadata | None = None
        self._peers: Peers | None = None
        self._managed: dict[int, npt.NDArray[np.uint8]] = {}
        self._registered: dict[int, int] = {}
        self._batches: dict[int, Batch] = {}
        self._outcomes: OrderedDict[int, int] = OrderedDict()
        self._is_aware_of_topology = False
        self._prefetches = False
        self._logged: dict[str, float] = {}
        self.last_error = ""
        """What went wrong in the call that failed last, in words."""

    # ---- life

    def initialize(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str = ""
    ) -> int:
        """Start. Called again, it ends what was and starts anew, as in the original.

        Args:
            local_hostname: This machine, as peers reach it: "host" or "host:port"; the port is
                chosen, see `get_rpc_port`. With a metadata server it is also the engine's name.
            metadata_server: "P2PHANDSHAKE" (names are host:port), "http://host:port/metadata" or
                "etcd://host:port".
            protocol: "tcp", or "rdma" (with TCP where there is no RDMA device).
            device_name: RDMA devices, separated by commas; empty: all.
        """
        return self._call(
            "initialize", self._start, local_hostname, metadata_server, protocol, device_name
        )

    def initialize_ext(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str,
        device_name: str,
        metadata_type: str,
    ) -> int:
        """As `initialize`, with the kind of the metadata server ("etcd", "http", "p2p") apart."""
        kind = metadata_type.strip().lower()
        if kind in ("p2p", "p2phandshake"):
            metadata_server = HANDSHAKE
        elif kind and "://" not in metadata_server:
            metadata_server = f"{kind}://{metadata_server}"
        return self.initialize(local_hostname, metadata_server, protocol, device_name)

    def _start(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str
    ) -> int:
        self.close()
        settings = engine_settings(local_hostname, protocol, device_name)
        for notice in settings.notices:
            _log.warning("%s", notice)
        metadata = open_metadata(metadata_server)
        by_name = metadata_server != HANDSHAKE
        engine = Engine(
            name=local_hostname if by_name else "",
            host=settings.host,
            public_host=settings.public_host,
            ports=settings.ports,
            transports=settings.transports,
            rdma_devices=settings.rdma_devices,
            topology=settings.topology,
        )
        for notice in engine.notices:
            _log.info("%s", notice)
        try:
            if by_name:
                metadata.publish(local_hostname, Entry(engine.address, engine.epoch, owner_here()))
        except Error:
            engine.close()
            metadata.close()
            raise
        self._engine, self._metadata = engine, metadata
        self._peers = Peers(engine, metadata)
        if self._prefetches:
            self._peers.keep_warm()
        return OK

    def close(self) -> None:
        """End everything (ours: the original ends when it is collected)."""
        with self._lock:
            engine, self._engine = self._engine, None
            metadata, self._metadata = self._metadata, None
            peers, self._peers = self._peers, None
            batches = list(self._batches.values())
            self._batches.clear()
            self._outcomes.clear()
            self._registered.clear()
        if metadata is not None:
            metadata.close()
        for batch in batches:
            batch.release()
        if peers is not None:
            peers.close()
        if engine is not None:
            engine.close()
        self._managed.clear()

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is not None:
            self.close()

    def get_rpc_port(self) -> int:
        """Return the port that peers connect to; 0 before `initialize`."""
        engine = self._engine
        return engine.port if engine is not None else 0

    def get_engine(self) -> Engine | None:
        """Return the `mooncake_hicache.TransferEngine` underneath; None before `initialize`."""
        return self._engine

    def get_engine_ptr(self) -> int:
        """Not supported: there is no C++ object of the original to point at."""
        raise UnsupportedError(
            "get_engine_ptr() gives C++ code a pointer to the original's engine, which is not here;"
            " use get_engine() for ours"
        )

    # ---- memory

    def register_memory(self, buffer_addr: int, capacity: int, location: str = "*") -> int:
        """Make memory reachable: 0, or -7 if it overlaps what is registered, or -1."""
        return self._call("register_memory", self._register, buffer_addr, capacity, location)

    def _register(self, address: int, size: int, location: str) -> int:
        self._need_engine().register_memory(address, size, location=location)
        self._registered[address] = size
        return OK

    def unregister_memory(self, buffer_addr: int) -> int:
        """End that: 0, or -3 if nothing is registered there."""
        return self._call("unregister_memory", self._unregister, buffer_addr)

    def _unregister(self, address: int) -> int:
        self._need_engine().unregister(address)
        self._registered.pop(address, None)
        return OK

    def batch_register_memory(
        self, buffer_addresses: Sequence[int], capacities: Sequence[int], location: str = "*"
    ) -> int:
        """Register many ranges, or none of them."""
        if len(buffer_addresses) != len(capacities):
            return self._fail("batch_register_memory", "as many addresses as capacities are needed")
        done: list[int] = []
        for address, size in zip(buffer_addresses, capacities, strict=True):
            code = self.register_memory(address, size, location)
            if code != OK:
                error = self.last_error
                for registered in done:
                    self.unregister_memory(registered)
                self.last_error = error
                return code
            done.append(address)
        return OK

    def batch_unregister_memory(self, buffer_addresses: Sequence[int]) -> int:
        """End the registration of many; of those that fail the first one's code is returned."""
        codes = [self.unregister_memory(address) for address in buffer_addresses]
        return next((code for code in codes if code != OK), OK)

    def allocate_managed_buffer(self, length: int) -> int:
        """Return the address of new registered memory that peers of this machine map; 0: none."""
        address = self._call("allocate_managed_buffer", self._allocate, length)
        return max(address, 0)

    def _allocate(self, size: int) -> int:
        array = self._need_engine().allocate(max(size, 1))
        address = int(array.ctypes.data)
        self._managed[address] = array
        return address

    def free_managed_buffer(self, buffer_addr: int, length: int) -> int:
        """Give it back: 0, or -1 if it was not allocated. The length is not needed."""
        del length
        array = self._managed.pop(buffer_addr, None)
        if array is None:
            return self._fail("free_managed_buffer", f"nothing was allocated at {buffer_addr:#x}")
        return self._call("free_managed_buffer", self._free, array)

    def _free(self, array: npt.NDArray[np.uint8]) -> int:
        self._need_engine().free(array)
        return OK

    def get_first_buffer_address(self, segment_name: str) -> int:
        """Return the address of the buffer that a peer registered first; 0: none, or no peer."""
        return max(self._call("get_first_buffer_address", self._first_buffer, segment_name), 0)

    def _first_buffer(self, name: str) -> int:
        buffers = self._open(name).describe(timeout_ms=CONNECT_TIMEOUT_MS)["buffers"]
        return int(min(buffers, key=lambda buffer: buffer["id"])["address"]) if buffers else 0

    def write_bytes_to_buffer(self, dest_address: int, src_ptr: bytes | str, length: int) -> int:
        """Copy bytes into memory that is registered or allocated here: 0, or -1."""
        source = src_ptr.encode() if isinstance(src_ptr, str) else bytes(src_ptr)
        if not 0 <= length <= len(source) or not self._is_ours(dest_address, length):
            return self._fail("write_bytes_to_buffer", "outside of the bytes or of the buffers")
        ctypes.memmove(dest_address, source, length)
        return OK

    def read_bytes_from_buffer(self, source_address: int, length: int) -> bytes:
        """Return bytes of memory that is registered or allocated here; nothing if it is not."""
        if not self._is_ours(source_address, length):
            self._fail("read_bytes_from_buffer", "outside of the buffers")
            return b""
        return ctypes.string_at(source_address, length)

    def _is_ours(self, address: int, size: int) -> bool:
        ranges = [*self._registered.items()]
        ranges += [(start, array.nbytes) for start, array in [*self._managed.items()]]
        return size >= 0 and any(
            start <= address and address + size <= start + length for start, length in ranges
        )

    # ---- what the original does not have

    def enable_topology_awareness(self) -> int:
        """Choose rails by the distance between memory, devices and processors, as this machine
        tells it. Before `initialize`: 0. After it, -1: the rails are chosen by then."""
        if self._engine is not None:
            return self._fail("enable_topology_awareness", "call it before initialize()")
        self._is_aware_of_topology = True
        return OK

    def enable_intelligent_prefetching(self) -> int:
        """Keep the connections to all peers that were used warm: one that was lost is opened
        again in the background, before a transfer needs it: 0."""
        self._prefetches = True
        if self._peers is not None:
            self._peers.keep_warm()
        return OK

    # ---- what all calls do

    def _call(self, name: str, call: Callable[..., int], *arguments: Any) -> int:
        """Return what the call returns, or the code that stands for what it raises."""
        try:
            return call(*arguments)
        except AlreadyExistsError as error:
            return self._fail(name, error, ADDRESS_OVERLAPPED)
        except NotFoundError as error:
            code = ADDRESS_NOT_REGISTERED if "register" in name else FAILED
            return self._fail(name, error, code)
        except Error as error:
            return self._fail(name, error)

    def _fail(self, name: str, why: Error | str, code: int = FAILED) -> int:
        self.last_error = f"{name}: {why}"
        now_s = time.monotonic()
        with self._lock:
            # A caller that asks a dead peer again and again shall not fill the disk.
            if now_s - self._logged.get(self.last_error, -_LOG_INTERVAL_S) < _LOG_INTERVAL_S:
                return code
            if len(self._logged) > 256:
                self._logged.clear()
            self._logged[self.last_error] = now_s
        _log.warning("%s", self.last_error)
        return code

    def _need_engine(self) -> Engine:
        if self._engine is None:
            raise ClosedError("initialize() was not called, or has failed")
        return self._engine

    def _open(self, name: str) -> Segment:
        self._need_engine()
        peers = self._peers
        if peers is None:
            raise ClosedError("the engine was closed meanwhile")
        return peers.get(name, CONNECT_TIMEOUT_MS)

    def _with_peer(
        self, name: str, move: Callable[[Segment], Any], notify: TransferNotify | None = None
    ) -> Any:
        """Do something with a peer; one that was lost since is opened anew, once."""
        segment = self._open(name)
        if segment.is_lost:
            segment = self._reopen(name, segment)
        try:
            result = move(segment)
        except UnavailableError:
            # Not tried again: what listens there now may be another process, and part of it done.
            self._forget(name, segment)
            raise
        if notify is not None:
            segment.notify(notify.name, notify.msg, timeout_ms=CONNECT_TIMEOUT_MS)
        return result

    def _reopen(self, name: str, segment: Segment) -> Segment:
        self._forget(name, segment)
        return self._open(name)

    def _forget(self, name: str, segment: Segment) -> None:
        if self._peers is not None:
            self._peers.drop(name, segment)

    # ---- peers, messages, topology

    def get_notifies(self) -> list[TransferNotify]:
        """Return the messages that peers have left since the last call."""
        if self._engine is None:
            return []
        return [
            TransferNotify(notice.name, notice.message) for notice in self._engine.take_notices()
        ]

    def send_probe(self, peer_server_name: str) -> int:
        """Return 0 if a peer answers, otherwise -102. Blocks for 5 s at most."""

        def probe() -> int:
            segment = self._open(peer_server_name)
            try:
                segment.probe(timeout_ms=CONNECT_TIMEOUT_MS)
            except UnavailableError:
                segment = self._reopen(peer_server_name, segment)
                segment.probe(timeout_ms=CONNECT_TIMEOUT_MS)
            return OK

        return OK if self._call("send_probe", probe) == OK else PEER_UNREACHABLE

    def warmup_efa_segment(self, segment_name: str) -> int:
        """Connect to a peer now rather than at the first transfer: 0, or -1."""

        def warm() -> int:
            self._open(segment_name)
            return OK

        return self._call("warmup_efa_segment", warm)

    def get_local_topology(self, device_name: str | None = None) -> str:
        """Return which RDMA devices are near to which memory, as the original's JSON.

        Args:
            device_name: Only these devices, separated by commas.
        """
        wanted = {name.strip() for name in (device_name or "").split(",") if name.strip()}
        topology = topology_of(detect()).to_original()
        if wanted:
            topology = {
                place: [[name for name in names if name in wanted] for names in lists]
                for place, lists in topology.items()
            }
        return json.dumps(topology, indent=1)
