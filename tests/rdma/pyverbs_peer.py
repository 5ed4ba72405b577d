"""An RDMA peer that shares no code with the core: pyverbs, and the messages written by hand.

    /usr/bin/python3 tests/rdma/pyverbs_peer.py build/cpp/hicache_tests

Runs in the guest with the system's Python, whose package pyverbs is (python3-pyverbs). Starts an
engine on rxe0, asks it over its control connection for its segment and for a queue pair, and then
reads and writes its memory from rxe1, past the engine's own client. What the memory really holds is
taken from /proc. Ends with status 0 and "all is well", or with a traceback.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

MIB = 1 << 20
DESCRIBE, TRANSPORT = 1, 2  # Control operations.
RDMA = 3  # A kind of transport.
FORMAT, CONNECT, DISCONNECT = 1, 1, 2
ETHERNET = 2
ADDRESS = struct.Struct("<16sHBHB")  # GID, LID, link layer, MTU, READs at once.
PSN = 4711


class Reader:
    """Takes values off the front of a message."""

    def __init__(self, message: bytes) -> None:
        self.left = message

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.left)
        self.left = self.left[struct.calcsize("<" + form) :]
        return values

    def one(self, form: str) -> int:
        return int(self.take(form)[0])

    def bytes_(self) -> bytes:
        size = self.one("I")
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def transports(self) -> dict[int, bytes]:
        """Return what each transport has said, by its kind."""
        return {self.one("B"): self.bytes_() for _ in range(self.one("B"))}


class Engine:
    """The process with the engine, and its control connection."""

    def __init__(self, program: str) -> None:
        self.file = Path(tempfile.mkdtemp(), "engine")
        self.process = subprocess.Popen(
            [program, "--role=rdma_engine", "rxe0", str(self.file)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None and self.process.stdout.read(1) == b"r"
        port, address = self.file.read_text().split()
        self.address = int(address)
        self.control = subprocess.Popen(
            [program, "--role=rdma_control", port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, op: int, request: bytes) -> tuple[bool, str]:
        """Return whether it was answered, and the answer in hexadecimal or the reason."""
        assert self.control.stdin is not None and self.control.stdout is not None
        self.control.stdin.write(f"{op} x{request.hex()}\n")
        self.control.stdin.flush()
        verdict, _, answer = self.control.stdout.readline().rstrip("\n").partition(" ")
        return verdict == "ok", answer

    def memory(self, offset: int, size: int) -> bytes:
        """Return what its memory holds."""
        with Path(f"/proc/{self.process.pid}/mem").open("rb") as file:
            file.seek(self.address + offset)
            return file.read(size)

    def end(self) -> None:
        for process in (self.control, self.process):
            process.kill()
            process.wait()


class Segment:
    """What the engine tells about itself, as far as it is wanted here."""

    def __init__(self, message: bytes) -> None:
        reader = Reader(message)
        assert reader.one("H") == FORMAT
        self.name = reader.bytes_().decode()
        self.epoch, _version = reader.take("QQ")
        self.rails = reader.transports()[RDMA]
        assert reader.one("I") == 1, "one buffer"
        _id, self.address, self.size, _kind, self.remote_write = reader.take("IQQBB")
        assert reader.bytes_() == b"*"
        key = Reader(reader.transports()[RDMA])
        assert not reader.left
        assert key.take("BB") == (1, 0), "one rail, the first"
        self.piece_size = key.one("Q")
        self.keys = [key.one("I") for _ in range(key.one("I"))]
        assert not key.left


class Peer:
    """One queue pair on rxe1, connected to one of the engine's."""

    def __init__(self, engine: Engine, segment: Segment) -> None:
        self.context = Context(name="rxe1")
        self.domain = PD(self.context)
        rights = e.IBV_ACCESS_LOCAL_WRITE
        self.region = MR(self.domain, 4 * MIB, rights)
        self.queue = CQ(self.context, 64, None, None, 0)
        capacity = QPCap(32, 1, 1, 1, 0)
        initial = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.queue, rcq=self.queue, cap=capacity)
        self.pair = QP(self.domain, initial)
        gid = self.context.query_gid(1, 1)
        raw = bytes.fromhex(gid.gid.replace(":", ""))
        self.connection = int.from_bytes(os.urandom(8), "little")
        request = struct.pack("<HBQQB", FORMAT, CONNECT, segment.epoch, self.connection, 0)
        request += ADDRESS.pack(raw, 0, ETHERNET, 4096, 16)
        request += struct.pack("<BII", 1, self.pair.qp_num, PSN)
        is_ok, answer = engine.ask(TRANSPORT, bytes([RDMA]) + request)
        assert is_ok, answer
        reply = Reader(bytes.fromhex(answer))
        raw, _lid, layer, mtu, reads = reply.take("16sHBHB")
        count, number, psn = reply.take("BII")
        assert (layer, mtu, count) == (ETHERNET, 4096, 1) and not reply.left
        attributes = QPAttr(port_num=1)
        attributes.dest_qp_num = number
        attributes.rq_psn, attributes.sq_psn = psn, PSN
        attributes.path_mtu = e.IBV_MTU_4096
        attributes.max_rd_atomic, attributes.max_dest_rd_atomic = min(16, reads), 1
        attributes.min_rnr_timer, attributes.timeout = 12, 14
        attributes.retry_cnt, attributes.rnr_retry = 6, 6
        words = ":".join(raw[i : i + 2].hex() for i in range(0, 16, 2))
        route = GlobalRoute(dgid=GID(words), sgid_index=1)
        attributes.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        self.pair.to_rts(attributes)

    def move(self, opcode: int, remote: int, key: int, size: int) -> int:
        """READ into, or WRITE from, the front of our memory; return the completion's status."""
        piece = SGE(self.region.buf, size, self.region.lkey)
        request = SendWR(1, opcode=opcode, num_sge=1, sg=[piece], send_flags=e.IBV_SEND_SIGNALED)
        request.set_wr_rdma(key, remote)
        self.pair.post_send(request)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            count, completions = self.queue.poll(1)
            if count:
                return completions[0].status
            time.sleep(0.001)
        raise TimeoutError("no completion")

    def read(self, remote: int, key: int, size: int) -> bytes:
        assert self.move(e.IBV_WR_RDMA_READ, remote, key, size) == e.IBV_WC_SUCCESS
        return self.region.read(size, 0)

    def write(self, remote: int, key: int, content: bytes) -> None:
        self.region.write(content, len(content))
        assert self.move(e.IBV_WR_RDMA_WRITE, remote, key, len(content)) == e.IBV_WC_SUCCESS


