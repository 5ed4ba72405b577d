#include "transfer/local/local_server.h"

#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "io/fork_guard.h"
#include "io/unix_socket.h"

namespace hicache {
namespace {

constexpr int kBacklog = 1024;
constexpr uint64_t kRequestersMax = 4096;
constexpr uint64_t kGreetingMs = 5000;
constexpr uint64_t kPauseNs = 1'000'000'000;

/// With Yama a process reads another's memory only if that one has named it as its tracer, and it
/// can name one. The first requester has it until its last connection ends; later ones are not
/// permitted, and use TCP. The whole process has one tracer, so this is one for all transports.
class Tracer {
 public:
  static void grant(pid_t pid) {
    const std::lock_guard lock(mutex_);
    if (pid == getpid() || (uses_ != 0 && pid_ != pid)) return;
    pid_ = pid;
    ++uses_;
    (void)prctl(PR_SET_PTRACER, static_cast<unsigned long>(pid), 0, 0, 0);  // EINVAL: no Yama.
  }
  static void end(pid_t pid) {
    const std::lock_guard lock(mutex_);
    if (uses_ == 0 || pid_ != pid || --uses_ != 0) return;
    (void)prctl(PR_SET_PTRACER, 0UL, 0, 0, 0);
  }

 private:
  static inline std::mutex mutex_;
  static inline pid_t pid_ = 0;
  static inline uint64_t uses_ = 0;
};

class Connection : public IoLoop::Source, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Fd socket, pid_t pid, const LocalServerSetup& setup)
      : socket_(std::move(socket)),
        pid_(pid),
        setup_(setup),
        greeting_(std::in_place, setup.secret, setup.epoch, random_nonce()),
        greeted_by_ns_(monotonic_ns() + kGreetingMs * 1'000'000) {}
  ~Connection() override { part(); }

  Status start();
  void on_events(uint32_t events) override;
  uint64_t on_time(uint64_t now_ns) override;

 private:
  /// Tells the connection when the requester's process has died: its socket may live on in a child.
  class DeathWatch : public IoLoop::Source {
   public:
    explicit DeathWatch(Connection& owner) : owner_(owner.weak_from_this()) {}
    void on_events(uint32_t) override {
      if (const auto owner = owner_.lock()) owner->close();
    }
    uint64_t on_time(uint64_t) override { return IoLoop::kNever; }

   private:
    const std::weak_ptr<Connection> owner_;
  };

  Status advance();
  Status greet();
  Status answer(const LocalRequest& request);
  Status welcome();
  void tell_removed(BufferId buffer);
  void watch_process();
  void close();
  void part();

  Fd socket_;
  Fd pidfd_;
  const pid_t pid_;
  const LocalServerSetup setup_;
  std::optional<ServerGreeting> greeting_;  // Until it is over.
  const uint64_t greeted_by_ns_;
  uint64_t id_ = 0;
  uint64_t watch_id_ = 0;
  std::shared_ptr<OwnBuffers::Requester> requester_;  // Once it has said hello.
};

Status Connection::start() {
  Result<uint64_t> id = setup_.loop->add(socket_.get(), EPOLLIN | EPOLLRDHUP, shared_from_this());
  if (!id.ok()) return id.status();
  id_ = id.value();
  setup_.loop->wake_by(greeted_by_ns_);
  return Status();
}

uint64_t Connection::on_time(uint64_t now_ns) {
  if (!greeting_.has_value()) return IoLoop::kNever;
  if (now_ns < greeted_by_ns_) return greeted_by_ns_;
  ++setup_.counters->refused;
  close();
  return IoLoop::kNever;
}

void Connection::on_events(uint32_t events) {
  if (!socket_.valid()) return;
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) return close();
  const bool is_greeting = greeting_.has_value();
  if (advance().ok()) return;
  ++(is_greeting ? setup_.counters->refused : setup_.counters->hostile);
  close();
}

/// One message. It is there as a whole, and there is room for its answer: both ends send small
/// messages at once, and few of them are unanswered. So nothing is waited for.
Status Connection::advance() {
  if (greeting_.has_value()) return greet();
  std::array<uint8_t, kLocalRequestSize> bytes;
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes, Deadline::after_ms(0)));
  const Result<LocalRequest> request = decode_local_request(bytes);
  return request.ok() ? answer(request.value()) : request.status();
}

Status Connection::greet() {
  std::vector<uint8_t> bytes(greeting_->wanted());
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes, Deadline::after_ms(0)));
  std::vector<uint8_t> reply;
  const Status taken = greeting_->take(bytes, reply);
  if (!reply.empty()) {
    HICACHE_RETURN_IF_ERROR(send_all(socket_, reply, Deadline::after_ms(0)));
  }
  HICACHE_RETURN_IF_ERROR(taken);
  if (greeting_->wanted() != 0) return Status();
  if (greeting_->greeting().purpose != Purpose::kLocal) {
    return Status(Code::kUnavailable, "a connection to the local transport is for another purpose");
  }
  greeting_.reset();
  return Status();
}

