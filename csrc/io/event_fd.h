// A descriptor that is readable once signalled, until it is cleared.
//
// Threads: any may signal; one waits and clears.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "base/clock.h"
#include "io/fd.h"

namespace hicache {

class EventFd {
 public:
  /// Not valid() when the process has no descriptors left; errno says so.
  static EventFd make() {
    EventFd event;
    event.fd_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return event;
  }

  bool valid() const { return fd_.valid(); }
  int get() const { return fd_.get(); }

  void signal() const {
    const uint64_t one = 1;
    // Fails only when the count is full: then it is readable.
    while (write(fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
  }
  void clear() const {
    uint64_t count = 0;
    while (read(fd_.get(), &count, sizeof(count)) < 0 && errno == EINTR) {
    }
  }
  /// Blocks until it is readable, the deadline, or a signal.
  void wait(Deadline deadline) const {
    const uint64_t left_ns = deadline.remaining_ns();
    const timespec left{static_cast<time_t>(left_ns / 1'000'000'000),
                        static_cast<long>(left_ns % 1'000'000'000)};
    pollfd waited{fd_.get(), POLLIN, 0};
    (void)ppoll(&waited, 1, &left, nullptr);
  }

 private:
  Fd fd_;
};

}  // namespace hicache
