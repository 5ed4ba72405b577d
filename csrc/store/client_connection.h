// One connection of a client to a node: requests in turn, the node's pool mapped.
//
// Any thread may call; calls take turns on the socket, each at most until its deadline. The first
// failure breaks the connection for good: every later call returns kUnavailable at once, and
// whoever waits in wait_broken() is told. The pool stays mapped as long as anyone holds the object.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "io/memory.h"
#include "io/unix_socket.h"
#include "net/frame.h"
#include "store/messages.h"
#include "store/pool_mapper.h"
#include "store/pool_pinner.h"
#include "transfer/file_health.h"

namespace hicache {

class ClientConnection {
 public:
  /// Connects, checks that the peer is this user, says hello and maps the pool.
  static Result<std::shared_ptr<ClientConnection>> open(const std::string& path,
                                                        HelloRequest greeting, Deadline deadline);

  ClientConnection(const ClientConnection&) = delete;
  ClientConnection& operator=(const ClientConnection&) = delete;

  /// Sends a request whose payload `encode(WireWriter&)` writes, and has `decode(WireReader)` read
  /// the reply's. If that returns false the connection is broken: whoever talks nonsense once is
  /// not believed again. `waiting`: of a caller that holds something which others want.
  template <typename Encode, typename Decode>
  Status ask(NodeOp op, Deadline deadline, Encode encode, Decode decode,
             const Waiting* waiting = nullptr) {
    std::vector<uint8_t> reply;
    HICACHE_RETURN_IF_ERROR(exchange(op, encode, &reply, deadline, waiting));
    if (decode(WireReader(reply))) return Status();
    break_off();
    return Status(Code::kCorrupt,
                  "the node's answer to " + std::string(op_name(op)) + " is malformed");
  }

  /// Sends a request that has no reply.
  template <typename Encode>
  Status tell(NodeOp op, Deadline deadline, Encode encode) {
    return exchange(op, encode, nullptr, deadline, nullptr);
  }

  bool is_broken() const { return broken_; }
  /// Ends the connection; calls in progress fail.
  void break_off();
  /// True once broken; false after the timeout.
  bool wait_broken(int timeout_ms) const;

  /// The node's number of a namespace, asked for once per connection.
  Result<NamespaceIndex> namespace_index(size_t local, const NamespaceDigest& digest,
                                         const std::string& description, Deadline deadline,
                                         const Waiting* waiting);

  uint64_t pool_size_bytes() const { return pool_->size_bytes(); }
  PlaceBounds place_bounds() const {
    return {pool_->size_bytes(), static_cast<uint8_t>(files_.size())};
  }
  uint8_t* pool() const { return pool_->address(); }
  /// The node's SSD files: Place::device - 1 is the index.
  std::vector<ReadableFile*> files() const;
  /// Makes sure that real memory stands behind a range of the pool, and maps it into this process
  /// in one go, where each OS page would be a fault of its own. To be called before the range is
  /// touched: without memory a touch would be the end of the process. Returns false if there is
  /// none. Threads: any; several work on different parts at the same time.
  bool back(uint64_t offset, uint64_t size, SharedMemory::Access access);
  /// Has the pool pinned for GPUs, from now on and ahead of its use. `lane`: of any of them.
  void pin_for(const std::shared_ptr<GpuLane>& lane);
  /// Whether GPUs reach the pinner's unit at an offset of the pool, which is pinned if need be.
  /// False: there is no memory for all of it, or the driver refuses. Requires: pin_for() was
  /// called.
  bool pin_unit(uint64_t offset);
  /// Whether that unit has not been pinned nor refused yet. Requires: pin_for() was called.
  bool is_unit_open(uint64_t offset) const {
    return pinner_->state(offset) == PoolPinner::State::kOpen;
  }
  /// Whether what was in the pool when this connected is mapped, as far as it is mapped ahead.
  bool is_mapped_ahead() const { return mapper_->is_finished(); }

 private:
  ClientConnection() = default;
  template <typename Encode>
  static std::vector<uint8_t> framed(Encode encode) {
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode(writer);
    return frame;
  }
  Status take_turn(Deadline deadline, const Waiting* waiting);
  void end_turn();
  template <typename Encode>
  Status exchange(NodeOp op, Encode encode, std::vector<uint8_t>* reply, Deadline deadline,
                  const Waiting* waiting) {
    HICACHE_RETURN_IF_ERROR(take_turn(deadline, waiting));
    // Not before: it may say how much time is left.
    std::vector<uint8_t> frame = framed(encode);
    Status status = exchange_in_turn(op, frame, reply, deadline, waiting);
    end_turn();
    return status;
  }
  Status exchange_in_turn(NodeOp op, std::vector<uint8_t>& frame, std::vector<uint8_t>* reply,
                          Deadline deadline, const Waiting* waiting);
  void note_mapped(uint64_t offset, uint64_t size);
  Status say_hello(HelloRequest greeting, Deadline deadline);

  Fd socket_;
  std::unique_ptr<SharedMemory> pool_;
  std::vector<std::unique_ptr<ReadableFile>> files_;
  std::unique_ptr<std::atomic<uint8_t>[]> backed_;  // By slot; 1: known to be backed.
  std::atomic<bool> broken_{false};
  // One request at a time. Not std::timed_mutex, which thread sanitizers do not understand.
  std::mutex turn_mutex_;
  std::condition_variable turn_free_;
  bool turn_taken_ = false;
  uint64_t next_request_id_ = 1;  // Of who has the turn.
  std::mutex namespaces_mutex_;
  std::vector<int64_t> namespaces_;     // By local number; -1: not asked yet.
  std::mutex pinner_mutex_;             // Of making it.
  std::unique_ptr<PoolPinner> pinner_;  // After pool_ and backed_, as the next: they end first.
  std::unique_ptr<PoolMapper> mapper_;
};

}  // namespace hicache
