#include "transfer/errands.h"

#include <algorithm>
#include <utility>

namespace hicache {

bool Errands::add(const void* owner, Urgency urgency, std::function<void()> errand) {
  const std::lock_guard lock(mutex_);
  if (is_stopped_) return false;
  size_t waiting = 0;
  for (const Queue& queue : waiting_) waiting += queue.size();
  if (idle_ <= waiting && threads_.size() < threads_max_) {
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
  waiting_[static_cast<size_t>(urgency)].push_back({owner, urgency, std::move(errand)});
  wake_.notify_one();
  return true;
}

bool Errands::may_run(const Errand& errand) const {
  if (errand.urgency == Urgency::kClosing) return true;
  if (running_ + kForClosings >= threads_max_) return false;
  const auto found = running_of_.find(errand.owner);
  const size_t running = found == running_of_.end() ? 0 : found->second;
  return running < (errand.urgency == Urgency::kProbe ? kProbesOfOneOwnerMax : kOfOneOwnerMax);
}

/// With the lock held. False: nothing may run now.
bool Errands::take(Errand& errand) {
  for (Queue& queue : waiting_) {
    const auto found =
        std::ranges::find_if(queue, [this](const Errand& one) { return may_run(one); });
    if (found == queue.end()) continue;
    errand = std::move(*found);
    queue.erase(found);
    if (errand.urgency == Urgency::kClosing) return true;
    ++running_;
    ++running_of_[errand.owner];
    return true;
  }
  return false;
}

/// With the lock held. What may run now, this thread will take.
void Errands::ended(const Errand& errand) {
  if (errand.urgency == Urgency::kClosing) return;
  --running_;
  const auto found = running_of_.find(errand.owner);
  if (--found->second == 0) running_of_.erase(found);
}

void Errands::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    Errand errand;
    ++idle_;
    wake_.wait(lock, [&] { return is_stopped_ || take(errand); });
    --idle_;
    if (is_stopped_) return;
    lock.unlock();
    errand.run();
    errand.run = nullptr;  // What it holds may be destroyed by that: without the lock.
    lock.lock();
    ended(errand);
  }
}

void Errands::stop() {
  std::array<Queue, 3> dropped;
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
