// S3-FIFO (Yang et al., SOSP '23) over leaves, by bytes: a small probationary FIFO of a tenth of
// the capacity, a main FIFO with reinsertion, and ghosts of as many bytes as the capacity.  A page
// used once in probation moves to main.  Inner pages keep their turn until they are leaves.
#include <algorithm>

#include "tier/eviction_base.h"
#include "tier/ghost_table.h"

namespace hicache {
namespace {

constexpr uint64_t kSmallShare = 10;
constexpr uint64_t kFrequencyMax = 3;
constexpr size_t kGhostsMin = 4096;
// Evicted bytes are counted in this part of the capacity: the ghosts' clock.
constexpr uint64_t kTicksPerCapacity = 1 << 16;

class S3FifoEviction final : public EvictionBase {
 public:
  explicit S3FifoEviction(uint64_t capacity_bytes)
      : capacity_bytes_(std::max<uint64_t>(capacity_bytes, 1)),
        small_(pages_),
        main_(pages_),
        ghosts_(kGhostsMin) {}

  void set_capacity(uint64_t capacity_bytes) override {
    first_tick_ = tick();
    evicted_bytes_ = 0;
    capacity_bytes_ = std::max<uint64_t>(capacity_bytes, 1);
  }

 private:
  static constexpr uint64_t kInMain = 1;  // LinkedPage::mark

  uint32_t tick() const {
    return (first_tick_ + static_cast<uint32_t>(static_cast<unsigned __int128>(evicted_bytes_) *
                                                kTicksPerCapacity / capacity_bytes_)) &
           GhostTable::kStampMax;
  }

  PageHeap& queue_of(PageIndex page) { return pages_[page].mark == kInMain ? main_ : small_; }

  void move_to_main(PageIndex page) {
    pages_[page].mark = kInMain;
    small_size_bytes_ -= pages_[page].size_bytes;
  }

  void on_insert(PageIndex page) override {
    LinkedPage& record = pages_[page];
    record.order = ++turns_;
    // The table doubles, so it holds between two and four thirds of as many ghosts as pages.
    ghosts_.reserve(pages_.page_count() / 3 * 2);
    const auto ghost = ghosts_.take(record.key_hash);
    const bool is_known =
        ghost && ((tick() - ghost->stamp) & GhostTable::kStampMax) <= kTicksPerCapacity;
    if (is_known) {
      record.mark = kInMain;
    } else {
      small_size_bytes_ += record.size_bytes;
    }
  }

  void on_access(PageIndex page) override {
    LinkedPage& record = pages_[page];
    record.frequency = std::min<uint64_t>(record.frequency + 1, kFrequencyMax);
    if (record.is_soft_pinned) record.order = ++turns_;
    // An inner page's turn may not come for long: it must not fill the probation meanwhile.
    if (record.mark != kInMain && !pages_.is_leaf(page)) {
      move_to_main(page);
      record.order = ++turns_;
    }
  }

  void on_erase(PageIndex page, EraseReason reason) override {
    const LinkedPage& record = pages_[page];
    if (record.mark != kInMain) {
      small_size_bytes_ -= record.size_bytes;
      if (reason == EraseReason::kEvicted) ghosts_.add(record.key_hash, {tick(), 1}, tick());
    }
    if (reason == EraseReason::kEvicted) evicted_bytes_ += record.size_bytes;
  }

  void add_candidate(PageIndex page) override { queue_of(page).push(page); }
  void remove_candidate(PageIndex page) override { queue_of(page).remove(page); }

  PageIndex next_candidate() override {
    while (true) {
      const bool is_small_full = small_size_bytes_ >= capacity_bytes_ / kSmallShare;
      PageHeap& queue = (is_small_full || main_.is_empty()) && !small_.is_empty() ? small_ : main_;
      if (queue.is_empty()) return kNoPage;
      const PageIndex page = queue.top();
      LinkedPage& record = pages_[page];
      if (record.frequency == 0) return page;
      queue.remove(page);
      if (&queue == &small_) {
        move_to_main(page);
        record.frequency = 0;
      } else {
        --record.frequency;
      }
      record.order = ++turns_;
      main_.push(page);
    }
  }

  size_t policy_memory_size_bytes() const override {
    return small_.memory_size_bytes() + main_.memory_size_bytes() + ghosts_.memory_size_bytes();
  }
  size_t candidate_count() const override { return small_.count() + main_.count(); }

  std::string check_policy() const override {
    uint64_t size_bytes = 0;
    for (PageIndex page = 0; page < pages_.index_end(); ++page) {
      if (pages_.is_resident(page) && pages_[page].mark != kInMain) {
        size_bytes += pages_[page].size_bytes;
      }
    }
    if (size_bytes != small_size_bytes_) return "size of the small queue is wrong";
    const std::string wrong = small_.check_invariants();
    return wrong.empty() ? main_.check_invariants() : wrong;
  }

  uint64_t capacity_bytes_;
  PageHeap small_;
  PageHeap main_;
  GhostTable ghosts_;
  uint64_t small_size_bytes_ = 0;  // resident pages in probation, inner ones too
  uint64_t evicted_bytes_ = 0;     // Since first_tick_, when the capacity was set.
  uint32_t first_tick_ = 0;
  uint64_t turns_ = 0;
};

}  // namespace

std::unique_ptr<Eviction> make_s3fifo_eviction(uint64_t capacity_bytes) {
  return std::make_unique<S3FifoEviction>(capacity_bytes);
}

}  // namespace hicache
