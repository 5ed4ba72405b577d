// The roads to other nodes over sockets and the transfer engine.
//
// Threads: one owner; what it makes says its own.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "net/greeting.h"
#include "net/stream.h"
#include "store/peer_roads.h"

namespace hicache {

class NetworkRoads : public PeerRoads {
 public:
  struct Options {
    std::string own_name;
    Secret secret;
    std::shared_ptr<TlsContext> tls;
    uint64_t call_timeout_ms;  // Of one question to a peer, and of connecting to it.
    uint8_t* pool;             // Where pages arrive.
    /// From any thread. May be empty.
    std::function<void(const std::string&)> on_notice{};
  };

  /// `engine` has the pool registered, and outlives the readers.
  NetworkRoads(Options options, TransferEngine& engine)
      : options_(std::move(options)), engine_(engine) {}

  Result<std::unique_ptr<PeerLine>> link_to(const HostPort& address, uint64_t incarnation) override;
  std::unique_ptr<PeerReader> reader_of(const PeerHelloReply& peer, PeerReader::Done done) override;

 private:
  const Options options_;
  TransferEngine& engine_;
};

}  // namespace hicache
