// One thread that waits for sockets, for a time, and for work that others hand it.
//
// It sleeps until one of them comes: an idle loop costs nothing. Times are kept by one timer that
// is armed for the earliest of them, so asking to be called by a time costs no wake-up.
//
// Threads: as each method says. Sources are called from the loop's thread alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "io/event_fd.h"
#include "io/fd.h"

namespace hicache {

class IoLoop {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  class Source {
   public:
    virtual ~Source() = default;
    /// `events` as epoll tells them.
    virtual void on_events(uint32_t events) = 0;
    /// Called when a time that was asked for has come. Returns the next one of this source.
    virtual uint64_t on_time(uint64_t now_ns) = 0;
  };

  static Result<std::unique_ptr<IoLoop>> start(const std::string& name);
  /// Runs what was posted, drops all sources, ends the thread. Not from the loop's thread.
  ~IoLoop();
  IoLoop(const IoLoop&) = delete;
  IoLoop& operator=(const IoLoop&) = delete;

  /// Any thread. The source is called from now on, until remove(). Returns its id.
  Result<uint64_t> add(int fd, uint32_t events, std::shared_ptr<Source> source);
  /// Any thread, while the source is there.
  void change(uint64_t id, int fd, uint32_t events) const;
  /// The loop's thread. The source is not called again. The descriptor is still open.
  void remove(uint64_t id, int fd);

  /// Any thread: calls `work` from the loop's thread, soon.
  void post(std::function<void()> work);
  /// Any thread: calls on_time() of every source at `time_ns` (monotonic_ns()) or a little later.
  void wake_by(uint64_t time_ns);

  /// The loop's thread: memory for bytes that nobody wants.
  std::span<uint8_t> scrap() { return scrap_; }

 private:
  IoLoop() = default;
  Status prepare();
  void run();
  void run_posted();
  void run_timer();
  std::shared_ptr<Source> find(uint64_t id);

  Fd epoll_;
  Fd timer_;
  EventFd posted_event_;
  std::vector<uint8_t> scrap_;
  std::atomic<bool> is_stopping_{false};

  std::mutex mutex_;  // Of what follows.
  std::unordered_map<uint64_t, std::shared_ptr<Source>> sources_;
  uint64_t next_id_;
  std::vector<std::function<void()>> posted_;
  std::atomic<uint64_t> armed_ns_{kNever};  // Written under mutex_.

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace hicache
