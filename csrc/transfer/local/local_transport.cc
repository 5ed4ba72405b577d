#include "transfer/local/local_transport.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "io/io_loop.h"
#include "transfer/local/copy_queue.h"
#include "transfer/local/local_path.h"
#include "transfer/local/local_server.h"
#include "transfer/local/local_wire.h"
#include "transfer/local/own_buffers.h"
#include "transfer/local/peer_link.h"

namespace hicache {
namespace {

class LocalTransport : public Transport {
 public:
  explicit LocalTransport(const LocalOptions& options) : options_(options) {}
  ~LocalTransport() override {
    // Nobody touches our memory after this, which may be freed at once.
    if (buffers_ != nullptr) buffers_->end();
  }

  Status start();

  TransportKind kind() const override { return TransportKind::kLocal; }
  bool needs_registration() const override { return false; }
  std::vector<uint8_t> endpoint() const override { return encode_local_endpoint(options_.epoch); }

  Result<std::vector<uint8_t>> register_buffer(const Buffer& buffer) override {
    const Result<bool> is_mappable = buffers_->add(buffer);
    if (!is_mappable.ok()) return is_mappable.status();
    return encode_local_key(is_mappable.value());
  }
  void unregister_buffer(BufferId buffer) override { buffers_->remove(buffer); }
  Status untouched(BufferId buffer) override { return buffers_->untouched(buffer); }

  Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor& peer, ControlCalls&,
                                                  CompletionSink& sink,
                                                  uint64_t deadline_ns) override;
  void update(Path& path, const SegmentDescriptor& peer) override {
    static_cast<LocalPath&>(path).link().update(peer);
  }
  Result<std::vector<uint8_t>> answer(std::span<const uint8_t>) override {
    return Status(Code::kUnsupported, "the local transport answers no calls");
  }
  std::vector<std::pair<std::string, uint64_t>> stats() const override;

 private:
  const LocalOptions options_;
  LocalCounters counters_;
  LocalServerCounters server_counters_;
  std::shared_ptr<OwnBuffers> buffers_;
  DeviceStaging staging_{"local-gpu"};
  std::unique_ptr<CopyQueue> queue_;
  std::unique_ptr<IoLoop> loop_;  // Last: what it runs uses the others.
};

Status LocalTransport::start() {
  Result<std::shared_ptr<OwnBuffers>> buffers = OwnBuffers::make();
  if (!buffers.ok()) return buffers.status();
  buffers_ = std::move(buffers.value());
  Result<std::unique_ptr<CopyQueue>> queue = CopyQueue::start(options_.copy_threads);
  if (!queue.ok()) return queue.status();
  queue_ = std::move(queue.value());
  Result<std::unique_ptr<IoLoop>> loop = IoLoop::start("local-io");
  if (!loop.ok()) return loop.status();
  loop_ = std::move(loop.value());
  return start_local_server(
      {options_.secret, options_.epoch, buffers_, &server_counters_, loop_.get()});
}

Result<std::vector<std::unique_ptr<Path>>> LocalTransport::open(const SegmentDescriptor& peer,
                                                                ControlCalls&, CompletionSink& sink,
                                                                uint64_t deadline_ns) {
  std::vector<std::unique_ptr<Path>> paths;
  const std::span<const uint8_t> endpoint = peer.endpoint(TransportKind::kLocal);
  if (endpoint.empty()) return paths;
  if (!is_local_endpoint(endpoint, peer.epoch)) {
    return Status(Code::kUnavailable,
                  "the peer's local endpoint cannot be understood; run the same release on both "
                  "sides");
  }
  const uint64_t now_ns = monotonic_ns();
  const auto deadline =
      Deadline::after_ms(deadline_ns > now_ns ? (deadline_ns - now_ns) / 1'000'000 : 0);
  Result<std::shared_ptr<PeerLink>> link =
      PeerLink::connect(peer.epoch, options_.secret, *loop_, deadline);
  if (!link.ok()) return link.status();
  const bool wants_more = std::ranges::any_of(peer.buffers, [](const BufferDescriptor& buffer) {
    if (buffer.kind != MemoryKind::kHost) return false;
    const auto key = std::ranges::find(buffer.keys, TransportKind::kLocal, &TransportBytes::kind);
    return key != buffer.keys.end() && !is_mappable_key(key->bytes);
  });
  if (wants_more && !link.value()->can_copy_unmapped()) {
    return Status(Code::kUnavailable,
                  "the local peer has memory that cannot be mapped, and the system does not permit "
                  "to copy it (see kernel.yama.ptrace_scope, or let the engine allocate the "
                  "memory); another transport has to be used");
  }
  link.value()->update(peer);
  paths.push_back(std::make_unique<LocalPath>(std::move(link.value()), *queue_, staging_, *loop_,
                                              sink, counters_));
  return paths;
}

std::vector<std::pair<std::string, uint64_t>> LocalTransport::stats() const {
  return {{"paths", counters_.paths},
          {"read_bytes", counters_.read_bytes},
          {"written_bytes", counters_.written_bytes},
          {"inline_ops", counters_.inline_ops},
          {"queued_ops", counters_.queued_ops},
          {"failed_ops", counters_.failed_ops},
          {"gpu_copied_bytes", staging_.copied_bytes()},
          {"requesters", server_counters_.requesters},
          {"refused", server_counters_.refused},
          {"hostile", server_counters_.hostile}};
}

}  // namespace

Result<std::unique_ptr<Transport>> make_local_transport(const LocalOptions& options) {
  if (options.copy_threads == 0 || options.epoch == 0) {
    return Status(Code::kInvalidArgument,
                  "the local transport needs at least one copy thread and an epoch that is not 0");
  }
  auto transport = std::make_unique<LocalTransport>(options);
  HICACHE_RETURN_IF_ERROR(transport->start());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace hicache
