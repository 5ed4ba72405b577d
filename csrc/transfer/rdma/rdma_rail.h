// A rail: one port of one RDMA device, opened, with what is common to all its queue pairs.
//
// One thread waits, for completions, for trouble that the device tells (a port that goes down, an
// address that changes) and for deadlines. A few others connect, which blocks; they start when they
// are needed, and a peer that does not answer holds up some of them only.
//
// Not here: queue pairs (queue_pair.h), paths (rdma_path.h), memory (memory_keys.h).
//
// Threads: any, unless a method says otherwise.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/io_loop.h"
#include "io/verbs.h"
#include "transfer/errands.h"
#include "transfer/rdma/rdma_options.h"
#include "transfer/rdma/rdma_wire.h"

namespace hicache {

struct RailLimits {
  uint64_t region_size_max;  // Of one registration.
  uint64_t message_size_max;
  int regions_max;
  int requests_max;  // Of one queue pair.
  int entries_max;   // Of one completion queue.
  int pairs_max;
  uint8_t reads_out;  // READs under way on one queue pair.
  uint8_t reads_in;
  bool odp;
};

/// Where packets are sent from now.
struct RailRoute {
  RailAddress address;
  uint8_t port;
  uint8_t gid_index;
  bool needs_gid;  // Always on Ethernet; on InfiniBand if the port says so.
};

class RdmaRail {
 public:
  /// Has queue pairs on the rail. Called from the rail's thread.
  class Client {
   public:
    virtual ~Client() = default;
    virtual void on_completions() = 0;
    /// Returns when it wants to be called again; IoLoop::kNever.
    virtual uint64_t on_time(uint64_t now_ns) = 0;
    /// The rail is gone, or has another address: its queue pairs are of no use any more.
    virtual void on_rail_lost(const Status& status) = 0;
  };

  /// kUnsupported, kUnavailable: what was tried, on which device, what came back, what to do.
  static Result<std::shared_ptr<RdmaRail>> open(const Verbs& verbs, ibv_device* device,
                                                uint8_t port, const std::string& name,
                                                const RdmaSettings& settings);
  ~RdmaRail();
  /// Ends its threads, and so whatever they hold on to. Not from one of them.
  void stop();
  RdmaRail(const RdmaRail&) = delete;
  RdmaRail& operator=(const RdmaRail&) = delete;

  const Verbs& verbs() const { return verbs_; }
  const RdmaSettings& settings() const { return settings_; }
  const std::string& name() const { return name_; }
  const RailLimits& limits() const { return limits_; }
  ibv_pd* domain() const { return domain_; }
  ibv_comp_channel* channel() const { return channel_; }
  /// For queue pairs that only answer: nothing comes to it.
  ibv_cq* passive_queue() const { return passive_queue_; }
  RailDescriptor describe() const;

  /// Asks the device anew. kUnavailable: the port is down, or has no usable address.
  Result<RailRoute> route();

  /// Waits; its sources are the rail's.
  IoLoop& loop() { return *loop_; }
  /// Connects: work may block.
  Errands& connector() { return connector_; }

  /// Returns the id to be used as a completion queue's context.
  uint64_t add_client(std::weak_ptr<Client> client);
  void remove_client(uint64_t id);

  /// "RDMA: rxe0: ibv_create_qp: Cannot allocate memory (12)"
  Status error(Code code, const std::string& call, int error_number,
               const std::string& remedy = "") const;

 private:
  class ChannelSource;
  class EventSource;

  RdmaRail(const Verbs& verbs, const RdmaSettings& settings, std::string name, uint8_t port);
  Status prepare(ibv_device* device);
  Status query_limits();
  Status start_threads();
  Result<RailRoute> query_route();
  Result<GidEntry> query_gid(LinkLayer link_layer);
  std::vector<std::shared_ptr<Client>> clients();
  void take_completion_events();
  void take_device_events();
  void on_device_event(const ibv_async_event& event);
  void lose_clients(const Status& status);

  const Verbs& verbs_;
  const RdmaSettings settings_;
  const std::string name_;
  const uint8_t port_;
  RailLimits limits_{};
  ibv_context* context_ = nullptr;
  ibv_pd* domain_ = nullptr;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* passive_queue_ = nullptr;
  std::atomic<bool> is_fatal_{false};  // The device said that it will not work again.

  mutable std::mutex mutex_;  // Of what follows.
  RailRoute route_{};
  bool is_up_ = false;
  uint32_t speed_mbps_ = 0;
  std::map<uint64_t, std::weak_ptr<Client>> clients_;
  uint64_t next_client_id_ = 1;

  Errands connector_;
  std::unique_ptr<IoLoop> loop_;
};

}  // namespace hicache
