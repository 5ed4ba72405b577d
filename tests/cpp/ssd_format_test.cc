// The format: what was encoded is decoded, and nothing else is.
#include "tier/ssd_format.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <functional>

#include "support.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::Random;
using Bytes = std::vector<uint8_t>;

constexpr uint64_t kRegionSize = kMiB;
constexpr uint32_t kRegionSectors = kRegionSize / kSectorSize;

LogId log_id_of(uint8_t n) {
  LogId id;
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<uint8_t>(n + i);
  return id;
}
const LogId kLogId = log_id_of(1);

Sector sector_of(const Bytes& bytes) {
  return std::span(bytes).last<kSectorSize>();
}
MutableSector sector_of(Bytes& bytes) {
  return std::span(bytes).last<kSectorSize>();
}

SsdEntry page_entry(uint64_t n, uint32_t first_sector, uint64_t size) {
  return {.key = key_of(n),
          .name_space = key_of(n + 1000),
          .sequence = n + 7,
          .size = size,
          .checksum = n * 0x9E3779B97F4A7C15,
          .parent_key_hash = n == 0 ? 0 : key_of(n - 1).hash(),
          .first_sector = first_sector};
}

SsdEntry tombstone(uint64_t n, SsdEntryKind kind) {
  SsdEntry entry;
  entry.kind = kind;
  entry.name_space = key_of(n + 1000);
  entry.sequence = n + 7;
  if (kind == SsdEntryKind::kRemoved) entry.key = key_of(n);
  return entry;
}

/// Entries whose pages lie in [first_sector, end_sector), sometimes with room between them.
std::vector<SsdEntry> random_entries(Random& random, size_t count_max, uint32_t first_sector,
                                     uint32_t end_sector) {
  std::vector<SsdEntry> entries;
  uint32_t next = first_sector;
  while (entries.size() < count_max) {
    const uint64_t n = random.below(100);
    if (random.one_in(5)) {
      entries.push_back(
          tombstone(n, random.one_in(2) ? SsdEntryKind::kRemoved : SsdEntryKind::kCleared));
      continue;
    }
    if (random.one_in(4)) next += static_cast<uint32_t>(random.below(3));
    if (next >= end_sector) break;
    const uint64_t size = random.size_up_to((end_sector - next) * kSectorSize);
    entries.push_back(page_entry(n, next, size));
    next += static_cast<uint32_t>(sectors_of(size));
  }
  return entries;
}

Bytes encoded(const Superblock& superblock) {
  Bytes bytes(kSectorSize, 0xEE);  // Encoding leaves nothing of what was there.
  encode(superblock, sector_of(bytes));
  return bytes;
}

Bytes encoded(const GroupHeader& header) {
  Bytes bytes(kSectorSize, 0xEE);
  encode(kLogId, header, sector_of(bytes));
  return bytes;
}

Bytes encoded_footer(uint64_t sequence, uint32_t sector_count, std::span<const SsdEntry> entries) {
  Bytes bytes(footer_sectors(entries.size()) * kSectorSize, 0xEE);
  encode_footer(kLogId, sequence, sector_count, entries, bytes);
  return bytes;
}

/// Whether footer and entries are taken, as a restart reads them.
bool reads(const Bytes& bytes, RegionFooter& footer, std::vector<SsdEntry>& entries) {
  return decode(kLogId, sector_of(bytes), kRegionSize, footer) &&
         decode_entries(footer, std::span(bytes).first(bytes.size() - kSectorSize), entries);
}

GroupHeader sample_group() {
  return {.region_sequence = 12,
          .number = 3,
          .sector_count = 10,  // From sector 5: 1 + 1 + 2 + a hole + 5 sectors.
          .written_at_s = 1'700'000'000,
          .entries = {page_entry(0, 6, 4096), tombstone(5, SsdEntryKind::kRemoved),
                      page_entry(1, 7, 4097), tombstone(6, SsdEntryKind::kCleared),
                      page_entry(2, 10, 5 * 4096)}};
}
constexpr uint32_t kSampleSector = 5;

