"""How fast a node finds what an earlier one left: a log of terabytes that is mostly holes.

Heads and footers are real, and so are a few pages of the newest region; what lies between is never
read by recovery, and takes no room. A directory may not be larger than its file system, so the log
lies in several.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bench.pages_copy import KiB, MiB
from bench.pages_index import node_stats
from bench.ssd_node import WAIT_S, Scale, ssd_node, wait_recovered
from mooncake_hicache.pages.namespace import namespace_digest
from mooncake_hicache.ssd import format as log_format
from mooncake_hicache.ssd.format import (
    ENTRY_SIZE,
    FILE_NAME,
    GROUP_MAGIC,
    SECTOR_SIZE,
    STRIPE_SIZE,
    SUPERBLOCK_SIZE,
    EntryKind,
    PageChecksum,
    sectors_of,
)
from mooncake_hicache.store import Store

REGION_SIZE = 256 * MiB
GROUP_ENTRIES, GROUP_BYTES = 31, 8 * MiB
DIRECTORIES_MAX = 16
CHAIN = 32  # Pages of one chain.
REAL_PAGES = 4
DESCRIPTION = {"bench": "ssd", "case": "recovery"}
ENTRY = np.dtype(
    [
        ("key", "V32"),
        ("namespace", "V32"),
        ("sequence", "<u8"),
        ("size", "<u8"),
        ("checksum", "<u8"),
        ("parent", "<u8"),
        ("sector", "<u4"),
        ("kind", "u1"),
        ("zero", "V27"),
    ]
)
_WORDS = (0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3)


def measure(folder: Path, scale: Scale, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Recover logs of large pages and of small ones."""
    rows = []
    for page_size, regions in ((4 * MiB, scale.regions), (64 * KiB, max(8, scale.regions // 10))):
        tell(f"a log of {regions} regions with pages of {page_size // KiB} KiB")
        log = make_log(folder, regions, page_size)
        try:
            rows.append(_recover(log, tell))
        finally:
            for path in log.directories:
                shutil.rmtree(path)
    return rows


@dataclass(frozen=True)
class SparseLog:
    """What was made."""

    directories: list[Path]
    limit: int
    """Bytes, of each."""
    regions: int
    pages: int
    page_size: int
    newest_keys: list[bytes]
    """Of the pages whose bytes are there."""

    @property
    def size(self) -> int:
        """Bytes that it would take without holes."""
        return self.regions * REGION_SIZE


def make_log(folder: Path, regions: int, page_size: int) -> SparseLog:
    """Write a sealed log whose regions are full of chains of pages."""
    stats = os.statvfs(folder)
    limit = int(0.9 * stats.f_frsize * stats.f_blocks)
    per_file = (limit - SUPERBLOCK_SIZE) // REGION_SIZE
    count = min(DIRECTORIES_MAX, -(-regions // per_file))
    regions = min(regions, count * per_file)
    chance = np.random.default_rng(11)
    layout = _Layout(page_size)
    newest: list[bytes] = []
    directories = [folder / f"log-{number}" for number in range(count)]
    numbers = np.array_split(np.arange(regions), count)
    for path, some in zip(directories, numbers, strict=True):
        path.mkdir(mode=0o700)
        log_id = chance.bytes(16)
        file = os.open(path / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, _superblock(log_id), 0)
            os.ftruncate(file, SUPERBLOCK_SIZE + len(some) * REGION_SIZE)
            for place, number in enumerate(some):
                region = layout.region(log_id, int(number), chance, number == regions - 1)
                base = SUPERBLOCK_SIZE + place * REGION_SIZE
                os.pwrite(file, region.head, base)
                os.pwrite(file, region.footer, base + REGION_SIZE - len(region.footer))
                for sector, page in region.pages:
                    os.pwrite(file, page, base + sector * SECTOR_SIZE)
                newest += region.keys
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    return SparseLog(directories, limit, regions, regions * layout.count, page_size, newest)


@dataclass(frozen=True)
class _Region:
    head: bytes
    footer: bytes
    pages: list[tuple[int, bytes]]
    keys: list[bytes]


class _Layout:
    """Where the pages of a full region lie: the same in all."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        page_sectors = sectors_of(page_size)
        self._group = min(GROUP_ENTRIES, GROUP_BYTES // page_size)
        group_sectors = 1 + self._group * page_sectors
        room = REGION_SIZE // SECTOR_SIZE - 1
        groups = room // group_sectors
        while groups * group_sectors + sectors_of(groups * self._group * ENTRY_SIZE) > room:
            groups -= 1
        self.count = groups * self._group
        self._group_sectors = group_sectors
        self._sector_count = groups * group_sectors
        numbers = np.arange(self.count)
        entries = np.zeros(self.count, ENTRY)
        entries["namespace"] = np.void(namespace_digest(DESCRIPTION))
        entries["size"] = page_size
        entries["sector"] = (
            numbers // self._group * group_sectors + 1 + numbers % self._group * page_sectors
        )
        entries["kind"] = EntryKind.PAGE
        self._entries = entries
        self._is_root = numbers % CHAIN == 0

    def region(
        self, log_id: bytes, number: int, chance: np.random.Generator, is_newest: bool
    ) -> _Region:
        """Return the bytes of a region's head and end, and some pages if it is the newest."""
        sequence = 1 + number * (self.count + 1)
        entries = self._entries.copy()
        keys = chance.integers(0, 1 << 64, (self.count, 4), dtype=np.uint64)
        entries["key"] = keys.view("V32")[:, 0]
        entries["sequence"] = sequence + 1 + np.arange(self.count, dtype=np.uint64)
        parents = np.roll(key_hashes(keys), 1)
        entries["parent"] = np.where(self._is_root, np.uint64(0), parents)
        pages = []
        if is_newest:
            for at in range(min(REAL_PAGES, self.count)):
                page = chance.bytes(self.page_size)
                entries["checksum"][at] = _page_checksum(page)
                pages.append((int(entries["sector"][at]), page))
        first = entries[: self._group].tobytes()
        head = struct.pack("<8sQ16sQIIIIQ", GROUP_MAGIC, 0, log_id, sequence, 0, self._group,
                           self._group_sectors, 0, int(time.time()))  # fmt: skip
        raw = entries.tobytes()
        padded = raw.ljust(sectors_of(len(raw)) * SECTOR_SIZE, b"\0")
        footer = struct.pack("<8sQ16sQQQI", b"HICFOOT1", 0, log_id, sequence, self.count,
                             xxhash.xxh3_64_intdigest(padded), self._sector_count)  # fmt: skip
        return _Region(
            _sealed(head.ljust(128, b"\0") + first),
            padded + _sealed(footer),
            pages,
            [keys[at].tobytes() for at in range(len(pages))],
        )


def key_hashes(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the hash of each key, as the node computes it (Key::hash in csrc/base/bytes.h)."""
    words = keys ^ np.array(_WORDS, dtype=np.uint64)
    return _fold(words[:, 0], words[:, 1]) ^ _fold(words[:, 2], words[:, 3])


def _fold(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the exclusive or of both halves of the products."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> half) + (other >> half)
    folded: npt.NDArray[np.uint64] = high ^ (a * b)
    return folded


def _page_checksum(page: bytes) -> int:
    checksum = PageChecksum(len(page))
    for start in range(0, len(page), STRIPE_SIZE):
        checksum.add_stripe(page[start : start + STRIPE_SIZE])
    return checksum.finish()


def _superblock(log_id: bytes) -> bytes:
    fields = struct.pack("<8sII16sQQ", b"HICACHE1", log_format.VERSION, SECTOR_SIZE, log_id,
                         REGION_SIZE, int(time.time()))  # fmt: skip
    whole = fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))
    return whole.ljust(SECTOR_SIZE, b"\0")


def _sealed(sector: bytes) -> bytes:
    """Return the sector, padded, with its checksum in place."""
    padded = sector.ljust(SECTOR_SIZE, b"\0")
    return padded[:8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(padded)) + padded[16:]


def _recover(log: SparseLog, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(f"recovering {log.size / 1e9:,.0f} GB")
    places = ",".join(f"{path}={log.limit // MiB}MiB" for path in log.directories)
    first_hit_s = None
    with ssd_node(places, 64 * MiB, ssd_staging="false", flush_timeout_s="0"):
        began = time.perf_counter()
        with Store.open() as store:
            connected_s = time.perf_counter() - began
            pages = store.namespace(DESCRIPTION)
            was_recovering = False
            while first_hit_s is None and time.perf_counter() - began < WAIT_S:
                is_hit = pages.get(log.newest_keys[0]) is not None
                was_recovering = node_stats(store)["ssd_recovering"] == 1
                if is_hit:
                    first_hit_s = time.perf_counter() - began
            wait_recovered(store)
            stats = node_stats(store)
            for key in log.newest_keys:
                if pages.get(key) is None:
                    raise RuntimeError("a page of the newest region is not there after recovery")
    if first_hit_s is None:
        raise RuntimeError("no hit during recovery")
    if stats["ssd_recovered_pages"] != log.pages:
        raise RuntimeError(f"{stats['ssd_recovered_pages']} pages recovered, not {log.pages}")
    seconds = max(stats["ssd_recovery_ms"], 1) / 1000
    return {
        "page_size": log.page_size,
        "regions": log.regions,
        "directories": len(log.directories),
        "log_bytes": log.size,
        "pages": log.pages,
        "seconds": seconds,
        "bytes_per_s": log.size / seconds,
        "pages_per_s": log.pages / seconds,
        "connected_s": connected_s,
        "first_hit_s": first_hit_s,
        "first_hit_while_recovering": was_recovering,
        "index_bytes_per_page": stats["ssd_index_size_bytes"] / log.pages,
    }
