#include "transfer/engine.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <mutex>
#include <thread>

#include "base/json.h"
#include "io/event_fd.h"
#include "net/wire.h"
#include "transfer/engine_fork.h"
#include "transfer/engine_start.h"
#include "transfer/peer_slots.h"

namespace hicache {
namespace {

constexpr size_t kNoticesMax = 4096;
constexpr size_t kErrandThreadsMax = 32;
constexpr size_t kConnectionsMax = 4096;
constexpr int kEventsMax = 64;
constexpr uint64_t kMs = 1'000'000;
/// The peer id that stands for the wake-up of the engine's own thread.
constexpr SegmentId kWake = 0;

Status no_segment(SegmentId segment) {
  return Status(Code::kNotFound, "no segment " + std::to_string(segment) +
                                     " is open: it was closed, or its peer was opened anew");
}

Status no_batch(BatchId batch) {
  return Status(Code::kNotFound,
                "no batch " + std::to_string(batch) + ": it was released, or never was");
}

class PeerEngine final : public TransferEngine {
 public:
  PeerEngine(const Options& options, uint64_t epoch, TransportSet set);
  ~PeerEngine() override { (void)stop(); }

  Status run(const Options& options);
  Status stop() override;

  const std::string& name() const override { return name_; }
  uint16_t port() const override { return server_->port(); }
  uint64_t epoch() const override { return epoch_; }

  Status register_memory(uint64_t address, uint64_t size, const std::string& location,
                         bool remote_write) override {
    return memory_.add(address, size, location, remote_write);
  }
  Status unregister_memory(uint64_t address) override { return memory_.remove(address); }
  Result<uint64_t> allocate_memory(uint64_t size) override { return memory_.allocate(size); }
  Status free_memory(uint64_t address) override { return memory_.free(address); }

  Result<SegmentId> open_segment(const std::string& address, uint64_t deadline_ns) override;
  void close_segment(SegmentId segment) override;
  bool is_lost(SegmentId segment) const override;
  Result<SegmentDescriptor> describe(SegmentId segment, uint64_t deadline_ns) override;

  Result<BatchId> submit(SegmentId segment, std::span<const TransferRequest> requests,
                         Priority priority, uint64_t deadline_ns) override;
  Result<BatchState> transfer(SegmentId segment, std::span<const TransferRequest> requests,
                              Priority priority, uint64_t deadline_ns) override;
  Result<BatchState> poll(BatchId batch) override;
  Result<BatchState> wait(BatchId batch, uint64_t deadline_ns) override;
  Status release(BatchId batch) override;

  Status notify(SegmentId segment, const std::string& name, const std::string& message,
                uint64_t deadline_ns) override;
  std::vector<Notice> take_notices() override;
  Status probe(SegmentId segment, uint64_t deadline_ns) override;
  Status set_topology(const std::string& json) override;
  std::string stats() const override;

 private:
  void watch(const Peer& peer, int fd);
  void wake_at(uint64_t at_ns);
  void look_after();
  Result<std::vector<uint8_t>> answer(ControlOp op, std::span<const uint8_t> request);
  Result<std::vector<uint8_t>> answer_transport(std::span<const uint8_t> request);
  Result<std::vector<uint8_t>> take_notice(std::span<const uint8_t> request);

  const uint64_t epoch_;
  // In this order: what comes later uses what comes before, and ends before it.
  TransportSet set_;
  OwnMemory memory_;
  Errands errands_{kErrandThreadsMax};
  PeerContext context_;
  std::string name_;
  std::unique_ptr<ControlServer> server_;
  PeerSlots peers_;

  EventFd wake_;
  Fd epoll_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> is_serving_{false};
  std::atomic<uint64_t> armed_ns_{UINT64_MAX};  // When thread_ wakes by itself.
  std::mutex stop_mutex_;

