"""The methods of `mooncake.store.MooncakeDistributedStore` for tensors of torch.

Torch is needed when a tensor is met, and safetensors for its files; neither is otherwise.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.store.codes import INVALID_PARAMS, OK, TRANSFER_FAIL, get_code
from mooncake_hicache.compat.store.kinds import ReplicateConfig
from mooncake_hicache.compat.store.tasks import StoreTasks
from mooncake_hicache.compat.store.tensor_format import (
    HEAD_SIZE,
    check_tensor,
    pieces_of,
    tensor_at,
)
from mooncake_hicache.errors import CorruptError, InvalidArgumentError, UnsupportedError

__all__ = ["StoreTensors"]

FILE_FAILED = -1100
_DEFAULT = ReplicateConfig()

_log = logging.getLogger(__name__)


class StoreTensors(StoreTasks):
    """See `mooncake_hicache.compat.store.MooncakeDistributedStore`."""

    # ---- write

    def put_tensor(self, key: str, tensor: Any) -> int:
        """Store a dense tensor, of a GPU too: 0, or a negative number."""
        return self._put_tensors("put_tensor", [key], [tensor])[0]

    def batch_put_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        """The same for each, in one request."""
        return self._put_tensors("put_tensor", keys, tensors_list)

    def pub_tensor(self, key: str, tensor: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """As `put_tensor`, with options."""
        return self._put_tensors("pub_tensor", [key], [tensor], config)[0]

    def batch_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Any], config: ReplicateConfig = _DEFAULT
    ) -> list[int]:
        """As `batch_put_tensor`, with options."""
        return self._put_tensors("pub_tensor", keys, tensors_list, config)

    def upsert_tensor(self, key: str, tensor: Any) -> int:
        """As `put_tensor`; replaces what is there."""
        return self._put_tensors("upsert_tensor", [key], [tensor])[0]

    def batch_upsert_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        """As `batch_put_tensor`; replaces what is there."""
        return self._put_tensors("upsert_tensor", keys, tensors_list)

    def upsert_pub_tensor(self, key: str, tensor: Any, config: ReplicateConfig = _DEFAULT) -> int:
        """As `pub_tensor`; replaces what is there."""
        return self._put_tensors("upsert_pub_tensor", [key], [tensor], config)[0]

    def batch_upsert_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Any], config: ReplicateConfig = _DEFAULT
    ) -> list[int]:
        """As `batch_pub_tensor`; replaces what is there."""
        return self._put_tensors("upsert_pub_tensor", keys, tensors_list, config)

    def _put_tensors(
        self,
        name: str,
        keys: Sequence[str],
        tensors: Sequence[Any],
        config: ReplicateConfig = _DEFAULT,
    ) -> list[int]:
        if len(keys) != len(tensors):
            why = f"{len(keys)} keys, {len(tensors)} tensors"
            return [self._fail(name, why, INVALID_PARAMS)] * len(keys)
        codes = [INVALID_PARAMS] * len(keys)
        good, pieces = [], []
        for index, tensor in enumerate(tensors):
            try:
                pieces.append(pieces_of(tensor, f"the value of key {keys[index]!r:.200}"))
                good.append(index)
            except InvalidArgumentError as error:
                self._fail(name, error, INVALID_PARAMS)
        found = self._put(
            name,
            [keys[index] for index in good],
            [[piece.ctypes.data for piece in each] for each in pieces],
            [[piece.size for piece in each] for each in pieces],
            config,
        )
        for index, code in zip(good, found, strict=True):
            codes[index] = code
        return codes

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Store a tensor that lies at an address as `get_tensor_into` lays it out: 0, or a negative
        number."""
        return self._put_laid_out("put_tensor_from", [key], [buffer_ptr], [size])[0]

    def batch_put_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """The same for each, in one request."""
        return self._put_laid_out("put_tensor_from", keys, buffer_ptrs, sizes)

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """As `put_tensor_from`; replaces what is there."""
        return self._put_laid_out("upsert_tensor_from", [key], [buffer_ptr], [size])[0]

    def batch_upsert_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """As `batch_put_tensor_from`; replaces what is there."""
        return self._put_laid_out("upsert_tensor_from", keys, buffer_ptrs, sizes)

    def _put_laid_out(
        self, name: str, keys: Sequence[str], addresses: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        if self._store is None or not len(keys) == len(addresses) == len(sizes):
            why = f"no setup, or {len(keys)} keys, {len(addresses)} addresses, {len(sizes)} sizes"
            return [self._fail(name, why, INVALID_PARAMS)] * len(keys)
        codes = [INVALID_PARAMS] * len(keys)
        good = []
        for index, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
            try:
                check_tensor(_bytes_at(address, size))
                good.append(index)
            except CorruptError as error:
                self._fail(name, f"key {keys[index]!r:.200}: {error}", INVALID_PARAMS)
        found = self._put(
            name,
            [keys[index] for index in good],
            [addresses[index] for index in good],
            [sizes[index] for index in good],
            _DEFAULT,
        )
        for index, code in zip(good, found, strict=True):
            codes[index] = code
        return codes

    # ---- read

    def get_tensor(self, key: str) -> Any:
        """Return a tensor of the CPU; None if it is not there, is no tensor, or cannot be had,
        which `last_error` tells."""
        return self.batch_get_tensor([key])[0]

    def batch_get_tensor(self, keys: Sequence[str]) -> list[Any]:
        """Return the same for each key, in one request."""
        values = self._values("get_tensor", keys)
        return [
            # A copy, because torch may write to what is its own.
            None if value is None else self._tensor(key, np.frombuffer(value, np.uint8).copy())
            for key, value in zip(keys, values, strict=True)
        ]

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> Any:
        """Read a tensor, and before it its head, to an address; return it as a view of that memory,
        or None."""
        return self._tensors_into([key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[Any]:
        """Return the same for each key, in one request; -600 for each if there is not an address
        and a size for each, or before `setup`."""
        if self._store is None or not len(keys) == len(buffer_ptrs) == len(sizes):
            why = f"no setup, or {len(keys)} keys, {len(buffer_ptrs)} addresses, {len(sizes)} sizes"
            return [self._fail("get_tensor_into", why, INVALID_PARAMS)] * len(keys)
        return self._tensors_into(keys, buffer_ptrs, sizes)

    def _tensors_into(
        self, keys: Sequence[str], addresses: Sequence[int], sizes: Sequence[int]
    ) -> list[Any]:
        found = self.batch_get_into(keys, addresses, sizes)
        return [
            None if size < 0 else self._tensor(key, _bytes_at(address, size))
            for key, address, size in zip(keys, addresses, found, strict=True)
        ]

    def get_tensor_into_cuda(self, key: str, tensor: Any) -> int:
        """Read a tensor's numbers into one that is there, of a GPU or the CPU: their bytes, or a
        negative number. It is in one piece, of the same type and as many numbers."""
        return self.batch_get_tensor_into_cuda([key], [tensor])[0]

    def batch_get_tensor_into_cuda(
        self, keys: Sequence[str], tensors_list: Sequence[Any]
    ) -> list[int]:
        """The same for each, in one request."""
        name = "get_tensor_into_cuda"
        if len(keys) != len(tensors_list):
            why = f"{len(keys)} keys, {len(tensors_list)} tensors"
            return [self._fail(name, why, INVALID_PARAMS)] * len(keys)

        def read() -> list[int]:
            client, pages = self._need()
            codes, values = client.object_get(pages, keys)
            settled = self._settle(name, codes, get_code, keys)
            return [
                self._fill(key, tensor, value) if code == OK else code
                for key, tensor, code, value in zip(
                    keys, tensors_list, settled, values, strict=True
                )
            ]

        return self._call_batch(name, len(keys), read)

    def _fill(self, key: str, target: Any, value: bytes) -> int:
        name = "get_tensor_into_cuda"
        try:
            # A copy, because torch takes no memory that must not be written.
            source = tensor_at(np.frombuffer(value, np.uint8).copy())
        except CorruptError as error:
            return self._fail(name, f"key {key!r:.200}: {error}", INVALID_PARAMS)
        if (target.dtype, target.numel()) != (source.dtype, source.numel()) or (
            not target.is_contiguous()
        ):
            why = (
                f"key {key!r:.200} has {source.numel()} numbers of {source.dtype}: give a "
                f"contiguous tensor of as many, not {target.numel()} of {target.dtype}"
            )
            return self._fail(name, why, INVALID_PARAMS)
        try:
            target.detach().view(-1).copy_(source.view(-1))
        except RuntimeError as error:  # What torch raises for trouble of a GPU.
            return self._fail(name, f"key {key!r:.200}: {error}", TRANSFER_FAIL)
        return len(value) - HEAD_SIZE

    def _tensor(self, key: str, stored: npt.NDArray[np.uint8]) -> Any:
        try:
            return tensor_at(stored)
        except CorruptError as error:
            self._fail("get_tensor", f"key {key!r:.200}: {error}", INVALID_PARAMS)
            return None

    # ---- files

    def save_tensor_to_safetensor(self, key: str, file_name: str | None = None) -> int:
        """Write a tensor into a file of safetensors, under its key's name; return 0, or -1100.

        Args:
            key: Which tensor.
            file_name: The file, which is replaced; by default the key.
        """
        tensor = self.get_tensor(key)
        if tensor is None:
            return FILE_FAILED
        module, failure = _safetensors()
        try:
            module.save_file({key: tensor}, file_name or key)
        except (OSError, failure) as error:
            return self._fail("save_tensor_to_safetensor", str(error), FILE_FAILED)
        return OK

    def load_tensor_from_safetensor(
        self, key: str | None = None, file_name: str | None = None
    ) -> Any:
        """Return a tensor of a file of safetensors, and store it; None if that fails.

        Args:
            key: Its name in the file and in the store; by default the file's name. If the file has
                no such tensor, its first one is taken.
            file_name: The file.

        Raises:
            TypeError: No file is given.
        """
        name = "load_tensor_from_safetensor"
        if file_name is None:
            raise TypeError(f"{name}: file_name is missing")
        module, failure = _safetensors()
        try:
            tensors = module.load_file(file_name)
        except (OSError, failure) as error:
            self._fail(name, f"{file_name}: {error}", FILE_FAILED)
            return None
        if not tensors:
            self._fail(name, f"{file_name} has no tensor", FILE_FAILED)
            return None
        if key is not None and key not in tensors:
            _log.warning("%s: %s has no tensor %s, its first one is taken", name, file_name, key)
        tensor = tensors[key] if key in tensors else next(iter(tensors.values()))
        return tensor if self.put_tensor(key or file_name, tensor) == OK else None


def _safetensors() -> tuple[Any, type[Exception]]:
    """Return the module, and what it raises."""
    try:
        failure: type[Exception] = importlib.import_module("safetensors").SafetensorError
        return importlib.import_module("safetensors.torch"), failure
    except ImportError as error:
        raise UnsupportedError(
            f"files of safetensors need safetensors and torch: {error}"
        ) from None


def _bytes_at(address: int, size: int) -> npt.NDArray[np.uint8]:
    if address <= 0 or size <= 0:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
