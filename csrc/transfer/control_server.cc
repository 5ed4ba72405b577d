#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <unordered_map>
#include <utility>

#include "io/event_fd.h"
#include "net/wire.h"
#include "transfer/control.h"
#include "transfer/control_connection.h"

namespace hicache {
namespace {

constexpr uint64_t kGreetingTimeoutNs = 5'000'000'000;
constexpr uint64_t kAcceptPauseNs = 1'000'000'000;  // While there are no descriptors left.
/// Of clients that have not proven themselves; the oldest goes when there are more.
constexpr size_t kGreetingsMax = 256;
constexpr uint8_t kTlsHandshake = 0x16;  // The first byte of a TLS client, RFC 8446 section 5.1.
constexpr int kEventsMax = 64;

std::vector<uint8_t> encode_reply(const Result<std::vector<uint8_t>>& result) {
  std::vector<uint8_t> reply;
  WireWriter writer(reply);
  writer.put(result.status().code());
  writer.put_string(std::string_view(result.status().message()).substr(0, kTransportBytesMax));
  if (result.ok()) writer.put_bytes(result.value().data(), result.value().size());
  return reply;
}

class EpollControlServer final : public ControlServer {
 public:
  EpollControlServer(Options options, Answers answers, Listening listening, Fd epoll, EventFd wake)
      : options_(std::move(options)),
        answers_(std::move(answers)),
        listening_(std::move(listening)),
        epoll_(std::move(epoll)),
        wake_(std::move(wake)) {}

  ~EpollControlServer() override { stop(); }

  Status run();
  uint16_t port() const override { return listening_.port; }
  void stop() override;
  std::vector<std::pair<std::string, uint64_t>> stats() const override;

 private:
  /// A connection whose first byte has not come: it says whether TLS is spoken.
  struct Arrival {
    Fd socket;
    uint64_t deadline_ns;
  };

  void serve();
  Status watch(int fd, uint32_t events, int operation) const;
  void accept_some();
  void look_at_first_byte(int fd);
  void advance(int fd);
  void forget(int fd, bool is_refused, bool is_malformed);
  /// Closes greetings that are late; returns when the next one will be, in ms; -1: none runs.
  int expire_greetings();
  void close_oldest_greeting();
  size_t greeting_count() const;
  std::vector<uint8_t> answer(uint16_t op, std::span<const uint8_t> request);

  const Options options_;
  const Answers answers_;
  Listening listening_;
  Fd epoll_;
  EventFd wake_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  // Of the thread alone.
  std::unordered_map<int, Arrival> arrivals_;
  std::unordered_map<int, ControlConnection> connections_;
  bool is_accepting_ = true;
  uint64_t accept_again_ns_ = 0;  // If not: when to try.

  std::atomic<uint64_t> open_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> malformed_{0};
  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> lanes_{0};
};

Status EpollControlServer::watch(int fd, uint32_t events, int operation) const {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), operation, fd, &event) == 0) return Status();
  return io_error("watching a connection", errno);
}

Status EpollControlServer::run() {
  HICACHE_RETURN_IF_ERROR(watch(listening_.fd.get(), EPOLLIN, EPOLL_CTL_ADD));
  HICACHE_RETURN_IF_ERROR(watch(wake_.get(), EPOLLIN, EPOLL_CTL_ADD));
  thread_ = std::thread([this] { serve(); });
  pthread_setname_np(thread_.native_handle(), "mh-control");
  return Status();
}

void EpollControlServer::stop() {
  stopping_ = true;
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  listening_.fd.reset();
  arrivals_.clear();
  connections_.clear();
  open_ = 0;
}

void EpollControlServer::serve() {
  epoll_event events[kEventsMax];
  while (!stopping_) {
    const int ready = epoll_wait(epoll_.get(), events, kEventsMax, expire_greetings());
    for (int i = 0; i < ready && !stopping_; ++i) {
      const int fd = events[i].data.fd;
      if (fd == wake_.get()) {
        wake_.clear();
      } else if (fd == listening_.fd.get()) {
        accept_some();
      } else if (arrivals_.contains(fd)) {
        look_at_first_byte(fd);
      } else if (connections_.contains(fd)) {
        advance(fd);
      }
    }
  }
}

void EpollControlServer::accept_some() {
  for (int i = 0; i < kEventsMax; ++i) {
    Result<Fd> accepted = tcp_accept(listening_.fd);
    if (!accepted.ok()) {
      // No descriptors left: the backlog waits until one is free again; see forget().
      is_accepting_ = watch(listening_.fd.get(), 0, EPOLL_CTL_MOD).ok() ? false : is_accepting_;
      accept_again_ns_ = monotonic_ns() + kAcceptPauseNs;
      return;
    }
    if (!accepted.value().valid()) return;
    if (connections_.size() >= options_.connections_max) {
      ++refused_;
      continue;
    }
    if (greeting_count() >= kGreetingsMax) close_oldest_greeting();
    Fd socket = std::move(accepted.value());
    const int fd = socket.get();
    if (!tune(socket).ok() || !watch(fd, EPOLLIN, EPOLL_CTL_ADD).ok()) continue;
    arrivals_.emplace(fd, Arrival{std::move(socket), monotonic_ns() + kGreetingTimeoutNs});
  }
}

