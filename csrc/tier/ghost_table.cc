#include "tier/ghost_table.h"

#include <utility>

namespace hicache {
namespace {

uint32_t tag_of(uint64_t hash) {
  return static_cast<uint32_t>((hash * 0x9e3779b97f4a7c15u) >> 32);
}

}  // namespace

GhostTable::GhostTable(size_t entry_count_min) {
  while ((kWays << set_bits_) < entry_count_min) ++set_bits_;
  entries_.assign(kWays << set_bits_, Entry{0, 0, 0});
}

GhostTable::Entry* GhostTable::set_of(uint32_t tag) {
  // The top bits choose the set, so that doubling splits each set in two.
  const size_t set = set_bits_ == 0 ? 0 : tag >> (32 - set_bits_);
  return &entries_[set * kWays];
}

void GhostTable::reserve(size_t entry_count) {
  if (entry_count <= entries_.size()) return;
  std::vector<Entry> old = std::move(entries_);
  while ((kWays << set_bits_) < entry_count) ++set_bits_;
  entries_.assign(kWays << set_bits_, Entry{0, 0, 0});
  for (const Entry& entry : old) {
    if (entry.stamp == 0 && entry.mark == 0) continue;
    Entry* set = set_of(entry.tag);
    for (size_t way = 0; way < kWays; ++way) {
      if (set[way].stamp != 0 || set[way].mark != 0) continue;
      set[way] = entry;
      break;
    }
  }
}

std::optional<GhostTable::Ghost> GhostTable::add(uint64_t hash, Ghost ghost, uint32_t now_stamp) {
  const uint32_t tag = tag_of(hash);
  Entry* set = set_of(tag);
  Entry* chosen = set;
  uint32_t oldest_age = 0;
  bool is_forgetting = true;
  for (size_t way = 0; way < kWays; ++way) {
    Entry& entry = set[way];
    if ((entry.stamp == 0 && entry.mark == 0) || entry.tag == tag) {
      chosen = &entry;
      is_forgetting = false;
      break;
    }
    const uint32_t age = (now_stamp - entry.stamp) & kStampMax;
    if (age >= oldest_age) {
      oldest_age = age;
      chosen = &entry;
    }
  }
  std::optional<Ghost> forgotten;
  if (is_forgetting) forgotten = Ghost{chosen->stamp, static_cast<uint8_t>(chosen->mark)};
  *chosen = {tag, ghost.stamp & kStampMax, ghost.mark};
  if (chosen->stamp == 0 && chosen->mark == 0) chosen->stamp = 1;
  return forgotten;
}

std::optional<GhostTable::Ghost> GhostTable::take(uint64_t hash) {
  const uint32_t tag = tag_of(hash);
  Entry* set = set_of(tag);
  for (size_t way = 0; way < kWays; ++way) {
    if (set[way].tag != tag || (set[way].stamp == 0 && set[way].mark == 0)) continue;
    const Ghost ghost{set[way].stamp, static_cast<uint8_t>(set[way].mark)};
    set[way] = {0, 0, 0};
    return ghost;
  }
  return std::nullopt;
}

}  // namespace hicache
