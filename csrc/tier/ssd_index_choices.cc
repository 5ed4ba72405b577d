// What to reuse and what to rewrite: the questions that SsdIndex answers without changing.
#include <algorithm>
#include <utility>

#include "tier/ssd_format.h"
#include "tier/ssd_index.h"

namespace hicache {
namespace {

constexpr uint32_t kNoPosition = UINT32_MAX;

/// Pages of one region by position in its list, with what decides which of them are rewritten.
class RewriteChoice {
 public:
  enum class Reach : uint8_t { kUnknown, kAsked, kReached, kLost };

  struct Candidate {
    uint64_t size_on_disk = 0;
    uint64_t chain_size = 0;  // With its ancestors in this region, once it is known to be reached.
    uint32_t parent = kNoPosition;  // Its position, if it lies in this region.
    uint16_t reads = 0;
    bool has_children = false;
    Reach reach = Reach::kUnknown;
    bool is_chosen = false;
  };

  explicit RewriteChoice(std::vector<Candidate> candidates) : all_(std::move(candidates)) {}

  /// Positions of those to rewrite, ascending.
  std::vector<uint32_t> choose(uint64_t bytes_max) {
    for (const uint32_t position : order()) take_with_ancestors(position, bytes_max);
    std::vector<uint32_t> chosen;
    for (uint32_t i = 0; i < all_.size(); ++i) {
      if (all_[i].is_chosen) chosen.push_back(i);
    }
    return chosen;
  }

 private:
  /// Candidates that can be reached, the most wanted first.
  std::vector<uint32_t> order() {
    std::vector<uint32_t> order;
    for (uint32_t i = 0; i < all_.size(); ++i) {
      if ((all_[i].reads != 0 || all_[i].has_children) && is_reached(i)) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [this](uint32_t left, uint32_t right) {
      const Candidate& a = all_[left];
      const Candidate& b = all_[right];
      return a.reads != b.reads ? a.reads > b.reads : a.has_children > b.has_children;
    });
    return order;
  }

  /// Whether the chain leads out of the region, to a page that stays or to a root. A disk may tell
  /// of chains that bite their own tail: no such page is reached.
  bool is_reached(uint32_t position) {
    std::vector<uint32_t> asked;
    while (all_[position].reach == Reach::kUnknown && all_[position].parent != kNoPosition) {
      all_[position].reach = Reach::kAsked;
      asked.push_back(position);
      position = all_[position].parent;
    }
    Candidate& top = all_[position];
    if (top.reach == Reach::kUnknown) {
      top.reach = Reach::kReached;
      top.chain_size = top.size_on_disk;
    }
    if (top.reach == Reach::kAsked) top.reach = Reach::kLost;
    const Reach found = top.reach;
    uint64_t chain_size = top.chain_size;
    for (auto child = asked.rbegin(); child != asked.rend(); ++child) {
      chain_size += all_[*child].size_on_disk;
      all_[*child].chain_size = chain_size;
      all_[*child].reach = found;
    }
    return found == Reach::kReached;
  }

  void take_with_ancestors(uint32_t position, uint64_t bytes_max) {
    if (all_[position].chain_size > bytes_max) return;  // Whatever part of it is chosen already.
    uint64_t size = 0;
    for (uint32_t i = position; i != kNoPosition && !all_[i].is_chosen; i = all_[i].parent) {
      size += all_[i].size_on_disk;
      if (size > bytes_max - chosen_bytes_) return;
    }
    for (uint32_t i = position; i != kNoPosition && !all_[i].is_chosen; i = all_[i].parent) {
      all_[i].is_chosen = true;
    }
    chosen_bytes_ += size;
  }

  std::vector<Candidate> all_;
  uint64_t chosen_bytes_ = 0;
};

}  // namespace

RegionIndex SsdIndex::choose_victim(const std::function<bool(RegionIndex)>& is_eligible) const {
  std::vector<RegionIndex> eligible;
  for (RegionIndex region = 0; region < regions_.size(); ++region) {
    if (is_eligible(region)) eligible.push_back(region);
  }
  if (eligible.empty()) return kNoRegion;
  const auto is_older = [this](RegionIndex left, RegionIndex right) {
    const Region& a = regions_[left];
    const Region& b = regions_[right];
    return a.sequence != b.sequence ? a.sequence < b.sequence : left < right;
  };
  RegionIndex empty = kNoRegion;
  for (const RegionIndex region : eligible) {
    if (regions_[region].page_count != 0) continue;
    if (empty == kNoRegion || is_older(region, empty)) empty = region;
  }
  if (empty != kNoRegion) return empty;
  const size_t older_count = std::max<size_t>(1, eligible.size() / 2);
  const auto older_end = eligible.begin() + static_cast<ptrdiff_t>(older_count);
  std::nth_element(eligible.begin(), older_end - 1, eligible.end(), is_older);
  return *std::min_element(eligible.begin(), older_end,
                           [this, &is_older](RegionIndex left, RegionIndex right) {
                             const uint64_t a = regions_[left].reused_bytes;
                             const uint64_t b = regions_[right].reused_bytes;
                             return a != b ? a < b : is_older(left, right);
                           });
}

std::vector<SsdPageIndex> SsdIndex::choose_rewrites(
    RegionIndex region, uint64_t bytes_max,
    const std::function<bool(uint64_t parent_hash)>& is_in_dram) const {
  const std::vector<SsdPageIndex> pages = pages_of(region);
  std::unordered_map<SsdPageIndex, uint32_t> positions;
  positions.reserve(pages.size());
  for (uint32_t i = 0; i < pages.size(); ++i) positions.emplace(pages[i], i);
  std::vector<RewriteChoice::Candidate> candidates(pages.size());
  for (uint32_t i = 0; i < pages.size(); ++i) {
    const SsdPage& page = at(pages[i]);
    RewriteChoice::Candidate& candidate = candidates[i];
    candidate.size_on_disk = sectors_of(page.size) * kSectorSize;
    candidate.reads = page.reads;
    candidate.has_children = page.child_count != 0;
    if (page.parent_hash == 0) continue;
    const SsdPageIndex parent = find_hash(page.parent_hash);
    if (parent != kNoSsdPage && at(parent).place.region == region) {
      candidate.parent = positions[parent];
    } else if (parent == kNoSsdPage && !is_in_dram(page.parent_hash)) {
      candidate.reach = RewriteChoice::Reach::kLost;
    }
  }
  std::vector<SsdPageIndex> rewrites;
  for (const uint32_t position : RewriteChoice(std::move(candidates)).choose(bytes_max)) {
    rewrites.push_back(pages[position]);
  }
  return rewrites;
}

}  // namespace hicache
