// One queue pair of a path, with what has been posted on it and has not come back.
//
// Requests complete in order, so the completion of one tells of all before it: only the last of
// those posted together asks for one. Requests that fail, and all after them, complete on their
// own.
//
// Threads: one owner.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "transfer/rdma/op_queue.h"
#include "transfer/rdma/queue_pair.h"

namespace hicache {

/// A WorkPart's slot for a request that only asks whether the peer answers.
inline constexpr OpSlot kPing = UINT32_MAX;

class Lane {
 public:
  enum class State : uint8_t {
    kJoining,  // Until its first ping is answered; carries nothing else.
    kUp,
    kBroken,  // Waits for what was posted to be flushed.
  };

  Lane(uint32_t serial, uint64_t connection, QueuePair queue_pair)
      : pair(std::move(queue_pair)), serial_(serial), connection_(connection) {}

  uint32_t serial() const { return serial_; }
  /// Which connect request made it.
  uint64_t connection() const { return connection_; }
  size_t count() const { return posted_.size(); }
  uint64_t size_bytes() const { return size_bytes_; }
  bool carries(OpSlot slot) const {
    for (const WorkPart& part : posted_) {
      if (part.slot == slot) return true;
    }
    return false;
  }

  /// The wr_id of the request that is posted after `ahead` others that are not pushed yet.
  uint64_t request_id(size_t ahead) const {
    const auto number = static_cast<uint32_t>(first_ + posted_.size() + ahead);
    return uint64_t{serial_} << 32 | number;
  }
  void push(const WorkPart& part) {
    posted_.push_back(part);
    size_bytes_ += part.size;
  }
  /// How many requests, in order, a completion with this wr_id tells of; 0: it is not of these.
  size_t count_through(uint64_t request_id) const {
    const uint32_t ahead = static_cast<uint32_t>(request_id) - first_;
    return request_id >> 32 == serial_ && ahead < posted_.size() ? ahead + 1 : 0;
  }
  /// Requires: count() > 0.
  WorkPart pop() {
    const WorkPart part = posted_.front();
    posted_.pop_front();
    size_bytes_ -= part.size;
    ++first_;
    return part;
  }

  QueuePair pair;
  State state = State::kJoining;
  uint64_t flush_by_ns = UINT64_MAX;  // When its pair is destroyed, flushed or not.
  /// Outlives the lane for who waits for one: what was answered stays so when an op breaks the
  /// lane.
  const std::shared_ptr<uint64_t> pings_done = std::make_shared<uint64_t>(0);

 private:
  const uint32_t serial_;
  const uint64_t connection_;
  uint32_t first_ = 0;  // Number of the oldest posted request.
  std::deque<WorkPart> posted_;
  uint64_t size_bytes_ = 0;
};

}  // namespace hicache
