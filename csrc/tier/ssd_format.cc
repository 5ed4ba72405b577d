#include "tier/ssd_format.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <string>

namespace hicache {
namespace {

static_assert(std::endian::native == std::endian::little, "the format's values are little-endian");

using Magic = std::array<char, 8>;
constexpr Magic kSuperblockMagic{'H', 'I', 'C', 'A', 'C', 'H', 'E', '1'};
constexpr Magic kGroupMagic{'H', 'I', 'C', 'G', 'R', 'O', 'U', 'P'};
constexpr Magic kFooterMagic{'H', 'I', 'C', 'F', 'O', 'O', 'T', '1'};

// Of groups and footers alike.
constexpr size_t kChecksumAt = 8;
constexpr size_t kLogIdAt = 16;
constexpr size_t kRegionSequenceAt = 32;

constexpr size_t kSuperblockChecksumAt = 48;
constexpr size_t kSuperblockUsed = 56;
constexpr size_t kGroupUsed = 64;
constexpr size_t kGroupEntriesAt = 128;
constexpr size_t kFooterUsed = 60;
constexpr size_t kEntryUsed = 101;
static_assert(kGroupEntriesAt + kGroupEntryCountMax * kSsdEntrySize == kSectorSize);

template <typename Value>
void put(std::span<uint8_t> bytes, size_t offset, const Value& value) {
  std::memcpy(bytes.subspan(offset, sizeof(value)).data(), &value, sizeof(value));
}

template <typename Value>
Value get(std::span<const uint8_t> bytes, size_t offset) {
  Value value;
  std::memcpy(&value, bytes.subspan(offset, sizeof(value)).data(), sizeof(value));
  return value;
}

uint64_t checksum_of(std::span<const uint8_t> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

uint64_t sector_checksum(Sector sector) {
  std::array<uint8_t, kSectorSize> copy;
  std::memcpy(copy.data(), sector.data(), copy.size());
  put(copy, kChecksumAt, uint64_t{0});
  return checksum_of(copy);
}

bool is_sound_sector(const LogId& log_id, Sector sector, const Magic& magic) {
  return get<Magic>(sector, 0) == magic && get<LogId>(sector, kLogIdAt) == log_id &&
         get<uint64_t>(sector, kChecksumAt) == sector_checksum(sector);
}

void encode_entry(const SsdEntry& entry, std::span<uint8_t> bytes) {
  put(bytes, 0, entry.key.bytes);
  put(bytes, 32, entry.name_space.bytes);
  put(bytes, 64, entry.sequence);
  put(bytes, 72, entry.size);
  put(bytes, 80, entry.checksum);
  put(bytes, 88, entry.parent_key_hash);
  put(bytes, 96, entry.first_sector);
  put(bytes, 100, static_cast<uint8_t>(entry.kind));
}

/// Takes entries in their order, and says whether each is sound: pages lie between two sectors, one
/// behind the other; the other kinds have nothing of a page.
class EntryCheck {
 public:
  EntryCheck(uint64_t first_sector, uint64_t end_sector) : next_(first_sector), end_(end_sector) {}

  bool takes(const SsdEntry& entry) {
    if (entry.kind == SsdEntryKind::kPage) {
      if (entry.first_sector < next_ || entry.first_sector >= end_) return false;
      if (entry.size == 0 || entry.size > (end_ - entry.first_sector) * kSectorSize) return false;
      next_ = entry.first_sector + sectors_of(entry.size);
      return true;
    }
    if (entry.kind != SsdEntryKind::kRemoved && entry.kind != SsdEntryKind::kCleared) return false;
    if (entry.kind == SsdEntryKind::kCleared && entry.key != Key{}) return false;
    return entry.size == 0 && entry.checksum == 0 && entry.parent_key_hash == 0 &&
           entry.first_sector == 0;
  }

 private:
  uint64_t next_;
  uint64_t end_;
};

/// Reads `count` entries. False if one is not sound or a byte behind them is not zero.
bool decode_entries_of(std::span<const uint8_t> bytes, size_t count, EntryCheck check,
                       std::vector<SsdEntry>& entries) {
  entries.clear();
  entries.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const std::span<const uint8_t> one = bytes.subspan(i * kSsdEntrySize, kSsdEntrySize);
    SsdEntry& entry = entries.emplace_back();
    entry.kind = static_cast<SsdEntryKind>(one[100]);
    entry.key.bytes = get<std::array<uint8_t, kKeySize>>(one, 0);
    entry.name_space.bytes = get<std::array<uint8_t, kKeySize>>(one, 32);
    entry.sequence = get<uint64_t>(one, 64);
    entry.size = get<uint64_t>(one, 72);
    entry.checksum = get<uint64_t>(one, 80);
    entry.parent_key_hash = get<uint64_t>(one, 88);
    entry.first_sector = get<uint32_t>(one, 96);
    if (!check.takes(entry) || !is_zero(one.subspan(kEntryUsed))) return false;
  }
  return is_zero(bytes.subspan(count * kSsdEntrySize));
}

void clear(std::span<uint8_t> bytes) {
  std::memset(bytes.data(), 0, bytes.size());
}

bool is_region_size(uint64_t size) {
  return size >= kRegionSizeMin && size <= kRegionSizeMax && size % kSectorSize == 0;
}

}  // namespace

bool is_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

void encode(const Superblock& superblock, MutableSector sector) {
  assert(is_region_size(superblock.region_size_bytes));
  clear(sector);
  put(sector, 0, kSuperblockMagic);
  put(sector, 8, kSsdFormatVersion);
  put(sector, 12, static_cast<uint32_t>(kSectorSize));
  put(sector, kLogIdAt, superblock.log_id);
  put(sector, 32, superblock.region_size_bytes);
  put(sector, 40, superblock.made_at_s);
  put(sector, kSuperblockChecksumAt, checksum_of(sector.first(kSuperblockChecksumAt)));
}

Result<Superblock> decode_superblock(Sector sector) {
  if (get<Magic>(sector, 0) != kSuperblockMagic) {
    return Status(Code::kInvalidArgument, "it does not begin with \"HICACHE1\"");
  }
  // Before the checksum: another version may keep it elsewhere.
  const auto version = get<uint32_t>(sector, 8);
  if (version != kSsdFormatVersion) {
    return Status(Code::kUnsupported, "its format has version " + std::to_string(version) +
                                          ", this program reads version " +
                                          std::to_string(kSsdFormatVersion));
  }
  const auto checksum = get<uint64_t>(sector, kSuperblockChecksumAt);
  if (checksum != checksum_of(sector.first(kSuperblockChecksumAt)) ||
      !is_zero(sector.subspan(kSuperblockUsed))) {
    return Status(Code::kCorrupt, "its superblock does not match its checksum");
  }
  const auto sector_size = get<uint32_t>(sector, 12);
  const Superblock superblock{.log_id = get<LogId>(sector, kLogIdAt),
                              .region_size_bytes = get<uint64_t>(sector, 32),
                              .made_at_s = get<uint64_t>(sector, 40)};
  if (sector_size != kSectorSize || !is_region_size(superblock.region_size_bytes)) {
    return Status(Code::kCorrupt, "its superblock tells of regions of " +
                                      std::to_string(superblock.region_size_bytes) +
                                      " bytes and sectors of " + std::to_string(sector_size) +
                                      ", which no log has");
  }
  return superblock;
}

void encode(const LogId& log_id, const GroupHeader& header, MutableSector sector) {
  assert(header.entries.size() <= kGroupEntryCountMax);
  clear(sector);
  put(sector, 0, kGroupMagic);
  put(sector, kLogIdAt, log_id);
  put(sector, kRegionSequenceAt, header.region_sequence);
  put(sector, 40, header.number);
  put(sector, 44, static_cast<uint32_t>(header.entries.size()));
  put(sector, 48, header.sector_count);
  put(sector, 56, header.written_at_s);
  for (size_t i = 0; i < header.entries.size(); ++i) {
    encode_entry(header.entries[i], sector.subspan(kGroupEntriesAt + i * kSsdEntrySize));
  }
  put(sector, kChecksumAt, sector_checksum(sector));
}

bool decode(const LogId& log_id, Sector sector, uint32_t first_sector, uint64_t region_size_bytes,
            GroupHeader& header) {
  if (!is_sound_sector(log_id, sector, kGroupMagic)) return false;
  header.region_sequence = get<uint64_t>(sector, kRegionSequenceAt);
  header.number = get<uint32_t>(sector, 40);
  header.sector_count = get<uint32_t>(sector, 48);
  header.written_at_s = get<uint64_t>(sector, 56);
  const auto entry_count = get<uint32_t>(sector, 44);
  const uint64_t end_sector = uint64_t{first_sector} + header.sector_count;
  if (entry_count > kGroupEntryCountMax || header.sector_count == 0 ||
      end_sector > region_size_bytes / kSectorSize) {
    return false;
  }
  if (get<uint32_t>(sector, 52) != 0 ||
      !is_zero(sector.subspan(kGroupUsed, kGroupEntriesAt - kGroupUsed))) {
    return false;
  }
  return decode_entries_of(sector.subspan(kGroupEntriesAt), entry_count,
                           EntryCheck(uint64_t{first_sector} + 1, end_sector), header.entries);
}

void encode_lead(const LogId& log_id, uint64_t region_sequence, uint64_t written_at_s,
                 std::span<uint8_t> sectors) {
  assert(sectors.size() == kLeadSectors * kSectorSize);
  for (uint32_t i = 0; i < kLeadSectors; ++i) {
    encode(log_id, GroupHeader{region_sequence, i, 1, written_at_s, {}},
           MutableSector(sectors.subspan(i * kSectorSize).first<kSectorSize>()));
  }
}

bool is_lead(const GroupHeader& header, uint32_t first_sector) {
  return first_sector < kLeadSectors && header.number == first_sector && header.sector_count == 1 &&
         header.entries.empty();
}

bool was_group(const LogId& log_id, uint64_t region_sequence, Sector sector) {
  // Damage to one of the three leaves the others.
  const int matches = (get<Magic>(sector, 0) == kGroupMagic) +
                      (get<LogId>(sector, kLogIdAt) == log_id) +
                      (get<uint64_t>(sector, kRegionSequenceAt) == region_sequence);
  return matches >= 2;
}

void encode_footer(const LogId& log_id, uint64_t region_sequence, uint32_t sector_count,
                   std::span<const SsdEntry> entries, std::span<uint8_t> sectors) {
  assert(sectors.size() == footer_sectors(entries.size()) * kSectorSize);
  clear(sectors);
  for (size_t i = 0; i < entries.size(); ++i) {
    encode_entry(entries[i], sectors.subspan(i * kSsdEntrySize));
  }
  const MutableSector sector = sectors.last<kSectorSize>();
  put(sector, 0, kFooterMagic);
  put(sector, kLogIdAt, log_id);
  put(sector, kRegionSequenceAt, region_sequence);
  put(sector, 40, static_cast<uint64_t>(entries.size()));
  put(sector, 48, checksum_of(sectors.first(sectors.size() - kSectorSize)));
  put(sector, 56, sector_count);
  put(sector, kChecksumAt, sector_checksum(sector));
}

bool decode(const LogId& log_id, Sector sector, uint64_t region_size_bytes, RegionFooter& footer) {
  if (!is_sound_sector(log_id, sector, kFooterMagic)) return false;
  footer.region_sequence = get<uint64_t>(sector, kRegionSequenceAt);
  footer.entry_count = get<uint64_t>(sector, 40);
  footer.entries_checksum = get<uint64_t>(sector, 48);
  footer.sector_count = get<uint32_t>(sector, 56);
  // First alone: the sums below must not overflow.
  if (footer.entry_count > region_size_bytes / kSsdEntrySize) return false;
  return footer.sector_count != 0 &&
         footer.entry_count <= uint64_t{footer.sector_count} * kGroupEntryCountMax &&
         footer.sector_count + footer_sectors(footer.entry_count) <=
             region_size_bytes / kSectorSize &&
         is_zero(sector.subspan(kFooterUsed));
}

bool decode_entries(const RegionFooter& footer, std::span<const uint8_t> sectors,
                    std::vector<SsdEntry>& entries) {
  if (sectors.size() % kSectorSize != 0 || footer.entry_count > sectors.size() / kSsdEntrySize ||
      sectors.size() != (footer_sectors(footer.entry_count) - 1) * kSectorSize ||
      checksum_of(sectors) != footer.entries_checksum) {
    return false;
  }
  // A header comes before the first page.
  return decode_entries_of(sectors, footer.entry_count, EntryCheck(1, footer.sector_count),
                           entries);
}

}  // namespace hicache
