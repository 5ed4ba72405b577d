#include "io/thread_device.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "io/event_fd.h"
#include "io/io_transfer.h"

namespace hicache {
namespace {

constexpr uint32_t kThreadsMax = 32;

/// The call that comes next. The result is as io_uring gives it: a count, or a negative errno.
int64_t call(const IoTransfer& transfer, int fd) {
  const IoRequest& request = transfer.request();
  const auto offset = static_cast<off_t>(transfer.offset());
  int64_t result = 0;
  switch (transfer.step()) {
    case IoTransfer::Step::kRead: {
      const auto parts = transfer.parts();
      result = preadv(fd, parts.data(), static_cast<int>(parts.size()), offset);
      break;
    }
    case IoTransfer::Step::kWrite: {
      const auto parts = transfer.parts();
      result = pwritev(fd, parts.data(), static_cast<int>(parts.size()), offset);
      break;
    }
    case IoTransfer::Step::kFlush:
      result = fdatasync(fd);
      break;
    case IoTransfer::Step::kAllocate:
      result = fallocate(fd, 0, offset, static_cast<off_t>(request.size));
      break;
    case IoTransfer::Step::kDiscard:
      result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                         static_cast<off_t>(request.size));
      break;
    case IoTransfer::Step::kDone:
      break;
  }
  return result < 0 ? -errno : result;
}

}  // namespace

struct ThreadDevice::Job {
  IoTransfer transfer;
  uint64_t begun_ns = 0;
};

struct ThreadDevice::Shared {
  EventFd event;
  std::atomic<bool> is_abandoned{false};
  std::mutex mutex;
  std::condition_variable queued;
  std::deque<Job> queue;  // Guarded by mutex, as what follows.
  std::deque<IoCompletion> done;
  uint32_t idle_count = 0;
};

Result<std::unique_ptr<BlockDevice>> ThreadDevice::make(const Options& options) {
  auto shared = std::make_shared<Shared>();
  shared->event = EventFd::make();
  const int error = errno;
  if (!shared->event.valid()) {
    return Status(Code::kUnavailable, std::string("making a device of threads: no descriptor (") +
                                          std::strerror(error) +
                                          "); raise the limit on open files");
  }
  std::unique_ptr<ThreadDevice> device(new ThreadDevice(options, std::move(shared)));
  // The first at once: without any, requests could neither be done nor fail.
  if (!device->start_thread()) {
    return Status(Code::kUnavailable,
                  "making a device of threads: the system allows no thread or no descriptor; raise "
                  "the limits on processes and open files");
  }
  return std::unique_ptr<BlockDevice>(std::move(device));
}

ThreadDevice::ThreadDevice(const Options& options, std::shared_ptr<Shared> shared)
    : depth_(options.depth),
      thread_count_max_(std::min(options.depth, kThreadsMax)),
      shared_(std::move(shared)) {}

ThreadDevice::~ThreadDevice() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->is_abandoned = true;
    shared_->queue.clear();
    // Threads that hang keep it open: whoever waits for it would find it readable for ever.
    shared_->event.clear();
  }
  shared_->queued.notify_all();
}

bool ThreadDevice::start_thread() {
  struct Start {
    std::shared_ptr<Shared> shared;
    Fd fd;
  };
  // A descriptor that the thread points at its request's file: one of its own, held while it lives.
  auto start =
      std::make_unique<Start>(Start{shared_, Fd(fcntl(shared_->event.get(), F_DUPFD_CLOEXEC, 0))});
  if (!start->fd.valid()) return false;
  const auto main = [](void* argument) -> void* {
    const std::unique_ptr<Start> mine(static_cast<Start*>(argument));
    run(*mine->shared, mine->fd.get());
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  const bool started = pthread_create(&thread, &attributes, main, start.get()) == 0;
  pthread_attr_destroy(&attributes);
  if (!started) return false;
  (void)start.release();
  ++thread_count_;
  return true;
}

void ThreadDevice::run(Shared& shared, int own_fd) {
  std::unique_lock lock(shared.mutex);
  for (;;) {
    ++shared.idle_count;
    shared.queued.wait(lock, [&] { return shared.is_abandoned || !shared.queue.empty(); });
    --shared.idle_count;
    if (shared.is_abandoned) return;
    Job job = std::move(shared.queue.front());
    shared.queue.pop_front();
    // While the device lives, and only then, does the number mean the file that was asked for.
    if (job.transfer.step() != IoTransfer::Step::kDone &&
        dup3(job.transfer.request().fd, own_fd, O_CLOEXEC) < 0) {
      job.transfer.take(-EBADF);  // Of the request: its own is there.
    }
    lock.unlock();
    perform(shared, job, own_fd);
    lock.lock();
    if (shared.is_abandoned) return;
    shared.done.push_back(
        {job.transfer.request().tag, job.transfer.error(), monotonic_ns() - job.begun_ns});
    shared.event.signal();
  }
}

void ThreadDevice::perform(Shared& shared, Job& job, int own_fd) {
  while (job.transfer.step() != IoTransfer::Step::kDone && !shared.is_abandoned) {
    job.transfer.take(call(job.transfer, own_fd));
  }
  // Not to keep the file open, and what is locked by that.
  (void)dup3(shared.event.get(), own_fd, O_CLOEXEC);
}

bool ThreadDevice::submit(IoRequest request) {
  if (in_flight_ == depth_) return false;
  ++in_flight_;
  bool wants_thread = false;
  {
    std::lock_guard lock(shared_->mutex);
    shared_->queue.push_back({IoTransfer(std::move(request)), monotonic_ns()});
    wants_thread = shared_->queue.size() > shared_->idle_count;
  }
  shared_->queued.notify_one();
  // If none can be had, those that there are do it all, more slowly.
  if (wants_thread && thread_count_ < thread_count_max_) (void)start_thread();
  return true;
}

size_t ThreadDevice::poll(std::span<IoCompletion> completions) {
  std::lock_guard lock(shared_->mutex);
  const size_t count = std::min(completions.size(), shared_->done.size());
  std::copy_n(shared_->done.begin(), count, completions.begin());
  shared_->done.erase(shared_->done.begin(), shared_->done.begin() + static_cast<ptrdiff_t>(count));
  in_flight_ -= count;
  if (shared_->done.empty()) shared_->event.clear();
  return count;
}

bool ThreadDevice::wait(Deadline deadline) {
  for (;;) {
    {
      std::lock_guard lock(shared_->mutex);
      if (!shared_->done.empty()) return true;
    }
    if (in_flight_ == 0 || deadline.expired()) return false;
    shared_->event.wait(deadline);
  }
}

int ThreadDevice::event_fd() const {
  return shared_->event.get();
}

}  // namespace hicache
