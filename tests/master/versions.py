"""Ends of another version of the protocol, written down a second time from what is documented in
csrc/net/greeting.h and csrc/net/frame.h."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import struct
import threading
from collections.abc import Iterator

import xxhash

from tests.master.masters import SECRET

MAGIC = b"MHCH"
FRAME_MAGIC = b"MHC1"
DIRECTORY = 4
"""The purpose of a connection."""
TIMEOUT_S = 20
OWN_VERSION = 5
"""Of this release."""
OTHER_VERSION = 99


def prove(label: str, transcript: bytes) -> bytes:
    key = hashlib.sha256(f"mooncake-hicache secret 1\n{SECRET}".encode()).digest()
    message = f"mooncake-hicache greeting 1, {label}".encode() + transcript
    return hmac.new(key, message, hashlib.sha256).digest()


def frame(version: int, op: int = 0) -> bytes:
    """Return a sealed frame without a message."""
    payload = xxhash.xxh3_64_intdigest(b"").to_bytes(8, "little")

    def header(check: int) -> bytes:
        return FRAME_MAGIC + struct.pack("<HHIIQ", version, op, len(payload), check, 0)

    return header(xxhash.xxh3_64_intdigest(header(0)) & 0xFFFFFFFF) + payload


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = connection.recv(size - len(got))
        if not piece:
            raise ConnectionError(f"{len(got)} of {size} bytes came")
        got += piece
    return got


def greeted(port: int) -> socket.socket:
    """Return a connection to a master, after the greeting."""
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    hello = MAGIC + struct.pack("<HHQ", 1, DIRECTORY, 0) + bytes(32)
    connection.sendall(hello)
    answer = receive(connection, 72)
    assert answer[40:] == prove("server", hello + answer[:40])
    connection.sendall(prove("client", hello + answer))
    receive(connection, 48)
    return connection


def _serve(connection: socket.socket) -> None:
    connection.settimeout(TIMEOUT_S)
    with connection, contextlib.suppress(OSError):
        _answer(connection)


def _answer(connection: socket.socket) -> None:
    hello = receive(connection, 48)
    answer = MAGIC + struct.pack("<HH", 1, 0) + bytes(32)
    answer += prove("server", hello + answer)
    connection.sendall(answer)
    told = hello + answer + receive(connection, 32)
    verdict = struct.pack("<HHIQ", 0, 0, 0, 0)
    connection.sendall(verdict + prove("verdict", told + verdict))
    receive(connection, 24)
    connection.sendall(frame(OTHER_VERSION))


@contextlib.contextmanager
def other_master() -> Iterator[int]:
    """Yield the port of a master that speaks another version and knows the secret."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # The end: the listener is closed.
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT_S)
