// Who touches which buffer: words in shared memory, by which an owner can take a buffer away from
// requesters without asking them.
//
// The owner keeps one table of the buffers that are there (LiveWords, which requesters can only
// read); each requester has a page of slots (UseSlots, which it writes and the owner reads). Before
// it touches a piece, a requester puts the buffer's id into a slot and then looks whether the
// buffer is still in the table; the owner takes the buffer out of the table and then looks whether
// its id is in a slot. Both in one total order: at least one of them sees the other. So a requester
// touches nothing that was taken away, and an owner waits only for pieces that are being copied
// right now, however slow, stopped or silent the requester is otherwise.
//
// What a requester writes into its slots is believed: one that lies keeps its owner waiting for a
// second, and the memory of the buffer from being used for anything else, until its connection
// ends.
//
// Threads: any. No I/O but futexes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "transfer/segment.h"

namespace hicache {

/// The BufferId that has this place; kNoBuffer: none has.
using LiveWord = std::atomic<uint32_t>;
/// In place of a BufferId: the owner itself has ended.
inline constexpr uint32_t kOwnerEnded = UINT32_MAX;
static_assert(LiveWord::is_always_lock_free && sizeof(LiveWord) == sizeof(uint32_t));

inline constexpr size_t kLiveWordsSize = kBuffersMax * sizeof(LiveWord);

struct alignas(64) UseSlot {
  std::atomic<uint32_t> buffer;  // What is being touched; kNoBuffer: nothing.
};

inline constexpr size_t kUseSlots = 64;  // As many threads can be in a piece at a time.
inline constexpr size_t kUseSlotsSize = kUseSlots * sizeof(UseSlot);

/// The owner's table: gives places to buffers.
class LivePlaces {
 public:
  /// `words`: kBuffersMax of them, all kNoBuffer. The caller serialises all calls.
  explicit LivePlaces(LiveWord* words) : words_(words) {}

  /// False: there is no place left.
  bool add(BufferId buffer, uint32_t* place);
  /// From now on nobody begins to touch the buffer; `word` says why.
  void end(uint32_t place, uint32_t word) { words_[place].store(word); }
  /// When nobody touches it any more either.
  void give_back(uint32_t place) { free_.push_back(place); }

 private:
  LiveWord* const words_;
  std::vector<uint32_t> free_;
  uint32_t used_ = 0;
};

/// Whether no slot has that buffer. Once it has been ended, that stays so.
bool is_unused(const UseSlot* slots, BufferId buffer);

/// Waits until no slot has that buffer, or `is_gone`, which is looked at every 10 ms. The buffer
/// must have been ended before. False: one still has it at the deadline.
bool wait_unused(UseSlot* slots, BufferId buffer, const std::atomic<bool>& is_gone,
                 Deadline deadline);

/// A requester's permission to touch a piece of a buffer.
class BufferUse {
 public:
  enum class Outcome : uint8_t { kBegun, kGone, kCrowded };

  BufferUse(const LiveWord& word, BufferId buffer) : word_(word), buffer_(buffer) {}
  ~BufferUse() { end(); }
  BufferUse(const BufferUse&) = delete;
  BufferUse& operator=(const BufferUse&) = delete;

  /// kCrowded: other threads have all slots; they do not have them for long.
  Outcome begin(UseSlot* slots);
  /// False: the buffer was taken away meanwhile, or was never begun; what was read is worthless.
  bool end();

 private:
  const LiveWord& word_;
  const BufferId buffer_;
  UseSlot* slot_ = nullptr;
};

}  // namespace hicache
