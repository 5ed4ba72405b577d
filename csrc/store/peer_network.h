// A node's connections with other nodes: its transfer engine, the service that answers them, and
// the tier that asks them.
//
// Threads: the node's, but for start() before that one runs, and stop() after it has ended.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "store/cluster.h"
#include "store/network_roads.h"
#include "store/peer_service.h"
#include "store/remote_tier.h"
#include "transfer/engine.h"

namespace hicache {

class PeerNetwork {
 public:
  /// What it works on; all outlive it.
  struct Surroundings {
    PageStore& store;
    PeerPages& pages;
    uint8_t* pool;
    uint64_t pool_size_bytes;
    int epoll;
    std::function<void()> wake;
    std::function<void(const std::string&)> on_notice;  // From any thread.
  };

  /// Whether registering the pool makes memory stand behind all of it: RDMA devices do so.
  static bool pins_the_pool(const ClusterOptions& options);

  /// Listens, and has the pool registered for peers to read. Blocks while a device pins the pool.
  static Result<std::unique_ptr<PeerNetwork>> start(const ClusterOptions& options,
                                                    const Surroundings& surroundings,
                                                    std::vector<std::string>& notices);
  ~PeerNetwork();

  /// What the members' list says of this node.
  uint64_t incarnation() const { return engine_->epoch(); }
  std::vector<std::string> addresses() const { return addresses_; }

  /// Where pages are asked for. Before any question; `directory` outlives it.
  void attach(DirectoryLine& directory);
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
  PeerNetwork(const ClusterOptions& options, const Surroundings& surroundings);
  Status open(std::vector<std::string>& notices);

  const ClusterOptions options_;
  const Surroundings surroundings_;
  std::shared_ptr<TlsContext> tls_;
  std::unique_ptr<TransferEngine> engine_;
  std::vector<std::string> addresses_;  // Of the service, and of the engine.
  std::unique_ptr<PeerService> service_;
  std::unique_ptr<NetworkRoads> roads_;
  std::unique_ptr<RemoteTier> remote_;
};

}  // namespace hicache
