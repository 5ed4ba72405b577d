#include "transfer/rdma/rdma_transport.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "base/clock.h"
#include "io/verbs.h"
#include "transfer/rdma/connection_cache.h"
#include "transfer/rdma/memory_keys.h"
#include "transfer/rdma/rdma_path.h"

namespace hicache {
namespace {

constexpr size_t kPathsMax = 64;  // To one peer.

/// Which ports of which devices are wanted; everything when nothing is named.
class Wanted {
 public:
  explicit Wanted(const std::string& devices) {
    for (size_t begin = 0; begin < devices.size();) {
      const size_t end = std::min(devices.find(',', begin), devices.size());
      if (end > begin) names_.insert(devices.substr(begin, end - begin));
      begin = end + 1;
    }
    unseen_ = names_;
  }

  bool has(const std::string& device, const std::string& rail) {
    unseen_.erase(device);
    unseen_.erase(rail);
    return names_.empty() || names_.contains(device) || names_.contains(rail);
  }
  const std::set<std::string>& unseen() const { return unseen_; }

 private:
  std::set<std::string> names_;
  std::set<std::string> unseen_;
};

/// 0 when the device cannot even be opened; open() then says why.
uint8_t count_ports(const Verbs& verbs, ibv_device* device) {
  ibv_context* context = verbs.open_device(device);
  if (context == nullptr) return 0;
  ibv_device_attr attributes{};
  const int rc = verbs.query_device(context, &attributes);
  (void)verbs.close_device(context);
  return rc == 0 ? attributes.phys_port_cnt : 0;
}

std::vector<std::shared_ptr<RdmaRail>> open_rails(const RdmaOptions& options,
                                                  const RdmaSettings& settings, const Verbs& verbs,
                                                  std::vector<std::string>& notices) {
  std::vector<std::shared_ptr<RdmaRail>> rails;
  Wanted wanted(options.devices);
  int count = 0;
  ibv_device** devices = verbs.get_device_list(&count);
  std::string known;
  for (int i = 0; i < count; ++i) {
    const std::string device = verbs.get_device_name(devices[i]);
    known += (known.empty() ? "" : ", ") + device;
    const uint8_t ports = count_ports(verbs, devices[i]);
    for (uint8_t port = 1; port <= std::max<uint8_t>(ports, 1); ++port) {
      const std::string name = ports > 1 ? device + "/" + std::to_string(port) : device;
      if (!wanted.has(device, name)) continue;
      if (rails.size() == kRailsMax) {
        notices.push_back("RDMA: " + name + " is left out: " + std::to_string(kRailsMax) +
                          " rails are the most; name those to be used");
        continue;
      }
      Result<std::shared_ptr<RdmaRail>> rail =
          RdmaRail::open(verbs, devices[i], port, name, settings);
      if (!rail.ok()) {
        notices.push_back(rail.status().message());
        continue;
      }
      if (const Result<RailRoute> route = rail.value()->route(); !route.ok()) {
        notices.push_back(route.status().message() + "; it is used once that is mended");
      }
      if (settings.odp && !rail.value()->limits().odp) {
        notices.push_back("RDMA: " + name +
                          ": the device offers no ODP; memory is pinned when it is registered");
      }
      rails.push_back(std::move(rail.value()));
    }
  }
  if (devices != nullptr) verbs.free_device_list(devices);
  for (const std::string& name : wanted.unseen()) {
    notices.push_back("RDMA: there is no device " + name +
                      " (there are: " + (known.empty() ? "none" : known) + ")");
  }
  return rails;
}

class RdmaTransport final : public Transport {
 public:
  RdmaTransport(uint64_t epoch, const RdmaSettings& settings,
                std::vector<std::shared_ptr<RdmaRail>> rails)
      : epoch_(epoch),
        settings_(settings),
        rails_(std::move(rails)),
        keys_(rails_),
        active_(settings.connections_max),
        passive_(settings.connections_max) {}
  ~RdmaTransport() override {
    for (const auto& rail : rails_) rail->stop();
  }

