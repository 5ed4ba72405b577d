"""The methods of `mooncake.store.MooncakeDistributedStore` that read and write objects by parts.

A session of reads keeps a copy of its objects, verified as a whole, from which each layer is taken;
a session of writes gathers an object before it is stored. So parts cost no requests, and an object
is visible when it is whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.store.codes import (
    INVALID_PARAMS,
    NO_AVAILABLE_HANDLE,
    OBJECT_ALREADY_EXISTS,
    OBJECT_NOT_FOUND,
    OK,
)
from mooncake_hicache.compat.store.kinds import ReplicateConfig
from mooncake_hicache.compat.store.reading import copy_range
from mooncake_hicache.compat.store.writing import StoreWriting, copy_in

__all__ = ["StoreSessions"]


class StoreSessions(StoreWriting):
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`."""

    def __init__(self) -> None:
        super().__init__()
        self._read_values: dict[str, bytes] = {}
        self._write_values: dict[str, tuple[npt.NDArray[np.uint8], ReplicateConfig]] = {}

    def _ended(self) -> None:
        self._read_values = {}
        self._write_values = {}
        super()._ended()

    # ---- reads

    def batch_get_session_start(self, keys: Sequence[str]) -> list[int]:
        """Fetch objects whose parts are to be read: 0 for each, or -704."""
        if self._store is None:
            return []
        codes = []
        for key, value in zip(keys, self._values("get_session", keys), strict=True):
            codes.append(OBJECT_NOT_FOUND if value is None else OK)
            if value is not None:
                self._read_values[key] = value
        return codes

    def batch_get_into_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_src_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """Copy parts of objects of the session; return the bytes of each, or -600."""
        result = []
        for index, key in enumerate(keys):
            value = self._read_values.get(key)
            try:
                rows = list(
                    zip(
                        all_buffer_ptrs[index],
                        all_sizes[index],
                        all_src_offsets[index],
                        strict=True,
                    )
                )
            except (IndexError, ValueError):
                value = None
            if value is None:
                result.append(INVALID_PARAMS)
                continue
            done = [copy_range(value, offset, address, size) for address, size, offset in rows]
            result.append(INVALID_PARAMS if INVALID_PARAMS in done else sum(done))
        return result

    def batch_get_session_end(self, keys: Sequence[str]) -> int:
        """Forget the copies: 0."""
        for key in keys:
            self._read_values.pop(key, None)
        return OK

    # ---- writes

    def batch_put_session_start(
        self, keys: Sequence[str], sizes: Sequence[int], config: ReplicateConfig | None = None
    ) -> list[int]:
        """Begin objects of known sizes: 0 for each, -705 for what is there already."""
        if self._store is None:
            return []
        config = config or ReplicateConfig()
        if len(keys) != len(sizes):
            return [INVALID_PARAMS] * len(keys)
        present = self.batch_is_exist(keys)
        codes = []
        for key, size, found in zip(keys, sizes, present, strict=True):
            if found != 0:
                codes.append(OBJECT_ALREADY_EXISTS if found == 1 else found)
            elif size <= 0 or not key or key in self._write_values:
                codes.append(INVALID_PARAMS)
            else:
                codes.append(self._begin_write(key, size, config))
        return codes

    def _begin_write(self, key: str, size: int, config: ReplicateConfig) -> int:
        try:
            self._write_values[key] = (np.empty(size, np.uint8), config)
        except MemoryError:
            return self._fail("put_session", f"no memory for {size} bytes", NO_AVAILABLE_HANDLE)
        return OK

    def batch_put_from_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_dst_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """Write parts of objects of the session; return the bytes of each, or -600."""
        result = []
        for index, key in enumerate(keys):
            begun = self._write_values.get(key)
            pieces: list[Any] = []
            try:
                columns = (all_buffer_ptrs[index], all_sizes[index], all_dst_offsets[index])
                pieces = list(zip(*columns, strict=True))
            except (IndexError, ValueError):
                begun = None
            if begun is None:
                result.append(INVALID_PARAMS)
                continue
            done = [copy_in(begun[0], offset, address, size) for address, size, offset in pieces]
            result.append(INVALID_PARAMS if INVALID_PARAMS in done else sum(done))
        return result

    def batch_put_session_end(self, keys: Sequence[str]) -> list[int]:
        """Store what was written: 0 for each, or a negative number."""
        codes = []
        for key in keys:
            begun = self._write_values.pop(key, None)
            if begun is None:
                codes.append(INVALID_PARAMS)
                continue
            array, config = begun
            codes.append(self.put_from(key, array.ctypes.data, len(array), config))
        return codes

    def batch_put_session_revoke(self, keys: Sequence[str]) -> list[int]:
        """Forget what was written: 0 for each."""
        return [INVALID_PARAMS if self._write_values.pop(key, None) is None else OK for key in keys]
