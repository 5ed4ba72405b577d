// The ops of one path, and their parts: what waits, what is under way, what has to go again.
//
// An op is cut into parts where a memory key ends at either end, and at the size that a request
// likes best. Urgent ops go first. A part whose queue pair was lost goes again, unless its op has
// failed meanwhile: reading or writing the same bytes twice is harmless while the op is not over.
//
// Pure: time is an argument. Threads: one owner.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "transfer/transport.h"

namespace hicache {

/// Memory keys of a buffer on one rail: piece i begins at `address` + i * `piece_size`.
struct KeyedRange {
  uint64_t address = 0;
  uint64_t piece_size = 0;
  std::shared_ptr<const std::vector<uint32_t>> keys;

  uint32_t key_at(uint64_t at) const { return (*keys)[(at - address) / piece_size]; }
  uint64_t left_in_piece(uint64_t at) const { return piece_size - (at - address) % piece_size; }
};

using OpSlot = uint32_t;

struct WorkPart {
  OpSlot slot;
  uint64_t offset;  // In the op's range.
  uint64_t size;
};

/// A part as a queue pair wants it.
struct WorkOrder {
  Direction direction;
  uint64_t local_address;
  uint32_t local_key;
  uint64_t remote_address;
  uint32_t remote_key;
};

class OpQueue {
 public:
  OpQueue(size_t ops_max, uint64_t part_size_max);

  bool has_room() const { return !free_.empty(); }
  bool empty() const { return free_.size() == entries_.size(); }

  /// Requires: has_room(), size > 0, and keys for the whole of both ranges.
  OpSlot add(const Op& op, KeyedRange local, KeyedRange remote);

  /// Whether a part waits to be taken.
  bool has_work() const;
  /// The next part, which is under way from now on. Requires: has_work().
  WorkPart take();
  WorkOrder order(const WorkPart& part) const;

  // What became of a part that was taken. True: its op is over, to be removed.
  bool part_done(const WorkPart& part);
  bool part_lost(const WorkPart& part);

  /// The op ends with this, once nothing of it is under way; the first failure counts. True: now.
  bool fail(OpSlot slot, const Status& status);

  struct Over {
    uint64_t token;
    Status status;
  };
  /// Frees the slot. Requires: the op is over.
  Over remove(OpSlot slot);

  std::vector<OpSlot> slots() const;
  /// Ops that have not failed yet and whose deadline has come.
  std::vector<OpSlot> expired(uint64_t now_ns) const;
  /// UINT64_MAX: none.
  uint64_t next_deadline_ns() const;
  uint64_t size_of(OpSlot slot) const { return entries_[slot].op.size; }

 private:
  struct Entry {
    Op op;
    KeyedRange local;
    KeyedRange remote;
    Status failure;
    uint64_t cut = 0;      // Up to where parts have been cut.
    uint64_t left = 0;     // Bytes that are not done.
    size_t under_way = 0;  // Parts.
    bool is_used = false;
  };

  bool is_over(const Entry& entry) const;

  const uint64_t part_size_max_;
  std::vector<Entry> entries_;
  std::vector<OpSlot> free_;
  std::deque<OpSlot> waiting_[2];  // By priority: ops that are not wholly cut.
  std::deque<WorkPart> again_;
};

}  // namespace hicache
