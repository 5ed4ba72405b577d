// Reads pages out of one peer's pool into our own, and verifies them.
//
// One-sided, through the transfer engine, a few batches at a time; what a reader waits for goes
// before what is only expected. The checksum is computed over the bytes that have arrived, where
// they have arrived: a page that does not match is not what was asked for, whatever the reason.
// When a page's outcome is told, nothing of it is in flight into our pool any more.
//
// Threads: any may call. `done` is called from the mover's own thread, which alone waits for the
// engine, and must not block.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "store/peer_roads.h"
#include "tier/extent.h"
#include "transfer/engine.h"

namespace hicache {

/// The checksum (transfer/checksum_copy.h) of a page that lies in pieces of `pool`.
uint64_t scattered_checksum(const uint8_t* pool, std::span<const Extent> extents);

/// Of a page whose transfer came to `failed`: of one that failed it may be whole all the same.
Code outcome_of(const uint8_t* pool, const PeerReader::Page& page, Code failed);

class PageMover : public PeerReader {
 public:
  struct Options {
    std::string address;  // Of the peer's engine.
    uint64_t remote_pool_address;
    uint8_t* pool;
    uint64_t open_timeout_ms;
    uint64_t window_bytes;  // In flight at a time, but for one batch.
    uint64_t batch_bytes;   // More becomes several batches.
  };
  /// `engine` outlives it, and is stopped before it where a transfer must not be waited for.
  PageMover(TransferEngine& engine, Options options, Done done);
  ~PageMover() override;

  void read(std::vector<Page> pages, Priority priority, uint64_t deadline_ns) override;

  void stop_soon() override;
  bool has_ended() const override { return has_ended_; }

 private:
  struct Group {
    std::vector<Page> pages;
    uint64_t size = 0;
    Priority priority = Priority::kUrgent;
    uint64_t deadline_ns = 0;
    BatchId batch = 0;
  };

  void run();
  /// The next that may begin.
  bool take(Group& group);
  /// Hands a group to the engine.
  Status submit(Group& group);
  Status open(uint64_t deadline_ns);
  void finish(Group& group);
  void report(const Group& group, Code code);
  std::vector<TransferRequest> requests_of(const Group& group) const;

  TransferEngine& engine_;
  const Options options_;
  const Done done_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> has_ended_{false};
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Group> urgent_;      // Guarded by mutex_.
  std::deque<Group> background_;  // Likewise.
  // Of the thread alone:
  std::deque<Group> in_flight_;
  uint64_t in_flight_bytes_ = 0;
  SegmentId segment_ = 0;
  bool is_open_ = false;
  std::thread thread_;
};

}  // namespace hicache
