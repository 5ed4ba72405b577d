// Asks nodes whether they still live: greets their control server, wanting their incarnation.
//
// A few threads that may block, each until a probe's deadline. Probes that find no thread in time
// count as failed at the directory's own deadline.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "directory/directory.h"
#include "net/greeting.h"
#include "net/stream.h"

namespace hicache {

class Prober {
 public:
  /// `done` is called from a thread of the prober's.
  using Done = std::function<void(NodeIndex node, uint64_t probe, bool is_alive)>;

  Prober(const Secret& secret, std::shared_ptr<TlsContext> tls, uint64_t timeout_ms, Done done);
  /// Waits for the probes that run.
  ~Prober();
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  void probe(const Directory::Effect& effect);

 private:
  void run();
  bool is_alive(const Directory::Effect& effect) const;

  const Secret secret_;
  const std::shared_ptr<TlsContext> tls_;
  const uint64_t timeout_ms_;
  const Done done_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Directory::Effect> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace hicache
