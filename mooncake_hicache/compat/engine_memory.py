"""The methods of `mooncake.engine.TransferEngine` for memory of this process."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mooncake_hicache.compat.engine_base import CONNECT_TIMEOUT_MS, EngineBase
from mooncake_hicache.compat.kinds import OK

__all__ = ["EngineMemory"]


class EngineMemory(EngineBase):
    """See `mooncake_hicache.compat.engine.TransferEngine`."""

    def register_memory(self, buffer_addr: int, capacity: int, location: str = "*") -> int:
        """Make memory reachable: 0, or -7 if it overlaps what is registered, or -1."""
        return self._call(
            "register_memory",
            self._register,
            operator.index(buffer_addr),
            operator.index(capacity),
            location,
        )

    def _register(self, address: int, size: int, location: str) -> int:
        self._need_engine().register_memory(address, size, location=location)
        self._registered[address] = size
        return OK

    def unregister_memory(self, buffer_addr: int) -> int:
        """End that: 0, or -3 if nothing is registered there."""
        return self._call("unregister_memory", self._unregister, operator.index(buffer_addr))

    def _unregister(self, address: int) -> int:
        self._need_engine().unregister(address)
        self._registered.pop(address, None)
        return OK

    def batch_register_memory(
        self, buffer_addresses: Sequence[int], capacities: Sequence[int], location: str = "*"
    ) -> int:
        """Register many ranges, or none of them: 0, or the code of the first that fails."""
        if len(buffer_addresses) != len(capacities):
            return self._fail("batch_register_memory", "as many addresses as capacities are needed")
        done: list[int] = []
        for address, size in zip(buffer_addresses, capacities, strict=True):
            code = self.register_memory(address, size, location)
            if code != OK:
                error = self.last_error
                for registered in done:
                    self.unregister_memory(registered)
                self.last_error = error
                return code
            done.append(address)
        return OK

    def batch_unregister_memory(self, buffer_addresses: Sequence[int]) -> int:
        """End the registration of many; of those that fail the first one's code is returned."""
        codes = [self.unregister_memory(address) for address in buffer_addresses]
        return next((code for code in codes if code != OK), OK)

    def allocate_managed_buffer(self, length: int) -> int:
        """Return the address of new registered memory that peers of this machine map; 0: none."""
        address = self._call("allocate_managed_buffer", self._allocate, operator.index(length))
        return max(address, 0)

    def _allocate(self, size: int) -> int:
        array = self._need_engine().allocate(max(size, 1))
        address = int(array.ctypes.data)
        self._managed[address] = array
        return address

    def free_managed_buffer(self, buffer_addr: int, length: int) -> int:
        """Give it back: 0, or -1 if it was not allocated. The length is not needed."""
        del length
        array = self._managed.pop(operator.index(buffer_addr), None)
        if array is None:
            return self._fail("free_managed_buffer", f"nothing was allocated at {buffer_addr:#x}")
        return self._call("free_managed_buffer", self._free, array)

    def _free(self, array: npt.NDArray[np.uint8]) -> int:
        self._need_engine().free(array)
        return OK

    def get_first_buffer_address(self, segment_name: str) -> int:
        """Return the address of the buffer that a peer registered first; 0: none, or no peer."""
        return max(self._call("get_first_buffer_address", self._first_buffer, segment_name), 0)

    def _first_buffer(self, name: str) -> int:
        buffers = self.segment_of(name).describe(timeout_ms=CONNECT_TIMEOUT_MS)["buffers"]
        return int(min(buffers, key=lambda buffer: buffer["id"])["address"]) if buffers else 0

    def write_bytes_to_buffer(self, dest_address: int, src_ptr: bytes | str, length: int) -> int:
        """Copy bytes into memory that is registered or allocated here: 0, or -1."""
        source = src_ptr.encode() if isinstance(src_ptr, str) else bytes(src_ptr)
        if not 0 <= length <= len(source) or not self._is_ours(dest_address, length):
            return self._fail("write_bytes_to_buffer", "outside of the bytes or of the buffers")
        ctypes.memmove(dest_address, source, length)
        return OK

    def read_bytes_from_buffer(self, source_address: int, length: int) -> bytes:
        """Return bytes of memory that is registered or allocated here; nothing if it is not."""
        if not self._is_ours(source_address, length):
            self._fail("read_bytes_from_buffer", "outside of the buffers")
            return b""
        return ctypes.string_at(source_address, length)

    def _is_ours(self, address: int, size: int) -> bool:
        ranges = [*self._registered.items()]
        ranges += [(start, array.nbytes) for start, array in [*self._managed.items()]]
        return size >= 0 and any(
            start <= address and address + size <= start + length for start, length in ranges
        )
