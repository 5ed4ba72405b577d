// A few threads that share the work inside one batch call.
//
// SGLang reads with one thread per rank and calls for up to 128 pages at once, so bandwidth must
// come from inside the call. The caller works too, and run() returns only when no thread touches
// the caller's memory any more.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <limits>
#include <mutex>
#include <vector>

namespace hicache {

class CopyThreads {
 public:
  /// `count` includes the caller: 1 starts no thread. Starts fewer if the system allows no more.
  explicit CopyThreads(unsigned count);
  ~CopyThreads();
  CopyThreads(const CopyThreads&) = delete;
  CopyThreads& operator=(const CopyThreads&) = delete;

  /// Calls task(0) … task(task_count - 1), each exactly once, on the caller and idle threads.
  /// Blocks until all have returned. Tasks must not throw.
  /// `threads_max` counts the caller; at least 1.
  /// Threads: any number of callers at the same time; they share the threads.
  void run(size_t task_count, const std::function<void(size_t)>& task,
           unsigned threads_max = std::numeric_limits<unsigned>::max());

  unsigned count() const { return static_cast<unsigned>(threads_.size()) + 1; }

 private:
  struct Batch;
  void work();
  static void drain(Batch& batch);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Batch*> batches_;  // Of callers inside run(); guarded by mutex_.
  bool closing_ = false;
  std::vector<pthread_t> threads_;
};

}  // namespace hicache