  TransportKind kind() const override { return TransportKind::kRdma; }
  std::vector<uint8_t> endpoint() const override;
  Result<std::vector<uint8_t>> register_buffer(const Buffer& buffer) override {
    return keys_.add(buffer);
  }
  void unregister_buffer(BufferId buffer) override { keys_.remove(buffer); }
  bool needs_registration() const override { return true; }
  Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor& peer,
                                                  ControlCalls& control, CompletionSink& sink,
                                                  uint64_t deadline_ns) override;
  void update(Path& path, const SegmentDescriptor& peer) override;
  Result<std::vector<uint8_t>> answer(std::span<const uint8_t> request) override;
  std::vector<std::pair<std::string, uint64_t>> stats() const override;

 private:
  using Cores = std::vector<std::shared_ptr<RdmaPathCore>>;

  std::vector<RdmaPathCore::Ends> pair_rails(const std::vector<RailDescriptor>& remote,
                                             uint64_t peer_epoch) const;
  Status await_any(const Cores& cores, uint64_t deadline_ns) const;
  std::shared_ptr<const PeerKeys> keys_of(const SegmentDescriptor& peer);

  const uint64_t epoch_;
  const RdmaSettings settings_;
  const std::vector<std::shared_ptr<RdmaRail>> rails_;
  MemoryKeys keys_;
  ActiveConnections active_;
  PassiveConnections passive_;
  RdmaCounters counters_;

