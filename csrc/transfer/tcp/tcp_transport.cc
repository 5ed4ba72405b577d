#include "transfer/tcp/tcp_transport.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "io/io_loop.h"
#include "io/tcp_socket.h"
#include "net/wire.h"
#include "transfer/device_staging.h"
#include "transfer/staged_path.h"
#include "transfer/tcp/range_table.h"
#include "transfer/tcp/server_lane.h"
#include "transfer/tcp/tcp_counters.h"
#include "transfer/tcp/tcp_path.h"

namespace hicache {
namespace {

constexpr uint8_t kEndpointVersion = 1;
constexpr size_t kHostSizeMax = 255;
constexpr size_t kLanesMax = 64;

Result<HostPort> decode_endpoint(std::span<const uint8_t> bytes) {
  WireReader reader(bytes);
  const auto version = reader.get<uint8_t>();
  const auto port = reader.get<uint16_t>();
  std::string host = reader.get_string(kHostSizeMax);
  if (!reader.finished() || version != kEndpointVersion || port == 0 || host.empty() ||
      host.find('\0') != std::string::npos) {
    return Status(Code::kUnavailable,
                  "the peer's TCP endpoint cannot be understood; run the same "
                  "release on both sides");
  }
  return HostPort{std::move(host), port};
}

class TcpTransportImpl : public TcpTransport {
 public:
  explicit TcpTransportImpl(const TcpOptions& options) : options_(options) {}
  ~TcpTransportImpl() override { staging_.stop(); }  // Its copies end in the loops.

  Status start() {
    for (size_t i = 0; i < options_.io_threads; ++i) {
      Result<std::unique_ptr<IoLoop>> loop = IoLoop::start("tcp-io-" + std::to_string(i));
      if (!loop.ok()) return loop.status();
      loops_.push_back(std::move(loop.value()));
    }
    return Status();
  }

  TransportKind kind() const override { return TransportKind::kTcp; }
  bool needs_registration() const override { return false; }
  void set_port(uint16_t port) override { port_ = port; }

  std::vector<uint8_t> endpoint() const override {
    std::vector<uint8_t> bytes;
    WireWriter writer(bytes);
    writer.put(kEndpointVersion);
    writer.put(port_.load());
    writer.put_string(options_.public_host);
    return bytes;
  }

  Result<std::vector<uint8_t>> register_buffer(const Buffer& buffer) override {
    HICACHE_RETURN_IF_ERROR(ranges_.add(buffer));
    return std::vector<uint8_t>();
  }
  void unregister_buffer(BufferId buffer) override { ranges_.remove(buffer); }

  Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor& peer, ControlCalls&,
                                                  CompletionSink& sink,
                                                  uint64_t deadline_ns) override;
  void update(Path&, const SegmentDescriptor&) override {}  // Requests name buffers by their id.
  Result<std::vector<uint8_t>> answer(std::span<const uint8_t>) override {
    return Status(Code::kUnsupported, "the TCP transport answers no calls");
  }
  void adopt_lane(Fd lane) override;
  std::vector<std::pair<std::string, uint64_t>> stats() const override;

 private:
  IoLoop& next_loop() { return *loops_[next_loop_++ % loops_.size()]; }

  const TcpOptions options_;
  std::atomic<uint16_t> port_{0};
  std::atomic<size_t> next_loop_{0};
  TcpCounters counters_;
  RangeTable ranges_;
  DeviceStaging staging_{"tcp-gpu"};
  std::vector<std::unique_ptr<IoLoop>> loops_;  // Last: what they run uses the others.
};

Result<std::vector<std::unique_ptr<Path>>> TcpTransportImpl::open(const SegmentDescriptor& peer,
                                                                  ControlCalls&,
                                                                  CompletionSink& sink,
                                                                  uint64_t deadline_ns) {
  std::vector<std::unique_ptr<Path>> paths;
  const std::span<const uint8_t> bytes = peer.endpoint(TransportKind::kTcp);
  if (bytes.empty()) return paths;
  Result<HostPort> address = decode_endpoint(bytes);
  if (!address.ok()) return address.status();
  TcpPath::Setup setup{.peer = address.value(),
                       .peer_epoch = peer.epoch,
                       .secret = options_.secret,
                       .lanes = std::clamp<size_t>(options_.lanes, 1, kLanesMax),
                       .is_checked = options_.checksum,
                       .loops = {}};
  for (const auto& loop : loops_) setup.loops.push_back(loop.get());
  const auto staged = StagedPath::make_state(staging_, sink);
  auto path =
      std::make_unique<TcpPath>(std::move(setup), StagedPath::inner_sink(*staged), counters_);
  const uint64_t now_ns = monotonic_ns();
  const Status opened = path->open_lanes(
      Deadline::after_ms(deadline_ns > now_ns ? (deadline_ns - now_ns) / 1'000'000 : 0));
  if (!path->has_lanes()) {
    if (!opened.ok()) return opened;
    return Status(Code::kUnavailable, "the peer at " + to_string(address.value()) +
                                          " closed each TCP lane at once; it has too many");
  }
  paths.push_back(std::make_unique<StagedPath>(staged, std::move(path)));
  return paths;
}

void TcpTransportImpl::adopt_lane(Fd lane) {
  if (counters_.lanes_in.fetch_add(1) >= options_.lanes_in_max || !tune(lane).ok()) {
    counters_.lanes_in.fetch_sub(1);
    counters_.lanes_refused.fetch_add(1);
    return;
  }
  auto server = std::make_shared<ServerLane>(std::move(lane), next_loop(), ranges_, staging_,
                                             counters_, options_.epoch);
  server->start();
}

std::vector<std::pair<std::string, uint64_t>> TcpTransportImpl::stats() const {
  return {{"lanes_in", counters_.lanes_in},
          {"lanes_out", counters_.lanes_out},
          {"lanes_refused", counters_.lanes_refused},
          {"lanes_cut", counters_.lanes_cut},
          {"hostile", counters_.hostile},
          {"timeouts", counters_.timeouts},
          {"corrupt", counters_.corrupt},
          {"out_of_range", counters_.out_of_range},
          {"read_bytes", counters_.read_bytes},
          {"written_bytes", counters_.written_bytes},
          {"served_read_bytes", counters_.served_read_bytes},
          {"served_written_bytes", counters_.served_written_bytes},
          {"gpu_copied_bytes", staging_.copied_bytes()},
          {"gpu_pinned_bytes", staging_.pinned_bytes()}};
}

}  // namespace

Result<std::unique_ptr<TcpTransport>> make_tcp_transport(const TcpOptions& options) {
  if (options.io_threads == 0 || options.epoch == 0) {
    return Status(Code::kInvalidArgument,
                  "the TCP transport needs at least one I/O thread and an epoch that is not 0");
  }
  auto transport = std::make_unique<TcpTransportImpl>(options);
  HICACHE_RETURN_IF_ERROR(transport->start());
  return std::unique_ptr<TcpTransport>(std::move(transport));
}

}  // namespace hicache
