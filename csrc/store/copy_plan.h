// The copies of one batch call: pages cut into stripes, stripes dealt to threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "store/client_connection.h"
#include "tier/extent.h"
#include "transfer/copy_threads.h"

namespace hicache {

struct MemorySegment;

enum class Direction : uint8_t { kPoolToMemory, kMemoryToPool };

/// kUnbacked: no memory stands behind its place in the pool. kStopped: the connection broke, and
/// with it the lease or reservation that the copy relied on.
enum class CopyOutcome : uint8_t { kCopied, kUnbacked, kStopped };

class CopyPlan {
 public:
  CopyPlan(ClientConnection& connection, Direction direction, bool checksum);

  /// Adds one page. The spans must stay valid until run() returns; their sizes add up to `size`.
  void add(uint64_t size, std::span<const Extent> extents, std::span<const MemorySegment> segments);

  /// Copies everything. Returns when no thread touches the memory any more.
  void run(CopyThreads& threads);

  /// After run(): what became of the n-th page added. Anything but kCopied: not all of it was
  /// copied.
  CopyOutcome outcome(size_t page) const;

  /// After run(), with `checksum`: of the n-th page added, as it was stored at the target.
  uint64_t page_checksum(size_t page) const;

 private:
  struct Page {
    uint64_t size;
    std::span<const Extent> extents;
    std::span<const MemorySegment> segments;
    size_t first_stripe;
  };
  struct Stripe {
    size_t page;
    uint64_t offset;  // In the page.
    uint64_t checksum;
    CopyOutcome outcome;
  };

  void copy(Stripe& stripe);

  ClientConnection& connection_;
  const Direction direction_;
  const bool checksum_;
  uint64_t total_size_ = 0;
  std::atomic<bool> no_memory_{false};  // Known since one stripe; the others need not try.
  std::vector<Page> pages_;
  std::vector<Stripe> stripes_;
};

}  // namespace hicache
