// The batches of one peer: from requests to slices to done.
//
// A batch is cut into slices as paths take them, so a request of any size costs no memory until it
// moves, and each slice has the size that its path likes. A slice is in flight on one rail, waits
// to be tried again, is parked until its owner has looked up anew what it names, or is over. A
// batch is done when nothing of it is in flight, waits or is parked. Once a part of it has failed
// for good, or its deadline has passed, nothing more of it is begun.
//
// Urgent work goes before background work, slices that are tried again before new ones, and
// batches of one priority take turns slice by slice.
//
// Ids are a slot and a generation, and so are the tokens of slices: bogus, stale and foreign ones
// find nothing. Everything is bounded by Limits.
//
// Pure: time is an argument, nothing is moved here. Threads: one owner.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "transfer/rail_choice.h"
#include "transfer/transport.h"

namespace hicache {

/// Names a batch; generations are never 0.
struct BatchKey {
  uint32_t slot;
  uint32_t generation;

  bool operator==(const BatchKey&) const = default;
};

struct BatchState {
  bool is_done;
  uint64_t bytes_done;
  /// Of the part that failed first; what was tried, on which path, what came back.
  Status status;
};

class BatchTable {
 public:
  struct Limits {
    size_t batches_max;
    size_t requests_max;  // Of all batches together.
    size_t slices_max;    // In flight or waiting to be tried again; the rest stays uncut.
    unsigned tries_max;   // Of one slice.
  };

  struct Request {
    Direction direction;
    BufferId local_buffer;
    BufferId remote_buffer;
    uint64_t local_address;
    uint64_t remote_address;
    uint64_t size;
    ArrivalSum* arrival = nullptr;
  };

  /// What take() would take.
  struct Next {
    uint64_t size;    // At most; take() may cut it, unless it is tried again.
    RailIndex avoid;  // Where it failed last.
    RailSet without;  // That cannot reach what it names.
    uint8_t tier_min;
    bool is_retry;
    uint64_t deadline_ns;
    BufferId local_buffer;
  };

  struct Slice {
    uint32_t generation = 0;
    uint32_t batch = 0;
    uint32_t request = 0;
    uint32_t tries = 0;
    RailIndex rail = kNoRail;
    RailSet without;  // Rails that cannot reach what it names.
    uint8_t tier_min = 0;
    bool in_flight = false;
    bool was_parked = false;
    uint64_t parked_at = 0;  // The count of parks() then.
    uint64_t offset = 0;
    uint64_t size = 0;
    uint64_t started_ns = 0;
  };

  /// What a completion means for the slice. kRetryOtherRail: this one will never do, which is no
  /// try. kPark: to be tried again after unpark(); the second time it is a failure.
  enum class Verdict : uint8_t { kDone, kRetry, kRetryOtherRail, kRetryWorseTier, kPark, kFail };

  struct Settled {
    BatchKey batch;
    bool is_done;  // The batch, just now.
  };

  explicit BatchTable(const Limits& limits) : limits_(limits) {}

  /// Takes all requests or none; those of no bytes are done. `generation` must be new. kBusy: a
  /// limit. A batch without a byte to move is done at once.
  Result<BatchKey> add(std::span<const Request> requests, Priority priority, uint64_t deadline_ns,
                       uint32_t generation);

  /// The next piece of work, nullopt if there is none or slices_max are under way.
  std::optional<Next> next() const;
  bool has_waiting() const { return waiting_bytes_ != 0; }
  uint64_t waiting_bytes() const { return waiting_bytes_; }
  /// Takes what next() said, or the first `size_max` bytes of it, for a rail. Fills `op`, whose
  /// deadline is the batch's.
  void take(RailIndex rail, uint64_t size_max, uint64_t now_ns, Op& op);
  /// The path did not take it: it waits again, before everything else of its priority.
  Settled undo(uint64_t token);
  /// What next() says fails for good. Returns the batch.
  Settled drop_next(Status status);

