"""A tensor as an object of `mooncake.store`: a head that says type and shape, then its numbers.

The head is the original's, byte for byte, because its callers lay such objects out themselves
(`put_tensor_from`) and read them into buffers of their own (`get_tensor_into`). It names the shape
twice, of the whole tensor and of the part that is stored, which here are the same.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.tensors import bytes_of, is_tensor, item_size, tensor_of
from mooncake_hicache.errors import CorruptError, InvalidArgumentError

__all__ = ["HEAD_SIZE", "TYPES", "check_tensor", "pieces_of", "tensor_at"]

TYPES = (
    "float32",
    "float64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
)
"""By number."""

HEAD_SIZE = 304
_DIMENSIONS_MAX = 8
_MAGIC, _VERSION = 0x4D4F4F4E, 1
_UNUSED = -1
# Magic, version, its own size, type, dimensions; where the numbers are, and how many bytes; shapes.
_HEAD = struct.Struct(f"<IHHII8xQQ{_DIMENSIONS_MAX}q{_DIMENSIONS_MAX}q136x")

Bytes = npt.NDArray[np.uint8]


def pieces_of(tensor: Any, where: str) -> list[Bytes]:
    """Return what to store for a tensor, in pieces.

    Raises:
        InvalidArgumentError: It is no dense tensor of a type and shape that the head can name.
    """
    if not is_tensor(tensor):
        raise InvalidArgumentError(f"{where} is {type(tensor).__name__}: give a tensor of torch")
    raw, name = bytes_of(tensor, where)
    if name not in TYPES or tensor.dim() > _DIMENSIONS_MAX:
        raise InvalidArgumentError(
            f"{where} is a tensor of {name} with {tensor.dim()} dimensions: give one of "
            f"{', '.join(TYPES)} with at most {_DIMENSIONS_MAX}"
        )
    shape = [*tensor.shape, *[_UNUSED] * (_DIMENSIONS_MAX - tensor.dim())]
    head = _HEAD.pack(
        *(_MAGIC, _VERSION, HEAD_SIZE, TYPES.index(name), tensor.dim(), HEAD_SIZE, raw.size),
        *shape,
        *shape,
    )
    pieces = [np.frombuffer(head, np.uint8)]
    return [*pieces, raw] if raw.size else pieces


def check_tensor(stored: Bytes) -> tuple[str, list[int]]:
    """Return type and shape of a tensor that is stored, or laid out to be.

    Raises:
        CorruptError: It is something else, or not all of it.
    """
    if stored.size < HEAD_SIZE:
        raise CorruptError(f"{stored.size} bytes are no tensor: its head has {HEAD_SIZE}")
    magic, version, head_size, kind, dimensions, offset, size, *shapes = _HEAD.unpack(
        stored[:HEAD_SIZE].tobytes()
    )
    if (magic, version, head_size, offset) != (_MAGIC, _VERSION, HEAD_SIZE, HEAD_SIZE):
        raise CorruptError(f"the object is no tensor: it does not begin with {_MAGIC:#x}")
    if kind >= len(TYPES) or dimensions > _DIMENSIONS_MAX:
        raise CorruptError(f"the tensor is of type {kind} with {dimensions} dimensions")
    shape = shapes[:dimensions]
    count = 1
    for length in shape:
        count *= max(length, 0)
    bytes_each = item_size(TYPES[kind]) or 0
    if min(shape, default=0) < 0 or count * bytes_each != size or HEAD_SIZE + size != stored.size:
        raise CorruptError(
            f"the tensor has {stored.size - HEAD_SIZE} bytes, its head says {size} for {shape} "
            f"numbers of {TYPES[kind]}"
        )
    return TYPES[kind], shape


def tensor_at(stored: Bytes) -> Any:
    """Return the tensor that is stored there: a view of these bytes.

    Raises:
        CorruptError: It is something else.
        UnsupportedError: Torch is not installed.
    """
    name, shape = check_tensor(stored)
    return tensor_of(stored[HEAD_SIZE:], name, shape)
