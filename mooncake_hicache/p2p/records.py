"""What the catalogue holds of a name, and how it proves itself.

Two entries for each source, both under the lease of its process:

    .../source/NAME/GENERATION/wID   who it is, where its memory is: `Source`, as signed JSON
                                     (w: 1 if it has all pieces, 0 if some)
    .../pieces/NAME/GENERATION/ID    sizes and checksums of the pieces: `Description`, as JSON

The first is signed with the secret that the engines share and names the digest of the second, so
that nobody else can point readers anywhere; it is bound to its key and cannot be moved to another
name. Every source has the whole description, so that it is there as long as any of them is.

Pure: nothing here talks to anybody. Whatever comes in is hostile until it was checked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import CorruptError, InvalidArgumentError, UnsupportedError
from mooncake_hicache.metadata import parse_address

__all__ = [
    "DESCRIPTION_SIZE_MAX",
    "PIECES_MAX",
    "PIECE_SIZE_MIN",
    "SIZE_MAX",
    "SOURCE_SIZE_MAX",
    "SPANS_MAX",
    "Description",
    "Source",
    "decode_description",
    "decode_source",
    "encode_description",
    "encode_source",
    "piece_count",
    "piece_size_for",
    "signing_key",
]

FORMAT = "mooncake-hicache-p2p"
VERSION = 1

SIZE_MAX = 1 << 44
"""Bytes that one name may have."""
PIECES_MAX = 4096
"""Pieces of one name: their checksums stand in the catalogue once for each source."""
PIECE_SIZE_MIN = 4096
PIECE_SIZE_USUAL = 4 << 20
"""Below it what a request costs beside its bytes begins to count."""
SPANS_MAX = 1024
"""Buffers of one name."""
SOURCE_SIZE_MAX = 64 << 10
DESCRIPTION_SIZE_MAX = 64 << 10

_DIGEST = re.compile("[0-9a-f]{64}")
_NUMBER = re.compile("[0-9a-f]{16}")
_MAC_SIZE = 64


@dataclass(frozen=True)
class Description:
    """What the bytes of one generation of a name are."""

    size_bytes: int
    piece_size_bytes: int
    """Of all pieces but the last, which has what is left."""
    checksums: npt.NDArray[np.uint64]
    """XXH3 (64 bits) of each piece."""


@dataclass(frozen=True)
class Source:
    """A process that has the bytes, or some of them."""

    name: str
    generation: int
    """Which registration of the name with other bytes; a later one is greater."""
    content: str
    """SHA-256 of the encoded description: equal for equal bytes in equal pieces."""
    size_bytes: int
    address: str
    """`host:port` of its engine."""
    epoch: int
    """Which incarnation of that engine."""
    spans: tuple[tuple[int, int], ...]
    """Address and size of its buffers, in order."""
    map_address: int
    """Where it has a byte for each piece, not 0 once the piece is there. 0: it has all."""
    owner: str
    """Who it is, for messages."""
    id: str
    """Of this registration: 16 hexadecimal digits."""

    @property
    def is_whole(self) -> bool:
        """Whether it has all pieces."""
        return self.map_address == 0


def signing_key(secret: str) -> bytes:
    """Return the key that entries are signed with, from the secret of the engines."""
    return hmac.digest(secret.encode(), b"mooncake-hicache p2p catalogue", "sha256")


def piece_size_for(size_bytes: int) -> int:
    """Return the usual size of pieces: 4 MiB, and above 16 GiB so much that 4096 are enough."""
    piece_size = PIECE_SIZE_USUAL
    while piece_size * PIECES_MAX < size_bytes:
        piece_size *= 2
    return piece_size


def piece_count(size_bytes: int, piece_size_bytes: int) -> int:
    """Return how many pieces so many bytes have."""
    return -(-size_bytes // piece_size_bytes)


def encode_description(description: Description) -> tuple[bytes, str]:
    """Return the bytes of a description, equal for equal ones, and their digest.

    Raises:
        InvalidArgumentError: It has too many pieces, or is too large.
    """
    size_bytes, piece_size_bytes = description.size_bytes, description.piece_size_bytes
    if size_bytes > SIZE_MAX:
        raise InvalidArgumentError(f"{size_bytes} bytes: a name has at most {SIZE_MAX}")
    if piece_size_bytes < PIECE_SIZE_MIN:
        raise InvalidArgumentError(
            f"a piece size of {piece_size_bytes} bytes: at least {PIECE_SIZE_MIN}"
        )
    count = piece_count(size_bytes, piece_size_bytes)
    if count > PIECES_MAX:
        raise InvalidArgumentError(
            f"{size_bytes} bytes in pieces of {piece_size_bytes} are {count} pieces: at most "
            f"{PIECES_MAX}; choose a larger piece size"
        )
    checksums = np.ascontiguousarray(description.checksums, dtype="<u8")
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "size": size_bytes,
        "piece_size": piece_size_bytes,
        "checksums": base64.b64encode(checksums.tobytes()).decode(),
    }
    value = json.dumps(tree, sort_keys=True).encode()
    return value, hashlib.sha256(value).hexdigest()


def decode_description(value: bytes, source: Source) -> Description:
    """Read the description that a source names.

    Raises:
        CorruptError: It is another one.
    """

    def corrupt(why: str) -> CorruptError:
        return CorruptError(f"the catalogue's description of {source.name} is damaged: {why}")

    if len(value) > DESCRIPTION_SIZE_MAX or hashlib.sha256(value).hexdigest() != source.content:
        raise corrupt("it is not the one that its source has signed")
    # Signed from here on; still checked, because what follows relies on every number.
    tree = _object_of(value, corrupt)
    size_bytes, piece_size_bytes = tree.get("size"), tree.get("piece_size")
    if not _is_number(size_bytes, 0, SIZE_MAX) or size_bytes != source.size_bytes:
        raise corrupt("the size is another one")
    if not _is_number(piece_size_bytes, PIECE_SIZE_MIN, SIZE_MAX):
        raise corrupt("its piece size is none")
    try:
        checksums = base64.b64decode(tree["checksums"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise corrupt("it has no checksums") from None
    count = piece_count(source.size_bytes, piece_size_bytes)
    if count > PIECES_MAX or len(checksums) != 8 * count:
        raise corrupt(f"{len(checksums)} bytes of checksums for {count} pieces")
    return Description(
        source.size_bytes, piece_size_bytes, np.frombuffer(checksums, "<u8").astype(np.uint64)
    )


def encode_source(source: Source, path: str, key: bytes) -> bytes:
    """Return the bytes of an entry.

    Args:
        source: What it says.
        path: The key in the catalogue to which it is bound.
        key: What it is signed with.

    Raises:
        InvalidArgumentError: It has too many buffers.
    """
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "name": source.name,
        "generation": source.generation,
        "content": source.content,
        "size": source.size_bytes,
        "address": source.address,
        "epoch": f"{source.epoch:016x}",
        "spans": [list(span) for span in source.spans],
        "map": source.map_address,
        "owner": source.owner[:256],
        "id": source.id,
    }
    text = json.dumps(tree, sort_keys=True).encode()
    if len(source.spans) > SPANS_MAX or len(text) + _MAC_SIZE + 1 > SOURCE_SIZE_MAX:
        raise InvalidArgumentError(
            f"{source.name} has {len(source.spans)} buffers: at most {SPANS_MAX}; copy small ones "
            "together"
        )
    return _mac(path, text, key).encode() + b"\n" + text


def decode_source(value: bytes, path: str, key: bytes) -> Source:
    """Read an entry.

    Args:
        value: What the catalogue holds, whoever has put it there.
        path: Its key in the catalogue.
        key: What it must be signed with.

    Raises:
        CorruptError: It is not signed with this key, or says what cannot be.
        UnsupportedError: Another release has written it.
    """

    def corrupt(why: str) -> CorruptError:
        return CorruptError(f"the catalogue's entry {path:.400} is none of ours: {why}")

    mac, newline, text = value[: SOURCE_SIZE_MAX + 1].partition(b"\n")
    if len(value) > SOURCE_SIZE_MAX or not newline or len(mac) != _MAC_SIZE:
        raise corrupt(f"{len(value)} bytes in another form")
    if not hmac.compare_digest(mac, _mac(path, text, key).encode()):
        raise corrupt("it is signed with another secret, or not at all")
    tree = _object_of(text, corrupt)
    if tree.get("format") != FORMAT or tree.get("version") != VERSION:
        raise UnsupportedError(
            f"the catalogue's entry {path:.400} has version {tree.get('version')!r:.40}, and this "
            f"release reads {VERSION}: bring all to the same release"
        )
    numbers = {"generation": 2**63, "size": SIZE_MAX, "map": 2**64 - 1}
    if not all(_is_number(tree.get(name), 0, most) for name, most in numbers.items()):
        raise corrupt("a number is none")
    texts = [tree.get(one) for one in ("name", "content", "address", "epoch", "owner", "id")]
    name, content, address, epoch, owner, identity = (
        one if isinstance(one, str) else None for one in texts
    )
    if name is None or owner is None or not _DIGEST.fullmatch(content or ""):
        raise corrupt("a text is none")
    if not _NUMBER.fullmatch(epoch or "") or not _NUMBER.fullmatch(identity or ""):
        raise corrupt("its epoch or id is none")
    try:
        parse_address(address or "")
    except InvalidArgumentError as error:
        raise corrupt(str(error)) from None
    return Source(
        name=name,
        generation=tree["generation"],
        content=content or "",
        size_bytes=tree["size"],
        address=address or "",
        epoch=int(epoch or "", 16),
        spans=_spans_of(tree, corrupt),
        map_address=tree["map"],
        owner=owner,
        id=identity or "",
    )


def _spans_of(tree: dict[str, Any], corrupt: Any) -> tuple[tuple[int, int], ...]:
    spans = tree.get("spans")
    if not isinstance(spans, list) or len(spans) > SPANS_MAX:
        raise corrupt("its buffers are none")
    total = 0
    for span in spans:
        if not isinstance(span, list) or len(span) != 2:
            raise corrupt("a buffer is none")
        address, size = span
        if not _is_number(address, 1, 2**64 - 1) or not _is_number(size, 1, SIZE_MAX):
            raise corrupt("a buffer's address or size is none")
        if address + size > 2**64:
            raise corrupt("a buffer does not end")
        total += size
    if total != tree["size"]:
        raise corrupt(f"its buffers have {total} bytes, not {tree['size']}")
    return tuple((address, size) for address, size in spans)


def _object_of(text: bytes, corrupt: Any) -> dict[str, Any]:
    try:
        tree = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise corrupt("no JSON") from None
    if not isinstance(tree, dict):
        raise corrupt("no JSON object")
    return tree


def _is_number(value: object, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _mac(path: str, text: bytes, key: bytes) -> str:
    return hmac.new(key, path.encode() + b"\0" + text, hashlib.sha256).hexdigest()
