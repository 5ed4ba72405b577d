// Work that may block for a second or so, off the threads that must not: probing a path, closing
// one, connecting by another transport.
//
// Threads start when there is work for them, at most `threads_max`, and then stay.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

namespace hicache {

class Errands {
 public:
  explicit Errands(size_t threads_max) : threads_max_(threads_max) {}
  ~Errands() { stop(); }
  Errands(const Errands&) = delete;
  Errands& operator=(const Errands&) = delete;

  /// Runs `errand` soon. False: stopped, or no thread is to be had, and `errand` was dropped.
  bool add(std::function<void()> errand);

  /// Waits for errands that run and drops those that have not begun. Must not be called by one.
  void stop();

 private:
  void work();

  const size_t threads_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  std::vector<pthread_t> threads_;
  size_t idle_ = 0;
  bool is_stopped_ = false;
};

}  // namespace hicache
