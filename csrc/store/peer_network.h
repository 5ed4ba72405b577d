// A node's connections with other nodes: its transfer engine, the service that answers them, and
// the tier that asks them.
//
// Threads: the node's, but for start() before that one runs, and stop() after it has ended.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "store/peer_service.h"
#include "store/remote_tier.h"
#include "transfer/engine.h"

namespace hicache {

class PeerNetwork {
 public:
  struct Options {
    std::string name;  // Of this node in the cluster.
    std::string bind_host;
    std::string public_host;  // What peers are told to connect to.
    uint16_t port_min;        // Of the service and of the engine; 0: any port.
    uint16_t port_max;
    Secret secret;
    TlsContext::Files tls;  // All empty: control connections are in the clear.
    std::vector<TransportKind> transports;
    size_t tcp_lanes;  // Per peer.
    size_t tcp_io_threads;
    bool tcp_checksum;
    size_t local_copy_threads;
    std::string rdma_devices;
    uint64_t lookup_timeout_ms;  // See RemoteTier::Options.
    uint64_t stall_timeout_ms;
    uint64_t fetch_timeout_ms;
    uint64_t call_timeout_ms;
    double staging_share;
    size_t peers_max;
  };
  /// What it works on; all outlive it.
  struct Surroundings {
    PageStore& store;
    PeerPages& pages;
    uint8_t* pool;
    uint64_t pool_size_bytes;
    int epoll;
    std::function<void()> wake;
  };

  /// Listens, and has the pool registered for peers to read. Blocks while a device pins the pool.
  static Result<std::unique_ptr<PeerNetwork>> start(const Options& options,
                                                    const Surroundings& surroundings,
                                                    std::vector<std::string>& notices);
  ~PeerNetwork();

  /// What the members' list says of this node.
  uint64_t incarnation() const { return engine_->epoch(); }
  std::vector<std::string> addresses() const { return addresses_; }

  /// Where pages are asked for. Before any question; `directory` outlives it.
  void attach(DirectoryClient& directory);
  bool has_directory() const { return remote_ != nullptr; }
  RemoteTier& remote() { return *remote_; }
  const RemoteTier& remote() const { return *remote_; }
  const PeerService& service() const { return *service_; }

  bool owns(int fd) const { return service_->owns(fd); }
  void advance(int fd, uint64_t now_ms) { service_->advance(fd, now_ms); }
  /// Does what is due. Returns when it wants to be called at the latest.
  uint64_t advance(uint64_t now_ms);

  /// Closes what peers have opened; their leases end.
  void close() { service_->close(); }
  /// Ends everything. kTimeout: a process of this machine may still read the pool, which has to
  /// stay. Blocks for about a call_timeout_ms at most.
  Status stop();

 private:
  PeerNetwork(const Options& options, const Surroundings& surroundings);
  Status open(std::vector<std::string>& notices);

  const Options options_;
  const Surroundings surroundings_;
  std::shared_ptr<TlsContext> tls_;
  std::unique_ptr<TransferEngine> engine_;
  std::vector<std::string> addresses_;  // Of the service, and of the engine.
  std::unique_ptr<PeerService> service_;
  std::unique_ptr<RemoteTier> remote_;
};

}  // namespace hicache
