"""Reading the SSD log without the core: files that this test writes itself, sound and not."""

from __future__ import annotations

import fcntl
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import xxhash
from typer.testing import CliRunner, Result

from mooncake_hicache.cli.app import app
from mooncake_hicache.errors import (
    CorruptError,
    Error,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from mooncake_hicache.ssd.format import decode_entries, decode_footer, decode_group
from mooncake_hicache.ssd.inspect import LogFile, RegionState, Verdict
from mooncake_hicache.ssd.names import read_descriptions

LOG_ID = bytes(range(16))
SPACE = b"\x11" * 32
OTHER_SPACE = b"\x22" * 32
KIB = 1024
SECTOR = 4096
REGION_SIZE = 4 * 1024 * KIB
HEAD_SIZE = 64 * KIB

# ---- a tiny writer, which knows the format from its drawing alone


def checksum_of_page(page: bytes) -> int:
    """Fold over stripes of 512 KiB, as the header of the copying code says."""
    stripes = [page[i : i + 512 * KIB] for i in range(0, len(page), 512 * KIB)]
    digests = [xxhash.xxh3_64_intdigest(stripe) for stripe in stripes]
    if len(digests) == 1:
        return digests[0]
    joined = b"".join(digest.to_bytes(8, "little") for digest in digests)
    return xxhash.xxh3_64_intdigest(joined, seed=len(page))


def padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % SECTOR)


def sealed(sector: bytes) -> bytes:
    """Fill in the checksum at 8 of a sector in which it is zero."""
    sector = sector.ljust(SECTOR, b"\0")
    return sector[:8] + xxhash.xxh3_64_intdigest(sector).to_bytes(8, "little") + sector[16:]


