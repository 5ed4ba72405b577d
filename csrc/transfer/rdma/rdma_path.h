// A path over RDMA: one of our rails, one of the peer's, and a few queue pairs between them.
//
// Idle until used, then connected from a thread of the rail that may block; each new queue pair has
// to answer a ping (a READ of nothing) before it carries anything. What then happens to it:
//   an op's deadline passes, or the peer refuses an op   it is flushed; other ops' parts go again
//   on
//                                                        the others, and it is replaced
//   the peer does not answer, the rail is lost           the path is down: all its ops fail, and it
//                                                        stays so until probe() connects it anew
// An op is completed only when the device has given back everything that it was asked for it: after
// the flush, or at worst after the queue pair was destroyed.
//
// Threads: RdmaPath as Path says. RdmaPathCore outlives it in the rail's threads for a moment, but
// calls neither the sink nor the control connection once ~RdmaPath has returned.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "transfer/rdma/connection_cache.h"
#include "transfer/rdma/lane.h"
#include "transfer/rdma/memory_keys.h"
#include "transfer/rdma/op_queue.h"
#include "transfer/rdma/peer_keys.h"
#include "transfer/rdma/rdma_rail.h"
#include "transfer/transport.h"

namespace hicache {

/// Of a transport; any thread adds.
struct RdmaCounters {
  std::atomic<uint64_t> connects{0};
  std::atomic<uint64_t> connect_failures{0};
  std::atomic<uint64_t> lanes_broken{0};
  std::atomic<uint64_t> flushes_overdue{0};
  std::atomic<uint64_t> timeouts{0};
  std::atomic<uint64_t> paths_lost{0};
  std::atomic<uint64_t> bytes_read{0};
  std::atomic<uint64_t> bytes_written{0};
};

class RdmaPathCore final : public RdmaRail::Client,
                           public ActiveConnections::Member,
                           public std::enable_shared_from_this<RdmaPathCore> {
 public:
  struct Ends {
    std::shared_ptr<RdmaRail> rail;
    size_t rail_index;
    RailDescriptor remote;
    size_t remote_index;
    uint64_t peer_epoch;
    bool is_matching;  // Of the pairs that are meant for each other.
  };
  struct Services {
    ControlCalls& control;
    CompletionSink& sink;
    const MemoryKeys& keys;
    ActiveConnections& connections;
    RdmaCounters& counters;
  };

  RdmaPathCore(Ends ends, Services services, std::shared_ptr<const PeerKeys> peer_keys);
  ~RdmaPathCore() override;

  /// Once, before anything else.
  Status prepare();

  const std::string& name() const { return name_; }
  const std::string& device() const { return ends_.rail->name(); }
  PathCost cost() const;
  size_t submit(std::span<const Op> ops);
  Status probe();
  /// Connects in the background; await_connected() tells how that went.
  void connect_soon(uint64_t deadline_ns);
  Status await_connected(uint64_t deadline_ns);
  void close();
  /// After close(): until no thread of the rail uses what the path borrowed.
  void wait_for_threads();
  void update(std::shared_ptr<const PeerKeys> peer_keys);

  void on_completions() override;
  uint64_t on_time(uint64_t now_ns) override;
  void on_rail_lost(const Status& status) override;
  uint64_t last_used_ns() const override { return last_used_ns_.load(std::memory_order_relaxed); }
  bool evict() override;

 private:
  enum class State : uint8_t { kIdle, kUp, kDown, kClosed };

  // rdma_path.cc. "Locked" is what they all require, and deliver() follows.
  Status admit(const Op& op, uint64_t now_ns);
  void pump();
  Lane* roomiest_lane();
  void post_some(Lane& lane);
  void finish(OpSlot slot);
  void fail_op(OpSlot slot, const Status& status);
  void part_done(Lane& lane, const WorkPart& part);
  void part_lost(const WorkPart& part);
  void on_completion(const ibv_wc& completion);
  void on_failure(Lane& lane, const ibv_wc& completion, const WorkPart& culprit);
  void break_lane(Lane& lane, const Status& why);
  void retire_broken();
  void fail_all(const Status& status);
  void go_down(const Status& why);
  void deliver(std::unique_lock<std::mutex>& lock);
  Status named(Code code, const std::string& what) const;

  // rdma_connect.cc
  /// The next answer of a lane.
  struct AwaitedPing {
    explicit AwaitedPing(const Lane& lane)
        : serial(lane.serial()), done(lane.pings_done), before(*lane.pings_done) {}

    uint32_t serial;
    std::shared_ptr<const uint64_t> done;
    uint64_t before;
  };
  void want_connection();
  bool run_job(Errands::Urgency urgency, std::function<void()> job);
  void connect_wanted();
  Status connect_and_note(uint64_t deadline_ns);
  Status connect(uint64_t deadline_ns);
  Result<std::vector<QueuePair>> make_pairs(const RailRoute& route, size_t count);
  Result<ConnectReply> exchange(const ConnectRequest& request, uint64_t deadline_ns);
  Status join(std::vector<QueuePair> pairs, uint64_t connection, uint64_t deadline_ns);
  bool ping(Lane& lane);
  Status await_ping(std::unique_lock<std::mutex>& lock, const AwaitedPing& ping,
                    uint64_t deadline_ns);
  Lane* find_lane(uint32_t serial);
  size_t lanes_up() const;
  void disconnect(uint64_t connection, uint64_t deadline_ns);
  void disconnect_later(std::vector<uint64_t> connections);
  std::vector<uint64_t> take_dead_connections();

  const Ends ends_;
  const Services services_;
  const std::string name_;
  const size_t lane_count_;
  const size_t lane_depth_;
  uint64_t client_id_ = 0;
  ibv_cq* queue_ = nullptr;
  std::atomic<uint64_t> last_used_ns_{0};

  std::mutex mutex_;  // Of what follows.
  std::condition_variable changed_;
  State state_ = State::kIdle;
  Status why_down_;
  Status why_broken_;  // The lane that broke last.
  OpQueue ops_;
  std::vector<MemoryKeys::Pin> pins_;  // By slot.
  std::shared_ptr<const PeerKeys> peer_keys_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<uint64_t> connections_;  // That the peer holds queue pairs for.
  uint32_t next_serial_ = 1;
  bool is_connecting_ = false;
  uint64_t connect_until_ns_ = 0;               // Somebody waits for a connection until then.
  size_t jobs_ = 0;                             // Given to the rail's connectors, or running there.
  size_t deliveries_ = 0;                       // Under way.
  std::vector<OpQueue::Over> over_;             // To be delivered.
  std::vector<std::unique_ptr<Lane>> retired_;  // To be destroyed without the lock.
};

class RdmaPath final : public Path {
 public:
  explicit RdmaPath(std::shared_ptr<RdmaPathCore> core) : core_(std::move(core)) {}
  ~RdmaPath() override {
    core_->close();
    core_->wait_for_threads();
  }

  const std::string& name() const override { return core_->name(); }
  std::string_view device() const override { return core_->device(); }
  PathCost cost() const override { return core_->cost(); }
  uint64_t slice_size_bytes() const override;
  size_t submit(std::span<const Op> ops) override { return core_->submit(ops); }
  Status probe() override { return core_->probe(); }
  void close() override { core_->close(); }
  void update(std::shared_ptr<const PeerKeys> keys) { core_->update(std::move(keys)); }

 private:
  const std::shared_ptr<RdmaPathCore> core_;
};

}  // namespace hicache
