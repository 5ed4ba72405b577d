// Reads pages out of one peer's pool into our own, and verifies them.
//
// One-sided, through the transfer engine, a few batches at a time; what a reader waits for goes
// before what is only expected. The checksum is of the bytes that have arrived, where they have
// arrived: a page that does not match is not what was asked for, whatever the reason.
//
// Each byte is hashed once. A page is asked for stripe by stripe, and a transport through whose
// hands the bytes pass says what each stripe hashed to as it came (ArrivalSum): folded, that is the
// page's checksum. It covers the wire as well as the owner's memory, so that the transport's own
// checksums are left out. What they add is whose fault it was: a page that came wrong is read once
// more with them, and counts as corrupt if it is wrong again. Where a transport has no sums (RDMA,
// shared memory, pages in odd pieces) the page is hashed in the pool.
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
    uint64_t window_bytes;  // In flight at a time, but for one batch; of what is urgent once more.
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
    bool is_second = false;          // Its pages came wrong.
    std::vector<ArrivalSum> sums;    // Of each request.
    std::vector<size_t> first_sums;  // Of each page.
  };

  void run();
  /// The next that may begin.
  bool take(Group& group);
  /// Hands a group to the engine.
  Status submit(Group& group);
  Status open(uint64_t deadline_ns);
  /// Finishes what is done, or waits a little for it.
  void finish_some();
  void finish(Group group, const Result<BatchState>& state);
  void report(const Group& group, Code code);
  void read_again(Group group);
  std::vector<TransferRequest> requests_of(Group& group) const;
  void add_requests(const Page& page, std::vector<TransferRequest>& requests) const;
  /// Of the n-th page, when its transfer came to `failed`.
  Code outcome(const Group& group, size_t n, Code failed) const;

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
  uint64_t urgent_in_flight_bytes_ = 0;
  SegmentId segment_ = 0;
  bool is_open_ = false;
  std::thread thread_;
};

}  // namespace hicache
