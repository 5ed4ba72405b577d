"""The KV-cache tier behind SGLang's HiCache.

    >>> from mooncake_hicache import Store
    >>> with Store.open(in_process=True, pool_size="64MiB") as store:
    ...     pages = store.namespace("example")
    ...     pages.put("greeting", b"hello")
    ...     pages.get("greeting")
    True
    b'hello'

`Store` is what programs use, and `TransferEngine` where memory itself is to be moved between
processes and machines; `StoreOptions`, `NodeOptions` and `TransferOptions` list every option; the
exceptions are in `mooncake_hicache.errors`. Names are imported when they are first used, so that
importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mooncake_hicache._core import Code
    from mooncake_hicache.config import NodeOptions, StoreOptions, TransferOptions
    from mooncake_hicache.errors import (
        AlreadyExistsError,
        BusyError,
        ClosedError,
        CorruptError,
        Error,
        InternalError,
        InvalidArgumentError,
        IoError,
        NoSpaceError,
        NotFoundError,
        TimeoutError_,
        TransientError,
        UnavailableError,
        UnsupportedError,
    )
    from mooncake_hicache.segment import Batch, Segment
    from mooncake_hicache.store import Namespace, Store
    from mooncake_hicache.transfer import Notice, TransferEngine
    from mooncake_hicache.version import __version__

__all__ = [
    "AlreadyExistsError",
    "Batch",
    "BusyError",
    "ClosedError",
    "Code",
    "CorruptError",
    "Error",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "Namespace",
    "NoSpaceError",
    "NodeOptions",
    "NotFoundError",
    "Notice",
    "Segment",
    "Store",
    "StoreOptions",
    "TimeoutError_",
    "TransferEngine",
    "TransferOptions",
    "TransientError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
]

_HOME = {
    "Batch": "segment",
    "Code": "_core",
    "Namespace": "store",
    "NodeOptions": "config",
    "Notice": "transfer",
    "Segment": "segment",
    "Store": "store",
    "StoreOptions": "config",
    "TransferEngine": "transfer",
    "TransferOptions": "config",
    "__version__": "version",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
