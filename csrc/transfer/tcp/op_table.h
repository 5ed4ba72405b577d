// The ops that a path has taken: which part goes next, and when an op is complete.
//
// An op is cut into parts as lanes have room for them. It is complete when nothing of it is left to
// cut and none of its parts is under way; after a failure nothing more of it is cut. Bounded: ops
// beyond ops_max are not taken.
//
// Pure: no I/O, no lock, no clock. The path's mutex guards it.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/status.h"
#include "transfer/transport.h"

namespace hicache {

/// A piece of an op that travels in one frame.
struct OpPart {
  uint32_t op = 0;  // Index in the table.
  Direction direction{};
  Priority priority{};
  uint64_t local_address = 0;
  BufferId remote_buffer = kNoBuffer;
  uint64_t remote_address = 0;
  uint64_t size = 0;
  uint64_t deadline_ns = 0;
  ArrivalSum* arrival = nullptr;  // Of a part that is the whole op.
};

struct OpDone {
  uint64_t token;
  Status status;
};

class OpTable {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  OpTable(size_t ops_max, uint64_t part_size);

  /// False: full. Requires: the op has bytes.
  bool add(const Op& op);
  /// Whether a part of that priority waits to be cut.
  bool has_queued(Priority priority) const { return !queue(priority).empty(); }
  /// The next part of that priority, which take() would cut. Requires: has_queued().
  OpPart peek(Priority priority) const;
  /// Cuts the next part of that priority. Requires: has_queued().
  OpPart take(Priority priority);
  /// A part that was taken has ended.
  void finish(uint32_t op, const Status& status, std::vector<OpDone>& done);
  /// Cuts nothing more from ops whose deadline has come.
  void expire(uint64_t now_ns, std::vector<OpDone>& done);
  /// Cuts nothing more from any.
  void fail_queued(const Status& status, std::vector<OpDone>& done);
  /// Of ops that wait to be cut; kNever: there are none.
  uint64_t earliest_deadline() const;
  bool empty() const { return free_.size() == entries_.size(); }

 private:
  struct Entry {
    Op op{};
    uint64_t cut = 0;        // Bytes that are in parts already.
    uint32_t under_way = 0;  // Parts.
    Status failure;
  };

  std::deque<uint32_t>& queue(Priority priority) {
    return priority == Priority::kUrgent ? urgent_ : background_;
  }
  const std::deque<uint32_t>& queue(Priority priority) const {
    return priority == Priority::kUrgent ? urgent_ : background_;
  }
  void fail(Entry& entry, uint32_t op, const Status& status);
  void complete_if_over(uint32_t op, std::vector<OpDone>& done);
  template <typename Wanted>
  void fail_where(const Status& status, std::vector<OpDone>& done, Wanted is_wanted);

  const uint64_t part_size_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> free_;
  std::deque<uint32_t> urgent_;      // With bytes left to cut.
  std::deque<uint32_t> background_;  // Likewise.
};

}  // namespace hicache