const Superblock kSampleSuperblock{
    .log_id = kLogId, .region_size_bytes = kRegionSize, .made_at_s = 1'700'000'001};

/// Computes a changed sector's own checksum anew: what a hostile writer would do.
void seal(Bytes& bytes) {
  std::fill_n(sector_of(bytes).begin() + 8, 8, uint8_t{0});
  const uint64_t checksum = XXH3_64bits(sector_of(bytes).data(), kSectorSize);
  std::memcpy(sector_of(bytes).data() + 8, &checksum, sizeof(checksum));
}

bool takes_group(const Bytes& bytes, uint32_t first_sector = kSampleSector,
                 uint64_t region_size = kRegionSize) {
  GroupHeader header;
  return decode(kLogId, sector_of(bytes), first_sector, region_size, header);
}

/// Calls `is_taken(flipped)` for each single-bit flip; none may be.
void expect_each_flip_refused(const Bytes& bytes,
                              const std::function<bool(const Bytes&)>& is_taken) {
  ASSERT_TRUE(is_taken(bytes));
  Bytes flipped = bytes;
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    ASSERT_FALSE(is_taken(flipped)) << "bit " << bit;
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
}

// ---------------------------------------------------------------- there and back

TEST(SsdFormat, SuperblocksReadBack) {
  HICACHE_TRACE_SEED();
  Random random(500);
  for (int i = 0; i < 200; ++i) {
    Superblock superblock;
    random.fill(superblock.log_id);
    superblock.region_size_bytes =
        random.between(kRegionSizeMin / kSectorSize, kRegionSizeMax / kSectorSize) * kSectorSize;
    superblock.made_at_s = random.bits();
    const auto read = decode_superblock(sector_of(encoded(superblock)));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read.value().log_id, superblock.log_id);
    EXPECT_EQ(read.value().region_size_bytes, superblock.region_size_bytes);
    EXPECT_EQ(read.value().made_at_s, superblock.made_at_s);
  }
}

TEST(SsdFormat, GroupsReadBack) {
  HICACHE_TRACE_SEED();
  Random random(501);
  for (int i = 0; i < 500; ++i) {
    const auto first = static_cast<uint32_t>(random.below(kRegionSectors));
    GroupHeader header;
    header.region_sequence = random.bits();
    header.number = static_cast<uint32_t>(random.bits());
    header.sector_count = static_cast<uint32_t>(random.between(1, kRegionSectors - first));
    header.written_at_s = random.bits();
    header.entries = random_entries(random, random.below(kGroupEntryCountMax + 1), first + 1,
                                    first + header.sector_count);
    GroupHeader read;
    ASSERT_TRUE(decode(kLogId, sector_of(encoded(header)), first, kRegionSize, read));
    EXPECT_EQ(read.region_sequence, header.region_sequence);
    EXPECT_EQ(read.number, header.number);
    EXPECT_EQ(read.sector_count, header.sector_count);
    EXPECT_EQ(read.written_at_s, header.written_at_s);
    EXPECT_EQ(read.entries, header.entries);
  }
}

TEST(SsdFormat, ALeadSaysTwiceWhichLifeARegionIsIn) {
  HICACHE_TRACE_SEED();
  Bytes sectors(kLeadSectors * kSectorSize, 0xAB);
  encode_lead(kLogId, 77, 12, sectors);
  for (uint32_t at = 0; at < kLeadSectors; ++at) {
    const Sector sector(sectors.data() + at * kSectorSize, kSectorSize);
    for (uint32_t first = 0; first < 2 * kLeadSectors; ++first) {
      GroupHeader header;
      ASSERT_TRUE(decode(kLogId, sector, first, kRegionSize, header));
      EXPECT_EQ(header.region_sequence, 77u);
      EXPECT_EQ(is_lead(header, first), first == at);
    }
    // What tells of the life lies in one piece of what a disk writes whole.
    EXPECT_TRUE(is_zero(sector.subspan(512)));
  }
  GroupHeader other{.region_sequence = 77,
                    .number = 1,
                    .sector_count = 1,
                    .written_at_s = 0,
                    .entries = {tombstone(1, SsdEntryKind::kRemoved)}};
  EXPECT_FALSE(is_lead(other, 1)) << "a group with removals alone is none";
  other.entries.clear();
  other.sector_count = 2;
  EXPECT_FALSE(is_lead(other, 1)) << "nor is one whose pages were found damaged";
}