  mutable std::mutex notices_mutex_;
  std::deque<Notice> notices_;
  uint64_t notices_dropped_ = 0;
};

std::vector<Transport*> pointers_of(const TransportSet& set) {
  std::vector<Transport*> transports;
  for (const std::unique_ptr<Transport>& transport : set.transports) {
    transports.push_back(transport.get());
  }
  return transports;
}

PeerEngine::PeerEngine(const Options& options, uint64_t epoch, TransportSet set)
    : epoch_(epoch), set_(std::move(set)), memory_(epoch, pointers_of(set_)) {
  context_.secret = options.secret;
  context_.transports = pointers_of(set_);
  context_.limits = {std::min<size_t>(options.batches_max, UINT16_MAX), options.requests_max,
                     options.slices_max, options.tries_max};
  context_.slice_size_bytes = options.slice_size_bytes;
  context_.spin_us = options.spin_us;
  context_.memory = &memory_;
  context_.errands = &errands_;
  context_.wake_at = [this](uint64_t at_ns) { wake_at(at_ns); };
  context_.watch = [this](const Peer& peer, int fd) { watch(peer, fd); };
  // So that ids of this engine mean nothing to the next one in the same program.
  context_.generation = static_cast<uint32_t>(epoch);
}

Status PeerEngine::run(const Options& options) {
  HICACHE_RETURN_IF_ERROR(set_topology(options.topology));
  const TlsContext::Files& tls = options.tls;
  if (!tls.certificate.empty() || !tls.key.empty() || !tls.authority.empty()) {
    if (options.secret.key == secret_from_text("").key) {
      return Status(Code::kInvalidArgument,
                    "TLS without a secret: certificates guard the control connection, but the "
                    "connections that carry payload are guarded by the secret alone, and with none "
                    "everybody could read and write registered memory; set the option secret, or "
                    "leave the TLS files out");
    }
    Result<std::shared_ptr<TlsContext>> loaded = TlsContext::load(tls);
    if (!loaded.ok()) return loaded.status();
    context_.tls = std::move(loaded.value());
  }
  wake_ = EventFd::make();
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWake;
  if (!wake_.valid() || !epoll_.valid() ||
      epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    return io_error("making descriptors for the transfer engine", errno);
  }
  ControlServer::Answers answers;
  answers.call = [this](ControlOp op, std::span<const uint8_t> request) {
    return answer(op, request);
  };
  answers.lane = [this](Fd lane) {
    if (is_serving_ && set_.adopt_lane) set_.adopt_lane(std::move(lane));
  };
  Result<std::unique_ptr<ControlServer>> server =
      ControlServer::start({options.bind_host, options.port_min, options.port_max, options.secret,
                            epoch_, context_.tls, kConnectionsMax},
                           std::move(answers));
  if (!server.ok()) return server.status();
  server_ = std::move(server.value());
  if (set_.set_port) set_.set_port(server_->port());
  name_ = options.name.empty() ? to_string(HostPort{options.public_host, server_->port()})
                               : options.name.substr(0, kSegmentTextMax);
  is_serving_ = true;
  thread_ = std::thread([this] { look_after(); });
  pthread_setname_np(thread_.native_handle(), "mh-engine");
  return Status();
}

Status PeerEngine::stop() {
  const std::lock_guard lock(stop_mutex_);
  stopping_ = true;
  const Status status(Code::kCancelled, "the transfer engine was stopped");
  for (const std::shared_ptr<Peer>& peer : peers_.all()) peer->close(status);
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  errands_.stop();
  if (server_ != nullptr) server_->stop();
  return memory_.clear();
}

// ---- the engine's own thread: lost peers, probes, deadlines

void PeerEngine::watch(const Peer& peer, int fd) {
  epoll_event event{};
  event.events = EPOLLRDHUP | EPOLLONESHOT;  // And what is always told: EPOLLHUP, EPOLLERR.
  event.data.u64 = peer.id();
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0 || errno != ENOENT) return;
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

void PeerEngine::wake_at(uint64_t at_ns) {
  if (at_ns < armed_ns_) wake_.signal();
}

void PeerEngine::look_after() {
  epoll_event events[kEventsMax];
  while (!stopping_) {
    // What is due from here on either is seen below, or sees this and signals.
    armed_ns_ = UINT64_MAX;
    uint64_t next_ns = UINT64_MAX;
    const uint64_t now_ns = monotonic_ns();
    for (const std::shared_ptr<Peer>& peer : peers_.all()) {
      next_ns = std::min(next_ns, peer->tick(now_ns));
    }
    armed_ns_ = next_ns;
    const uint64_t left_ms =
        next_ns <= now_ns ? 0 : std::min<uint64_t>((next_ns - now_ns + kMs - 1) / kMs, INT32_MAX);
    const int timeout_ms = next_ns == UINT64_MAX ? -1 : static_cast<int>(left_ms);
    const int ready = epoll_wait(epoll_.get(), events, kEventsMax, timeout_ms);
    for (int i = 0; i < ready; ++i) {
      if (events[i].data.u64 == kWake) {
        wake_.clear();
      } else if (const std::shared_ptr<Peer> peer = peers_.find(events[i].data.u64)) {
        peer->look_at_control();
      }
    }
  }
}

// ---- peers

Result<SegmentId> PeerEngine::open_segment(const std::string& address, uint64_t deadline_ns) {
  Result<HostPort> parsed = parse_host_port(address);
  if (!parsed.ok()) return parsed.status();
  (void)peers_.reap();
  if (stopping_) return Status(Code::kClosed, "the transfer engine was stopped");
  if (const SegmentId id = peers_.reopen(to_string(parsed.value())); id != 0) return id;
  const SegmentId reserved = peers_.reserve(context_.next_generation());
  if (reserved == 0) {
    return Status(Code::kBusy, std::to_string(PeerSlots::kPeersMax) +
                                   " segments are open: close some, and release their batches");
  }
  Result<std::shared_ptr<Peer>> opened =
      Peer::open(context_, parsed.value(), reserved, deadline_ns);
  if (!opened.ok()) {
    peers_.abandon(reserved);
    return opened.status();
  }
  const std::shared_ptr<Peer> peer = opened.value();
  const SegmentId id = peers_.insert(reserved, opened.value());
  if (stopping_) {
    peer->close(Status(Code::kCancelled, "the transfer engine was stopped"));
    return Status(Code::kClosed, "the transfer engine was stopped");
  }
  {
    const std::lock_guard lock(context_.topology_mutex);
    peer->set_topology(context_.topology);
  }
  peer->look_at_control();  // What happened before it could be found by its id.
  return id;
}

void PeerEngine::close_segment(SegmentId segment) {
  if (const std::shared_ptr<Peer> peer = peers_.close(segment)) {
    peer->close(Status(Code::kCancelled, "the segment was closed"));
  }
  (void)peers_.reap();
}

bool PeerEngine::is_lost(SegmentId segment) const {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  return peer == nullptr || peer->is_lost();
}

Result<SegmentDescriptor> PeerEngine::describe(SegmentId segment, uint64_t deadline_ns) {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  if (peer == nullptr) return no_segment(segment);
  const Result<std::shared_ptr<const SegmentDescriptor>> descriptor = peer->refresh(deadline_ns);
  if (!descriptor.ok()) return descriptor.status();
  return *descriptor.value();
}

Status PeerEngine::notify(SegmentId segment, const std::string& name, const std::string& message,
                          uint64_t deadline_ns) {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  if (peer == nullptr) return no_segment(segment);
  std::vector<uint8_t> request;
  WireWriter writer(request);
  writer.put_string(name_);
  writer.put_string(name);
  writer.put_string(message);
  return peer->ask(ControlOp::kNotify, request, deadline_ns);
}

Status PeerEngine::probe(SegmentId segment, uint64_t deadline_ns) {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  if (peer == nullptr) return no_segment(segment);
  return peer->ask(ControlOp::kProbe, {}, deadline_ns);
}

Status PeerEngine::set_topology(const std::string& json) {
  std::shared_ptr<const Topology> topology;
  if (!json.empty()) {
    Result<Topology> parsed = Topology::parse(json);
    if (!parsed.ok()) return parsed.status();
    topology = std::make_shared<const Topology>(std::move(parsed.value()));
  }
  {
    const std::lock_guard lock(context_.topology_mutex);
    context_.topology = topology;
  }
  for (const std::shared_ptr<Peer>& peer : peers_.all()) peer->set_topology(topology);
  return Status();
}

// ---- batches

Result<BatchId> PeerEngine::submit(SegmentId segment, std::span<const TransferRequest> requests,
                                   Priority priority, uint64_t deadline_ns) {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  if (peer == nullptr) return no_segment(segment);
  const Result<BatchKey> key = peer->submit(requests, priority, deadline_ns);
  if (!key.ok()) return key.status();
  return PeerSlots::batch_id(segment, key.value());
}

Result<BatchState> PeerEngine::transfer(SegmentId segment,
                                        std::span<const TransferRequest> requests,
                                        Priority priority, uint64_t deadline_ns) {
  const std::shared_ptr<Peer> peer = peers_.find(segment);
  if (peer == nullptr) return no_segment(segment);
  const Result<BatchKey> key = peer->submit(requests, priority, deadline_ns);
  if (!key.ok()) return key.status();
  // To its end, and not to the deadline: what is in flight then must not outlive this call.
  const std::optional<BatchState> state = peer->finish(key.value());
  if (!state) return Status(Code::kInternal, "somebody else released this batch");
  return *state;
}

Result<BatchState> PeerEngine::poll(BatchId batch) {
  const auto [peer, key] = peers_.find_batch(batch);
  const std::optional<BatchState> state = peer == nullptr ? std::nullopt : peer->poll(key);
  if (!state) return no_batch(batch);
  return *state;
}

Result<BatchState> PeerEngine::wait(BatchId batch, uint64_t deadline_ns) {
  const auto [peer, key] = peers_.find_batch(batch);
  const std::optional<BatchState> state =
      peer == nullptr ? std::nullopt : peer->wait(key, deadline_ns);
  if (!state) return no_batch(batch);
  return *state;
}

Status PeerEngine::release(BatchId batch) {
  const auto [peer, key] = peers_.find_batch(batch);
  if (peer == nullptr || !peer->release(key)) return no_batch(batch);
  return Status();
}

// ---- answers to peers

Result<std::vector<uint8_t>> PeerEngine::answer(ControlOp op, std::span<const uint8_t> request) {
  if (!is_serving_) return Status(Code::kUnavailable, "the engine is starting; try again");
  switch (op) {
    case ControlOp::kDescribe:
      return encode_segment(memory_.describe(name_));
    case ControlOp::kTransport:
      return answer_transport(request);
    case ControlOp::kNotify:
      return take_notice(request);
    case ControlOp::kProbe:
      return std::vector<uint8_t>();
  }
  return Status(Code::kUnsupported, "no such question");
}

Result<std::vector<uint8_t>> PeerEngine::answer_transport(std::span<const uint8_t> request) {
  for (Transport* transport : context_.transports) {
    if (!request.empty() && request[0] == static_cast<uint8_t>(transport->kind())) {
      return transport->answer(request.subspan(1));
    }
  }
  return Status(Code::kUnsupported, "this engine runs no such transport");
}

Result<std::vector<uint8_t>> PeerEngine::take_notice(std::span<const uint8_t> request) {
  WireReader reader(request);
  Notice notice;
  notice.from = reader.get_string(kSegmentTextMax);
  notice.name = reader.get_string(kControlRequestSizeMax);
  notice.message = reader.get_string(kControlRequestSizeMax);
  if (!reader.finished()) return Status(Code::kCorrupt, "a malformed notice");
  const std::lock_guard lock(notices_mutex_);
  if (notices_.size() == kNoticesMax) {
    notices_.pop_front();
    ++notices_dropped_;
  }
  notices_.push_back(std::move(notice));
  return std::vector<uint8_t>();
}

std::vector<Notice> PeerEngine::take_notices() {
  std::deque<Notice> taken;
  {
    const std::lock_guard lock(notices_mutex_);
    taken.swap(notices_);
  }
  return {std::make_move_iterator(taken.begin()), std::make_move_iterator(taken.end())};
}

std::string PeerEngine::stats() const {
  JsonWriter json;
  json.member("name", name_);
  json.member("epoch", epoch_);
  json.member("port", uint64_t{port()});
  json.member("buffers", memory_.count());
  json.member("registered_bytes", memory_.size_bytes());
  json.member("last_registration_refusal", memory_.last_refusal());
  json.member("unknown_completions", context_.unknown_completions.load());
  {
    const std::lock_guard lock(notices_mutex_);
    json.member("notices", notices_.size());
    json.member("notices_dropped", notices_dropped_);
  }
  json.open_member("control", '{');
  for (const auto& [name, value] : server_->stats()) json.member(name, value);
  json.close('}');
  json.open_member("transports", '{');
  for (const Transport* transport : context_.transports) {
    json.open_member(transport_name(transport->kind()), '{');
    for (const auto& [name, value] : transport->stats()) json.member(name, value);
    json.close('}');
  }
  json.close('}');
  json.open_member("peers", '[');
  for (const std::shared_ptr<Peer>& peer : peers_.all()) {
    json.open_element('{');
    peer->write_stats(json);
    json.close('}');
  }
  json.close(']');
  return json.finish();
}

}  // namespace

Result<std::unique_ptr<TransferEngine>> start_engine(const TransferEngine::Options& options,
                                                     uint64_t epoch, TransportSet set) {
  auto engine = std::make_unique<PeerEngine>(options, epoch, std::move(set));
  HICACHE_RETURN_IF_ERROR(engine->run(options));
  return refuse_after_fork(std::move(engine));
}

}  // namespace hicache
