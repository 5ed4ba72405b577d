#include "directory/prober.h"

#include <pthread.h>

#include <utility>

#include "io/tcp_socket.h"
#include "net/secure_channel.h"

namespace hicache {
namespace {

constexpr size_t kThreadsCount = 8;

}  // namespace

Prober::Prober(const Secret& secret, std::shared_ptr<TlsContext> tls, uint64_t timeout_ms,
               Done done)
    : secret_(secret), tls_(std::move(tls)), timeout_ms_(timeout_ms), done_(std::move(done)) {
  for (size_t i = 0; i < kThreadsCount; ++i) {
    threads_.emplace_back([this] { run(); });
    pthread_setname_np(threads_.back().native_handle(), "mh-prober");
  }
}

Prober::~Prober() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Prober::probe(const Directory::Effect& effect) {
  {
    const std::lock_guard lock(mutex_);
    // The oldest of too many are late already.
    if (waiting_.size() >= kNodesMax) waiting_.pop_front();
    waiting_.push_back(effect);
  }
  work_.notify_one();
}

void Prober::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    const Directory::Effect effect = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    done_(effect.node, effect.probe, is_alive(effect));
    lock.lock();
  }
}

bool Prober::is_alive(const Directory::Effect& effect) const {
  const Deadline deadline = Deadline::after_ms(timeout_ms_);
  const Result<HostPort> address = parse_host_port(effect.address);
  if (!address.ok()) return false;
  Result<Fd> socket = tcp_connect(address.value(), deadline);
  if (!socket.ok()) return false;
  Stream stream(std::move(socket.value()), Stream::End::kClient, tls_);
  return greet_server(stream, secret_, {Purpose::kControl, effect.incarnation}, deadline).ok();
}

}  // namespace hicache
