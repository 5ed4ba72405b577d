// The SSD log as bytes in a file. Version 1. Pure: encodes and checks, reads and writes nothing.
//
// A directory holds one file, `pages.log`: a superblock and regions of one size. Who writes to it
// holds its lock (flock, exclusive), by which readers know that they may meet torn bytes.
//
//   0            64 KiB           + region size      + region size
//   +------------+----------------+-----------------+---------------- ...
//   | superblock | region 0       | region 1        | region 2
//   +------------+----------------+-----------------+---------------- ...
//
// A region is filled from its start by groups, one write each, and sealed by a footer at its end.
// All units are sectors of 4 KiB.
//
//   region  +------+------+-------+-- ... --+-------+- free -+-----------------+--------+
//           | lead | lead | group |         | group |        | entries of all  | footer |
//           +------+------+-------+-- ... --+-------+--------+-----------------+--------+
//            1 each, groups 0 and 1                            whole sectors     1 sector
//
//   group   +--------------------------------+--------+--------+-- ... --+--------+
//           | header, 128 bytes, then up to  | page 0 | page 1 |         | page n |
//           | 31 entries of 128 bytes        | each padded to whole sectors        |
//           +--------------------------------+--------+--------+-- ... --+--------+
//             1 sector
//
// What only one sector would know of a region without a footer stands in two. The lead is two
// groups without entries, written together with the first group that has some: either says of which
// life of the region the groups behind it are. And after a group with removals comes, in the same
// write, one that has the removals alone, once more.
//
// Every value is little-endian; what is not named is zero. Offsets in bytes.
//
//   superblock (1 sector)           group header                      region footer (1 sector)
//     0  magic "HICACHE1"             0  magic "HICGROUP"               0  magic "HICFOOT1"
//     8  version (u32)                8  checksum of the sector         8  checksum of the sector
//    12  sector size (u32)           16  log id (16 bytes)             16  log id (16 bytes)
//    16  log id (16 bytes)           32  region sequence (u64)         32  region sequence (u64)
//    32  region size (u64)           40  group number (u32)            40  entry count (u64)
//    40  made at, unix s (u64)       44  entry count (u32)             48  checksum of the entries
//    (u64) 48  checksum of [0, 48)         48  sectors of the group (u32)    56  sectors of all
//    groups (u32)
//                                    56  written at, unix s (u64)
//
//   entry (128 bytes)
//     0  key (32 bytes)
//    32  namespace digest (32 bytes)
//    64  sequence (u64)               grows with every entry of the node, over all its directories
//    72  size of the page (u64)
//    80  checksum of the page (u64)   XXH3, as the page store keeps it
//    88  hash of the parent's key (u64), 0: chain root, or unknown
//    96  first sector of the page in the region (u32)
//   100  kind (u8)                    1 page, 2 removed, 3 cleared
//
// A sector's checksum is XXH3-64 over the sector with the checksum itself as zero; that of the
// entries before a footer covers their sectors, padding included. Pages lie in the order of their
// entries. What is only of pages (bytes 72 to 100) is zero in other entries, and so is the key of a
// cleared one.
//
// What holds a region together is its sequence, a number never used twice in a log: a footer counts
// only if the lead carries the same, so the first write into a reused region takes its old content
// out of the log. Before that, lead and footer are overwritten with zeros: what lies behind a lead
// that is damaged whole, without a footer, may be of any earlier life, and is not believed. A log
// may have regions without a lead, of a program that wrote none: there the first sector, with the
// header of group 0, stands alone. A `removed` entry kills the page of that key and namespace
// with a smaller sequence wherever it lies, a `cleared` entry every such page of its namespace.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace hicache {

inline constexpr uint32_t kSsdFormatVersion = 1;
inline constexpr uint64_t kSuperblockSize = 64 * kKiB;  // What is set aside for it.
inline constexpr size_t kGroupEntryCountMax = 31;
inline constexpr uint32_t kLeadSectors = 2;
inline constexpr uint64_t kSsdEntrySize = 128;
inline constexpr uint64_t kRegionSizeMin = 64 * kKiB;
inline constexpr uint64_t kRegionSizeMax = 4 * kGiB;  // Sector numbers in a region fit 32 bits.
/// One that is written, one that is free for what is worth keeping of a third.
inline constexpr uint64_t kRegionCountMin = 3;
inline constexpr const char* kSsdFileName = "pages.log";

