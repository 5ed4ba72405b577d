#include "transfer/peer_control.h"

#include <poll.h>

#include <chrono>
#include <utility>

namespace hicache {

PeerControl::PeerControl(HostPort address, const Secret& secret, std::shared_ptr<TlsContext> tls,
                         std::function<void(int fd)> watch)
    : address_(std::move(address)),
      name_(to_string(address_)),
      secret_(secret),
      tls_(std::move(tls)),
      watch_(std::move(watch)) {}

Result<std::vector<uint8_t>> PeerControl::ask(ControlOp op, std::span<const uint8_t> request,
                                              Deadline deadline) {
  {
    std::unique_lock lock(mutex_);
    const auto may_go = [this] { return !is_taken_ || is_ended_; };
    if (!free_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()), may_go)) {
      return Status(Code::kTimeout,
                    "asking " + name_ + ": earlier questions were not answered in time");
    }
    if (is_ended_) return ended_status();
    // Who has no time left must not spoil the connection for others.
    if (deadline.expired()) {
      return Status(Code::kTimeout, "asking " + name_ + ": no time was left for it");
    }
    is_taken_ = true;
  }
  Result<std::vector<uint8_t>> reply = ask_in_turn(op, request, deadline);
  {
    const std::lock_guard lock(mutex_);
    is_taken_ = false;
  }
  free_.notify_one();
  return reply;
}

Result<std::vector<uint8_t>> PeerControl::ask_in_turn(ControlOp op,
                                                      std::span<const uint8_t> request,
                                                      Deadline deadline) {
  const Result<std::shared_ptr<ControlClient>> client = connected(deadline);
  if (!client.ok()) return client.status();
  Result<std::vector<uint8_t>> reply = client.value()->call(op, request, deadline);
  if (!reply.ok() && client.value()->is_broken()) {
    const std::lock_guard lock(mutex_);
    is_spoilt_ = true;
  }
  return reply;
}

/// In the caller's turn: nobody else makes connections.
Result<std::shared_ptr<ControlClient>> PeerControl::connected(Deadline deadline) {
  uint64_t epoch;
  {
    const std::lock_guard lock(mutex_);
    if (client_ != nullptr && !is_spoilt_) return client_;
    epoch = epoch_;
  }
  Result<std::unique_ptr<ControlClient>> made =
      ControlClient::connect(address_, secret_, tls_, epoch, deadline);
  std::shared_ptr<ControlClient> old;  // Closed without the lock.
  const std::lock_guard lock(mutex_);
  if (!made.ok()) {
    // Nobody listens, or somebody else does.
    if (epoch != 0 && made.status().code() == Code::kUnavailable) is_gone_ = true;
    return made.status();
  }
  if (is_ended_) return ended_status();
  old = std::exchange(client_, std::move(made.value()));
  is_spoilt_ = false;
  epoch_ = client_->peer_epoch();
  watch_(client_->fd());
  return client_;
}

uint64_t PeerControl::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

bool PeerControl::is_gone() {
  const std::lock_guard lock(mutex_);
  if (client_ == nullptr) return false;
  // A spoilt connection tells of the peer's death like any other, while a new one is being made.
  pollfd waited{client_->fd(), POLLRDHUP, 0};
  if (is_gone_ || poll(&waited, 1, 0) > 0) return true;
  watch_(client_->fd());
  return false;
}

void PeerControl::end() {
  std::shared_ptr<ControlClient> client;
  {
    const std::lock_guard lock(mutex_);
    is_ended_ = true;
    client = client_;
  }
  free_.notify_all();
  if (client != nullptr) client->cut();
}

Status PeerControl::ended_status() const {
  return Status(Code::kUnavailable, "asking " + name_ + ": the connection was ended here");
}

}  // namespace hicache
