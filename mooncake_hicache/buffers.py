"""Where the bytes of a Python object are, for copies that the core makes without Python.

Anything with the buffer protocol is taken (bytes, bytearray, memoryview, array, mmap, numpy),
objects with numpy's `__array_interface__`, and torch's CPU tensors. All must be contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import InvalidArgumentError

__all__ = ["Spans", "spans_of"]


@dataclass(frozen=True)
class Spans:
    """The memory of a batch: `n` pages of `s` pieces each."""

    addresses: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]
    held: list[object]
    """What keeps the memory in place; to be kept alive until the copies are over."""


def spans_of(pages: Sequence[Any], *, writable: bool) -> Spans:
    """Return where the pages of a batch are.

    Args:
        pages: For each page its buffer, or a list or tuple of the buffers it is gathered from or
            scattered to.
        writable: The buffers are to be written to.

    Raises:
        InvalidArgumentError: A buffer is empty, not contiguous, read-only though it is to be
            written to, holds Python objects, or is not in this process's memory; or a page has no
            pieces; or the pages are no list.
    """
    if isinstance(pages, (str, bytes, bytearray, memoryview)) or not isinstance(pages, Iterable):
        raise InvalidArgumentError(
            f"the pages are a {type(pages).__name__}: give a list with a buffer for each page"
        )
    rows = [page if isinstance(page, (list, tuple)) else (page,) for page in pages]
    piece_count = max(map(len, rows), default=1)
    addresses = np.zeros((len(rows), piece_count), np.uint64)
    # Pages with fewer pieces than others end in pieces of no bytes, which the core passes over.
    sizes = np.zeros((len(rows), piece_count), np.uint64)
    held: list[object] = []
    for row_index, row in enumerate(rows):
        if not row:
            raise InvalidArgumentError(f"page {row_index} is an empty list: give its buffers")
        for piece_index, piece in enumerate(row):
            address, size, holder = _span_of(piece, writable)
            addresses[row_index, piece_index] = address
            sizes[row_index, piece_index] = size
            held.append(holder)
    return Spans(addresses, sizes, held)


def _span_of(buffer: Any, writable: bool) -> tuple[int, int, object]:
    if hasattr(buffer, "data_ptr") and hasattr(buffer, "element_size"):
        return _span_of_tensor(buffer)
    try:
        view = memoryview(buffer)
    except TypeError:
        if not hasattr(buffer, "__array_interface__"):
            raise InvalidArgumentError(
                f"{type(buffer).__name__} is no buffer: give bytes, bytearray, memoryview, a "
                "numpy array "
                "or a CPU tensor"
            ) from None
        buffer = np.asarray(buffer)
        view = memoryview(buffer)
    except ValueError as error:  # A type that has no name in the buffer protocol, or a closed map.
        raise InvalidArgumentError(
            f"a {type(buffer).__name__} cannot be taken as bytes: {error}; of an array give "
            ".view(numpy.uint8)"
        ) from None
    if _holds_objects(view):
        # Their bytes are pointers, which mean nothing to whoever reads the page.
        raise InvalidArgumentError(
            f"a {type(buffer).__name__} holds Python objects and not their bytes: give an array of "
            "numbers"
        )
    if view.nbytes == 0:
        raise InvalidArgumentError("a buffer is empty: a page has at least one byte")
    if not view.c_contiguous:
        raise InvalidArgumentError(
            "a buffer is not contiguous: pass its pieces as a list, or a copy"
        )
    if writable and view.readonly:
        raise InvalidArgumentError(
            f"a {type(buffer).__name__} is read-only and cannot be read into: give a bytearray or "
            "an array"
        )
    # The array holds the buffer's export, so a bytearray cannot be resized under the copy.
    array = np.frombuffer(view, np.uint8)
    return array.__array_interface__["data"][0], view.nbytes, array


def _holds_objects(view: memoryview) -> bool:
    if isinstance(view.obj, np.ndarray):
        return bool(view.obj.dtype.hasobject)
    return view.format is not None and view.format.endswith("O")


def _span_of_tensor(tensor: Any) -> tuple[int, int, object]:
    # Told by its methods, because this layer does not import torch.
    if tensor.device.type != "cpu":
        raise InvalidArgumentError(
            f"a tensor is on {tensor.device}: only memory of this process can be read or written "
            "here"
        )
    if not tensor.is_contiguous():
        raise InvalidArgumentError(
            "a tensor is not contiguous: pass its pieces as a list, or a copy"
        )
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        raise InvalidArgumentError("a tensor is empty: a page has at least one byte")
    return tensor.data_ptr(), size, tensor
