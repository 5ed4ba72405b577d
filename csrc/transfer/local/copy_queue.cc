#include "transfer/local/copy_queue.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"

namespace hicache {

Result<std::unique_ptr<CopyQueue>> CopyQueue::start(size_t threads) {
  std::unique_ptr<CopyQueue> queue(new CopyQueue());
  const auto run = [](void* self) -> void* {
    static_cast<CopyQueue*>(self)->work();
    return nullptr;
  };
  int error = 0;
  for (size_t i = 0; i < threads && error == 0; ++i) {
    pthread_t thread;
    error = pthread_create(&thread, nullptr, run, queue.get());
    if (error != 0) break;
    pthread_setname_np(thread, ("local-copy-" + std::to_string(i % 100)).c_str());
    queue->threads_.push_back(thread);
  }
  if (queue->threads_.empty()) {
    return io_error("starting a thread of the local transport", error == 0 ? EINVAL : error);
  }
  return queue;
}

CopyQueue::~CopyQueue() {
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  wake_.notify_all();
  for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
}

uint64_t CopyQueue::piece_size(const Job& job) const {
  const uint64_t share = round_up(job.size_ / threads_.size(), 4 * kKiB);
  return std::min(std::clamp(share, job.pieces_.min, job.pieces_.max), job.size_ - job.next_);
}

void CopyQueue::add(std::shared_ptr<Job> job) {
  bool is_shared;
  {
    const std::lock_guard lock(mutex_);
    is_shared = piece_size(*job) < job->size_;
    job->is_queued_ = true;
    (job->priority_ == Priority::kUrgent ? urgent_ : background_).push_back(std::move(job));
  }
  if (is_shared) {
    wake_.notify_all();
  } else {
    wake_.notify_one();
  }
}

/// Locked. No more pieces of it are given out.
void CopyQueue::unqueue(const std::shared_ptr<Job>& job) {
  if (!job->is_queued_) return;
  Queue& queue = job->priority_ == Priority::kUrgent ? urgent_ : background_;
  queue.erase(std::find(queue.begin(), queue.end(), job));
  job->is_queued_ = false;
}

void CopyQueue::fail(const void* group, const Status& status) {
  Queue ended;
  {
    const std::lock_guard lock(mutex_);
    for (Queue* queue : {&urgent_, &background_}) {
      std::erase_if(*queue, [&](const std::shared_ptr<Job>& job) {
        if (job->group_ != group) return false;
        job->is_queued_ = false;
        if (job->status_.ok()) job->status_ = status;
        if (job->running_ == 0) ended.push_back(job);
        return true;
      });
    }
  }
  for (const auto& job : ended) job->finish(job->status_);
}

uint64_t CopyQueue::expire(const void* group, uint64_t now_ns) {
  Queue ended;
  uint64_t next_ns = UINT64_MAX;
  {
    const std::lock_guard lock(mutex_);
    for (Queue* queue : {&urgent_, &background_}) {
      std::erase_if(*queue, [&](const std::shared_ptr<Job>& job) {
        if (job->group_ != group) return false;
        if (job->deadline_ns_ > now_ns) {
          next_ns = std::min(next_ns, job->deadline_ns_);
          return false;
        }
        job->is_queued_ = false;
        if (job->status_.ok()) job->status_ = Status(Code::kTimeout, "the deadline has passed");
        if (job->running_ == 0) ended.push_back(job);
        return true;
      });
    }
  }
  for (const auto& job : ended) job->finish(job->status_);
  return next_ns;
}

/// Locked. Null: there is nothing to do.
std::shared_ptr<CopyQueue::Job> CopyQueue::next_job() {
  if (!urgent_.empty()) return urgent_.front();
  return background_.empty() ? nullptr : background_.front();
}

void CopyQueue::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    const std::shared_ptr<Job> job = next_job();
    if (job != nullptr) {
      run_piece(job, lock);
    } else if (is_closing_) {
      return;
    } else {
      wake_.wait(lock);
    }
  }
}

void CopyQueue::run_piece(const std::shared_ptr<Job>& job, std::unique_lock<std::mutex>& lock) {
  Status status;
  if (monotonic_ns() >= job->deadline_ns_) {
    status = Status(Code::kTimeout, "the deadline has passed");
  } else {
    const uint64_t offset = job->next_;
    const uint64_t size = piece_size(*job);
    job->next_ += size;
    ++job->running_;
    if (job->next_ == job->size_) unqueue(job);
    lock.unlock();
    status = job->copy_piece(offset, size);
    lock.lock();
    --job->running_;
  }
  if (!status.ok()) {
    if (job->status_.ok()) job->status_ = std::move(status);
    unqueue(job);
  }
  if (job->is_queued_ || job->running_ != 0) return;
  const Status outcome = job->status_;
  lock.unlock();
  job->finish(outcome);
  lock.lock();
}

}  // namespace hicache
