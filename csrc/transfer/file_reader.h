// Reads stripes out of SSD files, past the page cache, into buffers of its own, and hands each to a
// callback that verifies it and copies it to where it belongs.
//
// Buffers of its own and not the caller's memory: a disk that hangs must not keep a call from
// returning, and when a call has returned nothing may be in flight into the caller's memory; no
// alignment is asked of the caller; and the copy is the pass over the bytes that verifying needs
// anyway. They are bounded, and made at the first read.
//
// What a file does not deliver is given up: after a read error, or after a time in which it had
// reads in flight and completed none (ReadLimits). Buffers that the kernel may still write to are
// then abandoned together with the device, and the next call makes new ones.
//
// Threads: one call at a time per reader; the call works on several. FileReaders shares a few
// readers among any number of callers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "io/block_device.h"
#include "io/mapped_memory.h"
#include "transfer/copy_threads.h"
#include "transfer/file_health.h"

namespace hicache {

struct FileStripe {
  uint32_t file;    // Index into FileReader::Work::files.
  uint64_t offset;  // A multiple of kSectorSize.
  uint64_t size;    // 1 … kStripeSize.
};

struct ReadLimits {
  uint64_t silence_ns;  // A file that completes nothing for so long is given up.
  uint64_t total_ns;    // So is everything that has not come by then, however steadily it comes.
};

class FileReader {
 public:
  struct Options {
    IoEngine engine;
    uint32_t depth;      // Reads in flight at most.
    uint64_t read_size;  // Of one read at most; at least kStripeSize, whole sectors.
  };
  using MakeDevice =
      std::function<Result<std::unique_ptr<BlockDevice>>(const BlockDevice::Options&)>;

  struct Work {
    std::span<ReadableFile* const> files;
    /// Neighbours in a file that follow each other here are read together, and fail together.
    std::span<const FileStripe> stripes;
    /// Called once for each stripe that was read, on any of the threads, several at a time. The
    /// bytes are only there during the call.
    std::function<void(size_t stripe, const uint8_t* bytes)> take;
    /// Does one of `other_count` pieces of work that can be done meanwhile; false: none was left.
    std::function<bool()> other;
    size_t other_count = 0;
    /// True: give up everything.
    std::function<bool()> is_stopped;
  };

  explicit FileReader(Options options, MakeDevice make_device = BlockDevice::make);

  /// Returns when each stripe was taken or given up and no other work is left. Returns how long the
  /// files were silent before they were given up: 0 unless one was.
  uint64_t read(const Work& work, const ReadLimits& limits, CopyThreads& threads);

 private:
  class Call;

  /// The device and its buffers, made if needed; false: there are none to be had.
  bool prepare();

  const Options options_;
  const MakeDevice make_device_;
  MappedMemory memory_;                  // Buffer n: at n * read_size.
  std::unique_ptr<BlockDevice> device_;  // After memory_: it goes first.
};

/// A few readers, lent to one caller at a time: each takes its memory, and one alone keeps a disk
/// busy.
class FileReaders {
 public:
  static constexpr size_t kCountMax = 4;

  explicit FileReaders(FileReader::Options options) : options_(options) {}

  /// Waits at most until the deadline for a free one; null: none came free.
  std::unique_ptr<FileReader> take(Deadline deadline);
  void give_back(std::unique_ptr<FileReader> reader);

 private:
  const FileReader::Options options_;
  std::mutex mutex_;
  std::condition_variable returned_;
  size_t lent_ = 0;
  std::vector<std::unique_ptr<FileReader>> idle_;
};

}  // namespace hicache