def superblock(
    magic: bytes = b"HICACHE1", version: int = 1, region_size: int = REGION_SIZE
) -> bytes:
    head = struct.pack("<8sII16sQQ", magic, version, SECTOR, LOG_ID, region_size, 1_700_000_000)
    return (head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")).ljust(SECTOR, b"\0")


def page_of(n: int, size: int) -> bytes:
    return Random(n).randbytes(size)


def key_of(n: int) -> bytes:
    return xxhash.xxh3_128_digest(n.to_bytes(8, "little")) * 2


@dataclass
class Item:
    """What goes into a group."""

    sequence: int
    key: bytes = bytes(32)
    space: bytes = SPACE
    kind: int = 1
    page: bytes = b""

    def entry(self, first_sector: int) -> bytes:
        checksum = checksum_of_page(self.page) if self.page else 0
        fields = (self.key, self.space, self.sequence, len(self.page), checksum, 0)
        return struct.pack("<32s32sQQQQIB27x", *fields, first_sector, self.kind)


@dataclass
class RegionWriter:
    """The bytes of one region."""

    sequence: int
    groups: bytes = b""
    entries: list[bytes] = field(default_factory=list)
    number: int = 0

    @classmethod
    def with_lead(cls, sequence: int) -> RegionWriter:
        return cls(sequence).group().group()

    def group(self, *items: Item) -> RegionWriter:
        at = len(self.groups) // SECTOR + 1
        entries, pages = [], b""
        for item in items:
            entries.append(item.entry(at + len(pages) // SECTOR if item.kind == 1 else 0))
            pages += padded(item.page)
        count = 1 + len(pages) // SECTOR
        fields = (self.sequence, self.number, len(entries), count, 0, 1_700_000_001)
        head = struct.pack("<8sQ16sQIIIIQ", b"HICGROUP", 0, LOG_ID, *fields).ljust(128, b"\0")
        self.groups += sealed(head + b"".join(entries)) + pages
        self.entries += entries
        self.number += 1
        return self

    def unsealed(self) -> bytes:
        return self.groups.ljust(REGION_SIZE, b"\0")

    def sealed(self) -> bytes:
        entries = padded(b"".join(self.entries))
        fields = (self.sequence, len(self.entries), xxhash.xxh3_64_intdigest(entries))
        last = struct.pack(
            "<8sQ16sQQQI", b"HICFOOT1", 0, LOG_ID, *fields, len(self.groups) // SECTOR
        )
        end = entries + sealed(last)
        return self.groups.ljust(REGION_SIZE - len(end), b"\0") + end


FREE = bytes(REGION_SIZE)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a log of these regions, and gives its folder."""

    def write_log(*regions: bytes, head: bytes = b"") -> Path:
        content = (head or superblock()).ljust(HEAD_SIZE, b"\0") + b"".join(regions)
        (tmp_path / "pages.log").write_bytes(content)
        return tmp_path

    return write_log


def flip(folder: Path, offset: int) -> None:
    with (folder / "pages.log").open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def inspect(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", str(folder), *arguments])


def as_json(folder: Path, *arguments: str, status: int) -> dict[str, Any]:
    done = inspect(folder, "--json", *arguments)
    assert done.exit_code == status, done.output
    fields = json.loads(done.stdout)
    assert isinstance(fields, dict)
    return fields


def sample_regions() -> list[bytes]:
    """Two sealed regions, a free one, and one whose footer was never written.

    Key 1 has two copies, key 2 was removed, the other namespace was cleared after its page 3, and
    its page 4 came later.
    """
    first = RegionWriter(5).group(
        Item(1, key_of(1), page=page_of(1, 10_000)),
        Item(2, key_of(2), page=page_of(2, SECTOR)),
        Item(3, key_of(3), OTHER_SPACE, page=page_of(3, 1)),
    )
    second = (
        RegionWriter(6)
        .group(Item(4, key_of(1), page=page_of(4, 1_200_000)), Item(5, key_of(2), kind=2))
        .group(Item(6, space=OTHER_SPACE, kind=3))
        .group(Item(7, key_of(4), OTHER_SPACE, page=page_of(5, 512 * KIB)))
    )
    last = RegionWriter(7).group(Item(8, key_of(5), page=page_of(6, 512 * KIB + 1)))
    return [first.sealed(), second.sealed(), FREE, last.unsealed()]


# ---- what is told


def test_regions_entries_and_what_lives_are_told(write: Callable[..., Path]) -> None:
    fields = as_json(write(*sample_regions()), "--verify", "--entries", status=0)
    assert fields["log_id"] == LOG_ID.hex()
    assert not fields["node_is_running"]
    assert [(one["state"], one["sequence"], one["pages"]) for one in fields["regions"]] == [
        ("sealed", 5, 3),
        ("sealed", 6, 2),
        ("free", 0, 0),
        ("unsealed", 7, 1),
    ]
    assert [one["removals"] for one in fields["regions"]] == [0, 2, 0, 0]
    live = {one["sequence"]: one["live"] for one in fields["entries"] if one["kind"] == "page"}
    assert live == {1: False, 2: False, 3: False, 4: True, 7: True, 8: True}
    assert fields["verified"] == {"sound": 6}
    assert fields["damage"] == []
    spaces = {one["namespace"]: one for one in fields["namespaces"]}
    assert spaces[SPACE.hex()]["live_bytes"] == 1_200_000 + 512 * KIB + 1
    assert spaces[OTHER_SPACE.hex()]["live_pages"] == 1


def test_the_table_is_for_people(write: Callable[..., Path]) -> None:
    folder = write(*sample_regions())
    (folder / "namespaces.tsv").write_text(f"{SPACE.hex()}\tmodel=[bold]qwen[/]\n", "utf-8")
    done = inspect(folder, "--verify", "--entries")
    assert done.exit_code == 0, done.output
    assert "2 sealed" in done.stdout
    assert "1 unsealed" in done.stdout
    assert "6 sound, 0 damaged" in done.stdout
    assert "model=[bold]qwen[/]" in done.stdout, "descriptions are no markup"
    assert f"key {key_of(2).hex()}" in done.stdout


def test_liveness_is_of_the_newest_copy_wherever_it_lies(write: Callable[..., Path]) -> None:
    """Random histories against the one sentence of the format about what kills what."""
    random = Random(1)
    for _ in range(10):
        history: list[Item] = []
        for sequence in range(1, 60):
            kind = random.choice([1, 1, 1, 1, 2, 3])
            space = random.choice([SPACE, OTHER_SPACE])
            key = bytes(32) if kind == 3 else key_of(random.randrange(6))
            history.append(Item(sequence, key, space, kind, b"x" if kind == 1 else b""))
        random.shuffle(history)
        regions = [RegionWriter(n + 1) for n in range(3)]
        for region in regions:
            region.group()
        for item in history:
            random.choice(regions).group(item)
        fields = as_json(write(*[r.sealed() for r in regions]), "--entries", status=0)
        for one in (one for one in fields["entries"] if one["kind"] == "page"):
            killers = [
                item
                for item in history
                if item.sequence > one["sequence"]
                and item.space.hex() == one["namespace"]
                and (item.kind == 3 or item.key.hex() == one["key"])
            ]
            assert one["live"] == (not killers), one


def test_a_footer_of_an_earlier_life_does_not_count(write: Callable[..., Path]) -> None:
    old = RegionWriter(5).group(Item(1, key_of(1), page=page_of(1, 100))).sealed()
    new = RegionWriter(9).group(Item(2, key_of(2), page=page_of(2, 100))).groups
    fields = as_json(write(new + old[len(new) :]), "--entries", status=0)
    assert [(one["state"], one["sequence"]) for one in fields["regions"]] == [("unsealed", 9)]
    assert [one["sequence"] for one in fields["entries"]] == [2]


# ---- damage


def test_a_flipped_bit_in_a_page_is_found_by_verifying_alone(write: Callable[..., Path]) -> None:
    folder = write(*sample_regions())
    flip(folder, HEAD_SIZE + REGION_SIZE + SECTOR + 700_000)  # In the second stripe of page 4.
    assert as_json(folder, status=0)["damage"] == []
    fields = as_json(folder, "--verify", status=1)
    assert fields["verified"] == {"sound": 5, "damaged": 1}
    assert [(one["region"], one["key"]) for one in fields["damage"]] == [(1, key_of(1).hex())]
    assert key_of(1).hex() in inspect(folder, "--verify").stdout


@pytest.mark.parametrize("offset", [0, 9, 40, 130, 255, 4095])
def test_a_damaged_head_leaves_what_the_footer_knows(
    write: Callable[..., Path], offset: int
) -> None:
    folder = write(*sample_regions())
    flip(folder, HEAD_SIZE + offset)
    fields = as_json(folder, "--verify", status=1)
    assert fields["regions"][0]["state"] == "damaged"
    assert fields["verified"] == {"sound": 6}, "pages prove themselves"


@pytest.mark.parametrize("offset", [0, 9, 40, 130, 255, 4095, SECTOR, SECTOR + 40])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_damaged_sector_of_the_lead_costs_nothing(
    write: Callable[..., Path], offset: int, is_sealed: bool
) -> None:
    region = RegionWriter.with_lead(3).group(Item(1, key_of(1), page=page_of(1, 9000)))
    region.group(Item(2, key_of(2), kind=2)).group(Item(2, key_of(2), kind=2))
    folder = write(region.sealed() if is_sealed else region.unsealed())
    flip(folder, HEAD_SIZE + offset)
    fields = as_json(folder, "--verify", "--entries", status=int(offset < SECTOR))
    state = "sealed" if is_sealed else "unsealed"
    assert fields["regions"][0]["state"] == ("damaged" if offset < SECTOR else state)
    sequences = [one["sequence"] for one in fields["entries"]]
    assert sequences == ([1, 2, 2] if is_sealed else [1, 2]), "removals count once"
    assert fields["verified"] == {"sound": 1}


def test_a_lead_that_is_damaged_whole_tells_of_no_life(write: Callable[..., Path]) -> None:
    region = RegionWriter.with_lead(3).group(Item(1, key_of(1), page=page_of(1, 9000)))
    folder = write(region.unsealed())
    flip(folder, HEAD_SIZE + 40)
    flip(folder, HEAD_SIZE + SECTOR + 40)
    fields = as_json(folder, "--entries", status=1)
    assert fields["regions"][0]["state"] == "damaged"
    assert fields["entries"] == []


def test_damaged_entries_are_replaced_by_the_groups(write: Callable[..., Path]) -> None:
    folder = write(*sample_regions())
    flip(folder, HEAD_SIZE + 2 * REGION_SIZE - 2 * SECTOR + 5)
    fields = as_json(folder, "--verify", status=1)
    assert fields["regions"][1]["state"] == "damaged"
    assert fields["regions"][1]["pages"] == 2
    assert fields["verified"] == {"sound": 6}


def test_a_torn_group_is_passed_over(write: Callable[..., Path]) -> None:
    whole = RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 9000)))
    torn = RegionWriter(3, whole.groups, number=1).group(Item(2, key_of(2), page=page_of(2, 9000)))
    torn.group(Item(3, key_of(3), page=page_of(3, 5000)))
    groups = bytearray(torn.groups)
    at = len(whole.groups)
    groups[at + 2048 : at + 2 * SECTOR] = bytes(2 * SECTOR - 2048)
    # Garbage in the header, so that it is torn whatever it held.
    groups[at + 2048] = 1
    folder = write(bytes(groups).ljust(REGION_SIZE, b"\0"))
    fields = as_json(folder, "--verify", "--entries", status=0)
    assert [one["sequence"] for one in fields["entries"]] == [1, 3]
    assert fields["verified"] == {"sound": 2}


def test_a_torn_page_is_being_written_while_a_node_runs(write: Callable[..., Path]) -> None:
    region = RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 9000)))
    folder = write(region.groups[: 2 * SECTOR].ljust(REGION_SIZE, b"\0"))
    assert as_json(folder, "--verify", status=1)["verified"] == {"damaged": 1}
    with (folder / "pages.log").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fields = as_json(folder, "--verify", status=0)
    assert fields["node_is_running"]
    assert fields["regions"][0]["state"] == "being written"
    assert fields["verified"] == {"being written": 1}


def test_a_torn_head_is_being_written_while_a_node_runs(write: Callable[..., Path]) -> None:
    region = RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 9000)))
    folder = write(region.groups[:200].ljust(REGION_SIZE, b"\0"))
    assert as_json(folder, status=1)["regions"][0]["state"] == "damaged"
    with (folder / "pages.log").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fields = as_json(folder, status=0)
    assert fields["regions"][0]["state"] == "being written"
    assert fields["damage"] == []


def test_damage_in_a_sealed_region_is_damage_while_a_node_runs(write: Callable[..., Path]) -> None:
    folder = write(*sample_regions())
    flip(folder, HEAD_SIZE + SECTOR + 3)
    with (folder / "pages.log").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert as_json(folder, "--verify", status=1)["verified"] == {"sound": 5, "damaged": 1}


def test_a_region_that_was_reused_meanwhile_is_no_damage(write: Callable[..., Path]) -> None:
    folder = write(RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 9000))).sealed())
    with LogFile(folder) as log, (folder / "pages.log").open("r+b") as file:
        region = log.read_region(0)
        assert region.state is RegionState.SEALED
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(HEAD_SIZE)
        file.write(RegionWriter(4).group(Item(2, key_of(2), page=page_of(2, 9000))).groups)
        file.flush()
        assert log.verify(region, next(region.pages)) is Verdict.WRITING


# ---- what is no log of ours


def refusal(folder: Path) -> tuple[type[Error], str]:
    with pytest.raises(Error) as caught:
        LogFile(folder)
    done = inspect(folder)
    assert done.exit_code == 1
    assert isinstance(done.exception, Error)
    return type(caught.value), str(caught.value)


def test_a_file_that_is_not_ours_is_refused_by_name(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    kind, text = refusal(tmp_path)
    assert kind is NotFoundError
    assert "ssd" in text
    kind, text = refusal(write(head=b"SQLite format 3\0"))
    assert kind is InvalidArgumentError
    assert str(tmp_path / "pages.log") in text
    (tmp_path / "pages.log").write_bytes(b"")
    assert refusal(tmp_path)[0] is InvalidArgumentError
    kind, text = refusal(write(head=superblock(version=2)))
    assert kind is UnsupportedError
    assert "version 2" in text
    for size in (0, SECTOR, REGION_SIZE + 1, 1 << 40):
        assert refusal(write(head=superblock(region_size=size)))[0] is CorruptError
    folder = write()
    flip(folder, 20)
    assert refusal(folder)[0] is CorruptError


def test_every_flipped_bit_of_a_head_or_a_footer_is_seen(write: Callable[..., Path]) -> None:
    region = sample_regions()[0]
    with LogFile(write(region)) as log:
        for sector, decode in (
            (region[:SECTOR], lambda s: decode_group(log.superblock, s, 0)),
            (region[-SECTOR:], lambda s: decode_footer(log.superblock, s)),
        ):
            assert decode(sector) is not None
            for bit in range(8 * SECTOR):
                flipped = bytearray(sector)
                flipped[bit // 8] ^= 1 << bit % 8
                assert decode(bytes(flipped)) is None, bit


def lies() -> Iterator[tuple[int, bytes]]:
    """Yield what a group's header, in sector 0 of its region, must not say, and where."""
    for count in (2, 32, 2**32 - 1):
        yield 44, struct.pack("<I", count)
    for sectors in (0, 1, 3, REGION_SIZE // SECTOR + 1, 2**32 - 1):
        yield 48, struct.pack("<I", sectors)
    for size in (0, 3 * SECTOR + 1, 2**64 - 1):
        yield 128 + 72, struct.pack("<Q", size)
    for sector in (0, 2, 4, 2**32 - 1):
        yield 128 + 96, struct.pack("<I", sector)
    for kind in (0, 2, 3, 4):
        yield 128 + 100, bytes([kind])
    yield 52, b"\1"
    yield 64, b"\1"
    yield 128 + 101, b"\1"


@pytest.mark.parametrize("lie", list(lies()))
def test_a_group_that_lies_is_refused(write: Callable[..., Path], lie: tuple[int, bytes]) -> None:
    writer = RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 2 * SECTOR + 1)))
    with LogFile(write(writer.sealed())) as log:
        sector = writer.groups[:8] + bytes(8) + writer.groups[16:SECTOR]
        assert decode_group(log.superblock, sealed(sector), 0) is not None
        offset, value = lie
        sector = sector[:offset] + value + sector[offset + len(value) :]
        assert decode_group(log.superblock, sealed(sector), 0) is None


def test_footers_and_entries_that_lie_are_refused(write: Callable[..., Path]) -> None:
    writer = RegionWriter(3).group(Item(1, key_of(1), page=page_of(1, 2 * SECTOR + 1)))
    region = writer.sealed()
    with LogFile(write(region)) as log:
        footer = decode_footer(log.superblock, region[-SECTOR:])
        assert footer is not None
        assert decode_entries(footer, region[-2 * SECTOR : -SECTOR]) is not None
        for size in (0, SECTOR - 1, 2 * SECTOR):
            assert decode_entries(footer, bytes(size)) is None
        for offset, value in ((40, 4 * 31 + 1), (40, 2**64 - 1), (56, 0), (56, 1023), (60, 1)):
            sector = bytearray(region[-SECTOR:])
            sector[8:16] = bytes(8)
            width = 8 if offset == 40 else 4
            sector[offset : offset + width] = value.to_bytes(width, "little")
            assert decode_footer(log.superblock, sealed(bytes(sector))) is None, (offset, value)


# ---- names


def test_descriptions_are_not_believed_blindly(tmp_path: Path) -> None:
    assert read_descriptions(tmp_path) == {}
    lines = [
        SPACE.hex().encode() + b"\tmodel=a\xe2\x80\x93b\twith a tab",
        OTHER_SPACE.hex().encode() + b"\t\x1b[2Jgone\r",
        b"33" * 31 + b"\ttoo short",
        b"zz" * 32 + b"\tno hex",
        b"44" * 32,
        b"55" * 32 + b"\t\xff\xfe",
        b"66" * 31 + b"  \tspaces",
        b"\t" * 70_000,
    ]
    (tmp_path / "namespaces.tsv").write_bytes(b"\n".join(lines))
    assert read_descriptions(tmp_path) == {
        SPACE: "model=a–b\N{REPLACEMENT CHARACTER}with a tab",
        OTHER_SPACE: "\N{REPLACEMENT CHARACTER}[2Jgone\N{REPLACEMENT CHARACTER}",
    }
