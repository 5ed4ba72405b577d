"""What the methods of `mooncake.engine.TransferEngine` have in common: life, errors, peers."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
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
    TransferOpcode,
)
from mooncake_hicache.compat.local_topology import devices_of, local_topology
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
from mooncake_hicache.options_types import TOPOLOGY_AUTO
from mooncake_hicache.transfer import Batch, Segment
from mooncake_hicache.transfer import TransferEngine as Engine
from mooncake_hicache.transfer_core import topology_text

__all__ = ["CONNECT_TIMEOUT_MS", "EngineBase"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_MS = 5000
_LOG_INTERVAL_S = 10.0
_LOGGED_MAX = 256

_living: weakref.WeakSet[EngineBase] = weakref.WeakSet()


class EngineBase:
    """See `mooncake_hicache.compat.engine.TransferEngine`."""

    TransferOpcode = TransferOpcode

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
        _living.add(self)

    # ---- life

    def initialize(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str = ""
    ) -> int:
        """Start: 0, or -1. Called again, it ends what was and starts anew, as in the original.

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
        try:
            engine = Engine(
                name=local_hostname if by_name else "",
                host=settings.host,
                public_host=settings.public_host,
                ports=settings.ports,
                transports=settings.transports,
                rdma_devices=settings.rdma_devices,
                topology=settings.topology or (TOPOLOGY_AUTO if self._is_aware_of_topology else ""),
            )
        except Error:
            metadata.close()
            raise
        try:
            if by_name:
                metadata.publish(local_hostname, Entry(engine.address, engine.epoch, owner_here()))
        except Error:
            engine.close()
            metadata.close()
            raise
        with self._lock:
            self._engine, self._metadata = engine, metadata
            self._peers = Peers(engine, metadata)
            if self._prefetches:
                self._peers.keep_warm()
        return OK

    def close(self) -> None:
        """End everything (ours: the original ends when it is collected). May be called again."""
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

    def _abandon_after_fork(self) -> None:
        """Runs in a forked child, where what the parent has published is none of its business."""
        self._lock = threading.Lock()  # Another thread may have held it at the fork.
        self._metadata = None
        self._peers = None
        self._batches = {}

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

    # ---- topology and warmth

    def enable_topology_awareness(self) -> int:
        """Choose devices by how near they are to memory and GPUs, as this machine tells it: 0.

        The original does not have it. May come before or after `initialize`.
        """
        return self._call("enable_topology_awareness", self._become_aware)

    def _become_aware(self) -> int:
        self._is_aware_of_topology = True
        engine = self._engine
        if engine is not None:
            engine.set_topology(topology_text(TOPOLOGY_AUTO))
        return OK

    def enable_intelligent_prefetching(self) -> int:
        """Keep the connections to all peers that were used warm: one that was lost is opened
        again in the background, before a transfer needs it: 0. The original does not have it."""
        with self._lock:
            self._prefetches = True
            if self._peers is not None:
                self._peers.keep_warm()
        return OK

    def get_local_topology(self, device_name: str | None = None) -> str:
        """Return which RDMA devices are near to which memory, as the original's JSON.

        Args:
            device_name: Only these devices, separated by commas.
        """
        custom = os.environ.get("MC_CUSTOM_TOPO_JSON", "")
        return local_topology(devices_of(device_name or ""), custom)

    # ---- peers

    def get_notifies(self) -> list[TransferNotify]:
        """Return the messages that peers have left since the last call."""
        engine = self._engine
        if engine is None:
            return []
        try:
            notices = engine.take_notices()
        except Error as error:
            self._fail("get_notifies", error)
            return []
        return [TransferNotify(notice.name, notice.message) for notice in notices]

    def send_probe(self, peer_server_name: str) -> int:
        """Return 0 if a peer answers, otherwise -102. Blocks for 5 s at most."""
        found = self._call("send_probe", self._probe, peer_server_name)
        return OK if found == OK else PEER_UNREACHABLE

    def _probe(self, name: str) -> int:
        try:
            self.segment_of(name).probe(timeout_ms=CONNECT_TIMEOUT_MS)
        except UnavailableError:  # It has died since; another one may listen there now.
            self.segment_of(name).probe(timeout_ms=CONNECT_TIMEOUT_MS)
        return OK

    def warmup_efa_segment(self, segment_name: str) -> int:
        """Connect to a peer now rather than at the first transfer: 0, or -1."""

        def warm() -> int:
            self.segment_of(segment_name)
            return OK

        return self._call("warmup_efa_segment", warm)

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
            if len(self._logged) >= _LOGGED_MAX:
                self._logged.clear()
            self._logged[self.last_error] = now_s
        _log.warning("%s", self.last_error)
        return code

    def _need_engine(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise ClosedError("initialize() was not called, or has failed")
        return engine

    def segment_of(self, name: str) -> Segment:
        """Return the segment of that name; if it was lost, whoever goes by the name now (ours).

        A transfer that fails is not tried again: what listens there then may be another process,
        and part of it may have been done.

        Raises:
            Error: It is not initialized; or nobody goes by that name, or nobody answers.
        """
        self._need_engine()
        peers = self._peers
        if peers is None:
            raise ClosedError(
                "the engine was closed meanwhile, or belongs to the process from which this one "
                "was forked: make another one here"
            )
        segment = peers.get(name, CONNECT_TIMEOUT_MS)
        if segment.is_lost:
            peers.drop(name, segment)
            segment = peers.get(name, CONNECT_TIMEOUT_MS)
        return segment


def _abandon_all_after_fork() -> None:
    for engine in list(_living):
        engine._abandon_after_fork()


def _close_all_at_exit() -> None:
    # Later, when the interpreter is taken apart, threads that close() waits for run no more.
    for engine in list(_living):
        engine.close()


os.register_at_fork(after_in_child=_abandon_all_after_fork)
atexit.register(_close_all_at_exit)
