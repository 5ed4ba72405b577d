"""The methods of `mooncake.store.MooncakeDistributedStore` that write and remove."""

from __future__ import annotations

import ctypes
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache._core import REPLICAS_MAX, Code
from mooncake_hicache.compat.store.codes import (
    INVALID_PARAMS,
    OBJECT_NOT_FOUND,
    OK,
    get_code,
    put_code,
)
from mooncake_hicache.compat.store.kinds import ReplicateConfig, SoftPinAction
from mooncake_hicache.compat.store.reading import StoreReading
from mooncake_hicache.errors import InvalidArgumentError

__all__ = ["StoreWriting", "copy_in"]

SSD_WAIT_MS = 400
"""A put waits for so long for an SSD to take what it would push out of memory: who stores objects
expects to find them again, and not that putting takes no time."""

_NO_PIN, _SOFT_PIN, _HARD_PIN = 0, 1, 2
_DEFAULT = ReplicateConfig()
_THERE = int(Code.ALREADY_EXISTS)


class StoreWriting(StoreReading):
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`.

    An object that is there stays as it is, which is success, but for the calls named `upsert`.
    """

    # ---- values

    def put(self, key: str, value: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """Store a buffer: 0, or a negative number."""
        return self._put_values("put", [key], [[value]], config)

    def put_batch(
        self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = _DEFAULT
    ) -> int:
        """Store buffers, all or, if one of them is empty, none: 0, or the first failure."""
        return self._put_values("put_batch", keys, [[value] for value in values], config)

    def put_parts(self, key: str, *args: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """Store buffers as one object: 0, or a negative number. No parts: nothing is done."""
        return self._put_values("put_parts", [key], [args], config) if args else OK

    def upsert(self, key: str, value: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """As `put`; replaces what is there."""
        return self._put_values("upsert", [key], [[value]], config)

    def upsert_batch(
        self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = _DEFAULT
    ) -> int:
        """As `put_batch`; replaces what is there."""
        return self._put_values("upsert_batch", keys, [[value] for value in values], config)

    def upsert_parts(self, key: str, *args: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """As `put_parts`; replaces what is there."""
        return self._put_values("upsert_parts", [key], [args], config) if args else OK

    def _put_values(
        self, name: str, keys: Sequence[str], values: Sequence[Sequence[Any]], config: Any
    ) -> int:
        arrays = [[_bytes_of(part) for part in parts] for parts in values]
        addresses = [[array.ctypes.data for array in parts] for parts in arrays]
        sizes = [[len(array) for array in parts] for parts in arrays]
        if len(keys) != len(values):
            self._need_config(config)
            return self._fail(name, f"{len(keys)} keys, {len(values)} values", INVALID_PARAMS)
        if not all(sum(part) for part in sizes):
            self._need_config(config)
            return self._fail(name, "a value is empty", INVALID_PARAMS)
        codes = self._put(name, keys, addresses, sizes, config)
        return next((code for code in codes if code != OK), OK)

    # ---- memory of the caller

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Say that memory will be read into or stored from: 0, or -600 if it overlaps what was
        said before. Nothing depends on it: any memory of this process will do."""
        address, size = operator.index(buffer_ptr), operator.index(size)
        if self._store is None or address <= 0 or size <= 0:
            return self._fail("register_buffer", "no memory, or no setup", INVALID_PARAMS)
        with self._lock:
            for other, other_size in self._registered.items():
                if address < other + other_size and other < address + size:
                    return INVALID_PARAMS
            self._registered[address] = size
        return OK

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """End that: 0, or -600 if nothing was registered there."""
        with self._lock:
            known = self._registered.pop(operator.index(buffer_ptr), None)
        return INVALID_PARAMS if known is None else OK

    def put_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = _DEFAULT
    ) -> int:
        """Store bytes at an address: 0, or a negative number. No bytes: nothing is done."""
        if size == 0 and self._store is not None:
            return OK
        return self._put("put_from", [key], [buffer_ptr], [size], config)[0]

    def put_from_with_metadata(
        self,
        key: str,
        buffer_ptr: int,
        metadata_buffer_ptr: int,
        size: int,
        metadata_size: int,
        config: ReplicateConfig = _DEFAULT,
    ) -> int:
        """Store two pieces as one object, the metadata first: 0, or a negative number."""
        addresses, sizes = [metadata_buffer_ptr, buffer_ptr], [metadata_size, size]
        return self._put("put_from_with_metadata", [key], [addresses], [sizes], config)[0]

    def batch_put_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig = _DEFAULT,
    ) -> list[int]:
        """Store bytes at addresses, in one request: 0 or a negative number for each."""
        return self._put("batch_put_from", keys, buffer_ptrs, sizes, config)

    def batch_put_from_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        config: ReplicateConfig = _DEFAULT,
    ) -> list[int]:
        """The same with several pieces of memory for each object."""
        return self._put("batch_put_from", keys, all_buffer_ptrs, all_sizes, config)

    def upsert_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = _DEFAULT
    ) -> int:
        """As `put_from`; replaces what is there."""
        return self._put("upsert_from", [key], [buffer_ptr], [size], config)[0]

    def batch_upsert_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig = _DEFAULT,
    ) -> list[int]:
        """As `batch_put_from`; replaces what is there."""
        return self._put("upsert_from", keys, buffer_ptrs, sizes, config)

    # ---- what all writes do

    def _put(
        self,
        name: str,
        keys: Sequence[str],
        addresses: Sequence[Any],
        sizes: Sequence[Any],
        config: Any,
    ) -> list[int]:
        self._need_config(config)
        replace = name.startswith("upsert")

        def write() -> list[int]:
            client, pages = self._need()
            pin = _pin_of(config)
            _check_config(config, len(keys))
            copies = min(config.replica_num, REPLICAS_MAX)
            if len(addresses) != len(keys) or len(sizes) != len(keys):
                raise InvalidArgumentError(
                    f"{len(keys)} keys, {len(addresses)} addresses, {len(sizes)} sizes"
                )
            totals = [sum(size) if isinstance(size, Sequence) else size for size in sizes]
            wanted = [i for i, total in enumerate(totals) if total > 0 and keys[i]]
            if len(wanted) == len(keys):
                codes = client.object_put(
                    pages,
                    keys,
                    addresses,
                    sizes,
                    pin=pin,
                    ttl_ms=0,
                    replace=replace,
                    replicas=copies,
                    ssd_wait_ms=SSD_WAIT_MS,
                )
                return self._after_put(name, keys, codes, config)
            found = [INVALID_PARAMS] * len(keys)
            some = [keys[i] for i in wanted]
            codes = client.object_put(
                pages,
                some,
                [addresses[i] for i in wanted],
                [sizes[i] for i in wanted],
                pin=pin,
                ttl_ms=0,
                replace=replace,
                replicas=copies,
                ssd_wait_ms=SSD_WAIT_MS,
            )
            for i, code in zip(wanted, self._after_put(name, some, codes, config), strict=True):
                found[i] = code
            return found

        return self._call_batch(name, len(keys), write)

    def _after_put(
        self, name: str, keys: Sequence[str], codes: Any, config: ReplicateConfig
    ) -> list[int]:
        if config.soft_pin_action != SoftPinAction.PRESERVE:
            kept = [key for key, code in zip(keys, codes.tolist(), strict=True) if code == _THERE]
            if kept:
                client, pages = self._need()
                client.object_set_pin(pages, kept, _pin_of(config))
        return self._settle(name, codes, put_code, keys)

    @staticmethod
    def _need_config(config: Any) -> None:
        if not isinstance(config, ReplicateConfig):
            raise TypeError(f"config is {type(config).__name__}, not a ReplicateConfig")

    # ---- removal

    def remove(self, key: str, force: bool = False) -> int:
        """Remove an object: 0, or -704. Who reads it just now reads it to the end.

        -900: it is gone here, but some other node that has it may not have heard of that.
        """
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        """The same for each key, in one request."""
        del force  # Nothing has to be overruled: look-ups hold nothing.

        def drop() -> list[int]:
            client, pages = self._need()
            codes = client.object_remove(pages, keys)
            return self._settle("remove", codes, get_code, keys)

        return self._call_batch("remove", len(keys), drop)

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        """Remove the cluster's objects in whose keys the pattern is found; return how many.

        -600: that is no pattern. -900: some node did not answer, so that it may keep what it has;
        call again. The time it takes grows with how many objects there are.
        """
        try:
            pattern = re.compile(regex_pattern)
        except re.error as error:
            return self._fail("remove_by_regex", f"{regex_pattern!r}: {error}", INVALID_PARAMS)

        def drop() -> int:
            removed: set[str] = set()  # One that was just being copied may be met once more.
            failures: list[int] = []
            for keys in self._listed():
                found = [key for key in keys if pattern.search(key)]
                codes = self.batch_remove(found, force) if found else []
                removed.update(key for key, code in zip(found, codes, strict=True) if code == OK)
                failures += [code for code in codes if code not in (OK, OBJECT_NOT_FOUND)][:1]
            return failures[0] if failures else len(removed)

        return self._call("remove_by_regex", drop)

    def remove_all(self, force: bool = False) -> int:
        """Remove all objects of this tenant in the cluster; return how many, or a code below 0."""
        del force

        def drop() -> int:
            client, pages = self._need()
            return client.clear(pages)

        return self._call("remove_all", drop)

    def get_all_keys(self) -> list[str]:
        """Return the keys of the cluster's objects (ours; the original's master has it).

        Raises:
            Error: The node does not answer; UnavailableError: some other node, or the master, does
                not, so that not all keys are known.
        """
        return sorted({key for keys in self._listed() for key in keys})

    def _listed(self) -> Iterator[list[str]]:
        client, pages = self._need()
        cursor: int | None = 0
        while cursor is not None:
            names, cursor = client.object_list(pages, cursor)
            yield [name.decode("utf-8", "surrogateescape") for name in names]


def _pin_of(config: ReplicateConfig) -> int:
    if config.with_hard_pin:
        return _HARD_PIN
    return _SOFT_PIN if config.soft_pin_action == SoftPinAction.ENABLE else _NO_PIN


def _check_config(config: ReplicateConfig, key_count: int) -> None:
    if config.replica_num < 1:
        raise InvalidArgumentError(f"replica_num is {config.replica_num}: give 1 or more")
    if config.group_ids is not None and len(config.group_ids) != key_count:
        raise InvalidArgumentError(f"{len(config.group_ids)} group_ids for {key_count} keys")


def _bytes_of(value: Any) -> npt.NDArray[np.uint8]:
    """Return a buffer as bytes in one piece; those of a numpy array with gaps are copied."""
    if isinstance(value, str) or value is None:
        raise TypeError(f"a value is {type(value).__name__}: give bytes or another buffer")
    view = memoryview(value)
    if not view.c_contiguous:
        return np.frombuffer(view.tobytes(), np.uint8)
    if view.nbytes == 0:
        return np.zeros(0, np.uint8)
    return np.frombuffer(view, np.uint8)


def copy_in(array: npt.NDArray[np.uint8], offset: int, address: int, size: int) -> int:
    """Copy bytes from an address into an array: their number, or -600 where it has no room."""
    if offset < 0 or size < 0 or offset + size > len(array):
        return INVALID_PARAMS
    ctypes.memmove(array.ctypes.data + offset, address, size)
    return size
