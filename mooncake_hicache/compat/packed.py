"""Values as one row of bytes that explains itself: a header, then the raw numbers.

    +---------+-------------+--------+-----------------+-----+-----------------+-----+---
    | magic 8 | size 8 (LE) | header | zeros to 64 × n | raw | zeros to 64 × n | raw | ...
    +---------+-------------+--------+-----------------+-----+-----------------+-----+---

The header is JSON. Each node of the tree is a list that begins with what it is:

    ["none"]  ["bool", true]  ["int", 7]  ["float", "0x1.8p+1"]  ["text", "adam"]
    ["list", [node, ...]]  ["tuple", [node, ...]]  ["dict", [[node of the key, node], ...]]
    ["bytes", offset, size]
    ["numpy", offset, size, "<f4", [2, 3]]  ["torch", offset, size, "bfloat16", [2, 3]]

Offsets count from the first raw byte. Nothing that came over the network is executed or imported:
what is no such node is an error, and every range is checked before anything looks at it.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat import tensors
from mooncake_hicache.errors import CorruptError, InvalidArgumentError, UnsupportedError

__all__ = ["is_packed", "pack", "unpack"]

MAGIC = b"MHP2P\0\0\1"
PREFIX = struct.Struct("<8sQ")
ALIGNMENT = 64
DEPTH_MAX = 64
HEADER_SIZE_MAX = 256 << 20
DIMENSIONS_MAX = 32  # As numpy has it.

_INT_MAX = 1 << 63
_NUMPY_TYPE = re.compile(r"[<>|][biufc][0-9]{1,2}")

Bytes = npt.NDArray[np.uint8]
Node = list[Any]


def pack(value: Any, allocate: Any) -> Bytes:
    """Return a value as bytes, copied into new memory.

    Args:
        value: Bytes or another buffer, a numpy array, a torch tensor, or dicts, lists and tuples of
            them and of numbers, text and None.
        allocate: Called with a size, returns that much memory.

    Raises:
        InvalidArgumentError: Something in it is none of these; the message says where.
    """
    parts: list[Bytes] = []
    packer = _Packer(parts)
    header = json.dumps(packer.node(value, "", 0), separators=(",", ":")).encode()
    if len(header) > HEADER_SIZE_MAX:
        raise InvalidArgumentError(f"a header of {len(header)} bytes: at most {HEADER_SIZE_MAX}")
    first = _aligned(PREFIX.size + len(header))
    packed: Bytes = allocate(first + packer.size_bytes)
    packed[: PREFIX.size] = np.frombuffer(PREFIX.pack(MAGIC, len(header)), np.uint8)
    packed[PREFIX.size : PREFIX.size + len(header)] = np.frombuffer(header, np.uint8)
    end = PREFIX.size + len(header)
    for offset, part in zip(packer.offsets, parts, strict=True):
        start = first + offset
        packed[end:start] = 0  # What was in this memory before is nobody's business.
        end = start + part.size
        packed[start:end] = part
    packed[end:] = 0
    return packed


def is_packed(packed: Bytes) -> bool:
    """Return whether bytes begin like those of `pack`."""
    return packed.size >= PREFIX.size and packed[: len(MAGIC)].tobytes() == MAGIC


def unpack(packed: Bytes) -> Any:
    """Return the value; arrays and tensors are views of the bytes, those of numpy read-only.

    Raises:
        CorruptError: It is no such value.
        UnsupportedError: It has tensors, and torch is not installed or does not know their type.
    """
    if not is_packed(packed):
        raise CorruptError("the bytes do not begin like a value of P2PStore.put")
    _, header_size = PREFIX.unpack(packed[: PREFIX.size].tobytes())
    if header_size > min(HEADER_SIZE_MAX, packed.size - PREFIX.size):
        raise CorruptError(f"a header of {header_size} bytes in {packed.size}")
    header = packed[PREFIX.size : PREFIX.size + header_size].tobytes()
    try:
        tree = json.loads(header.decode())
    except (ValueError, RecursionError):
        raise CorruptError("the header is no JSON") from None
    return _value(tree, packed[_aligned(PREFIX.size + header_size) :], 0)


class _Packer:
    def __init__(self, parts: list[Bytes]) -> None:
        self._parts = parts
        self.offsets: list[int] = []
        self.size_bytes = 0

    def node(self, value: Any, where: str, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise InvalidArgumentError(f"value{where} is more than {DEPTH_MAX} levels deep")
        if value is None:
            return ["none"]
        if isinstance(value, bool):
            return ["bool", value]
        if type(value) is int and abs(value) < _INT_MAX:
            return ["int", value]
        if type(value) is float:
            return ["float", value.hex()]
        if isinstance(value, str):
            return ["text", value]
        if isinstance(value, dict):
            return ["dict", [self._item(key, value[key], where, depth) for key in value]]
        if isinstance(value, (list, tuple)):
            found = [self.node(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
            return ["tuple" if isinstance(value, tuple) else "list", found]
        if tensors.is_tensor(value):
            raw, name = tensors.bytes_of(value, f"value{where}")
            return ["torch", *self._add(raw), name, list(value.shape)]
        if isinstance(value, (np.ndarray, np.generic)):
            return self._of_array(np.asarray(value), where)
        return self._of_buffer(value, where)

    def _item(self, key: Any, value: Any, where: str, depth: int) -> list[Node]:
        if type(key) not in (str, int, bool, float) and key is not None:
            raise InvalidArgumentError(
                f"value{where} has a key of type {type(key).__name__}: text and numbers can be keys"
            )
        return [self.node(key, where, depth), self.node(value, f"{where}[{key!r:.80}]", depth + 1)]

    def _of_array(self, array: npt.NDArray[Any], where: str) -> Node:
        if not _NUMPY_TYPE.fullmatch(array.dtype.str):
            raise InvalidArgumentError(
                f"value{where} is an array of {array.dtype}: give numbers, or .view(numpy.uint8)"
            )
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return ["numpy", *self._add(raw), array.dtype.str, list(array.shape)]

    def _of_buffer(self, value: Any, where: str) -> Node:
        try:
            view = memoryview(value)
            if view.format is not None and "O" in view.format:
                raise TypeError("it holds Python objects")
            raw = np.frombuffer(view if view.contiguous else bytes(view), np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgumentError(
                f"value{where} is a {type(value).__name__} ({error}): give bytes, arrays, tensors, "
                "or dicts and lists of them and of plain numbers and text"
            ) from None
        return ["bytes", *self._add(raw)]

    def _add(self, raw: Bytes) -> tuple[int, int]:
        offset = _aligned(self.size_bytes)
        self._parts.append(raw)
        self.offsets.append(offset)
        self.size_bytes = offset + raw.size
        return offset, int(raw.size)


def _value(node: Any, raw: Bytes, depth: int) -> Any:
    if not isinstance(node, list) or not node or depth > DEPTH_MAX:
        raise _corrupt(node)
    kind, *rest = node
    if kind == "none" and not rest:
        return None
    if kind in ("numpy", "torch", "bytes"):
        return _of_range(node, raw)
    if len(rest) != 1:
        raise _corrupt(node)
    (content,) = rest
    if (kind, type(content)) in (("bool", bool), ("int", int), ("text", str)):
        return content
    if kind == "float" and isinstance(content, str):
        try:
            return float.fromhex(content)
        except (ValueError, OverflowError):
            raise _corrupt(node) from None
    if isinstance(content, list):
        if kind == "list":
            return [_value(one, raw, depth + 1) for one in content]
        if kind == "tuple":
            return tuple(_value(one, raw, depth + 1) for one in content)
        if kind == "dict":
            return dict(_item(one, raw, depth + 1) for one in content)
    raise _corrupt(node)


def _item(item: Any, raw: Bytes, depth: int) -> tuple[Any, Any]:
    if not isinstance(item, list) or len(item) != 2:
        raise _corrupt(item)
    key = _value(item[0], raw, depth)
    if type(key) not in (str, int, bool, float) and key is not None:
        raise _corrupt(item)
    return key, _value(item[1], raw, depth)


def _of_range(node: Node, raw: Bytes) -> Any:
    kind = node[0]
    if len(node) != (3 if kind == "bytes" else 5):
        raise _corrupt(node)
    offset, size = node[1:3]
    if not _is_size(offset) or not _is_size(size) or offset + size > raw.size:
        raise _corrupt(node)
    part = raw[offset : offset + size]
    if kind == "bytes":
        return part.tobytes()
    name, shape = node[3:]
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise _corrupt(node)
    if not all(_is_size(one) for one in shape) or offset % ALIGNMENT:
        raise _corrupt(node)
    count = math.prod(shape)
    if kind == "torch":
        item_size = tensors.item_size(name)
        if item_size is None:
            raise UnsupportedError(f"tensors of type {name!r:.40} are not known here")
        if count * item_size != size:
            raise _corrupt(node)
        try:
            return tensors.tensor_of(part, name, shape)
        except (RuntimeError, OverflowError):  # No numbers, and more dimensions than there can be.
            raise _corrupt(node) from None
    if not _NUMPY_TYPE.fullmatch(name):
        raise _corrupt(node)
    try:
        dtype = np.dtype(name)
        if count * dtype.itemsize != size:
            raise _corrupt(node)
        array = part.view(dtype).reshape(shape)
    except (TypeError, ValueError):
        raise _corrupt(node) from None
    array.flags.writeable = False
    return array


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _corrupt(node: Any) -> CorruptError:
    return CorruptError(f"the header has a node that is none: {node!r:.100}")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
