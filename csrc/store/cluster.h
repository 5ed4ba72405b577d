// A node's part in a cluster: it belongs to it, and tells the directory which pages it has.
//
// A node without a master that answers serves its own pages as ever: starting never waits for one,
// and once it is lost the node keeps trying. Nothing here blocks the node's thread: the directory's
// replies arrive on the clients' threads and are handed over by post().
//
// Threads: the node's alone, but for what says otherwise.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "directory/directory_client.h"
#include "io/tcp_socket.h"
#include "net/greeting.h"
#include "net/stream.h"
#include "store/announcer.h"
#include "store/cluster_quotas.h"
#include "store/membership.h"
#include "store/page_store.h"
#include "store/ssd_tier.h"
#include "store/stats.h"
#include "transfer/segment.h"

namespace hicache {

/// How a node reads pages of other nodes, and they its own.
struct PeerOptions {
  std::vector<TransportKind> transports;
  size_t tcp_lanes;  // Per peer.
  size_t tcp_io_threads;
  bool tcp_checksum;
  size_t local_copy_threads;
  std::string rdma_devices;    // "": all; "mlx5_0,mlx5_1".
  size_t peers_max;            // That are spoken to at the same time, either way.
  uint64_t lookup_timeout_ms;  // A look-up is answered with what is known by then.
  uint64_t stall_timeout_ms;   // A get that nothing has come for is answered.
  uint64_t fetch_timeout_ms;   // Of one page, from its lease to its last byte.
  uint64_t call_timeout_ms;    // Of one question to a peer, and of connecting to it.
  double staging_share;        // Of the pool that pages on their way may take.
};

struct ClusterOptions {
  std::vector<HostPort> masters;  // Of all that may lead.
  std::string name;               // Of this node, its own in the cluster.
  std::string bind_host;          // Where peers reach it.
  std::string public_host;        // What they are told to connect to.
  uint16_t port_min;              // 0: any port.
  uint16_t port_max;
  std::string failure_domain;  // What is lost together with it: a machine, a rack.
  Secret secret;
  TlsContext::Files tls;        // All empty: connections are in the clear.
  uint64_t connect_timeout_ms;  // To a master.
  uint64_t back_off_min_ms;     // Between two rounds through the masters; doubles up to
  uint64_t back_off_max_ms;     // this.
  uint64_t call_timeout_ms;     // Of one question to the directory.
  PeerOptions peers;
};

class Cluster {
 public:
  /// What it works on; all outlive it.
  struct Surroundings {
    PageStore& store;
    Quotas quotas;                       // Of this node's options.
    SsdTier* ssd;                        // Null: none.
    uint64_t incarnation;                // As the peers' service greets.
    std::vector<std::string> addresses;  // "host:port" of that service, then of the engine.
    std::function<void()> wake;          // Of the node's thread, from any thread.
    std::function<uint64_t()> busy_ns;   // Of the node's thread, since it began.
    std::function<NodeTally()> tally;    // What the node has done.
    /// Clears a namespace because it was ordered; a ticket of the SSD tier, 0: done.
    std::function<uint64_t(const NamespaceDigest&)> clear;
    std::function<void(std::string)> on_notice;  // From any thread.
  };

  /// Waits for no master.
  static Result<std::unique_ptr<Cluster>> start(ClusterOptions options, Surroundings surroundings);
  ~Cluster();

  /// Leaves the cluster and ends the threads. Once the node's thread has ended; any thread. Blocks
  /// for about a connect_timeout_ms at most. May be called again.
  void stop();

  /// Does what is due. Returns when it wants to be called at the latest; besides when is_due().
  uint64_t advance(uint64_t now_ms);
  bool is_due() const { return is_posted_ || (membership_->can_send() && announcer_.is_due()); }

  const Announcer& announcer() const { return announcer_; }
  const Membership& membership() const { return *membership_; }

  /// Has the next advance() call `task`. Any thread. Whoever posts bounds how often.
  void post(std::function<void()> task);

  /// Has all other nodes clear a namespace that this one has cleared just now. A later advance()
  /// calls `done`: kOk; kBusy: some node has too much to clear; kUnavailable: no master said in
  /// time that it knows, so that others may keep their pages.
  void clear_elsewhere(const NamespaceDigest& digest, uint64_t patience_ms,
                       std::function<void(Code)> done);

  void add_stats(NodeStats& stats, uint64_t now_ms) const;
  /// Why it does not belong to its cluster, as far as known; "" while it does.
  std::string trouble() const;

  /// For look-ups. Its answers come on its own thread: post() what to do with them.
  DirectoryLine& directory() { return *bulk_; }

 private:
  Cluster(ClusterOptions options, Surroundings surroundings);
  Status connect();
  void enter();
  Member member() const;
  void note(const std::string& trouble);

  const ClusterOptions options_;
  const Surroundings surroundings_;
  std::mutex posted_mutex_;
  std::vector<std::function<void()>> posted_;
  std::atomic<bool> is_posted_{false};
  mutable std::mutex trouble_mutex_;
  std::string trouble_;  // The last that was noticed.
  std::shared_ptr<TlsContext> tls_;
  Announcer announcer_;
  // The clients are stopped before this ends, which they call back.
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<ClusterQuotas> quotas_;
  std::unique_ptr<DirectoryClient> life_;  // Joins, sends heartbeats.
  std::unique_ptr<DirectoryClient> bulk_;  // Batches and look-ups.
};

}  // namespace hicache
