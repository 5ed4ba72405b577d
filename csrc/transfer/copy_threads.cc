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
  Batch(const std::function<void(size_t)>& work, size_t tasks, unsigned most)
      : task(work), count(tasks), helpers_max(most) {}

  const std::function<void(size_t)>& task;
  const size_t count;
  const unsigned helpers_max;
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

void CopyThreads::run(size_t task_count, const std::function<void(size_t)>& task,
                      unsigned threads_max) {
  const size_t sharing =
      std::min({task_count, threads_.size() + 1, static_cast<size_t>(threads_max)});
  const size_t helpers = sharing > 1 ? sharing - 1 : 0;
  Batch batch(task, task_count, static_cast<unsigned>(helpers));
  if (helpers > 0) {
    std::lock_guard lock(mutex_);
    batches_.push_back(&batch);
    if (helpers == threads_.size()) {
      wake_.notify_all();
    } else {
      for (size_t i = 0; i < helpers; ++i) wake_.notify_one();
    }
  }
  drain(batch);
  if (helpers > 0) {
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
    return batch->helpers < batch->helpers_max &&
           batch->next.load(std::memory_order_relaxed) < batch->count;
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
