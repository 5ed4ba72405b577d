#include "net/reception.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kGreetingTimeoutNs = 5'000'000'000;
constexpr uint64_t kAcceptPauseNs = 1'000'000'000;  // While there are no descriptors left.
constexpr uint64_t kNotePauseNs = 60'000'000'000;
constexpr size_t kVisitorsMax = 256;
constexpr int kAcceptsMax = 64;          // In one turn of the owner's loop.
constexpr uint8_t kTlsHandshake = 0x16;  // The first byte of a TLS client, RFC 8446 section 5.1.

}  // namespace

Reception::Reception(Options options, Listening listening, int epoll)
    : options_(std::move(options)), listening_(std::move(listening)), epoll_(epoll) {}

Status Reception::watch(int fd, uint32_t events, int operation) const {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_, operation, fd, &event) == 0) return Status();
  return io_error("watching a connection", errno);
}

Status Reception::start() {
  return watch(listening_.fd.get(), EPOLLIN, EPOLL_CTL_ADD);
}

void Reception::close() {
  listening_.fd.reset();
  visitors_.clear();
}

std::optional<Reception::Guest> Reception::advance(int fd, size_t guest_count) {
  if (fd == listening_.fd.get()) {
    accept_some(guest_count);
    return std::nullopt;
  }
  Visitor& visitor = visitors_.at(fd);
  if (visitor.socket.valid()) {
    uint8_t first = 0;
    const ssize_t got = recv(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return std::nullopt;
    const bool speaks_tls = first == kTlsHandshake;
    if (got <= 0 || (speaks_tls && options_.tls == nullptr)) {
      refuse(fd);
      return std::nullopt;
    }
    visitor.stream = Stream(std::move(visitor.socket), Stream::End::kServer,
                            speaks_tls ? options_.tls : nullptr);
  }
  const Next next = greet(visitor);
  if (next == Next::kWait && watch(fd, visitor.stream.events(), EPOLL_CTL_MOD).ok()) {
    return std::nullopt;
  }
  if (next != Next::kDone) {
    refuse(fd);
    return std::nullopt;
  }
  Guest guest{std::move(visitor.stream), visitor.greeting.greeting().purpose};
  visitors_.erase(fd);
  return guest;
}

void Reception::accept_some(size_t guest_count) {
  for (int i = 0; i < kAcceptsMax; ++i) {
    Result<Fd> accepted = tcp_accept(listening_.fd);
    if (!accepted.ok()) {
      // No descriptors left: the backlog waits until one is free again; see guest_left().
      is_accepting_ = watch(listening_.fd.get(), 0, EPOLL_CTL_MOD).ok() ? false : is_accepting_;
      accept_again_ns_ = monotonic_ns() + kAcceptPauseNs;
      return;
    }
    if (!accepted.value().valid()) return;
    if (guest_count >= options_.guests_max) {
      ++refused_count_;
      continue;
    }
    if (visitors_.size() >= kVisitorsMax) refuse_oldest();
    Fd socket = std::move(accepted.value());
    const int fd = socket.get();
    if (!tune(socket).ok() || !watch(fd, EPOLLIN, EPOLL_CTL_ADD).ok()) continue;
    ServerGreeting greeting(options_.secret, options_.epoch, random_nonce());
    const size_t wanted = greeting.wanted();
    visitors_.emplace(fd, Visitor{.socket = std::move(socket),
                                  .stream = {},
                                  .greeting = std::move(greeting),
                                  .deadline_ns = monotonic_ns() + kGreetingTimeoutNs,
                                  .in = std::vector<uint8_t>(wanted),
                                  .out = {}});
  }
}

bool Reception::receive(Visitor& visitor, bool& is_gone) {
  while (visitor.in_size < visitor.in.size()) {
    Result<size_t> got = visitor.stream.read_some(std::span(visitor.in).subspan(visitor.in_size));
    is_gone = !got.ok();
    if (!got.ok() || got.value() == 0) return false;
    visitor.in_size += got.value();
  }
  return true;
}

bool Reception::send(Visitor& visitor, bool& is_gone) {
  while (visitor.out_size < visitor.out.size()) {
    Result<size_t> sent =
        visitor.stream.write_some(std::span(visitor.out).subspan(visitor.out_size));
    is_gone = !sent.ok();
    if (!sent.ok() || sent.value() == 0) return false;
    visitor.out_size += sent.value();
  }
  visitor.out.clear();
  visitor.out_size = 0;
  return true;
}

Reception::Next Reception::greet(Visitor& visitor) {
  bool is_gone = false;
  while (send(visitor, is_gone)) {
    // Who is refused is told why first.
    if (visitor.is_refused) return Next::kClose;
    if (visitor.greeting.wanted() == 0) return Next::kDone;
    if (!receive(visitor, is_gone)) break;
    const Status taken = visitor.greeting.take(visitor.in, visitor.out);
    visitor.is_refused = !taken.ok();
    if (visitor.is_refused) note_refusal(visitor, taken);
    visitor.in.resize(visitor.greeting.wanted());
    visitor.in_size = 0;
  }
  return is_gone ? Next::kClose : Next::kWait;
}

void Reception::note_refusal(const Visitor& visitor, const Status& why) {
  if (why.code() != Code::kUnsupported || !options_.on_other_version) return;
  const uint64_t now_ns = monotonic_ns();
  if (now_ns < note_again_ns_) return;
  note_again_ns_ = now_ns + kNotePauseNs;
  options_.on_other_version("a process at " + peer_host(visitor.stream.socket()) +
                            " was refused: " + why.message());
}

void Reception::refuse(int fd) {
  ++refused_count_;
  visitors_.erase(fd);
  guest_left();
}

void Reception::refuse_oldest() {
  const auto oldest = std::min_element(
      visitors_.begin(), visitors_.end(),
      [](const auto& a, const auto& b) { return a.second.deadline_ns < b.second.deadline_ns; });
  if (oldest != visitors_.end()) refuse(oldest->first);
}

void Reception::guest_left() {
  if (is_accepting_ || !listening_.fd.valid()) return;
  is_accepting_ = watch(listening_.fd.get(), EPOLLIN, EPOLL_CTL_MOD).ok();
}

int Reception::expire() {
  const uint64_t now_ns = monotonic_ns();
  uint64_t next_ns = UINT64_MAX;
  std::vector<int> late;
  for (const auto& [fd, visitor] : visitors_) {
    if (visitor.deadline_ns <= now_ns) {
      late.push_back(fd);
    } else {
      next_ns = std::min(next_ns, visitor.deadline_ns);
    }
  }
  for (const int fd : late) refuse(fd);
  // Somebody may have released a descriptor without our knowing.
  if (!is_accepting_ && now_ns >= accept_again_ns_) {
    guest_left();
    accept_again_ns_ = now_ns + kAcceptPauseNs;
  }
  if (!is_accepting_) next_ns = std::min(next_ns, accept_again_ns_);
  return next_ns == UINT64_MAX ? -1 : static_cast<int>((next_ns - now_ns) / 1'000'000 + 1);
}

}  // namespace hicache
