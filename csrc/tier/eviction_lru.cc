// Least recently used leaf first.
#include "tier/eviction_base.h"

namespace hicache {
namespace {

class LruEviction final : public EvictionBase {
 public:
  LruEviction() : leaves_(pages_) {}

  void set_capacity(uint64_t) override {}

 private:
  void on_insert(PageIndex page) override { pages_[page].order = ++uses_; }
  void on_access(PageIndex page) override { pages_[page].order = ++uses_; }
  void on_erase(PageIndex, EraseReason) override {}
  void add_candidate(PageIndex page) override { leaves_.push(page); }
  void remove_candidate(PageIndex page) override { leaves_.remove(page); }
  PageIndex next_candidate() override { return leaves_.is_empty() ? kNoPage : leaves_.top(); }
  size_t policy_memory_size_bytes() const override { return leaves_.memory_size_bytes(); }
  size_t candidate_count() const override { return leaves_.count(); }
  std::string check_policy() const override { return leaves_.check_invariants(); }

  PageHeap leaves_;
  uint64_t uses_ = 0;
};

}  // namespace

std::unique_ptr<Eviction> make_lru_eviction() {
  return std::make_unique<LruEviction>();
}

}  // namespace hicache
