// Copies bytes and computes their XXH3-64 in the same pass over memory.
//
// Each source byte is loaded once, into a register; the same register is hashed and stored. So the
// checksum describes exactly the bytes that reached the target, even if someone scribbles on the
// source meanwhile, and verification costs no memory traffic.
//
// Checksum of a page (little endian, so every machine agrees):
//   a page is cut into stripes of kStripeSize; a stripe's checksum is XXH3_64bits(stripe);
//   one stripe:   its checksum;
//   more stripes: XXH3_64bits_withSeed(stripe checksums as u64 array, seed = page size).
// Stripes exist so that several threads can work on one page.
//
// XXH3: https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace hicache {

inline constexpr uint64_t kStripeSize = 512 * 1024;

/// Stripes of a page of `size` bytes; a page has at least one.
constexpr uint64_t stripe_count(uint64_t size) {
  return size <= kStripeSize ? 1 : (size + kStripeSize - 1) / kStripeSize;
}

/// Folds the checksums of a page's stripes into the page's checksum.
uint64_t fold_stripes(std::span<const uint64_t> stripe_checksums, uint64_t page_size);

/// The checksum of a page that lies in one piece. Reads it once, copies nothing.
uint64_t page_checksum(const void* source, uint64_t size);

/// How stored bytes travel. Streaming stores skip the cache: right for bytes that the same core
/// will not read again soon, wrong for a few KiB that it will.
enum class Store : uint8_t { kCached, kStreaming };

/// One stripe's copy. Its bytes may come in any number of pieces on either side.
/// Threads: one object, one thread. Targets must not overlap sources.
class ChecksumCopy {
 public:
  /// `size` is the sum of what copy() will be given: XXH3 treats the last KiB differently.
  ChecksumCopy(uint64_t size, Store store);

  void copy(void* target, const void* source, size_t size);

  /// Requires: exactly the announced bytes were copied.
  /// Returns: XXH3_64bits of them. Streaming stores are visible to other cores after this.
  uint64_t finish();

 private:
  static constexpr size_t kRoundSize = 1024;  // XXH3 scrambles its accumulators after each KiB.
  static constexpr size_t kLaneSize = 64;     // What one accumulation step eats.

  void copy_rounds(uint8_t* target, const uint8_t* source, size_t rounds);
  void close_round();

  alignas(64) uint64_t accumulators_[8];
  /// The round in progress when pieces do not end on a KiB, preceded by the last lane of the round
  /// before it: XXH3 ends with the last 64 bytes, which may straddle two rounds.
  alignas(64) uint8_t kept_[kLaneSize + kRoundSize];
  size_t kept_size_ = 0;
  uint64_t size_;
  uint64_t rounds_left_;  // Whole rounds before the one that ends the stripe.
  Store store_;
};

/// The checksum of one stripe whose bytes may come in any number of pieces. Copies nothing.
/// Threads: one object, one thread.
class StripeChecksum {
 public:
  StripeChecksum();
  ~StripeChecksum();
  StripeChecksum(const StripeChecksum&) = delete;
  StripeChecksum& operator=(const StripeChecksum&) = delete;

  void add(const void* source, size_t size);
  /// Returns: XXH3_64bits of what was added.
  uint64_t finish() const;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

/// A copy without a checksum, with the same choice of stores.
void plain_copy(void* target, const void* source, size_t size, Store store);

/// Makes streaming stores of this thread visible to other cores and devices.
void fence_stores();

}  // namespace hicache
