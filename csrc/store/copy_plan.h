// The copies of one batch call: pages cut into stripes, stripes dealt to threads. Pages that lie in
// SSD files are read by the same threads meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "store/client_connection.h"
#include "tier/extent.h"
#include "transfer/checksum_copy.h"
#include "transfer/copy_threads.h"
#include "transfer/file_reader.h"
#include "transfer/gpu_lane.h"
#include "transfer/load_stages.h"

namespace hicache {

struct MemorySegment;

enum class CopyDirection : uint8_t { kPoolToMemory, kMemoryToPool };

/// kUnbacked: no memory stands behind its place in the pool. kStopped: the connection broke, and
/// with it the lease or reservation that the copy relied on. kFailed: its file could not be read,
/// or not in time. kDevice: the GPU's driver failed.
enum class CopyOutcome : uint8_t { kCopied, kUnbacked, kStopped, kFailed, kDevice };

/// Segments in memory of a GPU: pages go from the pool to there, or back, without the CPU.
///
/// What a GPU reads is not in the CPU's hands, so it is checked after the GPU has read it: bytes in
/// the pool that are right then were so before, since a page is never written twice.
struct DeviceSegments {
  std::shared_ptr<GpuLane> lane;
  LoadStages* stages = nullptr;  // Told of each stage, if there is one; see part.
  size_t part = 0;
  /// Of each segment of a page, the same for all pages. Empty: there is one stage.
  std::span<const uint32_t> stage_of_segment = {};
};

class CopyPlan {
 public:
  /// `device`: all segments are in memory of a GPU; nullptr: the CPU's. It must outlive this.
  CopyPlan(ClientConnection& connection, CopyDirection direction, bool checksum,
           const DeviceSegments* device = nullptr);

  /// Adds one page, of the pool or of a file (see Place::device). The spans must stay valid until
  /// run() returns; their sizes add up to `size`.
  void add(uint64_t size, uint8_t device, std::span<const Extent> extents,
           std::span<const MemorySegment> segments);

  /// Copies everything; there must be no page of a file. Returns when no thread touches the memory
  /// any more. `threads_max`: see CopyThreads::run().
  void run(CopyThreads& threads, unsigned threads_max = std::numeric_limits<unsigned>::max());

  /// The same, with pages of files. `deadline` is for waiting: a file that gives nothing for as
  /// long as is left of it is given up; bytes that keep coming may take longer, up to
  /// read_limits(). Returns the time that was spent waiting in vain.
  uint64_t run(CopyThreads& threads, FileReaders& readers, Deadline deadline);

  /// Slower than 250 MB/s a file is as good as silent.
  static constexpr uint64_t kFileNsPerByteMax = 4;
  /// No call is kept for longer than that beyond its own time, however much it asked for.
  static constexpr uint64_t kFileNsMax = 3'000'000'000;
  static ReadLimits read_limits(uint64_t left_ns, uint64_t file_size_bytes) {
    return {left_ns, left_ns + std::min(file_size_bytes * kFileNsPerByteMax, kFileNsMax)};
  }

  /// After run(): what became of the n-th page added. Anything but kCopied: not all of it was
  /// copied.
  CopyOutcome outcome(size_t page) const;

  /// After run(), with `checksum`: of the n-th page added, as it was stored at the target.
  uint64_t page_checksum(size_t page) const;

 private:
  struct Page {
    uint64_t size;
    uint8_t device;
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

  uint64_t size_of(const Stripe& stripe) const;
  /// A few KiB are best kept in the cache, more only drive out what is there.
  Store store() const;
  void copy(Stripe& stripe);
  /// Copies a stripe that was read from a file.
  void scatter(Stripe& stripe, const uint8_t* bytes);
  void copy_piece(ChecksumCopy& checksum_copy, uint8_t* target, const uint8_t* source,
                  uint64_t size) const;
  void finish(Stripe& stripe, ChecksumCopy& checksum_copy) const;

  // Of segments in memory of a GPU; copy_plan_device.cc.
  struct DeviceCopies;
  void run_on_device(CopyThreads& threads, unsigned threads_max);
  void back_units(CopyThreads& threads, unsigned threads_max);
  /// Adds a page's copies to their stages, and says of its stripes when all of them are done.
  bool add_copies(const Page& page, std::span<DeviceCopies> stages);
  std::vector<std::shared_ptr<const GpuLane::Mark>> queue(std::span<const DeviceCopies> stages);
  /// Of what is in the pool now.
  void checksum_in_pool(Stripe& stripe) const;
  void scatter_to_device(Stripe& stripe, const uint8_t* bytes);
  void end_in_pool(CopyOutcome outcome);

  ClientConnection& connection_;
  const CopyDirection direction_;
  const bool checksum_;
  const DeviceSegments* const device_;
  std::mutex device_mutex_;  // Of copies out of files.
  uint64_t total_size_ = 0;
  uint64_t file_size_ = 0;              // Of it, in files.
  std::atomic<bool> no_memory_{false};  // Known since one stripe; the others need not try.
  std::vector<Page> pages_;
  std::vector<Stripe> stripes_;
};

}  // namespace hicache