  /// The slice in flight with this token; nullptr: there is none.
  const Slice* find(uint64_t token) const;
  /// Of the slice's request, for messages.
  const Request& request_of(const Slice& slice) const {
    return batches_[slice.batch].requests[slice.request];
  }
  uint64_t deadline_of(const Slice& slice) const { return batches_[slice.batch].deadline_ns; }
  /// Ends a slice's flight. `token` must be known to find(). A retry beyond the batch's deadline or
  /// tries_max is a failure.
  Settled settle(uint64_t token, Verdict verdict, Status status, uint64_t now_ns);

  bool has_parked() const { return !parked_.empty(); }
  /// How many slices have ever been parked.
  uint64_t parks() const { return parks_; }
  /// Has `look_up` correct the requests of the slices that were parked when parks() was
  /// `parks_max`, or say why they fail, and has them tried again. Appends batches that are done by
  /// that.
  void unpark(uint64_t parks_max, const std::function<Status(Request&)>& look_up,
              std::vector<BatchKey>& done);

  std::optional<BatchState> state(BatchKey key) const;
  /// Begins nothing more of a batch, whose status becomes `status` unless it failed before. True:
  /// it is done by that. What is in flight ends as it ends.
  bool cancel(BatchKey key, const Status& status);
  /// The same for all, appending those that are done by that.
  void cancel_all(const Status& status, std::vector<BatchKey>& done);
  /// Cancels batches with waiting or parked work and a deadline that has passed. `last_failure`: of
  /// a path, for their messages.
  void expire(uint64_t now_ns, const std::string& last_failure, std::vector<BatchKey>& done);
  /// The first deadline of a batch with waiting or parked work; UINT64_MAX: there is none.
  uint64_t next_deadline_ns() const;

  /// Forgets a batch that is done. False: it is not, or there is none.
  bool release(BatchKey key);

  size_t batch_count() const { return batch_count_; }
  size_t request_count() const { return request_count_; }
  size_t slice_count() const { return slices_.size() - free_slices_.size(); }

 private:
  struct Batch {
    uint32_t generation = 0;
    Priority priority = Priority::kUrgent;
    bool in_use = false;
    uint32_t in_flight = 0;
    uint32_t retries = 0;       // Slices that wait to be tried again.
    uint32_t parked = 0;        // Slices that are parked.
    uint32_t next_request = 0;  // The first that is not wholly cut,
    uint64_t next_offset = 0;   // from this byte on.
    uint64_t bytes_done = 0;
    uint64_t deadline_ns = 0;
    Status status;
    std::vector<Request> requests;

    bool is_cut() const { return next_request == requests.size(); }
    bool waits() const { return in_use && (retries != 0 || parked != 0 || !is_cut()); }
    bool is_done() const { return in_flight == 0 && retries == 0 && parked == 0 && is_cut(); }
  };

  /// Where the next piece of work is.
  struct Place {
    size_t level;
    bool is_retry;
  };
  std::optional<Place> place() const;
  static uint64_t token_of(uint32_t slot, const Slice& slice) {
    return uint64_t{slice.generation} << 32 | slot;
  }
  static size_t level(const Batch& batch) { return static_cast<size_t>(batch.priority); }
  const Batch* find_batch(BatchKey key) const;
  Settled settled(uint32_t slot) const;
  uint32_t cut(uint32_t batch_slot, uint64_t size_max);
  void free_slice(uint32_t slot);
  void drop_waiting(uint32_t batch_slot);
  void fail(uint32_t batch_slot, Status status);
  void fill(uint32_t slot, Op& op) const;
  void wait_again(uint32_t slot);

  const Limits limits_;
  std::vector<Batch> batches_;
  std::vector<uint32_t> free_batches_;
  std::vector<Slice> slices_;
  std::vector<uint32_t> free_slices_;
  std::array<std::deque<uint32_t>, 2> retries_;  // Slices, by priority.
  std::array<std::deque<uint32_t>, 2> uncut_;    // Batches, by priority.
  std::deque<uint32_t> parked_;                  // Slices, the first that was parked first.
  uint64_t parks_ = 0;
  uint64_t waiting_bytes_ = 0;
  size_t batch_count_ = 0;
  size_t request_count_ = 0;
};

}  // namespace hicache
