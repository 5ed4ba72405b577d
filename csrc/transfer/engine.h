// The transfer engine: registered memory moves between processes and machines, one-sided.
//
// An engine owns its transports, a listening control socket (control.h) and the peers it has
// opened. A request is one range to read or write; a batch is a set of requests that is waited on
// together. The engine cuts requests into slices, gives each to the path of the peer that would
// finish it first (rail_choice.h), and gives slices of a failed path to another one until the
// batch's deadline. Waiting is event-driven; `spin_us` polls first.
//
// Not here: how bytes move (transports), who is called what (metadata: Python resolves a segment's
// name to host and port), GPU staging (device_staging.h).
//
// Threads: every method may be called from any thread. Methods that block say so. A forked child
// has none of the engine's threads and none of its sockets: there every method answers kClosed, and
// destroying the engine only forgets it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "net/greeting.h"
#include "net/stream.h"
#include "transfer/batch_table.h"
#include "transfer/segment.h"
#include "transfer/transport.h"

namespace hicache {

/// A peer that was opened. Bogus and closed ids are refused, never followed.
using SegmentId = uint64_t;
using BatchId = uint64_t;

struct TransferRequest {
  Direction direction;
  uint64_t local_address;
  uint64_t remote_address;
  uint64_t size;
  /// Of a read: see Op::arrival. Has to stay until the batch is released.
  ArrivalSum* arrival = nullptr;
};

struct Notice {
  std::string from;  // The sender's segment name.
  std::string name;
  std::string message;
};

class TransferEngine {
 public:
  struct Options {
    std::string name;         // Of the segment; empty: "host:port" of the control socket.
    std::string bind_host;    // Where the control socket and the TCP transport listen.
    std::string public_host;  // What peers are told to connect to.
    uint16_t port_min;        // 0: any port.
    uint16_t port_max;
    Secret secret;
    TlsContext::Files tls;                  // All empty: control connections are in the clear.
    std::vector<TransportKind> transports;  // Which to start; one that cannot is a notice.
    uint64_t slice_size_bytes;              // 0: as the path likes best.
    unsigned spin_us;                       // Polled before a wait sleeps.
    unsigned tries_max;                     // How often a slice is tried, on any path.
    size_t batches_max;                     // Open ones of a peer, 65535 at most; more: kBusy.
    size_t requests_max;                    // Of all open batches of a peer; more answer kBusy.
    size_t slices_max;                      // Under way to a peer at a time; the rest waits.
    size_t tcp_lanes;                       // Per peer.
    size_t tcp_io_threads;
    bool tcp_checksum;
    size_t local_copy_threads;
    std::string rdma_devices;  // "": all; "mlx5_0,mlx5_1".
    std::string rdma_options;  // JSON, see rdma/rdma_options.h.
    std::string topology;      // JSON, see topology.h; "": costs as the transports tell.
  };

  /// Starts listening. `notices` tells what was asked for and could not be had (no RDMA device).
  static Result<std::unique_ptr<TransferEngine>> start(const Options& options,
                                                       std::vector<std::string>& notices);
  /// As stop().
  virtual ~TransferEngine() = default;

  /// Ends everything: batches complete with kCancelled, peers see the loss. Blocks until no byte
  /// of ours is in flight. kTimeout: a process of this machine that is stopped may still touch
  /// memory of ours; which one. What was registered has to stay as it is until that process goes on
  /// or ends; stop() can be asked again.
  virtual Status stop() = 0;

  virtual const std::string& name() const = 0;
  virtual uint16_t port() const = 0;
  virtual uint64_t epoch() const = 0;

  /// Makes memory reachable for peers (and for RDMA as the local side). kAlreadyExists: it
  /// overlaps what is registered. Blocks while pinning. One transport that cannot register it does
  /// not lose the others; all failing is the error.
  virtual Status register_memory(uint64_t address, uint64_t size, const std::string& location,
                                 bool remote_write) = 0;
  /// kNotFound: nothing starts at that address. Once it returns no peer touches the range; but for
  /// kTimeout: as of stop(), and it has to be called again.
  virtual Status unregister_memory(uint64_t address) = 0;

  /// Memory that peers on this machine can map: a memfd, registered. kNoSpace: there is none.
  /// Memory stands behind all of it when this returns, which takes 0.5 s per GiB. It stays mapped
  /// until free_memory() or the engine's destruction.
  virtual Result<uint64_t> allocate_memory(uint64_t size) = 0;
  virtual Status free_memory(uint64_t address) = 0;

  /// Connects to the engine that listens at `address` ("host:port"). Blocks until the deadline.
  /// The same living peer gives the same id, which is closed once for each time it was opened.
  /// kUnavailable names host, port and cause.
  virtual Result<SegmentId> open_segment(const std::string& address, uint64_t deadline_ns) = 0;
  /// Ends its batches with kCancelled; they stay until they are released. Blocks until none of
  /// their bytes is in flight.
  virtual void close_segment(SegmentId segment) = 0;
  /// Whether the peer is gone, so that only opening it again can help. Does not ask it.
  virtual bool is_lost(SegmentId segment) const = 0;
  /// What the peer has registered, fetched anew.
  virtual Result<SegmentDescriptor> describe(SegmentId segment, uint64_t deadline_ns) = 0;

  /// Takes all requests or none. Returns at once but for the fetch of a descriptor when the peer
  /// has registered a range since. Of a batch that has failed in part nothing more is begun.
  /// kInvalidArgument: a range that the peer has not registered (names it). kBusy: too much is
  /// queued. kUnavailable: the peer is gone; open it again.
  virtual Result<BatchId> submit(SegmentId segment, std::span<const TransferRequest> requests,
                                 Priority priority, uint64_t deadline_ns) = 0;
  /// kNotFound: no such batch, or released.
  virtual Result<BatchState> poll(BatchId batch) = 0;
  /// Blocks until the batch is done or `deadline_ns`; the batch goes on after the latter.
  virtual Result<BatchState> wait(BatchId batch, uint64_t deadline_ns) = 0;
  /// submit(), wait() and release() in one, for one that waits. What a failure says is in the
  /// state; an error means that nothing was begun.
  virtual Result<BatchState> transfer(SegmentId segment, std::span<const TransferRequest> requests,
                                      Priority priority, uint64_t deadline_ns) = 0;
  /// Forgets a batch; one that runs is cancelled first. Blocks until none of its bytes is in
  /// flight, which the batch's deadline bounds.
  virtual Status release(BatchId batch) = 0;

  /// Leaves a message at the peer, after everything that completed before. Blocks.
  virtual Status notify(SegmentId segment, const std::string& name, const std::string& message,
                        uint64_t deadline_ns) = 0;
  /// Messages that peers have left; the oldest go when more than 4096 wait.
  virtual std::vector<Notice> take_notices() = 0;

  /// Whether the peer answers. Blocks.
  virtual Status probe(SegmentId segment, uint64_t deadline_ns) = 0;

  /// From now on prefers rails that are near to the memory they move, as this JSON tells it
  /// (topology.h); "": as they are measured. kInvalidArgument says what is wrong with it.
  virtual Status set_topology(const std::string& json) = 0;

  /// JSON: peers, paths with health, cost and bytes; batches; transports.
  virtual std::string stats() const = 0;
};

}  // namespace hicache
