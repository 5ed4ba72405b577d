"""What callers hand to the public API, checked and in the form that the core takes.

Nothing is guessed: an argument of a kind that could mean something else is refused, with its name
and what came.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import InvalidArgumentError
from mooncake_hicache.pages.key import KEY_SIZE, page_key

__all__ = [
    "check_description_text",
    "check_one_per_key",
    "hashed_keys",
    "key_of",
    "milliseconds",
    "plain_keys",
    "uint64_array",
]

PlainKeys = Any
"""Keys as the core takes them: a sequence of 32 bytes or 64 digits each, or all bytes in one."""

_UINT64_MAX = 2**64 - 1
_PACKED = (bytes, bytearray, memoryview)


def key_of(name: Any, argument: str = "key") -> bytes:
    """Return the 32-byte key of one page's name; see `page_key`.

    Raises:
        InvalidArgumentError: `name` is neither a str nor bytes.
    """
    try:
        return page_key(name)
    except TypeError:
        raise InvalidArgumentError(
            f"{argument} is {_kind(name)}: a page's name is a str or bytes"
        ) from None


def plain_keys(keys: Any) -> PlainKeys:
    """Return keys as packed bytes, or as a sequence whose items have not been looked at.

    Raises:
        InvalidArgumentError: They are one name and not many, an array of anything but packed bytes,
            or nothing that has an order and a length.
    """
    if isinstance(keys, np.ndarray):
        if keys.dtype != np.uint8 or keys.size % KEY_SIZE:
            raise InvalidArgumentError(
                f"keys is an array of {keys.dtype} of shape {keys.shape}: packed keys are a uint8 "
                f"array of {KEY_SIZE} bytes per key; give names as a list"
            )
        return keys.tobytes()
    if isinstance(keys, _PACKED):
        size = memoryview(keys).nbytes
        if size % KEY_SIZE:
            raise InvalidArgumentError(
                f"keys has {size} bytes: packed keys are {KEY_SIZE} bytes each; give names as a "
                "list"
            )
        return bytes(keys)
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        raise InvalidArgumentError(
            f"keys is {_kind(keys)}: give a list of names, or packed bytes of {KEY_SIZE} per key"
        )
    return keys


def hashed_keys(keys: Sequence[Any]) -> list[bytes]:
    """Return the 32-byte key of each name.

    Raises:
        InvalidArgumentError: One is neither a str nor bytes; the message names its place.
    """
    return [key_of(name, f"keys[{index}]") for index, name in enumerate(keys)]


def check_one_per_key(keys: Any, count: int, what: str) -> None:
    """Check that there are as many values or buffers as keys.

    Raises:
        InvalidArgumentError: There are not, or `keys` are none.
    """
    plain = plain_keys(keys)
    key_count = len(plain) // KEY_SIZE if isinstance(plain, bytes) else len(plain)
    if key_count != count:
        raise InvalidArgumentError(
            f"{_counted(key_count, 'key')}, {_counted(count, what)}: give one {what} per key"
        )


def uint64_array(argument: str, values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return addresses or sizes as the core takes them.

    Raises:
        InvalidArgumentError: One is negative, too large, or not an integer.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{argument} is {_kind(values)} and no array of integers: {error}"
        ) from None
    if array.size == 0:
        return np.zeros(array.shape, np.uint64)  # An empty list has no kind of its own.
    if array.dtype.kind not in "iuO":
        raise InvalidArgumentError(
            f"{argument} holds {array.dtype} (the first is {array.flat[0]}): give integers"
        )
    if array.dtype.kind == "O":
        # Integers that fit no type of numpy's, or no integers at all.
        for value in array.flat:
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise InvalidArgumentError(
                    f"{argument} holds {value!r}, {_kind(value)}: give integers"
                )
            _check_uint64(argument, int(value))
    elif array.dtype.kind == "i":
        _check_uint64(argument, int(array.min()))
    return np.ascontiguousarray(array, dtype=np.uint64)


def milliseconds(argument: str, value: Any) -> int:
    """Return a duration that is 0 or more.

    Raises:
        InvalidArgumentError: It is negative, too large, or not an integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not 0 <= number <= _UINT64_MAX:
        raise InvalidArgumentError(
            f"{argument} {value!r}: must be a whole number of milliseconds, 0 or more"
        )
    return number


def check_description_text(text: str) -> None:
    """Check that the readable form of a namespace's description can be shown.

    Raises:
        InvalidArgumentError: It holds half of a surrogate pair, which is no character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the description {text!a} holds half a character ({text[error.start]!a}, a lone "
            "surrogate), which has no UTF-8 form: take it out, or escape it"
        ) from None


def _check_uint64(argument: str, value: int) -> None:
    if not 0 <= value <= _UINT64_MAX:
        raise InvalidArgumentError(f"{argument} holds {value}: must be between 0 and 2**64 - 1")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