using LogId = std::array<uint8_t, 16>;
using Sector = std::span<const uint8_t, kSectorSize>;
using MutableSector = std::span<uint8_t, kSectorSize>;

constexpr uint64_t sectors_of(uint64_t size) {
  return (size + kSectorSize - 1) / kSectorSize;
}

enum class SsdEntryKind : uint8_t { kPage = 1, kRemoved = 2, kCleared = 3 };

struct SsdEntry {
  SsdEntryKind kind = SsdEntryKind::kPage;
  Key key;  // Zero for kCleared.
  NamespaceDigest name_space;
  uint64_t sequence = 0;
  uint64_t size = 0;  // Of pages; so are the rest.
  uint64_t checksum = 0;
  uint64_t parent_key_hash = 0;  // Key::hash() of the parent.
  uint32_t first_sector = 0;     // In the region.

  bool operator==(const SsdEntry&) const = default;
};

struct Superblock {
  LogId log_id{};
  uint64_t region_size_bytes = 0;
  uint64_t made_at_s = 0;
};

struct GroupHeader {
  uint64_t region_sequence = 0;
  uint32_t number = 0;        // Of the group in its region, from 0.
  uint32_t sector_count = 0;  // The header included.
  uint64_t written_at_s = 0;
  std::vector<SsdEntry> entries;
};

struct RegionFooter {
  uint64_t region_sequence = 0;
  uint64_t entry_count = 0;
  uint64_t entries_checksum = 0;
  uint32_t sector_count = 0;  // Of all groups.
};

void encode(const Superblock& superblock, MutableSector sector);
/// kInvalidArgument: not ours. kUnsupported: of another version. kCorrupt: ours, but damaged. The
/// messages say what was found; the caller adds where, and the remedy.
Result<Superblock> decode_superblock(Sector sector);

/// Requires at most kGroupEntryCountMax entries, which decode() would take.
void encode(const LogId& log_id, const GroupHeader& header, MutableSector sector);
/// False for anything that is not a whole, sound header of this log: its pages lie behind the
/// header, inside the group, in order, without overlap; the group lies inside the region.
/// `first_sector`: where in the region the header lies. What is in `header` after false means
/// nothing.
bool decode(const LogId& log_id, Sector sector, uint32_t first_sector, uint64_t region_size_bytes,
            GroupHeader& header);

/// Writes a region's lead to `sectors`, which has kLeadSectors of them.
void encode_lead(const LogId& log_id, uint64_t region_sequence, uint64_t written_at_s,
                 std::span<uint8_t> sectors);
/// Of a sound header in that sector of a region: it is of the lead.
bool is_lead(const GroupHeader& header, uint32_t first_sector);
/// What can no longer be decoded seems to have been the header of a group of that life.
bool was_group(const LogId& log_id, uint64_t region_sequence, Sector sector);
/// Nothing was ever written there, or it was erased.
bool is_zero(std::span<const uint8_t> bytes);

/// Sectors that a region's footer takes, its entries included.
constexpr uint64_t footer_sectors(uint64_t entry_count) {
  return sectors_of(entry_count * kSsdEntrySize) + 1;
}
/// Writes entries and footer to `sectors`, which has footer_sectors(entries.size()) of them.
void encode_footer(const LogId& log_id, uint64_t region_sequence, uint32_t sector_count,
                   std::span<const SsdEntry> entries, std::span<uint8_t> sectors);
/// Checks the last sector of a region alone; its counts fit the region.
bool decode(const LogId& log_id, Sector sector, uint64_t region_size_bytes, RegionFooter& footer);
/// Checks and reads the entries that lie before it: `sectors` are the footer_sectors(count) - 1
/// sectors. Each page lies inside the region's groups.
bool decode_entries(const RegionFooter& footer, std::span<const uint8_t> sectors,
                    std::vector<SsdEntry>& entries);

}  // namespace hicache
