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
#include "net/reception.h"
#include "net/wire.h"
#include "transfer/control.h"
#include "transfer/control_connection.h"

namespace hicache {
namespace {

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
  EpollControlServer(const Options& options, Answers answers, Listening listening, Fd epoll,
                     EventFd wake)
      : options_(options),
        answers_(std::move(answers)),
        epoll_(std::move(epoll)),
        wake_(std::move(wake)),
        reception_({options.secret, options.epoch, options.tls, options.connections_max},
                   std::move(listening), epoll_.get()) {}

  ~EpollControlServer() override { stop(); }

  Status run();
  uint16_t port() const override { return reception_.port(); }
  void stop() override;
  std::vector<std::pair<std::string, uint64_t>> stats() const override;

 private:
  void serve();
  Status watch(int fd, uint32_t events, int operation) const;
  /// Takes in a connection whose greeting is over, or hands it over as a lane.
  void welcome(Reception::Guest guest);
  void advance(int fd);
  void forget(int fd, bool is_malformed);
  std::vector<uint8_t> answer(uint16_t op, std::span<const uint8_t> request);

  const Options options_;
  const Answers answers_;
  Fd epoll_;
  EventFd wake_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  // Of the thread alone.
  Reception reception_;
  std::unordered_map<int, ControlConnection> connections_;
  uint64_t unwelcome_count_ = 0;  // Greeted, but not for what they came for.

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
  HICACHE_RETURN_IF_ERROR(reception_.start());
  HICACHE_RETURN_IF_ERROR(watch(wake_.get(), EPOLLIN, EPOLL_CTL_ADD));
  thread_ = std::thread([this] { serve(); });
  pthread_setname_np(thread_.native_handle(), "mh-control");
  return Status();
}

void EpollControlServer::stop() {
  stopping_ = true;
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  reception_.close();
  connections_.clear();
  open_ = 0;
}

void EpollControlServer::serve() {
  epoll_event events[kEventsMax];
  while (!stopping_) {
    const int wait_ms = reception_.expire();
    refused_ = reception_.refused_count() + unwelcome_count_;
    const int ready = epoll_wait(epoll_.get(), events, kEventsMax, wait_ms);
    for (int i = 0; i < ready && !stopping_; ++i) {
      const int fd = events[i].data.fd;
      if (fd == wake_.get()) {
        wake_.clear();
      } else if (connections_.contains(fd)) {
        advance(fd);
      } else if (reception_.owns(fd)) {
        std::optional<Reception::Guest> guest = reception_.advance(fd, connections_.size());
        if (guest) welcome(std::move(*guest));
      }
    }
  }
}

void EpollControlServer::welcome(Reception::Guest guest) {
  const int fd = guest.stream.socket().get();
  const bool is_tls = guest.stream.is_tls();
  if (guest.purpose == Purpose::kTcpLane && !is_tls) {
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    ++lanes_;
    return answers_.lane(guest.stream.release());
  }
  const bool is_welcome = guest.purpose == Purpose::kControl &&
                          is_tls == (options_.tls != nullptr) &&
                          connections_.size() < options_.connections_max;
  if (!is_welcome) {
    ++unwelcome_count_;
    return;
  }
  connections_.emplace(fd, ControlConnection(std::move(guest.stream)));
  ++open_;
  advance(fd);
}

void EpollControlServer::advance(int fd) {
  ControlConnection& connection = connections_.at(fd);
  const ControlConnection::Next next = connection.advance(
      [this](uint16_t op, std::span<const uint8_t> request) { return answer(op, request); });
  if (next == ControlConnection::Next::kWait &&
      watch(fd, connection.events(), EPOLL_CTL_MOD).ok()) {
    return;
  }
  forget(fd, connection.was_malformed());
}

void EpollControlServer::forget(int fd, bool is_malformed) {
  connections_.erase(fd);
  --open_;
  if (is_malformed) ++malformed_;
  reception_.guest_left();
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
