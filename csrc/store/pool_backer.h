// Backs the pool with real memory ahead of the writers.
//
// The pool is given out from its start, so a node uses what it needs and no more. Whoever writes
// first to a part of it makes the kernel back that part, on its own copy threads and as part of its
// put (ClientConnection::back). This thread goes ahead of the writers, so that they mostly find it
// done.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "io/memory.h"

namespace hicache {

class PoolBacker {
 public:
  /// `on_failure` is called on the backer's thread when the machine has no memory left.
  PoolBacker(SharedMemory& memory, std::function<void()> on_failure);
  ~PoolBacker();

  /// Asks the thread to back the pool up to `end_offset`. Does not block. After a failure this is
  /// what makes it try again.
  void want(uint64_t end_offset);

  /// How far the thread has come.
  uint64_t backed_bytes() const;

  /// Why the last try failed; empty if it did not.
  std::string failure() const;

 private:
  void run();

  SharedMemory& memory_;
  const std::function<void()> on_failure_;
  mutable std::mutex mutex_;  // Guards what follows.
  std::condition_variable wake_;
  uint64_t wanted_bytes_ = 0;
  uint64_t backed_bytes_ = 0;
  std::string failure_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace hicache
