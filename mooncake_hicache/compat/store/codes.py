"""The original's return codes, and which of them stands for which of ours."""

from __future__ import annotations

from mooncake_hicache._core import Code
from mooncake_hicache.errors import (
    ClosedError,
    CorruptError,
    Error,
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
    OverQuotaError,
    TimeoutError_,
    TransientError,
)

__all__ = [
    "CHECKSUM_MISMATCH",
    "INTERNAL",
    "INVALID_PARAMS",
    "NO_AVAILABLE_HANDLE",
    "OBJECT_ALREADY_EXISTS",
    "OBJECT_NOT_FOUND",
    "OK",
    "RPC_FAIL",
    "RPC_TIMEOUT",
    "TASK_NOT_FOUND",
    "TENANT_QUOTA_EXCEEDED",
    "TRANSFER_FAIL",
    "code_of_error",
    "get_code",
    "put_code",
]

OK = 0
INTERNAL = -1
NO_AVAILABLE_HANDLE = -200
INVALID_PARAMS = -600
OBJECT_NOT_FOUND = -704
OBJECT_ALREADY_EXISTS = -705
TRANSFER_FAIL = -800
CHECKSUM_MISMATCH = -801
RPC_FAIL = -900
RPC_TIMEOUT = -901
TASK_NOT_FOUND = -1400
TENANT_QUOTA_EXCEEDED = -1700

_GET = {
    int(Code.OK): OK,
    int(Code.NOT_FOUND): OBJECT_NOT_FOUND,
    int(Code.ALREADY_EXISTS): OBJECT_ALREADY_EXISTS,
    int(Code.BUSY): NO_AVAILABLE_HANDLE,
    int(Code.TIMEOUT): RPC_TIMEOUT,
    int(Code.UNAVAILABLE): RPC_FAIL,
    int(Code.NOT_LEADER): RPC_FAIL,
    int(Code.LEASE_EXPIRED): RPC_FAIL,
    int(Code.NO_SPACE): NO_AVAILABLE_HANDLE,
    int(Code.CORRUPT): CHECKSUM_MISMATCH,
    int(Code.INVALID_ARGUMENT): INVALID_PARAMS,
    int(Code.UNSUPPORTED): INVALID_PARAMS,
    int(Code.CANCELLED): RPC_FAIL,
    int(Code.CLOSED): RPC_FAIL,
    int(Code.IO): TRANSFER_FAIL,
    int(Code.INTERNAL): INTERNAL,
    int(Code.OVER_QUOTA): TENANT_QUOTA_EXCEEDED,
}
_PUT = {**_GET, int(Code.ALREADY_EXISTS): OK}


def get_code(code: int) -> int:
    """Return the original's code for one of ours."""
    return _GET[code]


def put_code(code: int) -> int:
    """Return the same of a put, where an object that is there already is success."""
    return _PUT[code]


def code_of_error(error: Error) -> int:
    """Return the code that stands for what a call raised."""
    kinds: list[tuple[type[Error], int]] = [
        (InvalidArgumentError, INVALID_PARAMS),
        (ClosedError, INVALID_PARAMS),  # Before setup(), or after close().
        (NotFoundError, OBJECT_NOT_FOUND),
        (OverQuotaError, TENANT_QUOTA_EXCEEDED),
        (NoSpaceError, NO_AVAILABLE_HANDLE),
        (CorruptError, CHECKSUM_MISMATCH),
        (TimeoutError_, RPC_TIMEOUT),
        (TransientError, RPC_FAIL),
    ]
    return next((code for kind, code in kinds if isinstance(error, kind)), INTERNAL)