def reads_and_writes(engine: Engine, segment: Segment) -> None:
    """Every byte that is read is the engine's, and every byte that is written arrives there."""
    peer = Peer(engine, segment)
    key, begin = segment.keys[0], segment.address
    for offset in (0, 1, 4095, 17 * MIB + 3, segment.size - 4 * MIB):
        for size in (1, 4097, 4 * MIB):
            assert peer.read(begin + offset, key, size) == engine.memory(offset, size)
    for offset in (5, 20 * MIB - 1, segment.size - MIB):
        before, after = engine.memory(offset - 4, 4), b""
        if offset + MIB < segment.size:
            after = engine.memory(offset + MIB, 4)
        content = os.urandom(MIB)
        peer.write(begin + offset, key, content)
        assert engine.memory(offset, MIB) == content
        assert engine.memory(offset - 4, 4) == before
        assert engine.memory(offset + MIB, len(after)) == after
        assert peer.read(begin + offset, key, MIB) == content
    request = struct.pack("<HBQQ", FORMAT, DISCONNECT, segment.epoch, peer.connection)
    assert engine.ask(TRANSPORT, bytes([RDMA]) + request) == (True, "")
    gone = peer.move(e.IBV_WR_RDMA_READ, begin, key, 64)
    assert gone == e.IBV_WC_RETRY_EXC_ERR, gone


def is_refused(engine: Engine, segment: Segment) -> None:
    """What was not registered stays out of reach, and the next peer is served all the same."""
    end = segment.address + segment.size
    bad_keys = (segment.keys[0] ^ 0x5500, segment.keys[0] + 1)
    for remote, key in [
        (segment.address, bad_keys[0]),
        (segment.address, bad_keys[1]),
        (segment.address - 1, segment.keys[0]),
        (end - 63, segment.keys[0]),
    ]:
        for opcode in (e.IBV_WR_RDMA_READ, e.IBV_WR_RDMA_WRITE):
            status = Peer(engine, segment).move(opcode, remote, key, 64)
            assert status == e.IBV_WC_REM_ACCESS_ERR, (remote, key, status)
    other = struct.pack("<HBQQB", FORMAT, CONNECT, segment.epoch ^ 1, 7, 0)
    body = ADDRESS.pack(bytes(16), 0, ETHERNET, 4096, 16) + struct.pack("<BII", 1, 17, 0)
    for request in (b"", b"\x01", other, other + body, other + body + b"\0", os.urandom(40)):
        is_ok, reason = engine.ask(TRANSPORT, bytes([RDMA]) + request)
        assert not is_ok and reason, request


def main(program: str) -> None:
    engine = Engine(program)
    try:
        is_ok, answer = engine.ask(DESCRIBE, b"")
        assert is_ok, answer
        segment = Segment(bytes.fromhex(answer))
        assert segment.address == engine.address and segment.remote_write == 1
        assert segment.piece_size >= segment.size and len(segment.keys) == 1
        reads_and_writes(engine, segment)
        is_refused(engine, segment)
        reads_and_writes(engine, segment)
    finally:
        engine.end()
    print("all is well")


if __name__ == "__main__":
    main(sys.argv[1])
