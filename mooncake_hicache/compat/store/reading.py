"""The methods of `mooncake.store.MooncakeDistributedStore` that read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from mooncake_hicache._core import BufferHandle
from mooncake_hicache.compat.store.base import StoreBase
from mooncake_hicache.compat.store.codes import (
    INVALID_PARAMS,
    OBJECT_NOT_FOUND,
    OK,
    TRANSFER_FAIL,
    get_code,
)
from mooncake_hicache.compat.store.kinds import ExistOptions

__all__ = ["StoreReading", "copy_range"]

_FOUND, _MISSING = 1, 0


class StoreReading(StoreBase):
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`."""

    def is_exist(self, key: str, options: ExistOptions | None = None) -> int:
        """Return 1, 0, or a negative number. Holds nothing back from eviction, but for a while
        what `options` have brought into memory."""
        return self.batch_is_exist([key], options)[0]

    def batch_is_exist(self, keys: Sequence[str], options: ExistOptions | None = None) -> list[int]:
        """Return the same for each key, in one request."""
        if not isinstance(options, ExistOptions | None):
            raise TypeError(f"options is {type(options).__name__}, not an ExistOptions")
        # A look-up that promises is what brings objects up.
        promise = options is not None and bool(options.prefetch_to_memory)

        def look() -> list[int]:
            client, pages = self._need()
            codes = client.object_lookup(pages, keys, lease=promise)
            if not codes.any():
                return [_FOUND] * len(codes)
            found = self._settle("is_exist", codes, get_code, keys)
            return [
                _FOUND if code == OK else _MISSING if code == OBJECT_NOT_FOUND else code
                for code in found
            ]

        return self._call_batch("is_exist", len(keys), look)

    def get_size(self, key: str) -> int:
        """Return the size in bytes, or a negative number."""
        sizes: list[int] = []

        def ask() -> int:
            client, pages = self._need()
            codes, found = client.object_sizes(pages, [key])
            sizes.extend(found)
            return self._settle("get_size", codes, get_code, [key])[0]

        code = self._call("get_size", ask)
        return sizes[0] if code == OK else code

    def get(self, key: str) -> bytes:
        """Return an object; empty if it is not there or cannot be had, which `last_error` tells."""
        value = self._values("get", [key])[0]
        return b"" if value is None else value

    def get_batch(self, keys: Sequence[str]) -> list[bytes]:
        """Return objects, in one request; empty for each that is not there."""
        return [b"" if value is None else value for value in self._values("get_batch", keys)]

    def get_buffer(self, key: str) -> BufferHandle | None:
        """Return an object in memory of its own, or None."""
        return self.batch_get_buffer([key])[0]

    def batch_get_buffer(self, keys: Sequence[str]) -> list[BufferHandle | None]:
        """Return the same for each key, in one request."""
        values = self._values("get_buffer", keys)
        return [None if value is None else BufferHandle(value) for value in values]

    def _values(self, name: str, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = []

        def read() -> int:
            client, pages = self._need()
            codes, found = client.object_get(pages, keys)
            self._settle(name, codes, get_code, keys)
            values.extend(found)
            return OK

        return values if self._call(name, read) == OK else [None] * len(keys)

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Read an object to an address; return its size, or a negative number.

        Nothing is written behind `size` bytes; what is there after a failure is undefined.
        """
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_get_into(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Read objects to addresses, in one request; return sizes, or negative numbers."""
        return self._call_batch(
            "get_into", len(keys), lambda: self._read_into(keys, buffer_ptrs, sizes)
        )

    def batch_get_into_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """The same with several pieces of memory for each object, as large as it in all."""
        del prefer_alloc_in_same_node  # Objects are in one piece.

        def read() -> list[int]:
            found = self._read_into(keys, all_buffer_ptrs, all_sizes)
            return [
                TRANSFER_FAIL if size >= 0 and size != sum(sizes) else size
                for size, sizes in zip(found, all_sizes, strict=True)
            ]

        return self._call_batch("get_into", len(keys), read)

    def _read_into(self, keys: Sequence[str], addresses: Any, sizes: Any) -> list[int]:
        client, pages = self._need()
        codes, found = client.object_get_into(pages, keys, addresses, sizes)
        if not codes.any():
            return list(found)
        settled = self._settle("get_into", codes, get_code, keys)
        return [size if code == OK else code for code, size in zip(settled, found, strict=True)]

    def get_into_ranges(
        self,
        buffer_ptrs: Sequence[int],
        all_keys: Sequence[Sequence[str]],
        all_dst_offsets: Sequence[Sequence[Sequence[int]]],
        all_src_offsets: Sequence[Sequence[Sequence[int]]],
        all_sizes: Sequence[Sequence[Sequence[int]]],
    ) -> list[list[list[int]]]:
        """Read ranges of objects to offsets of buffers; return for each range its size, or a
        negative number. Each object is read once and verified whole.

        Lists of different lengths, and what would end behind memory that is registered, are -600.
        """
        lists = (buffer_ptrs, all_keys, all_dst_offsets, all_src_offsets, all_sizes)
        if len({len(each) for each in lists}) > 1:
            return [[[INVALID_PARAMS] for _ in keys] for keys in all_keys]
        return [self._into_buffer(*group) for group in zip(*lists, strict=True)]

    def _into_buffer(
        self,
        buffer_ptr: int,
        keys: Sequence[str],
        targets: Sequence[Sequence[int]],
        sources: Sequence[Sequence[int]],
        sizes: Sequence[Sequence[int]],
    ) -> list[list[int]]:
        if not len(keys) == len(targets) == len(sources) == len(sizes):
            return [[INVALID_PARAMS] for _ in keys]
        values = dict(zip(keys, self._values("get_into_ranges", keys), strict=True))
        room = self._room_at(buffer_ptr)
        rows = []
        for key, target, source, size in zip(keys, targets, sources, sizes, strict=True):
            value = values[key]
            if not len(target) == len(source) == len(size):
                rows.append([INVALID_PARAMS] * max(len(target), len(source), len(size)))
            elif value is None:
                rows.append([OBJECT_NOT_FOUND] * len(size))
            else:
                rows.append(
                    [
                        copy_range(value, offset, buffer_ptr + place, length)
                        if place >= 0 and (room is None or place + length <= room)
                        else INVALID_PARAMS
                        for place, offset, length in zip(target, source, size, strict=True)
                    ]
                )
        return rows

    def _room_at(self, address: int) -> int | None:
        """Return how much of registered memory begins here; None: it is not registered."""
        for start, size in [*self._registered.items()]:
            if start <= address < start + size:
                return start + size - address
        return None

    def get_offload_rpc_read_count(self) -> int:
        """Return 0: nothing is read from a disk through another process."""
        return 0


def copy_range(value: bytes, offset: int, address: int, size: int) -> int:
    """Copy a range of a value to an address: its size, or -600 where the value is shorter."""
    if offset < 0 or size < 0 or offset + size > len(value):
        return INVALID_PARAMS
    start = int(np.frombuffer(value, np.uint8).ctypes.data)
    ctypes.memmove(address, start + offset, size)
    return size
