// Records in pieces, so that growing never copies what is there. Indexes are reused.
//
// Pure. Threads: one owner.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/huge_allocator.h"

namespace hicache {

inline constexpr uint32_t kNoRecord = UINT32_MAX;

/// `Record` has a member `uint32_t next`, which links unused records.
template <typename Record, size_t kPieceSize>
class RecordArray {
 public:
  Record& operator[](uint32_t index) { return pieces_[index / kPieceCount][index % kPieceCount]; }
  const Record& operator[](uint32_t index) const {
    return pieces_[index / kPieceCount][index % kPieceCount];
  }
  void prefetch(uint32_t index) const { __builtin_prefetch(&(*this)[index]); }

  uint32_t take() {
    ++used_count_;
    if (free_ == kNoRecord) {
      if (size_ == pieces_.size() * kPieceCount) pieces_.emplace_back(kPieceCount);
      return size_++;
    }
    const uint32_t index = free_;
    free_ = std::exchange((*this)[index].next, kNoRecord);
    return index;
  }

  void give_back(uint32_t index) {
    --used_count_;
    (*this)[index] = Record{};
    (*this)[index].next = free_;
    free_ = index;
  }

  /// Records that are, or were once, in use.
  uint32_t size() const { return size_; }
  uint32_t used_count() const { return used_count_; }
  size_t memory_size_bytes() const { return pieces_.size() * kPieceCount * sizeof(Record); }

 private:
  using Piece = std::vector<Record, HugeAllocator<Record>>;
  static constexpr size_t kPieceCount = std::bit_floor(kPieceSize / sizeof(Record));

  std::vector<Piece> pieces_;
  uint32_t size_ = 0;
  uint32_t used_count_ = 0;
  uint32_t free_ = kNoRecord;
};

}  // namespace hicache
