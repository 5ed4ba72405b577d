"""The exceptions of this package, and which error code becomes which class.

    Error
    ├── TransientError           try again, here or elsewhere
    │   ├── TimeoutError_        the deadline passed; the request may have happened
    │   ├── UnavailableError     no node answers, or it is not the one to ask
    │   └── BusyError            nothing was started; back off and repeat
    ├── NotFoundError            an outcome: a miss
    ├── AlreadyExistsError       an outcome: nothing to do
    ├── NoSpaceError             no room, and nothing that may be evicted
    │   └── OverQuotaError       no room for this tenant
    ├── CorruptError             bytes that do not prove themselves
    ├── InvalidArgumentError     your mistake (also a ValueError)
    ├── UnsupportedError         not possible on this machine or with these options
    ├── ClosedError              used after `close()`
    ├── IoError                  the operating system refused (also an OSError)
    └── InternalError            a bug of ours

Batch calls never raise these for trouble of the environment: they give a code per item. This module
imports nothing of the package, because the compiled core looks its exceptions up here.
"""

from __future__ import annotations

__all__ = [
    "CLASS_BY_CODE_NAME",
    "AlreadyExistsError",
    "BusyError",
    "ClosedError",
    "CorruptError",
    "Error",
    "InternalError",
    "InvalidArgumentError",
    "IoError",
    "NoSpaceError",
    "NotFoundError",
    "OverQuotaError",
    "TimeoutError_",
    "TransientError",
    "UnavailableError",
    "UnsupportedError",
    "class_for_code_name",
]


class Error(Exception):
    """The base of every exception that this package raises on purpose."""


class TransientError(Error):
    """Nothing is wrong with the call: the same call may succeed later."""


class TimeoutError_(TransientError, TimeoutError):  # noqa: N801, N818
    """The deadline passed. What was asked may have happened: repeat only what is idempotent."""


class UnavailableError(TransientError):
    """No node answers at the place that was asked, or the lease on it has run out."""


class BusyError(TransientError):
    """The node refused for now and started nothing: back off and repeat."""


class NotFoundError(Error):
    """What was asked for is not there. Look-ups report this as a miss and do not raise it."""


class AlreadyExistsError(Error):
    """What should be made is there already. A put reports this as success and does not raise it."""


class NoSpaceError(Error):
    """There is no room, and nothing left that may be evicted, or the machine has not the memory."""


class OverQuotaError(NoSpaceError):
    """The tenant of this namespace has its quota full of what may not be evicted, or the page is
    larger than the quota."""


class CorruptError(Error):
    """Bytes do not match their checksum or their format. The page is dropped: a miss."""


class InvalidArgumentError(Error, ValueError):
    """The call, an option or a value is wrong. The message names it and the remedy."""


class UnsupportedError(Error):
    """This build, machine or set of options cannot do what was asked."""


class ClosedError(Error):
    """The object was closed, or the work was cancelled because it is being closed."""


class IoError(Error, OSError):
    """The operating system refused. The message says what was tried, on what, and the reason."""


class InternalError(Error):
    """A state that must not occur: a bug in this package, worth a report."""


CLASS_BY_CODE_NAME: dict[str, type[Error]] = {
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "BUSY": BusyError,
    "TIMEOUT": TimeoutError_,
    "UNAVAILABLE": UnavailableError,
    "NOT_LEADER": UnavailableError,
    "LEASE_EXPIRED": UnavailableError,
    "NO_SPACE": NoSpaceError,
    "CORRUPT": CorruptError,
    "INVALID_ARGUMENT": InvalidArgumentError,
    "UNSUPPORTED": UnsupportedError,
    "CANCELLED": ClosedError,
    "CLOSED": ClosedError,
    "IO": IoError,
    "INTERNAL": InternalError,
    "OVER_QUOTA": OverQuotaError,
}
"""Every code of `_core.Code` except `OK`, by name, so that the numbers stay in one place."""


def class_for_code_name(name: str) -> type[Error]:
    """Return the exception class for a code's name; `InternalError` for one that is not known."""
    return CLASS_BY_CODE_NAME.get(name, InternalError)
