"""The bytes of the SSD log, decoded independently of the core that writes them.

`csrc/tier/ssd_format.h` draws the format; this module reads version 1 of it. Everything is checked
before it is believed: counts and sectors against the room there is, entries against their region.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from mooncake_hicache.errors import CorruptError, InvalidArgumentError, UnsupportedError
from mooncake_hicache.units import format_size

__all__ = [
    "ENTRY_SIZE",
    "FILE_NAME",
    "GROUP_ENTRY_COUNT_MAX",
    "GROUP_MAGIC",
    "LEAD_SECTORS",
    "SECTOR_SIZE",
    "STRIPE_SIZE",
    "SUPERBLOCK_SIZE",
    "Entry",
    "EntryKind",
    "Footer",
    "Group",
    "PageChecksum",
    "Superblock",
    "decode_entries",
    "decode_footer",
    "decode_group",
    "decode_superblock",
    "entry_sectors",
    "is_lead",
    "sectors_of",
]

VERSION = 1
FILE_NAME = "pages.log"
SECTOR_SIZE = 4096
SUPERBLOCK_SIZE = 64 * 1024
ENTRY_SIZE = 128
GROUP_ENTRY_COUNT_MAX = 31
LEAD_SECTORS = 2
"""Groups without entries that a region begins with: either says which life of it this is."""
REGION_SIZE_MIN = 64 * 1024
REGION_SIZE_MAX = 4 * 1024**3
STRIPE_SIZE = 512 * 1024
"""Of a page, for its checksum: `csrc/transfer/checksum_copy.h`."""

GROUP_MAGIC = b"HICGROUP"
_SUPERBLOCK_MAGIC = b"HICACHE1"
_FOOTER_MAGIC = b"HICFOOT1"

_SUPERBLOCK = struct.Struct("<8sII16sQQQ")
_GROUP = struct.Struct("<8sQ16sQIIIIQ")
_FOOTER = struct.Struct("<8sQ16sQQQI")
_ENTRY = struct.Struct("<32s32sQQQQIB27s")
_GROUP_ENTRIES_AT = 128


class EntryKind(IntEnum):
    """What an entry tells of."""

    PAGE = 1
    REMOVED = 2
    CLEARED = 3


@dataclass(frozen=True, slots=True)
class Superblock:
    """The head of a log's file."""

    log_id: bytes
    region_size: int
    """Bytes."""
    made_at: int
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One page in the log, or what removed some."""

    kind: EntryKind
    key: bytes
    """Zero for `CLEARED`."""
    namespace: bytes
    """The namespace's digest."""
    sequence: int
    size: int
    """Bytes. This and the rest are zero unless it is a page."""
    checksum: int
    parent_key_hash: int
    first_sector: int
    """In the region."""


@dataclass(frozen=True, slots=True)
class Group:
    """What one write brought into a region."""

    region_sequence: int
    number: int
    sector_count: int
    """The header's included."""
    written_at: int
    """Seconds since 1970."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """The end of a sealed region."""

    region_sequence: int
    entry_count: int
    entries_checksum: int
    sector_count: int
    """Of all groups."""


class PageChecksum:
    """The checksum of a page that comes in pieces: XXH3-64, folded over stripes of 512 KiB."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stripes: list[int] = []

    def add_stripe(self, stripe: bytes | memoryview) -> None:
        """Take the next stripe: `STRIPE_SIZE` bytes, the last one what is left."""
        self._stripes.append(xxhash.xxh3_64_intdigest(stripe))

    def finish(self) -> int:
        """Return the checksum, once all stripes were given."""
        if len(self._stripes) == 1:
            return self._stripes[0]
        folded = struct.pack(f"<{len(self._stripes)}Q", *self._stripes)
        return int(xxhash.xxh3_64_intdigest(folded, seed=self._size))


