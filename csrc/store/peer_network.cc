#include "store/peer_network.h"

#include <algorithm>

#include "io/verbs.h"

namespace hicache {
namespace {

constexpr uint64_t kStallTimeoutMs = 10'000;  // Of peers that do not read what they asked for.
constexpr size_t kRoutesMax = 1 << 18;
constexpr unsigned kTriesMax = 3;
constexpr size_t kBatchesMax = 256;
constexpr size_t kRequestsMax = 1 << 18;
constexpr size_t kSlicesMax = 1024;

TransferEngine::Options engine_options(const ClusterOptions& options) {
  TransferEngine::Options engine{};
  engine.bind_host = options.bind_host;
  engine.public_host = options.public_host;
  engine.port_min = options.port_min;
  engine.port_max = options.port_max;
  engine.secret = options.secret;
  engine.tls = options.tls;
  engine.transports = options.peers.transports;
  engine.tries_max = kTriesMax;
  engine.batches_max = kBatchesMax;
  engine.requests_max = kRequestsMax;
  engine.slices_max = kSlicesMax;
  engine.tcp_lanes = options.peers.tcp_lanes;
  engine.tcp_io_threads = options.peers.tcp_io_threads;
  engine.tcp_checksum = options.peers.tcp_checksum;
  engine.local_copy_threads = options.peers.local_copy_threads;
  engine.rdma_devices = options.peers.rdma_devices;
  return engine;
}

}  // namespace

bool PeerNetwork::pins_the_pool(const ClusterOptions& options) {
  const auto& transports = options.peers.transports;
  if (std::ranges::find(transports, TransportKind::kRdma) == transports.end()) return false;
  const Result<const Verbs*> verbs = Verbs::load();
  if (!verbs.ok()) return false;
  int count = 0;
  ibv_device** devices = verbs.value()->get_device_list(&count);
  if (devices != nullptr) verbs.value()->free_device_list(devices);
  return count > 0;
}

Result<std::unique_ptr<PeerNetwork>> PeerNetwork::start(const ClusterOptions& options,
                                                        const Surroundings& surroundings,
                                                        std::vector<std::string>& notices) {
  std::unique_ptr<PeerNetwork> network(new PeerNetwork(options, surroundings));
  HICACHE_RETURN_IF_ERROR(network->open(notices));
  return network;
}

PeerNetwork::PeerNetwork(const ClusterOptions& options, const Surroundings& surroundings)
    : options_(options), surroundings_(surroundings) {}

PeerNetwork::~PeerNetwork() {
  (void)stop();
}

Status PeerNetwork::open(std::vector<std::string>& notices) {
  const TlsContext::Files& tls = options_.tls;
  if (!tls.certificate.empty() || !tls.key.empty() || !tls.authority.empty()) {
    Result<std::shared_ptr<TlsContext>> loaded = TlsContext::load(tls);
    if (!loaded.ok()) return loaded.status();
    tls_ = std::move(loaded.value());
  }
  Result<Listening> listening =
      tcp_listen(options_.bind_host, options_.port_min, options_.port_max);
  if (!listening.ok()) return listening.status();
  Result<std::unique_ptr<TransferEngine>> engine =
      TransferEngine::start(engine_options(options_), notices);
  if (!engine.ok()) return engine.status();
  engine_ = std::move(engine.value());
  const auto pool_address = reinterpret_cast<uint64_t>(surroundings_.pool);
  HICACHE_RETURN_IF_ERROR(
      engine_->register_memory(pool_address, surroundings_.pool_size_bytes, "*", false));
  addresses_ = {to_string(HostPort{options_.public_host, listening.value().port}),
                to_string(HostPort{options_.public_host, engine_->port()})};
  service_ = std::make_unique<PeerService>(
      PeerService::Options{
          .secret = options_.secret,
          .tls = tls_,
          .peers_max = options_.peers.peers_max,
          .stall_timeout_ms = kStallTimeoutMs,
          .hello = {incarnation(), pool_address, surroundings_.pool_size_bytes, addresses_[1]},
          .on_notice = surroundings_.on_notice},
      std::move(listening.value()), surroundings_.epoll, surroundings_.pages);
  return service_->start();
}

void PeerNetwork::attach(DirectoryLine& directory) {
  roads_ = std::make_unique<NetworkRoads>(
      NetworkRoads::Options{.own_name = options_.name,
                            .secret = options_.secret,
                            .tls = tls_,
                            .call_timeout_ms = options_.peers.call_timeout_ms,
                            .pool = surroundings_.pool,
                            .on_notice = surroundings_.on_notice},
      *engine_);
  remote_ = std::make_unique<RemoteTier>(
      RemoteTier::Options{.own_name = options_.name,
                          .own_incarnation = incarnation(),
                          .lookup_timeout_ms = options_.peers.lookup_timeout_ms,
                          .stall_timeout_ms = options_.peers.stall_timeout_ms,
                          .fetch_timeout_ms = options_.peers.fetch_timeout_ms,
                          .call_timeout_ms = options_.peers.call_timeout_ms,
                          .staging_share = options_.peers.staging_share,
                          .routes_max = kRoutesMax,
                          .peers_max = options_.peers.peers_max},
      RemoteTier::Surroundings{.store = surroundings_.store,
                               .roads = *roads_,
                               .directory = directory,
                               .wake = surroundings_.wake});
}

uint64_t PeerNetwork::advance(uint64_t now_ms) {
  const uint64_t next_ms = service_->advance(now_ms);
  return remote_ ? std::min(next_ms, remote_->advance(now_ms)) : next_ms;
}

Status PeerNetwork::stop() {
  // First: nobody has to wait for what is under way then.
  const Status status = engine_ ? engine_->stop() : Status();
  remote_.reset();
  return status;
}

}  // namespace hicache
