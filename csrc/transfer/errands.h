// Work that may block for a second or so, off the threads that must not: probing a path, closing
// one, connecting by another transport.
//
// One owner that is slow (a peer that does not answer) holds up no other: each has a few errands
// running at a time. Closing paths goes before everything else, and threads are kept back for it.
//
// Threads start when there is work for them, at most `threads_max`, and then stay.
#pragma once

#include <pthread.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace hicache {

class Errands {
 public:
  /// In this order; within one, in the order they came.
  enum class Urgency : uint8_t {
    kClosing,  // Short, and whoever lost a peer waits for it.
    kAwaited,  // Transfers wait for it.
    kProbe,    // Nobody waits.
  };
  static constexpr size_t kForClosings = 4;  // Threads that do nothing else.
  /// Running at a time for one owner; closings do not count.
  static constexpr size_t kOfOneOwnerMax = 4;
  static constexpr size_t kProbesOfOneOwnerMax = 3;

  /// `threads_max` is more than kForClosings.
  explicit Errands(size_t threads_max) : threads_max_(threads_max) {}
  ~Errands() { stop(); }
  Errands(const Errands&) = delete;
  Errands& operator=(const Errands&) = delete;

  /// Runs `errand` soon. `owner` is only compared. False: stopped, or no thread is to be had, and
  /// `errand` was dropped.
  bool add(const void* owner, Urgency urgency, std::function<void()> errand);

  /// Waits for errands that run and drops those that have not begun. Must not be called by one.
  void stop();

 private:
  struct Errand {
    const void* owner;
    Urgency urgency;
    std::function<void()> run;
  };
  using Queue = std::deque<Errand>;

  void work();
  bool take(Errand& errand);
  bool may_run(const Errand& errand) const;
  void ended(const Errand& errand);

  const size_t threads_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::array<Queue, 3> waiting_;                        // By urgency.
  std::unordered_map<const void*, size_t> running_of_;  // By owner, without closings.
  size_t running_ = 0;                                  // Likewise.
  std::vector<pthread_t> threads_;
  size_t idle_ = 0;
  bool is_stopped_ = false;
};

}  // namespace hicache