def sectors_of(size: int) -> int:
    """Return how many sectors hold so many bytes."""
    return -(-size // SECTOR_SIZE)


def entry_sectors(entry_count: int) -> int:
    """Return how many sectors before a footer hold its entries."""
    return sectors_of(entry_count * ENTRY_SIZE)


def decode_superblock(sector: bytes) -> Superblock:
    """Check and read the first sector of a file. The caller adds which file it is.

    Raises:
        InvalidArgumentError: It is not the head of a log.
        UnsupportedError: It is of another version.
        CorruptError: It is damaged.
    """
    if len(sector) < SECTOR_SIZE or not sector.startswith(_SUPERBLOCK_MAGIC):
        raise InvalidArgumentError('it is not an SSD log: it does not begin with "HICACHE1"')
    _, version, sector_size, log_id, region_size, made_at, checksum = _SUPERBLOCK.unpack_from(
        sector
    )
    if version != VERSION:
        raise UnsupportedError(
            f"its format has version {version}, this program reads version {VERSION}: use the "
            "program that wrote it"
        )
    if checksum != xxhash.xxh3_64_intdigest(sector[:48]) or any(sector[56:SECTOR_SIZE]):
        raise CorruptError("its superblock does not match its checksum")
    if (
        sector_size != SECTOR_SIZE
        or not REGION_SIZE_MIN <= region_size <= REGION_SIZE_MAX
        or region_size % SECTOR_SIZE
    ):
        raise CorruptError(
            f"its superblock tells of regions of {format_size(region_size)} and sectors of "
            f"{sector_size} bytes, which no log has"
        )
    return Superblock(log_id, region_size, made_at)


def decode_group(
    superblock: Superblock, sector: bytes | memoryview, first_sector: int
) -> Group | None:
    """Check and read a group's header, which lies in that sector of its region.

    Returns:
        None for anything that is not a whole, sound header of this log.
    """
    if not _is_sound(superblock, sector, GROUP_MAGIC):
        return None
    _, _, _, sequence, number, entry_count, sector_count, zero, written_at = _GROUP.unpack_from(
        sector
    )
    end_sector = first_sector + sector_count
    if (
        entry_count > GROUP_ENTRY_COUNT_MAX
        or sector_count == 0
        or end_sector > superblock.region_size // SECTOR_SIZE
        or zero != 0
        or any(sector[_GROUP.size : _GROUP_ENTRIES_AT])
    ):
        return None
    entries = _entries_of(sector[_GROUP_ENTRIES_AT:], entry_count, first_sector + 1, end_sector)
    if entries is None:
        return None
    return Group(sequence, number, sector_count, written_at, tuple(entries))


def is_lead(group: Group, first_sector: int) -> bool:
    """Say whether a group, which lies in that sector of its region, is of the lead."""
    return (
        first_sector < LEAD_SECTORS
        and group.number == first_sector
        and group.sector_count == 1
        and not group.entries
    )


def decode_footer(superblock: Superblock, sector: bytes | memoryview) -> Footer | None:
    """Check and read the last sector of a region; None unless it is a sound footer of this log."""
    if not _is_sound(superblock, sector, _FOOTER_MAGIC):
        return None
    _, _, _, sequence, entry_count, checksum, sector_count = _FOOTER.unpack_from(sector)
    if (
        sector_count == 0
        or entry_count > sector_count * GROUP_ENTRY_COUNT_MAX
        or sector_count + entry_sectors(entry_count) + 1 > superblock.region_size // SECTOR_SIZE
        or any(sector[_FOOTER.size :])
    ):
        return None
    return Footer(sequence, entry_count, checksum, sector_count)


def decode_entries(footer: Footer, sectors: bytes | memoryview) -> list[Entry] | None:
    """Check and read the entries before a footer; None unless all of them are sound."""
    if (
        len(sectors) != entry_sectors(footer.entry_count) * SECTOR_SIZE
        or xxhash.xxh3_64_intdigest(sectors) != footer.entries_checksum
    ):
        return None
    return _entries_of(sectors, footer.entry_count, 1, footer.sector_count)


def _is_sound(superblock: Superblock, sector: bytes | memoryview, magic: bytes) -> bool:
    if len(sector) != SECTOR_SIZE or sector[:8] != magic or sector[16:32] != superblock.log_id:
        return False
    hashed = xxhash.xxh3_64(sector[:8])
    hashed.update(bytes(8))  # In the place of the checksum itself.
    hashed.update(sector[16:])
    return bool(hashed.intdigest() == int.from_bytes(sector[8:16], "little"))


def _entries_of(
    sectors: bytes | memoryview, count: int, next_sector: int, end_sector: int
) -> list[Entry] | None:
    """Read entries whose pages lie, in their order, in the sectors given; None if one is bad."""
    entries: list[Entry] = []
    used = count * ENTRY_SIZE
    for *fields, sector, kind, rest in _ENTRY.iter_unpack(sectors[:used]):
        key, namespace, sequence, size, checksum, parent = fields
        if kind == EntryKind.PAGE:
            if not next_sector <= sector < end_sector:
                return None
            if not 0 < size <= (end_sector - sector) * SECTOR_SIZE:
                return None
            next_sector = sector + sectors_of(size)
        elif kind not in (EntryKind.REMOVED, EntryKind.CLEARED) or any(
            (size, checksum, parent, sector)
        ):
            return None
        if any(rest) or (kind == EntryKind.CLEARED and any(key)):
            return None
        entries.append(
            Entry(EntryKind(kind), key, namespace, sequence, size, checksum, parent, sector)
        )
    return None if any(sectors[used:]) else entries
