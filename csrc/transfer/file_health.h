// Whether an SSD file is worth trying: a circuit breaker, so that a dead disk costs one deadline
// and not one per call.
//
// Threads: any. Times are those of monotonic_ns(), handed in.
#pragma once

#include <atomic>
#include <cstdint>

#include "io/fd.h"

namespace hicache {

class FileHealth {
 public:
  static constexpr uint64_t kPauseNs = 30'000'000'000;
  static constexpr uint32_t kFailuresMax = 8;  // In a row.
  /// A file that has reads in flight and completes none for so long is sick, however little time
  /// its caller had. A healthy one completes hundreds.
  static constexpr uint64_t kSilenceMaxNs = 250'000'000;
  /// A shorter one says nothing: the caller had hardly any time left.
  static constexpr uint64_t kSilenceMinNs = 50'000'000;

  /// False during the pause; after it true for one caller, on whose luck it depends whether there
  /// is another pause.
  bool may_read(uint64_t now_ns) {
    uint64_t until_ns = paused_until_ns_;
    if (until_ns == 0) return true;
    return now_ns >= until_ns &&
           paused_until_ns_.compare_exchange_strong(until_ns, now_ns + kPauseNs);
  }

  void note_success() {
    // Looked at first: a line that every thread reads should not be written by every read.
    if (failures_ != 0) failures_ = 0;
    if (paused_until_ns_ != 0) paused_until_ns_ = 0;
  }

  void note_failure(uint64_t now_ns) {
    if (++failures_ >= kFailuresMax) paused_until_ns_ = now_ns + kPauseNs;
  }

  /// A reader gave up on it after it had completed nothing for that long.
  void note_silence(uint64_t now_ns, uint64_t silent_ns) {
    if (silent_ns < kSilenceMinNs) return;
    if (silent_ns < kSilenceMaxNs) return note_failure(now_ns);
    paused_until_ns_ = now_ns + kPauseNs;
  }

  bool is_paused(uint64_t now_ns) const { return now_ns < paused_until_ns_; }

 private:
  std::atomic<uint64_t> paused_until_ns_{0};  // 0: it works.
  std::atomic<uint32_t> failures_{0};
};

/// An SSD file as its readers have it: open for direct reads.
struct ReadableFile {
  explicit ReadableFile(Fd opened) : fd(std::move(opened)) {}

  const Fd fd;
  FileHealth health;
};

}  // namespace hicache