TEST(SsdFormat, FootersReadBack) {
  HICACHE_TRACE_SEED();
  Random random(502);
  for (int i = 0; i < 500; ++i) {
    const auto sectors = static_cast<uint32_t>(random.between(1, kRegionSectors - 40));
    const size_t count_max = std::min<size_t>(sectors * kGroupEntryCountMax, 1000);
    const auto entries = random_entries(random, random.below(count_max + 1), 1, sectors);
    const uint64_t sequence = random.bits();
    const Bytes bytes = encoded_footer(sequence, sectors, entries);
    RegionFooter footer;
    std::vector<SsdEntry> read;
    ASSERT_TRUE(reads(bytes, footer, read));
    EXPECT_EQ(footer.region_sequence, sequence);
    EXPECT_EQ(footer.entry_count, entries.size());
    EXPECT_EQ(footer.sector_count, sectors);
    EXPECT_EQ(read, entries);
  }
}

// ---------------------------------------------------------------- damage

TEST(SsdFormat, EveryFlippedBitOfASuperblockIsSeen) {
  expect_each_flip_refused(encoded(kSampleSuperblock), [](const Bytes& bytes) {
    return decode_superblock(sector_of(bytes)).ok();
  });
}

TEST(SsdFormat, EveryFlippedBitOfAGroupIsSeen) {
  expect_each_flip_refused(encoded(sample_group()),
                           [](const Bytes& bytes) { return takes_group(bytes); });
}

TEST(SsdFormat, EveryFlippedBitOfAFooterAndItsEntriesIsSeen) {
  const std::vector<SsdEntry> entries = sample_group().entries;
  expect_each_flip_refused(encoded_footer(9, 15, entries), [](const Bytes& bytes) {
    RegionFooter footer;
    std::vector<SsdEntry> read;
    return reads(bytes, footer, read);
  });
}

TEST(SsdFormat, ATornSectorIsSeen) {
  GroupHeader full = sample_group();
  full.entries.resize(kGroupEntryCountMax, tombstone(9, SsdEntryKind::kRemoved));
  const Bytes whole = encoded(full);
  ASSERT_TRUE(takes_group(whole));
  for (size_t size = 0; size < kSectorSize; size += 512) {
    for (const uint8_t rest : {0x00, 0xFF, 0xA5}) {
      Bytes torn = whole;
      std::fill(torn.begin() + static_cast<ptrdiff_t>(size), torn.end(), rest);
      EXPECT_FALSE(takes_group(torn)) << size;
    }
  }
}

TEST(SsdFormat, TheWrongNumberOfEntrySectorsIsRefused) {
  const std::vector<SsdEntry> entries(40, tombstone(1, SsdEntryKind::kRemoved));
  const Bytes bytes = encoded_footer(9, 15, entries);
  RegionFooter footer;
  ASSERT_TRUE(decode(kLogId, sector_of(bytes), kRegionSize, footer));
  std::vector<SsdEntry> read;
  EXPECT_TRUE(decode_entries(footer, std::span(bytes).first(2 * kSectorSize), read));
  for (const size_t size : {size_t{0}, size_t{1}, size_t{kSectorSize}, 2 * kSectorSize - 1,
                            2 * kSectorSize + 1, 3 * kSectorSize}) {
    EXPECT_FALSE(decode_entries(footer, std::span(bytes).first(size), read)) << size;
  }
  footer.entry_count = UINT64_MAX;  // Its sectors would overflow.
  EXPECT_FALSE(decode_entries(footer, std::span(bytes).first(2 * kSectorSize), read));
}

TEST(SsdFormat, GarbageIsRefused) {
  HICACHE_TRACE_SEED();
  Random random(503);
  for (int i = 0; i < 2000; ++i) {
    Bytes bytes(kSectorSize);
    if (i != 0) random.fill(bytes);
    RegionFooter footer;
    EXPECT_EQ(decode_superblock(sector_of(bytes)).status().code(), Code::kInvalidArgument);
    EXPECT_FALSE(takes_group(bytes));
    EXPECT_FALSE(decode(kLogId, sector_of(bytes), kRegionSize, footer));
  }
}

TEST(SsdFormat, WhatIsOfAnotherLogIsRefused) {
  const Bytes group = encoded(sample_group());
  const Bytes footer_bytes = encoded_footer(9, 15, {});
  GroupHeader header;
  RegionFooter footer;
  EXPECT_FALSE(decode(log_id_of(2), sector_of(group), kSampleSector, kRegionSize, header));
  EXPECT_FALSE(decode(log_id_of(2), sector_of(footer_bytes), kRegionSize, footer));
  EXPECT_FALSE(decode(kLogId, sector_of(footer_bytes), kSampleSector, kRegionSize, header));
  EXPECT_FALSE(decode(kLogId, sector_of(group), kRegionSize, footer));
}

