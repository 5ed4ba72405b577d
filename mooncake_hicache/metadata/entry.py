"""What is kept of an engine under its name, as JSON:

    {"format": "mooncake-hicache", "version": 1, "address": "10.0.0.1:15001",
     "epoch": "9f86d081884c7d65", "owner": "host1, pid 4711"}

The epoch is text because JSON numbers end at 2^53. Members that are not known are left alone; a
change that older releases cannot live with counts the version up.
"""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass

from mooncake_hicache.errors import CorruptError, InvalidArgumentError, UnsupportedError
from mooncake_hicache.metadata.names import parse_address

__all__ = ["ENTRY_SIZE_MAX", "Entry", "decode_entry", "encode_entry", "foreign", "owner_here"]

FORMAT = "mooncake-hicache"
VERSION = 1
ENTRY_SIZE_MAX = 4096

_ORIGINALS = {"protocol", "buffers", "devices", "priority_matrix", "ip_or_host_name", "rpc_port"}


@dataclass(frozen=True)
class Entry:
    """How an engine is reached."""

    address: str
    """`host:port` of its control socket."""
    epoch: int = 0
    """Which incarnation of it; 0: any."""
    owner: str = ""
    """Who it is, for messages."""


def owner_here() -> str:
    """Return how this process is called in messages of others."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes that are kept; equal entries give equal bytes.

    Raises:
        InvalidArgumentError: The address is none, or the epoch is no 64-bit number.
    """
    parse_address(entry.address)
    if not 0 <= entry.epoch < 1 << 64:
        raise InvalidArgumentError(f"the epoch {entry.epoch} is no number of 64 bits")
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "address": entry.address,
        "epoch": f"{entry.epoch:016x}",
        "owner": entry.owner[:256],
    }
    return json.dumps(tree, sort_keys=True).encode()


def foreign(name: str, where: str) -> UnsupportedError:
    """Return the error for an engine of the original Mooncake."""
    return UnsupportedError(
        f"{name} at {where} is an engine of the original Mooncake, which speaks another protocol: "
        "run this package's `mooncake` at both ends"
    )


def decode_entry(value: bytes, name: str, where: str) -> Entry:
    """Read what is kept under a name.

    Args:
        value: What came from the server, however it came there.
        name: The engine's name, for messages.
        where: The server's name, for messages.

    Raises:
        UnsupportedError: The original Mooncake wrote it, or a release that is too new.
        CorruptError: Nobody of ours wrote it.
    """

    def corrupt(why: str) -> CorruptError:
        return CorruptError(
            f"what {where} keeps under {name} is not an engine's entry ({why}); remove it there "
            "if nobody needs it"
        )

    if len(value) > ENTRY_SIZE_MAX:
        # A descriptor of the original has all its buffers in it.
        is_original = b'"buffers"' in value and b'"protocol"' in value
        raise foreign(name, where) if is_original else corrupt(f"{len(value)} bytes")
    try:
        tree = json.loads(value.decode())
    except (ValueError, RecursionError):
        raise corrupt("no JSON") from None
    if not isinstance(tree, dict):
        raise corrupt("no JSON object")
    if tree.get("format") != FORMAT:
        raise foreign(name, where) if _ORIGINALS & set(tree) else corrupt("another format")
    if tree.get("version") != VERSION:
        raise UnsupportedError(
            f"the entry of {name} at {where} has version {tree.get('version')!r:.40}, and this "
            f"release reads {VERSION}: bring both ends to the same release"
        )
    address, epoch, owner = (tree.get(member) for member in ("address", "epoch", "owner"))
    if not isinstance(epoch, str) or not re.fullmatch("[0-9a-f]{16}", epoch):
        raise corrupt("its epoch is none")
    if not isinstance(address, str):
        raise corrupt("it has no address")
    try:
        parse_address(address)
    except InvalidArgumentError as error:
        raise corrupt(str(error)) from None
    return Entry(address, int(epoch, 16), owner if isinstance(owner, str) else "")