  struct KnownKeys {
    uint64_t version;
    std::weak_ptr<const PeerKeys> keys;
  };
  std::mutex mutex_;
  std::map<uint64_t, KnownKeys> known_keys_;  // By the peer's epoch. Guarded by mutex_.
};

std::vector<uint8_t> RdmaTransport::endpoint() const {
  std::vector<RailDescriptor> rails;
  for (const auto& rail : rails_) rails.push_back(rail->describe());
  return encode_rails(rails);
}

/// All paths to a peer share what one of them has decoded.
std::shared_ptr<const PeerKeys> RdmaTransport::keys_of(const SegmentDescriptor& peer) {
  const std::lock_guard lock(mutex_);
  std::erase_if(known_keys_, [](const auto& item) { return item.second.keys.expired(); });
  const auto found = known_keys_.find(peer.epoch);
  if (found != known_keys_.end() && found->second.version == peer.version) {
    if (auto keys = found->second.keys.lock()) return keys;
  }
  auto keys = std::make_shared<const PeerKeys>(peer);
  known_keys_.insert_or_assign(peer.epoch, KnownKeys{peer.version, keys});
  return keys;
}

/// Matching pairs first: rail i here with rail i there.
std::vector<RdmaPathCore::Ends> RdmaTransport::pair_rails(const std::vector<RailDescriptor>& remote,
                                                          uint64_t peer_epoch) const {
  std::vector<RdmaPathCore::Ends> pairs;
  for (const bool is_matching : {true, false}) {
    if (!is_matching && !settings_.all_pairs) continue;
    for (size_t i = 0; i < rails_.size(); ++i) {
      const LinkLayer link_layer = rails_[i]->describe().address.link_layer;
      for (size_t j = 0; j < remote.size() && pairs.size() < kPathsMax; ++j) {
        const bool do_match =
            rails_.size() >= remote.size() ? i % remote.size() == j : j % rails_.size() == i;
        if (do_match != is_matching || remote[j].address.link_layer != link_layer) continue;
        pairs.push_back({rails_[i], i, remote[j], j, peer_epoch, is_matching});
      }
    }
  }
  return pairs;
}

Result<std::vector<std::unique_ptr<Path>>> RdmaTransport::open(const SegmentDescriptor& peer,
                                                               ControlCalls& control,
                                                               CompletionSink& sink,
                                                               uint64_t deadline_ns) {
  std::vector<std::unique_ptr<Path>> paths;
  const std::span<const uint8_t> endpoint = peer.endpoint(TransportKind::kRdma);
  if (endpoint.empty()) return paths;
  const Result<std::vector<RailDescriptor>> remote = decode_rails(endpoint);
  if (!remote.ok()) return remote.status();
  const RdmaPathCore::Services services{control, sink, keys_, active_, counters_};
  Cores connecting;
  Status failure;
  for (RdmaPathCore::Ends& ends : pair_rails(remote.value(), peer.epoch)) {
    const bool is_matching = ends.is_matching;
    auto core = std::make_shared<RdmaPathCore>(std::move(ends), services, keys_of(peer));
    paths.push_back(std::make_unique<RdmaPath>(core));
    if (Status prepared = core->prepare(); !prepared.ok()) {
      // One device that refuses does not lose the others.
      if (failure.ok()) failure = std::move(prepared);
      paths.pop_back();
      continue;
    }
    if (!is_matching) continue;
    core->connect_soon(deadline_ns);
    connecting.push_back(std::move(core));
  }
  if (paths.empty() && !failure.ok()) return failure;
  if (paths.empty()) {
    return Status(Code::kUnavailable, "RDMA: the peer's rails are of another link layer");
  }
  HICACHE_RETURN_IF_ERROR(await_any(connecting, deadline_ns));
  return paths;
}

/// Until all have tried. One that works is enough: the others are tried again when they are used.
Status RdmaTransport::await_any(const Cores& cores, uint64_t deadline_ns) const {
  Status failure;
  bool any = false;
  for (const auto& core : cores) {
    Status status = core->await_connected(deadline_ns);
    any = any || status.ok();
    if (failure.ok()) failure = std::move(status);
  }
  return any ? Status() : failure;
}

void RdmaTransport::update(Path& path, const SegmentDescriptor& peer) {
  static_cast<RdmaPath&>(path).update(keys_of(peer));
}

Result<std::vector<uint8_t>> RdmaTransport::answer(std::span<const uint8_t> request) {
  const auto decoded = decode_request(request);
  if (!decoded.ok()) return decoded.status();
  const auto refused = [](Code code, const std::string& why) {
    return Status(code, "RDMA: the request names " + why);
  };
  if (const auto* disconnect = std::get_if<DisconnectRequest>(&decoded.value())) {
    if (disconnect->epoch != epoch_) return refused(Code::kUnavailable, "another incarnation");
    passive_.drop(disconnect->connection);
    return std::vector<uint8_t>{};
  }
  const auto& connect = std::get<ConnectRequest>(decoded.value());
  if (connect.epoch != epoch_) return refused(Code::kUnavailable, "another incarnation");
  if (connect.rail >= rails_.size()) return refused(Code::kInvalidArgument, "no rail of this end");
  const Result<ConnectReply> reply = passive_.accept(rails_[connect.rail], connect, monotonic_ns());
  if (!reply.ok()) return reply.status();
  return encode(reply.value());
}

std::vector<std::pair<std::string, uint64_t>> RdmaTransport::stats() const {
  uint64_t up = 0;
  for (const auto& rail : rails_) up += rail->describe().is_up ? 1 : 0;
  return {
      {"rails", rails_.size()},
      {"rails_up", up},
      {"buffers", keys_.count()},
      {"registrations_refused", keys_.refusals()},
      {"connections_active", active_.count()},
      {"connections_passive", passive_.count()},
      {"connections_evicted", active_.evictions() + passive_.evictions()},
      {"connects", counters_.connects},
      {"connect_failures", counters_.connect_failures},
      {"lanes_broken", counters_.lanes_broken},
      {"flushes_overdue", counters_.flushes_overdue},
      {"timeouts", counters_.timeouts},
      {"paths_lost", counters_.paths_lost},
      {"bytes_read", counters_.bytes_read},
      {"bytes_written", counters_.bytes_written},
  };
}

}  // namespace

Result<std::unique_ptr<Transport>> make_rdma_transport(const RdmaOptions& options,
                                                       const Verbs& verbs,
                                                       std::vector<std::string>& notices) {
  const Result<RdmaSettings> settings = parse_rdma_settings(options.settings);
  if (!settings.ok()) return settings.status();
  std::vector<std::string> own_notices;
  std::vector<std::shared_ptr<RdmaRail>> rails =
      open_rails(options, settings.value(), verbs, own_notices);
  if (rails.empty()) {
    std::string why = "RDMA: no device can be used";
    if (own_notices.empty()) why += ": this machine has none (`ibv_devices` lists them)";
    for (const std::string& notice : own_notices) why += "; " + notice;
    return Status(Code::kUnsupported, why);
  }
  notices.insert(notices.end(), own_notices.begin(), own_notices.end());
  return std::unique_ptr<Transport>(
      std::make_unique<RdmaTransport>(options.epoch, settings.value(), std::move(rails)));
}

}  // namespace hicache
