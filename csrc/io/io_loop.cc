#include "io/io_loop.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"

namespace hicache {
namespace {

constexpr uint64_t kPostedId = 0;
constexpr uint64_t kTimerId = 1;
constexpr uint64_t kFirstSourceId = 2;
constexpr int kEventsMax = 64;
constexpr size_t kScrapSize = 64 * kKiB;
// Times that lie so close together are served by one wake-up.
constexpr uint64_t kTimerStepNs = 5'000'000;

}  // namespace

Result<std::unique_ptr<IoLoop>> IoLoop::start(const std::string& name) {
  std::unique_ptr<IoLoop> loop(new IoLoop());
  HICACHE_RETURN_IF_ERROR(loop->prepare());
  loop->thread_ = std::thread([own = loop.get()] { own->run(); });
  pthread_setname_np(loop->thread_.native_handle(), name.substr(0, 15).c_str());
  return loop;
}

Status IoLoop::prepare() {
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  timer_ = Fd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  posted_event_ = EventFd::make();
  if (!epoll_.valid() || !timer_.valid() || !posted_event_.valid()) {
    return io_error("creating what an I/O thread waits on", errno);
  }
  next_id_ = kFirstSourceId;
  scrap_.resize(kScrapSize);
  for (const auto& [fd, id] :
       {std::pair{posted_event_.get(), kPostedId}, std::pair{timer_.get(), kTimerId}}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return io_error("telling an I/O thread what to wait on", errno);
    }
  }
  return Status();
}

IoLoop::~IoLoop() {
  if (!thread_.joinable()) return;
  is_stopping_ = true;
  posted_event_.signal();
  thread_.join();
  for (;;) {  // Dropping one may post another.
    std::vector<std::function<void()>> dropped;
    const std::lock_guard lock(mutex_);
    if (posted_.empty()) return;
    dropped.swap(posted_);
  }
}

Result<uint64_t> IoLoop::add(int fd, uint32_t events, std::shared_ptr<Source> source) {
  const std::lock_guard lock(mutex_);
  const uint64_t id = next_id_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return io_error("adding a connection to an I/O thread", errno);
  }
  sources_.emplace(id, std::move(source));
  return id;
}

void IoLoop::change(uint64_t id, int fd, uint32_t events) const {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void IoLoop::remove(uint64_t id, int fd) {
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  std::shared_ptr<Source> dropped;  // Destroyed without the lock.
  const std::lock_guard lock(mutex_);
  const auto found = sources_.find(id);
  if (found == sources_.end()) return;
  dropped = std::move(found->second);
  sources_.erase(found);
}

void IoLoop::post(std::function<void()> work) {
  bool is_first;
  {
    const std::lock_guard lock(mutex_);
    is_first = posted_.empty();
    posted_.push_back(std::move(work));
  }
  if (is_first) posted_event_.signal();
}

void IoLoop::wake_by(uint64_t time_ns) {
  if (time_ns >= armed_ns_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(mutex_);
  if (time_ns >= armed_ns_.load(std::memory_order_relaxed)) return;
  armed_ns_.store(time_ns, std::memory_order_relaxed);
  itimerspec at{};
  at.it_value.tv_sec = static_cast<time_t>(time_ns / 1'000'000'000);
  at.it_value.tv_nsec = static_cast<long>(time_ns % 1'000'000'000);
  if (time_ns == 0) at.it_value.tv_nsec = 1;  // 0 would disarm it.
  (void)timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &at, nullptr);
}

std::shared_ptr<IoLoop::Source> IoLoop::find(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = sources_.find(id);
  return found == sources_.end() ? nullptr : found->second;
}

void IoLoop::run() {
  epoll_event events[kEventsMax];
  while (!is_stopping_) {
    const int count = epoll_wait(epoll_.get(), events, kEventsMax, -1);
    bool is_posted = false;
    bool is_time = false;
    for (int i = 0; i < count; ++i) {
      const uint64_t id = events[i].data.u64;
      if (id == kPostedId) {
        is_posted = true;
      } else if (id == kTimerId) {
        is_time = true;
      } else if (const std::shared_ptr<Source> source = find(id)) {
        source->on_events(events[i].events);
      }
    }
    if (is_posted) run_posted();
    if (is_time) run_timer();
  }
  run_posted();
  std::unordered_map<uint64_t, std::shared_ptr<Source>> dropped;  // Destroyed without the lock.
  const std::lock_guard lock(mutex_);
  dropped.swap(sources_);
}

void IoLoop::run_posted() {
  posted_event_.clear();
  std::vector<std::function<void()>> works;
  {
    const std::lock_guard lock(mutex_);
    works.swap(posted_);
  }
  for (const auto& work : works) work();
}

void IoLoop::run_timer() {
  uint64_t count;
  while (read(timer_.get(), &count, sizeof(count)) < 0 && errno == EINTR) {
  }
  std::vector<std::shared_ptr<Source>> all;
  {
    const std::lock_guard lock(mutex_);
    armed_ns_.store(kNever, std::memory_order_relaxed);
    for (const auto& [id, source] : sources_) all.push_back(source);
  }
  const uint64_t now_ns = monotonic_ns();
  uint64_t next_ns = kNever;
  for (const auto& source : all) next_ns = std::min(next_ns, source->on_time(now_ns));
  if (next_ns != kNever) wake_by(std::max(next_ns, now_ns + kTimerStepNs));
}

}  // namespace hicache