Status Connection::answer(const LocalRequest& request) {
  if (request.op == LocalOp::kHello) return welcome();
  if (requester_ == nullptr) return Status(Code::kCorrupt, "a requester has not said hello");
  Fd memfd;
  LocalRange range = setup_.buffers->describe(request.buffer, memfd);
  const int number = memfd.get();
  if (range.is_mappable) {
    const Status sent =
        send_all(socket_, encode_local(range), Deadline::after_ms(0), std::span(&number, 1));
    if (sent.ok()) return sent;
    // Too many descriptors are on their way between processes of this user: without it, then.
    range.is_mappable = false;
    range.offset = 0;
  }
  return send_all(socket_, encode_local(range), Deadline::after_ms(0));
}

Status Connection::welcome() {
  if (requester_ != nullptr) return Status(Code::kCorrupt, "a requester says hello twice");
  Result<std::shared_ptr<OwnBuffers::Requester>> requester =
      setup_.buffers->admit(pid_, [loop = setup_.loop, weak = weak_from_this()](BufferId buffer) {
        loop->post([weak, buffer] {
          if (const auto self = weak.lock()) self->tell_removed(buffer);
        });
      });
  if (!requester.ok()) return requester.status();
  requester_ = std::move(requester.value());
  ++setup_.counters->requesters;
  watch_process();
  Tracer::grant(pid_);
  const int passed[] = {setup_.buffers->live_fd().get(), requester_->slots->fd().get()};
  return send_all(socket_, encode_local(setup_.buffers->welcome(*requester_)),
                  Deadline::after_ms(0), passed);
}

void Connection::tell_removed(BufferId buffer) {
  if (!socket_.valid()) return;
  LocalRange range{};
  range.buffer = buffer;
  // One that does not listen, for that many buffers, keeps mappings that must go: it has to connect
  // anew. Only its own end of the connection says that it is in no piece any more.
  if (!send_all(socket_, encode_local(range), Deadline::after_ms(0)).ok()) {
    (void)shutdown(socket_.get(), SHUT_WR);
  }
}

void Connection::watch_process() {
  pidfd_ = open_pidfd(pid_);
  if (!pidfd_.valid()) return;
  Result<uint64_t> id =
      setup_.loop->add(pidfd_.get(), EPOLLIN, std::make_shared<DeathWatch>(*this));
  if (id.ok()) watch_id_ = id.value();
}

void Connection::part() {
  if (requester_ == nullptr) return;
  setup_.buffers->part(requester_);
  requester_.reset();
  --setup_.counters->requesters;
  Tracer::end(pid_);
}

void Connection::close() {
  if (!socket_.valid()) return;
  const auto self = shared_from_this();  // The loop lets go of it.
  part();
  if (pidfd_.valid()) setup_.loop->remove(watch_id_, pidfd_.get());
  pidfd_.reset();
  setup_.loop->remove(id_, socket_.get());
  socket_.reset();
}

class Listener : public IoLoop::Source {
 public:
  Listener(Fd socket, const LocalServerSetup& setup) : socket_(std::move(socket)), setup_(setup) {}

  static Status start(std::shared_ptr<Listener> self) {
    const Result<uint64_t> id = self->setup_.loop->add(self->socket_.get(), EPOLLIN, self);
    if (id.ok()) self->id_ = id.value();
    return id.status();
  }

  void on_events(uint32_t) override {
    Fd arrived = made_kept_from_children(
        [&] { return accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); });
    if (arrived.valid()) return adopt(std::move(arrived));
    if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) return;
    // The one that waits would wake the loop again and again: look for descriptors once a second.
    if (id_ == 0) return;
    setup_.loop->change(id_, socket_.get(), 0);
    paused_until_ns_ = monotonic_ns() + kPauseNs;
    setup_.loop->wake_by(paused_until_ns_);
  }

  uint64_t on_time(uint64_t now_ns) override {
    if (now_ns < paused_until_ns_) return paused_until_ns_;
    if (paused_until_ns_ != 0) setup_.loop->change(id_, socket_.get(), EPOLLIN);
    paused_until_ns_ = 0;
    return IoLoop::kNever;
  }

 private:
  void adopt(Fd arrived) {
    const Result<PeerIdentity> peer = peer_identity(arrived);
    if (!peer.ok() || peer.value().uid != geteuid() ||
        setup_.counters->requesters >= kRequestersMax) {
      ++setup_.counters->refused;
      return;
    }
    auto connection = std::make_shared<Connection>(std::move(arrived), peer.value().pid, setup_);
    if (!connection->start().ok()) ++setup_.counters->refused;
  }

  const Fd socket_;
  const LocalServerSetup setup_;
  std::atomic<uint64_t> id_{0};
  uint64_t paused_until_ns_ = 0;
};

}  // namespace

Fd open_pidfd(pid_t pid) {
  return Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

Status start_local_server(const LocalServerSetup& setup) {
  Result<Fd> socket = unix_listen(local_socket_name(setup.epoch), kBacklog);
  if (!socket.ok()) return socket.status();
  keep_from_children(socket.value());
  return Listener::start(std::make_shared<Listener>(std::move(socket.value()), setup));
}

}  // namespace hicache
