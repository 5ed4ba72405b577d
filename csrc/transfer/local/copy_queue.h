// Threads that copy what is too large for the caller's: jobs in, pieces out.
//
// Urgent jobs go before background ones; among equals the first comes first, and all threads work
// on it. Between pieces its deadline, its failure and its cancellation are looked at.
//
// Threads: any.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "transfer/transport.h"

namespace hicache {

class CopyQueue {
 public:
  /// Something to be copied in pieces.
  class Job {
   public:
    /// A piece is a thread's share of the job, but neither more nor less than these.
    struct PieceLimits {
      uint64_t min;
      uint64_t max;
    };

    Job(const void* group, uint64_t size, PieceLimits pieces, uint64_t deadline_ns,
        Priority priority)
        : group_(group),
          size_(size),
          pieces_(pieces),
          deadline_ns_(deadline_ns),
          priority_(priority) {}
    virtual ~Job() = default;

   private:
    friend class CopyQueue;
    /// Called by the queue's threads, several at a time for different pieces.
    virtual Status copy_piece(uint64_t offset, uint64_t size) = 0;
    /// Called once, when no piece is being copied and none will be; without a lock.
    virtual void finish(Status status) = 0;

    const void* const group_;
    const uint64_t size_;
    const PieceLimits pieces_;
    const uint64_t deadline_ns_;
    const Priority priority_;
    // Guarded by the queue's mutex.
    uint64_t next_ = 0;
    unsigned running_ = 0;
    bool is_queued_ = false;
    Status status_;
  };

  /// kIo: no thread can be had; fewer than asked for is no error.
  static Result<std::unique_ptr<CopyQueue>> start(size_t threads);
  /// No job may be left.
  ~CopyQueue();
  CopyQueue(const CopyQueue&) = delete;
  CopyQueue& operator=(const CopyQueue&) = delete;

  /// The job's size must not be 0.
  void add(std::shared_ptr<Job> job);

  /// Ends all jobs of a group with `status`: those that have begun after the pieces that run.
  void fail(const void* group, const Status& status);
  /// Ends the jobs of a group whose deadline has come. Returns the next deadline of the others;
  /// UINT64_MAX: there are none.
  uint64_t expire(const void* group, uint64_t now_ns);

  size_t thread_count() const { return threads_.size(); }

 private:
  using Queue = std::deque<std::shared_ptr<Job>>;

  CopyQueue() = default;
  void work();
  std::shared_ptr<Job> next_job();
  void run_piece(const std::shared_ptr<Job>& job, std::unique_lock<std::mutex>& lock);
  void unqueue(const std::shared_ptr<Job>& job);
  uint64_t piece_size(const Job& job) const;

  std::mutex mutex_;
  std::condition_variable wake_;
  Queue urgent_;
  Queue background_;
  bool is_closing_ = false;
  std::vector<pthread_t> threads_;
};

}  // namespace hicache