TEST(SsdFormat, ASuperblockSaysWhatIsWrongWithIt) {
  Bytes foreign = encoded(kSampleSuperblock);
  foreign[0] = 'h';
  EXPECT_EQ(decode_superblock(sector_of(foreign)).status().code(), Code::kInvalidArgument);
  Bytes newer = encoded(kSampleSuperblock);
  newer[8] = 2;
  const auto refused = decode_superblock(sector_of(newer));
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
  EXPECT_NE(refused.status().message().find("version 2"), std::string::npos);
  Bytes damaged = encoded(kSampleSuperblock);
  damaged[20] ^= 1;
  EXPECT_EQ(decode_superblock(sector_of(damaged)).status().code(), Code::kCorrupt);
  for (const uint64_t size : {uint64_t{0}, kRegionSizeMin - kSectorSize, kRegionSizeMin + 512,
                              kRegionSizeMax + kSectorSize, UINT64_MAX}) {
    Bytes absurd = encoded(kSampleSuperblock);
    std::memcpy(absurd.data() + 32, &size, sizeof(size));
    const uint64_t checksum = XXH3_64bits(absurd.data(), 48);
    std::memcpy(absurd.data() + 48, &checksum, sizeof(checksum));
    EXPECT_EQ(decode_superblock(sector_of(absurd)).status().code(), Code::kCorrupt) << size;
  }
}

// ---------------------------------------------------------------- lies with the right checksum

template <typename Value>
Bytes with(Bytes bytes, size_t offset, Value value) {
  std::memcpy(sector_of(bytes).data() + offset, &value, sizeof(value));
  seal(bytes);
  return bytes;
}

TEST(SsdFormat, AGroupThatLiesIsRefused) {
  const Bytes sound = encoded(sample_group());
  ASSERT_TRUE(takes_group(with(sound, 40, uint32_t{3})));
  EXPECT_FALSE(takes_group(with(sound, 44, uint32_t{4}))) << "an entry behind the count";
  EXPECT_FALSE(takes_group(with(sound, 44, uint32_t{6}))) << "an entry of no kind";
  EXPECT_FALSE(takes_group(with(sound, 44, uint32_t{32})));
  EXPECT_FALSE(takes_group(with(sound, 44, UINT32_MAX)));
  EXPECT_FALSE(takes_group(with(sound, 48, uint32_t{0})));
  EXPECT_FALSE(takes_group(with(sound, 48, uint32_t{9}))) << "the last page sticks out";
  EXPECT_FALSE(takes_group(with(sound, 48, UINT32_MAX)));
  EXPECT_FALSE(takes_group(with(sound, 52, uint32_t{1}))) << "what is not named is zero";
  EXPECT_FALSE(takes_group(with(sound, 127, uint8_t{1})));
  EXPECT_FALSE(takes_group(with(sound, kSectorSize - 1, uint8_t{1})));
  EXPECT_FALSE(takes_group(sound, kSampleSector + 1)) << "a page lies on the header";
  EXPECT_TRUE(takes_group(sound, kSampleSector, 15 * kSectorSize));
  EXPECT_FALSE(takes_group(sound, kSampleSector, 14 * kSectorSize));
  EXPECT_FALSE(takes_group(sound, UINT32_MAX));
}

TEST(SsdFormat, AnEntryThatLiesIsRefused) {
  const Bytes sound = encoded(sample_group());
  const auto at = [](size_t entry, size_t offset) { return 128 + entry * kSsdEntrySize + offset; };
  for (const uint8_t kind : {0, 2, 3, 4, 255}) {
    EXPECT_FALSE(takes_group(with(sound, at(0, 100), kind))) << int{kind};
  }
  for (const uint64_t size : {uint64_t{0}, uint64_t{4097}, UINT64_MAX, UINT64_MAX - 4095}) {
    EXPECT_FALSE(takes_group(with(sound, at(0, 72), size))) << size;
  }
  for (const uint32_t sector : {0U, 5U, 7U, 15U, UINT32_MAX}) {
    EXPECT_FALSE(takes_group(with(sound, at(0, 96), sector))) << sector;
  }
  EXPECT_FALSE(takes_group(with(sound, at(2, 96), uint32_t{6}))) << "out of order";
  EXPECT_FALSE(takes_group(with(sound, at(0, 101), uint8_t{1})));
  EXPECT_FALSE(takes_group(with(sound, at(0, 127), uint8_t{1})));
  // Removed and cleared: nothing of a page, and a cleared one has no key.
  for (const size_t entry : {1, 3}) {
    for (const size_t offset : {72, 80, 88, 96}) {
      EXPECT_FALSE(takes_group(with(sound, at(entry, offset), uint8_t{1}))) << offset;
    }
  }
  EXPECT_TRUE(takes_group(with(sound, at(1, 0), uint8_t{1})));
  EXPECT_FALSE(takes_group(with(sound, at(3, 0), uint8_t{1})));
}

