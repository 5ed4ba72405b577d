"""The small types of `mooncake.engine`, its numbers, and what is not supported."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NoReturn

from mooncake_hicache.errors import UnsupportedError

__all__ = [
    "ADDRESS_NOT_REGISTERED",
    "ADDRESS_OVERLAPPED",
    "FAILED",
    "OK",
    "PEER_UNREACHABLE",
    "CoroRPCInterface",
    "ReceivedData",
    "ReceivedTensor",
    "RpcInterface",
    "SharedSegment",
    "TransferNotify",
    "TransferOpcode",
    "create_rpc_client",
    "create_rpc_server",
]

OK = 0
FAILED = -1
ADDRESS_NOT_REGISTERED = -3
ADDRESS_OVERLAPPED = -7
PEER_UNREACHABLE = -102


class TransferOpcode(IntEnum):
    """Which way bytes go."""

    Read = 0
    Write = 1
    READ = 0
    WRITE = 1


class TransferNotify:
    """A message that a peer leaves after a transfer."""

    def __init__(self, name: str = "", msg: str = "") -> None:
        self.name = name
        self.msg = msg

    def __repr__(self) -> str:
        return f"TransferNotify(name={self.name!r}, msg={self.msg!r})"


def _not_supported(name: str) -> NoReturn:
    raise UnsupportedError(
        f"mooncake.engine.{name} is not supported: this engine moves registered memory, which "
        "processes of one machine share by themselves; for remote procedure calls use a library"
    )


class _NotSupported:
    def __init__(self, *_: Any, **__: Any) -> None:
        _not_supported(type(self).__name__)


class CoroRPCInterface(_NotSupported):
    """Not supported: constructing it raises UnsupportedError."""


class RpcInterface(_NotSupported):
    """Not supported: constructing it raises UnsupportedError."""


class ReceivedData(_NotSupported):
    """Not supported: constructing it raises UnsupportedError."""


class ReceivedTensor(_NotSupported):
    """Not supported: constructing it raises UnsupportedError."""


class SharedSegment(_NotSupported):
    """Not supported, which `supported` says: constructing it raises UnsupportedError."""

    @staticmethod
    def supported(mmap: bool = True, host_register: bool = False) -> bool:
        """Return False."""
        del mmap, host_register
        return False

    @staticmethod
    def create(*_: Any, **__: Any) -> NoReturn:
        """Raise UnsupportedError."""
        _not_supported("SharedSegment")


def create_rpc_client(*_: Any, **__: Any) -> NoReturn:
    """Not supported."""
    _not_supported("create_rpc_client")


def create_rpc_server(*_: Any, **__: Any) -> NoReturn:
    """Not supported."""
    _not_supported("create_rpc_server")