void EpollControlServer::look_at_first_byte(int fd) {
  uint8_t first = 0;
  const ssize_t got = recv(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  Arrival arrival = std::move(arrivals_.at(fd));
  arrivals_.erase(fd);
  const bool speaks_tls = first == kTlsHandshake;
  if (got <= 0 || (speaks_tls && options_.tls == nullptr)) {
    ++refused_;
    return;
  }
  Stream stream(std::move(arrival.socket), Stream::End::kServer,
                speaks_tls ? options_.tls : nullptr);
  connections_.emplace(std::piecewise_construct, std::forward_as_tuple(fd),
                       std::forward_as_tuple(std::move(stream), options_.secret, options_.epoch,
                                             options_.tls != nullptr, arrival.deadline_ns));
  ++open_;
  advance(fd);
}

void EpollControlServer::advance(int fd) {
  ControlConnection& connection = connections_.at(fd);
  const ControlConnection::Next next = connection.advance(
      [this](uint16_t op, std::span<const uint8_t> request) { return answer(op, request); });
  if (next == ControlConnection::Next::kWait) {
    if (watch(fd, connection.events(), EPOLL_CTL_MOD).ok()) return;
  } else if (next == ControlConnection::Next::kLane) {
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    Fd lane = connection.take_lane();
    connections_.erase(fd);
    --open_;
    ++lanes_;
    answers_.lane(std::move(lane));
    return;
  }
  forget(fd, connection.was_refused(), connection.was_malformed());
}

void EpollControlServer::forget(int fd, bool is_refused, bool is_malformed) {
  connections_.erase(fd);
  --open_;
  if (is_refused) ++refused_;
  if (is_malformed) ++malformed_;
  if (!is_accepting_) {
    is_accepting_ = watch(listening_.fd.get(), EPOLLIN, EPOLL_CTL_MOD).ok();
  }
}

size_t EpollControlServer::greeting_count() const {
  return arrivals_.size() +
         static_cast<size_t>(std::count_if(connections_.begin(), connections_.end(),
                                           [](const auto& it) { return it.second.is_greeting(); }));
}

int EpollControlServer::expire_greetings() {
  const uint64_t now_ns = monotonic_ns();
  uint64_t next_ns = UINT64_MAX;
  std::erase_if(arrivals_, [&](const auto& it) {
    if (it.second.deadline_ns > now_ns) next_ns = std::min(next_ns, it.second.deadline_ns);
    return it.second.deadline_ns <= now_ns;
  });
  std::vector<int> late;
  for (const auto& [fd, connection] : connections_) {
    if (!connection.is_greeting()) continue;
    const uint64_t deadline_ns = connection.greeting_deadline_ns();
    if (deadline_ns <= now_ns) late.push_back(fd);
    if (deadline_ns > now_ns) next_ns = std::min(next_ns, deadline_ns);
  }
  for (const int fd : late) forget(fd, true, false);
  // Somebody may have released a descriptor without our knowing.
  if (!is_accepting_ && now_ns >= accept_again_ns_) {
    is_accepting_ = watch(listening_.fd.get(), EPOLLIN, EPOLL_CTL_MOD).ok();
    accept_again_ns_ = now_ns + kAcceptPauseNs;
  }
  if (!is_accepting_) next_ns = std::min(next_ns, accept_again_ns_);
  return next_ns == UINT64_MAX ? -1 : static_cast<int>((next_ns - now_ns) / 1'000'000 + 1);
}

void EpollControlServer::close_oldest_greeting() {
  ++refused_;
  const auto arrival = std::min_element(
      arrivals_.begin(), arrivals_.end(),
      [](const auto& a, const auto& b) { return a.second.deadline_ns < b.second.deadline_ns; });
  if (arrival != arrivals_.end()) {
    arrivals_.erase(arrival);
    return;
  }
  int oldest = -1;
  for (const auto& [fd, connection] : connections_) {
    if (!connection.is_greeting()) continue;
    if (oldest < 0 ||
        connection.greeting_deadline_ns() < connections_.at(oldest).greeting_deadline_ns()) {
      oldest = fd;
    }
  }
  if (oldest >= 0) forget(oldest, false, false);
}

std::vector<uint8_t> EpollControlServer::answer(uint16_t op, std::span<const uint8_t> request) {
  ++requests_;
  if (op < static_cast<uint16_t>(ControlOp::kDescribe) ||
      op > static_cast<uint16_t>(ControlOp::kProbe)) {
    return encode_reply(
        Status(Code::kUnsupported, "the peer does not know control request " + std::to_string(op)));
  }
  Result<std::vector<uint8_t>> reply = answers_.call(static_cast<ControlOp>(op), request);
  if (reply.ok() && reply.value().size() > kControlReplySizeMax - kTransportBytesMax - 64) {
    return encode_reply(Status(Code::kInternal, "a reply is too large to be sent"));
  }
  return encode_reply(reply);
}

std::vector<std::pair<std::string, uint64_t>> EpollControlServer::stats() const {
  return {{"connections", open_},
          {"refused", refused_},
          {"malformed", malformed_},
          {"requests", requests_},
          {"lanes", lanes_}};
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::start(const Options& options,
                                                            Answers answers) {
  Result<Listening> listening = tcp_listen(options.host, options.port_min, options.port_max);
  if (!listening.ok()) return listening.status();
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  EventFd wake = EventFd::make();
  if (!epoll.valid() || !wake.valid()) return io_error("starting the control server", errno);
  auto server = std::make_unique<EpollControlServer>(
      options, std::move(answers), std::move(listening.value()), std::move(epoll), std::move(wake));
  HICACHE_RETURN_IF_ERROR(server->run());
  return std::unique_ptr<ControlServer>(std::move(server));
}

}  // namespace hicache
