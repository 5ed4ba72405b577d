#include "io/fork_guard.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <vector>

namespace hicache {
namespace {

std::atomic<uint32_t> forks{0};

/// What is kept from children. Lives as long as the process: forks may come at any time.
class Kept {
 public:
  static Kept& of_process() {
    static Kept* const kept = std::make_unique<Kept>().release();
    return *kept;
  }

  Kept() { (void)pthread_atfork(before, after_in_parent, after_in_child); }

  std::mutex& mutex() { return mutex_; }

  /// Locked.
  void add(int fd) {
    struct stat stat{};
    if (fd < 0 || fstat(fd, &stat) != 0 || !S_ISSOCK(stat.st_mode)) return;
    const auto number = static_cast<size_t>(fd);
    if (inodes_.size() <= number) inodes_.resize(number + 1);
    inodes_[number] = stat.st_ino;
  }

 private:
  static void before() { of_process().mutex_.lock(); }
  static void after_in_parent() { of_process().mutex_.unlock(); }
  static void after_in_child() {
    ++forks;
    of_process().replace();
    of_process().mutex_.unlock();
  }

  void replace() {
    Fd nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
    for (size_t i = 0; i < inodes_.size(); ++i) {
      const auto fd = static_cast<int>(i);
      struct stat stat{};
      if (inodes_[i] == 0 || fstat(fd, &stat) != 0 || !S_ISSOCK(stat.st_mode)) continue;
      if (stat.st_ino != inodes_[i]) continue;  // Another one by now.
      if (!nothing.valid() || dup3(nothing.get(), fd, O_CLOEXEC) < 0) close(fd);
    }
    inodes_.clear();
  }

  std::mutex mutex_;
  std::vector<ino_t> inodes_;  // By number; 0: none.
};

}  // namespace

Fd made_kept_from_children(const std::function<int()>& make) {
  Kept& kept = Kept::of_process();
  const std::lock_guard lock(kept.mutex());
  Fd made(make());
  const int error = errno;
  kept.add(made.get());
  errno = error;
  return made;
}

void keep_from_children(const Fd& socket) {
  Kept& kept = Kept::of_process();
  const std::lock_guard lock(kept.mutex());
  kept.add(socket.get());
}

uint32_t fork_count() {
  (void)Kept::of_process();  // Forks are counted from here on.
  return forks.load(std::memory_order_relaxed);
}

}  // namespace hicache
