"""Where the bytes of Python objects are."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from mooncake_hicache.buffers import spans_of
from mooncake_hicache.errors import InvalidArgumentError


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(int(address), int(size))


@pytest.mark.parametrize(
    "buffer",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"0123456789")[1:9],
        array.array("I", [1, 2]),
        np.arange(8, dtype=np.uint8),
        np.arange(4, dtype=np.float16).reshape(2, 2),
    ],
    ids=["bytes", "bytearray", "memoryview", "array", "numpy", "numpy-2d"],
)
def test_a_buffer_is_found_where_its_bytes_are(buffer: Any) -> None:
    spans = spans_of([buffer], writable=False)
    assert spans.addresses.shape == spans.sizes.shape == (1, 1)
    assert read(spans.addresses[0, 0], spans.sizes[0, 0]) == bytes(memoryview(buffer).cast("B"))


def test_memory_maps_and_tensors() -> None:
    with mmap.mmap(-1, 4096) as mapped:
        mapped[:3] = b"abc"
        spans = spans_of([mapped], writable=True)
        assert read(spans.addresses[0, 0], 3) == b"abc"
        del spans
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    spans = spans_of([tensor, tensor[1]], writable=True)
    assert spans.sizes.tolist() == [[12], [6]]
    assert spans.addresses[0, 0] == tensor.data_ptr()
    assert spans.addresses[1, 0] == tensor.data_ptr() + 6
    with pytest.raises(InvalidArgumentError, match="not contiguous"):
        spans_of([tensor.t()], writable=False)
    with pytest.raises(InvalidArgumentError, match="empty"):
        spans_of([tensor[:0]], writable=False)
    with pytest.raises(InvalidArgumentError, match="on meta"):
        spans_of([tensor.to("meta")], writable=False)


def test_an_object_with_an_array_interface_is_taken() -> None:
    class Holder:
        def __init__(self) -> None:
            self.array = np.arange(4, dtype=np.uint32)

        @property
        def __array_interface__(self) -> dict[str, Any]:
            return self.array.__array_interface__

    holder = Holder()
    spans = spans_of([holder], writable=False)
    assert spans.addresses[0, 0] == holder.array.ctypes.data
    assert spans.sizes[0, 0] == 16


def test_pages_with_fewer_pieces_end_in_empty_ones() -> None:
    spans = spans_of([[b"ab", b"c"], b"defg", (b"h",)], writable=False)
    assert spans.sizes.tolist() == [[2, 1], [4, 0], [1, 0]]


def test_no_pages_are_no_spans() -> None:
    assert spans_of([], writable=False).addresses.shape == (0, 1)


@pytest.mark.parametrize(
    ("buffer", "writable", "told"),
    [
        (b"", False, "empty"),
        ([], False, "empty list"),
        (b"fixed", True, "read-only"),
        (memoryview(bytearray(8))[::2], False, "not contiguous"),
        (np.zeros((4, 4))[:, 1], False, "not contiguous"),
        (np.array([b"x", None]), False, "holds Python objects"),
        (memoryview(np.array([{}])), False, "holds Python objects"),
        (np.zeros(2, [("size", "i8"), ("value", "O")]), False, "holds Python objects"),
        ((ctypes.py_object * 2)(), False, "holds Python objects"),
        (np.zeros(2, "M8[s]"), False, "cannot be taken as bytes"),
        (3, False, "int is no buffer"),
        ("text", False, "str is no buffer"),
        (None, False, "NoneType is no buffer"),
    ],
)
def test_what_cannot_be_copied_is_named(buffer: Any, writable: bool, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        spans_of([buffer], writable=writable)


def test_a_field_name_is_no_object() -> None:
    assert spans_of([np.zeros(2, [("O", "i8")])], writable=False).sizes.tolist() == [[16]]


@pytest.mark.parametrize("pages", [b"x", "x", None, 5])
def test_pages_that_are_no_list_are_named(pages: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the pages are a {type(pages).__name__}"):
        spans_of(pages, writable=False)


def test_a_bytearray_cannot_move_while_it_is_held() -> None:
    buffer = bytearray(16)
    spans = spans_of([buffer], writable=True)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    del spans
    buffer.extend(b"more")