TEST(SsdFormat, AFooterThatLiesIsRefused) {
  const Bytes sound = encoded_footer(9, 15, sample_group().entries);
  const auto takes = [](const Bytes& bytes) {
    RegionFooter footer;
    return decode(kLogId, sector_of(bytes), kRegionSize, footer);
  };
  ASSERT_TRUE(takes(sound));
  EXPECT_TRUE(takes(with(sound, 40, uint64_t{15 * 31})));
  EXPECT_FALSE(takes(with(sound, 40, uint64_t{15 * 31 + 1}))) << "more than its groups can hold";
  EXPECT_FALSE(takes(with(sound, 40, UINT64_MAX)));
  EXPECT_FALSE(takes(with(sound, 40, uint64_t{1} << 57))) << "their size would be zero";
  EXPECT_FALSE(takes(with(sound, 56, uint32_t{0})));
  EXPECT_TRUE(takes(with(sound, 56, kRegionSectors - 2)));
  EXPECT_FALSE(takes(with(sound, 56, kRegionSectors - 1))) << "groups and entries overlap";
  EXPECT_FALSE(takes(with(sound, 56, UINT32_MAX)));
  EXPECT_FALSE(takes(with(sound, 60, uint8_t{1})));
  // Entries outside the groups that the footer tells of.
  RegionFooter footer;
  std::vector<SsdEntry> entries;
  EXPECT_TRUE(reads(sound, footer, entries));
  EXPECT_FALSE(reads(with(sound, 56, uint32_t{14}), footer, entries));
}

// ---------------------------------------------------------------- golden bytes

/// Version 1 as it was first written. Whoever changes these numbers changes the format, and must
/// give it a new version.
TEST(SsdFormat, IsTheSameAsEver) {
  const Bytes superblock = encoded(kSampleSuperblock);
  const Bytes head{'H', 'I', 'C', 'A', 'C', 'H', 'E', '1', 1,    0,    0,    0,    0,  0x10, 0,  0,
                   1,   2,   3,   4,   5,   6,   7,   8,   9,    10,   11,   12,   13, 14,   15, 16,
                   0,   0,   16,  0,   0,   0,   0,   0,   0x01, 0xF1, 0x53, 0x65, 0,  0,    0,  0};
  EXPECT_EQ(Bytes(superblock.begin(), superblock.begin() + 48), head);
  const Bytes group = encoded(sample_group());
  const Bytes footer = encoded_footer(9, 15, sample_group().entries);
  const auto digest = [](const Bytes& bytes) { return XXH64(bytes.data(), bytes.size(), 1); };
  EXPECT_EQ(digest(superblock), 5244388595656443489U);
  EXPECT_EQ(digest(group), 213046394481477078U);
  EXPECT_EQ(digest(footer), 17999957724683727706U);
  const Bytes group_head(group.begin() + 32, group.begin() + 64);
  EXPECT_EQ(group_head, (Bytes{12, 0, 0, 0, 0, 0, 0, 0, 3, 0,    0,    0,    5, 0, 0, 0,
                               10, 0, 0, 0, 0, 0, 0, 0, 0, 0xF1, 0x53, 0x65, 0, 0, 0, 0}));
  const Bytes entry(group.begin() + 128 + 2 * 128, group.begin() + 128 + 3 * 128);
  Bytes expected(128);
  const SsdEntry page = sample_group().entries[2];
  std::copy(page.key.bytes.begin(), page.key.bytes.end(), expected.begin());
  std::copy(page.name_space.bytes.begin(), page.name_space.bytes.end(), expected.begin() + 32);
  std::memcpy(&expected[64], &page.sequence, 8);
  std::memcpy(&expected[72], &page.size, 8);
  std::memcpy(&expected[80], &page.checksum, 8);
  std::memcpy(&expected[88], &page.parent_key_hash, 8);
  expected[96] = 7;
  expected[100] = 1;
  EXPECT_EQ(entry, expected);
}

}  // namespace
}  // namespace hicache
