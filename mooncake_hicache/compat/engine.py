"""`mooncake.engine` over our transfer engine: the original's methods and return codes.

    engine = TransferEngine()
    engine.initialize("localhost", "P2PHANDSHAKE", "tcp")
    engine.register_memory(address, size)
    engine.transfer_sync_write(f"{host}:{port}", address, peer_address, size)

Nothing here raises for trouble of the environment: 0 is success, a negative number is not, and
`last_error` says in words what went wrong (it is logged as well). Differences on purpose:

* Calls before `initialize`, lists of different lengths and unknown batch ids fail with -1, where
  the original crashes; freeing what is not allocated is -1, not 0.
* A transfer that has timed out is not in flight any more when its call returns.
* Peers must know the same secret; see the option `secret` of mooncake-hicache.
* `transfer_submit_write` returns -1 when it fails, as the original's documentation says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from mooncake_hicache.compat.engine_base import CONNECT_TIMEOUT_MS
from mooncake_hicache.compat.engine_memory import EngineMemory
from mooncake_hicache.compat.host_memory import allocate_host_buffer, free_host_buffer
from mooncake_hicache.compat.kinds import (
    FAILED,
    OK,
    CoroRPCInterface,
    ReceivedData,
    ReceivedTensor,
    RpcInterface,
    SharedSegment,
    TransferNotify,
    TransferOpcode,
    create_rpc_client,
    create_rpc_server,
)
from mooncake_hicache.compat.settings import transfer_timeout_ms
from mooncake_hicache.errors import Error, NotFoundError, TimeoutError_
from mooncake_hicache.transfer import Batch, Segment
from mooncake_hicache.transfer import TransferEngine as InnerTransferEngine

__all__ = [
    "SUPPORT_CUDA",
    "SUPPORT_EFA",
    "SUPPORT_HIP",
    "SUPPORT_INTRA_NVLINK",
    "SUPPORT_MNNVL",
    "SUPPORT_MUSA",
    "CoroRPCInterface",
    "InnerTransferEngine",
    "Read",
    "ReceivedData",
    "ReceivedTensor",
    "RpcInterface",
    "SharedSegment",
    "TransferEngine",
    "TransferNotify",
    "TransferOpcode",
    "Write",
    "allocate_host_buffer",
    "create_rpc_client",
    "create_rpc_server",
    "free_host_buffer",
]

SUPPORT_CUDA = SUPPORT_EFA = SUPPORT_HIP = False
SUPPORT_INTRA_NVLINK = SUPPORT_MNNVL = SUPPORT_MUSA = False

Read, Write = TransferOpcode.Read, TransferOpcode.Write

_DONE, _PENDING, _TIMED_OUT = 1, 0, -2
_REMEMBERED_MAX = 4096
_OPEN_MAX = 1024


class TransferEngine(EngineMemory):
    """The original's engine. Any thread may call; nothing raises but for wrong types.

    Not usable after `fork()`: make another one in the child.
    """

    # ---- transfers that wait

    def transfer_sync_write(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        transport_hint: str = "",
    ) -> int:
        """Write one range to a peer: 0, or -1."""
        return self.transfer_sync(
            target_hostname,
            buffer,
            peer_buffer_address,
            length,
            Write,
            transport_hint=transport_hint,
        )

    def transfer_sync_read(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        transport_hint: str = "",
    ) -> int:
        """Read one range of a peer: 0, or -1."""
        return self.transfer_sync(
            target_hostname,
            buffer,
            peer_buffer_address,
            length,
            Read,
            transport_hint=transport_hint,
        )

    def transfer_sync(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """Move one range, and leave a message at the peer when it is there: 0, or -1.

        The hint counts in no backend of the original but one; here it never does.
        """
        del transport_hint
        return self._call(
            "transfer_sync",
            self._move_one,
            target_hostname,
            operator.index(buffer),
            operator.index(peer_buffer_address),
            operator.index(length),
            opcode,
            notify,
        )

    def _move_one(
        self,
        name: str,
        local: int,
        remote: int,
        size: int,
        opcode: TransferOpcode,
        notify: TransferNotify | None,
    ) -> int:
        segment = self.segment_of(name)
        move = segment.write if opcode == Write else segment.read
        move(local, remote, size, timeout_ms=transfer_timeout_ms(size))
        _leave(segment, notify)
        return OK

    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Write many ranges to a peer: 0, or -1."""
        return self.batch_transfer_sync(
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            Write,
            transport_hint=transport_hint,
        )

    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Read many ranges of a peer: 0, or -1."""
        return self.batch_transfer_sync(
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            Read,
            transport_hint=transport_hint,
        )

    def batch_transfer_sync(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """Move many ranges, and leave a message when all are there: 0, or -1."""
        del transport_hint
        return self._call(
            "batch_transfer_sync",
            self._move_many,
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            opcode,
            notify,
        )

    def _move_many(
        self,
        name: str,
        locals_: Sequence[int],
        remotes: Sequence[int],
        sizes: Sequence[int],
        opcode: TransferOpcode,
        notify: TransferNotify | None,
    ) -> int:
        segment = self.segment_of(name)
        move = segment.write_batch if opcode == Write else segment.read_batch
        move(locals_, remotes, sizes, timeout_ms=transfer_timeout_ms(sum(sizes)))
        _leave(segment, notify)
        return OK

    # ---- transfers that do not wait

    def transfer_submit_write(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        transport_hint: str = "",
    ) -> int:
        """Begin to write one range; return its number for `transfer_check_status`, or -1."""
        del transport_hint
        return self._call(
            "transfer_submit_write",
            self._submit,
            target_hostname,
            [operator.index(buffer)],
            [operator.index(peer_buffer_address)],
            [operator.index(length)],
            Write,
        )

    def transfer_check_status(self, batch_id: int) -> int:
        """Return 1 done, 0 under way, -1 failed (or no such number), -2 timed out."""
        with self._lock:
            batch = self._batches.get(batch_id)
            if batch is None:
                return self._outcomes.get(batch_id, FAILED)
        return self._outcome(batch_id, batch, batch.poll)

    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begin to write many ranges; return their number, or 0."""
        return self.batch_transfer_async(
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            Write,
            transport_hint,
        )

    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begin to read many ranges; return their number, or 0."""
        return self.batch_transfer_async(
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            Read,
            transport_hint,
        )

    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        opcode: TransferOpcode,
        transport_hint: str = "",
    ) -> int:
        """Begin to move many ranges; return their number, or 0."""
        del transport_hint
        number = self._call(
            "batch_transfer_async",
            self._submit,
            target_hostname,
            buffers,
            peer_buffer_addresses,
            lengths,
            opcode,
        )
        return max(number, 0)

    def get_batch_transfer_status(self, batch_ids: Sequence[int]) -> int:
        """Wait for all of these: 0, or -1 if one failed, timed out, or is not known.

        Each may be asked for once; `transfer_check_status` still knows how it ended.
        """
        codes = []
        for batch_id in batch_ids:
            with self._lock:
                batch = self._batches.get(batch_id)
                known = self._outcomes.get(batch_id, FAILED)
            codes.append(known if batch is None else self._outcome(batch_id, batch, batch.wait))
        return OK if all(code == _DONE for code in codes) else FAILED

    def _submit(
        self,
        name: str,
        locals_: Sequence[int],
        remotes: Sequence[int],
        sizes: Sequence[int],
        opcode: TransferOpcode,
    ) -> int:
        segment = self.segment_of(name)
        submit = segment.submit_write if opcode == Write else segment.submit_read
        batch = submit(locals_, remotes, sizes, timeout_ms=transfer_timeout_ms(sum(sizes)))
        number = batch.number
        with self._lock:
            self._batches[number] = batch
            is_crowded = len(self._batches) > _OPEN_MAX
        if is_crowded:
            self._settle()
        return number

    def _settle(self) -> None:
        """Release batches that are over, for callers who never ask how theirs ended."""
        with self._lock:
            batches = list(self._batches.items())
        for number, batch in batches:
            self._outcome(number, batch, batch.poll)

    def _outcome(self, batch_id: int, batch: Batch, ask: Callable[[], bool]) -> int:
        """How a batch stands; one that is over is released, and its outcome kept."""
        try:
            if not ask():
                return _PENDING
            code = _DONE
        except NotFoundError:  # Another thread has seen its end a moment ago.
            with self._lock:
                return self._outcomes.get(batch_id, FAILED)
        except Error as error:
            code = _TIMED_OUT if isinstance(error, TimeoutError_) else FAILED
            self._fail("transfer", error)
        with self._lock:
            self._outcomes[batch_id] = code
            self._batches.pop(batch_id, None)
            while len(self._outcomes) > _REMEMBERED_MAX:
                self._outcomes.popitem(last=False)
        batch.release()
        return code


def _leave(segment: Segment, notify: TransferNotify | None) -> None:
    if notify is not None:
        segment.notify(notify.name, notify.msg, timeout_ms=CONNECT_TIMEOUT_MS)
