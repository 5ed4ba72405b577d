"""What a directory of the SSD log holds, whether or not a node runs on it.

Nothing is written, and no lock is kept. Memory is bounded by the entries of the largest region and
16 bytes for each entry of the log, however large its pages are.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from mooncake_hicache.errors import CorruptError, Error, IoError, NotFoundError
from mooncake_hicache.ssd.format import (
    FILE_NAME,
    GROUP_ENTRY_COUNT_MAX,
    GROUP_MAGIC,
    LEAD_SECTORS,
    SECTOR_SIZE,
    STRIPE_SIZE,
    SUPERBLOCK_SIZE,
    Entry,
    EntryKind,
    Footer,
    Group,
    PageChecksum,
    Superblock,
    decode_entries,
    decode_footer,
    decode_group,
    decode_superblock,
    entry_sectors,
    is_lead,
)

__all__ = ["Damage", "Liveness", "LogFile", "Region", "RegionState", "Verdict"]

_WINDOW_SIZE = 1024 * 1024
_NO_SECTOR = bytes(SECTOR_SIZE)


class RegionState(str, Enum):
    """What a region is, as its first and last sectors tell."""

    FREE = "free"
    SEALED = "sealed"
    UNSEALED = "unsealed"
    """Groups without a footer: being filled, or the node was killed meanwhile."""
    WRITING = "being written"
    """Unsealed or unclear, while a node runs on the file."""
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Damage:
    """Something that does not prove itself."""

    region: int
    what: str
    entry: Entry | None = None
    """The page, if it is one."""


@dataclass(frozen=True)
class Region:
    """One region, as it was when it was read."""

    index: int
    state: RegionState
    sequence: int = 0
    sector_count: int = 0
    """Of its groups."""
    entries: list[Entry] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    @property
    def pages(self) -> Iterator[Entry]:
        """The entries that are pages."""
        return (entry for entry in self.entries if entry.kind is EntryKind.PAGE)


class Verdict(Enum):
    """What reading a page gave."""

    SOUND = "sound"
    DAMAGED = "damaged"
    WRITING = "being written"
    """It does not match, but a node is writing there."""


class LogFile:
    """The file `pages.log` of a directory, open for reading. Close it, or use it with `with`.

    Raises:
        NotFoundError: There is none.
        InvalidArgumentError, UnsupportedError, CorruptError: It is none of ours, of another
            version, or its head is damaged.
        IoError: The system refused.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory) / FILE_NAME
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"there is no {self.path}: name a folder that a node keeps pages in (`ssd`)"
            ) from None
        except OSError as error:
            raise IoError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            self.superblock = self._read_superblock()
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise
        self.region_count = max(0, self.size - SUPERBLOCK_SIZE) // self.superblock.region_size

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_in_use(self) -> bool:
        """Say whether a node runs on the file: it then holds its lock (`flock`)."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return True
            raise IoError(f"cannot ask for the lock of {self.path}: {error.strerror}") from error
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def regions(self) -> Iterator[Region]:
        """Read region after region."""
        return (self.read_region(index) for index in range(self.region_count))

    def read_region(self, index: int) -> Region:
        """Read what a region tells of itself, not its pages."""
        region = self._read_region(index)
        if region.state in (RegionState.FREE, RegionState.SEALED) or not self.is_in_use():
            return region
        if region.damage:
            region = self._read_region(index)  # It may have been caught in the middle of a write.
        # A node writes where there is no footer, and only there.
        if region.state is RegionState.UNSEALED or (region.damage and not self._read_footer(index)):
            return replace(region, state=RegionState.WRITING, damage=[])
        return region

    def verify(
        self, region: Region, entry: Entry, on_read: Callable[[int], None] = lambda size: None
    ) -> Verdict:
        """Read a page and compare its checksum; `on_read` is told of bytes as they are read."""
        if self._page_matches(region, entry, on_read):
            return Verdict.SOUND
        if self.is_in_use() and (
            region.state is RegionState.WRITING
            or self._read_region(region.index).sequence != region.sequence
        ):
            return Verdict.WRITING
        return Verdict.DAMAGED

    def forget_cached(self, region: Region) -> None:
        """Drop what reading the region left in the system's cache."""
        size = self.superblock.region_size
        os.posix_fadvise(self._fd, self._offset(region.index), size, os.POSIX_FADV_DONTNEED)

    # ---- how it is read

    def _offset(self, index: int) -> int:
        return SUPERBLOCK_SIZE + index * self.superblock.region_size

    def _read(self, offset: int, size: int) -> bytes:
        """Read bytes; what the file does not hold, or the disk refuses to give, is zero."""
        try:
            pieces = os.pread(self._fd, size, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise IoError(
                    f"cannot read {size} bytes at {offset} of {self.path}: {error.strerror}"
                ) from error
            pieces = b""
        return pieces.ljust(size, b"\0")

    def _read_superblock(self) -> Superblock:
        try:
            return decode_superblock(self._read(0, SECTOR_SIZE))
        except CorruptError as error:
            remedy = "a node refuses it and leaves it as it is: delete it to begin anew"
            raise CorruptError(f"{self.path}: {error}; {remedy}") from None
        except Error as error:
            raise type(error)(f"{self.path}: {error}") from None

    def _read_region(self, index: int) -> Region:
        first = self._read(self._offset(index), SECTOR_SIZE)
        head = decode_group(self.superblock, first, 0)
        footer = self._read_footer(index)
        damage = [] if head is not None else self._head_damage(index, first)
        head = head or self._read_lead(index)
        if head is not None:
            if footer is not None and footer.region_sequence == head.region_sequence:
                return self._read_sealed(index, footer, damage)
            state = RegionState.DAMAGED if damage else RegionState.UNSEALED
            return self._walk(index, head.region_sequence, state, damage)
        if footer is None:
            return Region(index, RegionState.DAMAGED if damage else RegionState.FREE, damage=damage)
        # Not erased to its end, or damaged in front: the footer speaks for it.
        return self._read_sealed(index, footer, damage)

    def _read_lead(self, index: int) -> Group | None:
        """Return what stands for a first sector that is damaged."""
        for at in range(1, LEAD_SECTORS):
            sector = self._read(self._offset(index) + at * SECTOR_SIZE, SECTOR_SIZE)
            group = decode_group(self.superblock, sector, at)
            if group is not None and is_lead(group, at):
                return group
        return None

    def _read_footer(self, index: int) -> Footer | None:
        end = self._offset(index) + self.superblock.region_size
        return decode_footer(self.superblock, self._read(end - SECTOR_SIZE, SECTOR_SIZE))

    def _head_damage(self, index: int, first: bytes) -> list[Damage]:
        is_foreign = first[:8] == GROUP_MAGIC and first[16:32] != self.superblock.log_id
        if first == _NO_SECTOR or is_foreign:
            return []
        return [Damage(index, "its first sector is neither empty nor the head of a group")]

    def _read_sealed(self, index: int, footer: Footer, damage: list[Damage]) -> Region:
        end = self._offset(index) + self.superblock.region_size - SECTOR_SIZE
        size = entry_sectors(footer.entry_count) * SECTOR_SIZE
        entries = decode_entries(footer, self._read(end - size, size))
        if entries is None:
            damage = [*damage, Damage(index, "the entries before its footer are damaged")]
            return self._walk(index, footer.region_sequence, RegionState.DAMAGED, damage)
        state = RegionState.DAMAGED if damage else RegionState.SEALED
        return Region(index, state, footer.region_sequence, footer.sector_count, entries, damage)

    def _walk(self, index: int, sequence: int, state: RegionState, damage: list[Damage]) -> Region:
        """Go from group to group: what a start does where there is no footer to believe."""
        entries: list[Entry] = []
        at = sector_count = next_number = 0
        while at < self.superblock.region_size // SECTOR_SIZE:
            group, at = self._next_group(index, at)
            if group is None:
                continue
            if group.region_sequence != sequence or group.number < next_number:
                at += 1
                continue
            next_number = group.number + 1
            # Removals stand in two groups, one behind the other.
            last = entries[-GROUP_ENTRY_COUNT_MAX:]
            entries += [entry for entry in group.entries if entry not in last]
            at += group.sector_count
            sector_count = at
        return Region(index, state, sequence, sector_count, entries, damage)

    def _next_group(self, index: int, at: int) -> tuple[Group | None, int]:
        """Return the first sound group from a sector on, and where it lies or how far it is not."""
        start = self._offset(index) + at * SECTOR_SIZE
        # Group stands behind group: only where one is torn the next has to be looked for.
        group = decode_group(self.superblock, self._read(start, SECTOR_SIZE), at)
        if group is not None:
            return group, at
        size = min(_WINDOW_SIZE, self.superblock.region_size - at * SECTOR_SIZE)
        window = self._read(start, size)
        for offset in range(0, size, SECTOR_SIZE):
            if window[offset : offset + 8] == GROUP_MAGIC:
                sector = at + offset // SECTOR_SIZE
                group = decode_group(self.superblock, window[offset : offset + SECTOR_SIZE], sector)
                if group is not None:
                    return group, sector
        return None, at + size // SECTOR_SIZE

    def _page_matches(self, region: Region, entry: Entry, on_read: Callable[[int], None]) -> bool:
        start = self._offset(region.index) + entry.first_sector * SECTOR_SIZE
        checksum = PageChecksum(entry.size)
        for offset in range(0, entry.size, STRIPE_SIZE):
            size = min(STRIPE_SIZE, entry.size - offset)
            checksum.add_stripe(self._read(start + offset, size))
            on_read(size)
        return checksum.finish() == entry.checksum


class Liveness:
    """Which pages count: the newest of their key, unless they were removed or cleared later.

    Give it all entries of the log with `add`, in any order, then ask. A key is remembered by 64
    bits of a hash, its newest sequence by 64 more.
    """

    def __init__(self) -> None:
        self._hashes: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []
        self._sequences: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []
        self._newest = np.empty(0, np.uint64)
        self._names = np.empty(0, np.uint64)
        self._cleared: dict[bytes, int] = {}

    def add(self, entries: list[Entry]) -> None:
        """Take the entries of a region."""
        named = [entry for entry in entries if entry.kind is not EntryKind.CLEARED]
        self._hashes.append(np.array([_name(entry) for entry in named], np.uint64))
        self._sequences.append(np.array([entry.sequence for entry in named], np.uint64))
        for entry in entries:
            if entry.kind is EntryKind.CLEARED:
                before = self._cleared.get(entry.namespace, 0)
                self._cleared[entry.namespace] = max(before, entry.sequence)

    def is_live(self, entry: Entry) -> bool:
        """Say whether a page that was added counts."""
        if self._hashes:
            self._settle()
        if entry.kind is not EntryKind.PAGE:
            return False
        place = int(np.searchsorted(self._names, np.uint64(_name(entry))))
        is_newest = place < len(self._names) and int(self._newest[place]) == entry.sequence
        cleared = self._cleared.get(entry.namespace)
        return is_newest and (cleared is None or entry.sequence > cleared)

    def _settle(self) -> None:
        names = np.concatenate([self._names, *self._hashes])
        sequences = np.concatenate([self._newest, *self._sequences])
        self._hashes, self._sequences = [], []
        order = np.lexsort((sequences, names))
        names, sequences = names[order], sequences[order]
        is_last = np.ones(len(names), bool)
        is_last[:-1] = names[1:] != names[:-1]
        self._names, self._newest = names[is_last], sequences[is_last]


def _name(entry: Entry) -> int:
    return int(xxhash.xxh3_64_intdigest(entry.namespace + entry.key))
