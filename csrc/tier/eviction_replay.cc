#include "tier/eviction_replay.h"

#include <cassert>
#include <memory>
#include <unordered_map>

namespace hicache {
namespace {

constexpr uint64_t kPageSizeBytes = uint64_t{1} << 20;

// SplitMix64; never 0, which would mean no page.
uint64_t hash_of(uint64_t id) {
  uint64_t hash = id + 0x9e3779b97f4a7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  return (hash ^ (hash >> 31)) | 1;
}

class ReplayCache {
 public:
  ReplayCache(EvictionKind kind, uint64_t capacity_pages, uint64_t seed)
      : capacity_pages_(capacity_pages),
        eviction_(make_eviction(kind, capacity_pages * kPageSizeBytes, seed)) {}

  uint32_t request(std::span<const uint64_t> ids, uint64_t now_ms) {
    present_.clear();
    uint32_t hits = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto found = page_of_id_.find(ids[i]);
      if (found == page_of_id_.end()) continue;
      present_.push_back(found->second);
      if (hits == i) ++hits;
    }
    eviction_->access(present_, now_ms);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!page_of_id_.contains(ids[i])) bring(ids[i], i == 0 ? 0 : hash_of(ids[i - 1]), now_ms);
    }
    return hits;
  }

  const Eviction& eviction() const { return *eviction_; }

 private:
  void bring(uint64_t id, uint64_t parent_hash, uint64_t now_ms) {
    PageIndex page = static_cast<PageIndex>(id_of_page_.size());
    if (page_of_id_.size() < capacity_pages_) {
      id_of_page_.push_back(id);
    } else {
      page = eviction_->victim([](PageIndex) { return true; }, now_ms);
      assert(page != kNoPage);
      eviction_->erase(page, EraseReason::kEvicted);
      page_of_id_.erase(id_of_page_[page]);
      id_of_page_[page] = id;
    }
    page_of_id_.emplace(id, page);
    eviction_->insert(page, PageTraits{hash_of(id), parent_hash, kPageSizeBytes, false}, now_ms);
  }

  const uint64_t capacity_pages_;
  std::unique_ptr<Eviction> eviction_;
  std::unordered_map<uint64_t, PageIndex> page_of_id_;
  std::vector<uint64_t> id_of_page_;
  std::vector<PageIndex> present_;
};

}  // namespace

ReplayResult replay(EvictionKind kind, uint64_t capacity_pages, uint64_t seed,
                    const ReplayRequests& requests) {
  ReplayCache cache(kind, capacity_pages, seed);
  ReplayResult result{};
  result.hits.reserve(requests.now_ms.size());
  for (size_t i = 0; i < requests.now_ms.size(); ++i) {
    const uint64_t start = requests.starts[i];
    const uint64_t count = requests.starts[i + 1] - start;
    result.hits.push_back(cache.request(requests.ids.subspan(start, count), requests.now_ms[i]));
  }
  result.memory_size_bytes = cache.eviction().memory_size_bytes();
  return result;
}

}  // namespace hicache
