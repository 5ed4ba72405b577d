#include "transfer/errands.h"

#include <utility>

namespace hicache {

bool Errands::add(std::function<void()> errand) {
  const std::lock_guard lock(mutex_);
  if (is_stopped_) return false;
  if (idle_ <= waiting_.size() && threads_.size() < threads_max_) {
    // Not std::thread, which throws: with a limit on threads those that there are do the work.
    const auto run = [](void* self) -> void* {
      static_cast<Errands*>(self)->work();
      return nullptr;
    };
    pthread_t thread;
    if (pthread_create(&thread, nullptr, run, this) == 0) {
      pthread_setname_np(thread, "mh-errand");
      threads_.push_back(thread);
    } else if (threads_.empty()) {
      return false;
    }
  }
  waiting_.push_back(std::move(errand));
  wake_.notify_one();
  return true;
}

void Errands::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    wake_.wait(lock, [this] { return is_stopped_ || !waiting_.empty(); });
    --idle_;
    if (is_stopped_) return;
    const std::function<void()> errand = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    errand();
    lock.lock();
  }
}

void Errands::stop() {
  std::deque<std::function<void()>> dropped;
  std::vector<pthread_t> ending;
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
    dropped.swap(waiting_);
    ending.swap(threads_);
  }
  wake_.notify_all();
  for (const pthread_t thread : ending) pthread_join(thread, nullptr);
}

}  // namespace hicache
