#include "transfer/local/use_table.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

namespace hicache {
namespace {

constexpr long kLookNs = 10'000'000;

// Not private: the other end is another process.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  const timespec timeout{0, kLookNs};
  (void)syscall(SYS_futex, &word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  (void)syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

/// Where a thread looks for a slot first: threads differ, so they do not meet.
size_t first_slot() {
  static std::atomic<size_t> next{0};
  thread_local const size_t own = next.fetch_add(1, std::memory_order_relaxed);
  return own % kUseSlots;
}

}  // namespace

bool LivePlaces::add(BufferId buffer, uint32_t* place) {
  if (!free_.empty()) {
    *place = free_.back();
    free_.pop_back();
  } else if (used_ < kBuffersMax) {
    *place = used_++;
  } else {
    return false;
  }
  words_[*place].store(buffer);
  return true;
}

bool is_unused(const UseSlot* slots, BufferId buffer) {
  return std::none_of(slots, slots + kUseSlots,
                      [&](const UseSlot& slot) { return slot.buffer.load() == buffer; });
}

bool wait_unused(UseSlot* slots, BufferId buffer, const std::atomic<bool>& is_gone,
                 Deadline deadline) {
  for (size_t i = 0; i < kUseSlots; ++i) {
    while (slots[i].buffer.load() == buffer && !is_gone) {
      if (deadline.expired()) return false;
      sleep_while(slots[i].buffer, buffer);
    }
  }
  return true;
}

BufferUse::Outcome BufferUse::begin(UseSlot* slots) {
  const size_t first = first_slot();
  for (size_t i = 0; i < kUseSlots && slot_ == nullptr; ++i) {
    UseSlot& slot = slots[(first + i) % kUseSlots];
    uint32_t none = kNoBuffer;
    if (slot.buffer.compare_exchange_strong(none, buffer_)) slot_ = &slot;
  }
  if (slot_ == nullptr) return Outcome::kCrowded;
  if (word_.load() == buffer_) return Outcome::kBegun;
  end();
  return Outcome::kGone;
}

bool BufferUse::end() {
  if (slot_ == nullptr) return false;
  slot_->buffer.store(kNoBuffer);
  const bool is_there = word_.load() == buffer_;
  if (!is_there) wake_all(slot_->buffer);
  slot_ = nullptr;
  return is_there;
}

}  // namespace hicache
