#include "transfer/copy_threads.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

namespace hicache {
namespace {

constexpr int kNiceBy = 5;  // About a quarter of the share of an ordinary thread.

}  // namespace

struct CopyThreads::Batch {
  Batch(const std::function<void(size_t)>& work, size_t tasks) : task(work), count(tasks) {}

  const std::function<void(size_t)>& task;
  const size_t count;
  std::atomic<size_t> next{0};
  unsigned helpers = 0;  // Threads inside drain(), the caller aside; guarded by mutex_.
  std::condition_variable left;
};

CopyThreads::CopyThreads(unsigned count) {
  // Not std::thread, which throws: with a limit on threads or memory there are fewer of them, or
  // the caller alone, and copies are only slower.
  const auto run = [](void* self) -> void* {
    static_cast<CopyThreads*>(self)->work();
    return nullptr;
  };
  for (unsigned i = 1; i < count; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, run, this) != 0) break;
    threads_.push_back(thread);
  }
}

CopyThreads::~CopyThreads() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  for (pthread_t thread : threads_) pthread_join(thread, nullptr);
}

void CopyThreads::drain(Batch& batch) {
  for (size_t i; (i = batch.next.fetch_add(1, std::memory_order_relaxed)) < batch.count;) {
    batch.task(i);
  }
}

void CopyThreads::run(size_t task_count, const std::function<void(size_t)>& task) {
  Batch batch(task, task_count);
  if (task_count > 1 && !threads_.empty()) {
    std::lock_guard lock(mutex_);
    batches_.push_back(&batch);
    if (task_count > threads_.size()) {
      wake_.notify_all();
    } else {
      for (size_t i = 1; i < task_count; ++i) wake_.notify_one();
    }
  }
  drain(batch);
  if (task_count > 1 && !threads_.empty()) {
    std::unique_lock lock(mutex_);
    std::erase(batches_, &batch);
    batch.left.wait(lock, [&] { return batch.helpers == 0; });
  }
}

void CopyThreads::work() {
  // Where CPUs are short the engine's own threads come first. Only ever lowered, so it cannot fail
  // for want of a privilege.
  const auto self = static_cast<id_t>(gettid());
  setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + kNiceBy);
  std::unique_lock lock(mutex_);
  const auto has_work = [](const Batch* batch) {
    return batch->next.load(std::memory_order_relaxed) < batch->count;
  };
  for (;;) {
    auto found = std::find_if(batches_.begin(), batches_.end(), has_work);
    if (found == batches_.end()) {
      if (closing_) return;
      wake_.wait(lock);
      continue;
    }
    Batch& batch = **found;
    ++batch.helpers;
    lock.unlock();
    drain(batch);
    lock.lock();
    if (--batch.helpers == 0) batch.left.notify_one();
  }
}

}  // namespace hicache
