// One incarnation of one peer, as an engine sees it: control connection, descriptor, paths,
// batches.
//
// Requests become batches (batch_table.h), their slices go to paths (rail_choice.h), completions
// come back here from the transports' threads and wake who waits. When the control connection
// breaks the peer is lost for good: all its paths are closed, all its batches end with
// kUnavailable, and opening it again makes another Peer.
//
// Paths of worse transports are opened when those of the better ones fail or cannot do an op.
//
// Threads: any. Neither the lock nor any other is held while a path is called.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"
#include "transfer/batch_table.h"
#include "transfer/done_signal.h"
#include "transfer/engine.h"
#include "transfer/errands.h"
#include "transfer/own_memory.h"
#include "transfer/peer_control.h"
#include "transfer/rail_choice.h"
#include "transfer/rail_distance.h"

namespace hicache {

/// What all peers of an engine share; outlives them.
struct PeerContext {
  Secret secret;
  std::shared_ptr<TlsContext> tls;
  std::vector<Transport*> transports;  // Best first: their indices are the tiers.
  BatchTable::Limits limits;
  uint64_t slice_size_bytes;  // 0: as the path likes best.
  unsigned spin_us;
  OwnMemory* memory;
  Errands* errands;
  /// Has Peer::tick() called at that time, or before.
  std::function<void(uint64_t at_ns)> wake_at;
  /// Has Peer::look_at_control() called when something happens to this socket.
  std::function<void(const class Peer&, int fd)> watch;
  std::mutex topology_mutex;
  std::shared_ptr<const Topology> topology;  // Of peers to come; guarded by topology_mutex.
  std::atomic<uint32_t> generation{0};
  std::atomic<uint64_t> unknown_completions{0};

  /// Of a batch or peer; never 0.
  uint32_t next_generation() {
    uint32_t next = ++generation;
    while (next == 0) next = ++generation;
    return next;
  }
};

class Peer final : public CompletionSink,
                   public ControlCalls,
                   public std::enable_shared_from_this<Peer> {
 public:
  /// Connects, reads the descriptor and opens paths. Blocks until the deadline.
  static Result<std::shared_ptr<Peer>> open(PeerContext& context, const HostPort& address,
                                            SegmentId id, uint64_t deadline_ns);
  ~Peer() override { close(Status(Code::kClosed, "closed")); }

  SegmentId id() const { return id_; }
  const std::string& address_name() const { return address_name_; }
  bool is_lost() const { return is_lost_; }
  bool has_batches() const;

  Result<BatchKey> submit(std::span<const TransferRequest> requests, Priority priority,
                          uint64_t deadline_ns);
  std::optional<BatchState> poll(BatchKey key) const;
  /// nullopt: no such batch.
  std::optional<BatchState> wait(BatchKey key, uint64_t deadline_ns);
  /// wait() to the end, and release().
  std::optional<BatchState> finish(BatchKey key);
  /// False: no such batch. Blocks until nothing of it is in flight.
  bool release(BatchKey key);

  Result<std::shared_ptr<const SegmentDescriptor>> refresh(uint64_t deadline_ns);
  Status ask(ControlOp op, std::span<const uint8_t> request, uint64_t deadline_ns);

  /// The peer is gone, or wanted no more: everything ends with `status`. Does not block.
  void lose(const Status& status);
  /// The same, and waits until no byte is in flight.
  void close(const Status& status);
  /// Does what is due: probes, deadlines. Returns when it wants to be called again.
  uint64_t tick(uint64_t now_ns);
  /// From now on slices go to the rails that this one says are near.
  void set_topology(const std::shared_ptr<const Topology>& topology);
  /// Whether the connection still stands; if not, the peer is lost.
  void look_at_control();

  void write_stats(JsonWriter& json) const;

  // CompletionSink, ControlCalls
  void complete(uint64_t token, Status status) override;
  Result<std::vector<uint8_t>> call(TransportKind kind, std::span<const uint8_t> request,
                                    uint64_t deadline_ns) override;

 private:
  struct OpenPath {
    std::unique_ptr<Path> path;
    TransportKind kind;
    std::once_flag close_once;
  };
  /// A transport and whether it has reached this peer.
  struct Tier {
    bool has_paths = false;
    bool is_opening = false;
    uint64_t next_try_ns = 0;
    std::string refusal;
  };
  struct Frame;  // Of dispatch(), on the stack.
  /// Slices for one path.
  struct Taken {
    size_t count;
    RailIndex rail;
    Path* path;
    bool was_idle;  // Before these.
    bool has_more;  // Something waits, whether or not it can be given away now.
  };

  Peer(PeerContext& context, HostPort address, SegmentId id);

  // peer.cc: connection, descriptor, paths
  Result<std::vector<uint8_t>> ask_control(ControlOp op, std::span<const uint8_t> request,
                                           uint64_t deadline_ns);
  Result<std::shared_ptr<const SegmentDescriptor>> fetch(uint64_t deadline_ns);
  std::shared_ptr<const SegmentDescriptor> descriptor() const;
  Status open_first_tier(uint64_t deadline_ns);
  bool open_tier(size_t tier, uint64_t deadline_ns);
  Status lost_status() const;
  void close_path(OpenPath& open) const;
  /// False: no thread is to be had.
  bool run_errand(Errands::Urgency urgency, std::function<void(Peer&)> errand);
  void probe_rail(RailIndex rail);

  // peer_work.cc: batches
  Status resolve(std::span<const TransferRequest> requests, uint64_t deadline_ns,
                 std::vector<BatchTable::Request>& resolved);
  Status resolve_with(const SegmentDescriptor& descriptor,
                      std::span<const TransferRequest> requests,
                      std::vector<BatchTable::Request>& resolved) const;
  static Result<const BufferDescriptor*> find_remote(const SegmentDescriptor& descriptor,
                                                     Direction direction, uint64_t remote_address,
                                                     uint64_t size);
  bool look_up_anew();
  void refresh_parked();
  bool dispatch();
  Taken take_some(std::span<Op> ops);
  std::span<const double> distances_from(BufferId buffer);
  void give_back(std::span<const Op> ops, RailIndex rail, bool is_refusal);
  void no_rail(const BatchTable::Next& next, uint64_t now_ns);
  BatchTable::Verdict judge(const BatchTable::Slice& slice, const Status& status, uint64_t now_ns);
  Status explained(const BatchTable::Slice& slice, const Status& status) const;
  void signal_done(const std::vector<BatchKey>& done);
  DoneSignal& signal_of(uint32_t slot);

  PeerContext& context_;
  const HostPort address_;
  const std::string address_name_;
  const SegmentId id_;
  std::atomic<bool> is_lost_{false};
  std::atomic<bool> is_stale_{false};  // The peer denied a range that its descriptor has.

  PeerControl control_;

  mutable std::mutex mutex_;  // Of what follows.
  Status lost_;
  std::shared_ptr<const SegmentDescriptor> descriptor_;
  BatchTable table_;
  RailChoice rails_;
  RailDistance distance_;
  BufferId placed_buffer_ = kNoBuffer;  // The one whose location was asked for last.
  std::string placed_location_;
  std::vector<Tier> tiers_;
  bool is_looking_up_ = false;      // An errand is at what was parked.
  std::deque<DoneSignal> signals_;  // By slot; entries stay in place.
  std::string last_failure_;
  std::deque<OpenPath> paths_;  // By rail; entries stay in place.
};

}  // namespace hicache
