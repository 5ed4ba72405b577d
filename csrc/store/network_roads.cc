#include "store/network_roads.h"

#include <utility>

#include "store/node_link.h"
#include "store/page_mover.h"

namespace hicache {
namespace {

constexpr uint64_t kBackOffMinMs = 250;
constexpr uint64_t kBackOffMaxMs = 5000;
constexpr size_t kCallsMax = 4096;  // To one peer.
constexpr uint64_t kWindow = 32 * kMiB;
constexpr uint64_t kBatch = 8 * kMiB;

}  // namespace

Result<std::unique_ptr<PeerLine>> NetworkRoads::link_to(const HostPort& address,
                                                        uint64_t incarnation) {
  Result<std::unique_ptr<NodeLink>> link =
      NodeLink::start({.own_name = options_.own_name,
                       .address = address,
                       .incarnation = incarnation,
                       .secret = options_.secret,
                       .tls = options_.tls,
                       .connect_timeout_ms = options_.call_timeout_ms,
                       .call_timeout_ms = options_.call_timeout_ms,
                       .back_off_min_ms = kBackOffMinMs,
                       .back_off_max_ms = kBackOffMaxMs,
                       .calls_max = kCallsMax,
                       .on_other_version = options_.on_notice});
  if (!link.ok()) return link.status();
  return std::unique_ptr<PeerLine>(std::move(link.value()));
}

std::unique_ptr<PeerReader> NetworkRoads::reader_of(const PeerHelloReply& peer,
                                                    PeerReader::Done done) {
  return std::make_unique<PageMover>(engine_,
                                     PageMover::Options{.address = peer.engine_address,
                                                        .remote_pool_address = peer.pool_address,
                                                        .pool = options_.pool,
                                                        .open_timeout_ms = options_.call_timeout_ms,
                                                        .window_bytes = kWindow,
                                                        .batch_bytes = kBatch},
                                     std::move(done));
}

}  // namespace hicache
