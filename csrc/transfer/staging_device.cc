#include "transfer/staging_device.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <iterator>
#include <utility>

#include "base/huge_allocator.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

constexpr size_t kChecksMax = 32;  // Bits of IoCompletion::damaged.

/// Walks the parts of a write, and copies what it passes.
class PartsCopy {
 public:
  PartsCopy(std::span<const iovec> parts, uint8_t* to) : parts_(parts), to_(to) {}

  void copy_plain(uint64_t size) {
    step(size, [](uint8_t* to, const uint8_t* from, uint64_t piece) {
      plain_copy(to, from, piece, Store::kStreaming);
    });
  }

  /// Returns the checksum of a page of that size.
  uint64_t copy_page(uint64_t size) {
    stripes_.clear();
    for (uint64_t left = size; left != 0;) {
      const uint64_t stripe = std::min(left, kStripeSize);
      ChecksumCopy copy(stripe, Store::kStreaming);
      step(stripe,
           [&](uint8_t* to, const uint8_t* from, uint64_t piece) { copy.copy(to, from, piece); });
      stripes_.push_back(copy.finish());
      left -= stripe;
    }
    return fold_stripes(stripes_, size);
  }

 private:
  template <typename Copy>
  void step(uint64_t size, Copy copy) {
    while (size != 0) {
      const iovec& part = parts_.front();
      const uint64_t piece = std::min<uint64_t>(size, part.iov_len - inside_);
      copy(to_, static_cast<const uint8_t*>(part.iov_base) + inside_, piece);
      to_ += piece;
      inside_ += piece;
      size -= piece;
      if (inside_ != part.iov_len) continue;
      parts_ = parts_.subspan(1);
      inside_ = 0;
    }
  }

  std::span<const iovec> parts_;
  uint64_t inside_ = 0;  // The first of them.
  uint8_t* to_;
  std::vector<uint64_t> stripes_;
};

/// Returns the checks that do not hold, by bit.
uint32_t copy_write(const IoRequest& request, uint8_t* to) {
  PartsCopy copy(request.parts, to);
  uint32_t damaged = 0;
  uint64_t at = 0;
  for (size_t i = 0; i < request.checks.size(); ++i) {
    const IoCheck& check = request.checks[i];
    copy.copy_plain(check.offset - at);
    if (copy.copy_page(check.size) != check.checksum) damaged |= uint32_t{1} << i;
    at = check.offset + check.size;
  }
  copy.copy_plain(request.size - at);
  fence_stores();
  return damaged;
}

bool watch(int epoll, int fd) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

std::unique_ptr<BlockDevice> StagingDevice::make(const Options& options,
                                                 std::unique_ptr<BlockDevice> below) {
  assert(options.buffer_size % kHugePageSize == 0 && options.buffer_count != 0);
  EventFd event = EventFd::make();
  Fd either(epoll_create1(EPOLL_CLOEXEC));
  if (!event.valid() || !either.valid() || !watch(either.get(), event.get()) ||
      !watch(either.get(), below->event_fd())) {
    return below;
  }
  return std::unique_ptr<BlockDevice>(
      new StagingDevice(options, std::move(below), std::move(event), std::move(either)));
}

StagingDevice::StagingDevice(const Options& options, std::unique_ptr<BlockDevice> below,
                             EventFd event, Fd either)
    : options_(options),
      below_(std::move(below)),
      event_(std::move(event)),
      either_(std::move(either)) {}

StagingDevice::~StagingDevice() {
  if (has_thread_) {
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    changed_.notify_one();
    pthread_join(thread_, nullptr);
  }
  below_.reset();
  if (!below_requests_.empty()) memory_.abandon();
}

bool StagingDevice::prepare() {
  if (has_thread_) return true;
  if (!memory_.valid()) {
    const uint64_t size = options_.buffer_count * options_.buffer_size;
    memory_ = MappedMemory::make(size + kHugePageSize);
    if (!memory_.valid()) return false;
    const auto address = reinterpret_cast<uintptr_t>(memory_.address());
    buffers_ = memory_.address() + (round_up(address, kHugePageSize) - address);
    madvise(buffers_, size, MADV_HUGEPAGE);  // Advice.
    for (uint32_t buffer = 0; buffer < options_.buffer_count; ++buffer) free_.push_back(buffer);
  }
  const auto run = [](void* self) -> void* {
    static_cast<StagingDevice*>(self)->copy_writes();
    return nullptr;
  };
  has_thread_ = pthread_create(&thread_, nullptr, run, this) == 0;
  return has_thread_;
}

bool StagingDevice::is_copied(const IoRequest& request) {
  const bool is_write = request.kind == IoKind::kWrite || request.kind == IoKind::kWriteDurable;
  return is_write && !request.checks.empty() && request.checks.size() <= kChecksMax &&
         request.size <= options_.buffer_size && prepare();
}

bool StagingDevice::submit(IoRequest request) {
  if (in_flight_ == options_.depth) return false;
  const uint64_t now_ns = monotonic_ns();
  if (is_copied(request)) {
    waiting_.push_back({std::move(request), now_ns, kNoBuffer, 0});
    begin_copies();
  } else if (!pass(std::move(request), now_ns, kNoBuffer)) {
    return false;
  }
  ++in_flight_;
  return true;
}

void StagingDevice::begin_copies() {
  if (waiting_.empty() || free_.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty() && !free_.empty()) {
      Write write = std::move(waiting_.front());
      waiting_.pop_front();
      write.buffer = free_.back();
      free_.pop_back();
      to_copy_.push_back(std::move(write));
    }
  }
  changed_.notify_one();
}

void StagingDevice::copy_writes() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return is_closing_ || !to_copy_.empty(); });
    if (is_closing_) return;
    Write write = std::move(to_copy_.front());
    to_copy_.pop_front();
    lock.unlock();
    write.damaged = copy_write(write.request, address_of(write.buffer));
    lock.lock();
    copied_.push_back(std::move(write));
    event_.signal();
  }
}

void StagingDevice::take_copies() {
  {
    const std::lock_guard lock(mutex_);
    std::move(copied_.begin(), copied_.end(), std::back_inserter(ready_));
    copied_.clear();
  }
  pass_on();
}

void StagingDevice::pass_on() {
  while (!ready_.empty()) {
    Write& write = ready_.front();
    if (write.damaged != 0) {
      free_.push_back(write.buffer);
      finish(write.request.tag, EBADMSG, write.begun_ns, write.damaged);
    } else {
      IoRequest request = write.request;
      request.parts = {{address_of(write.buffer), request.size}};
      if (!pass(std::move(request), write.begun_ns, write.buffer)) return;
    }
    ready_.pop_front();
  }
}

bool StagingDevice::pass(IoRequest request, uint64_t begun_ns, uint32_t buffer) {
  const Below below{request.tag, begun_ns, buffer};
  request.tag = next_tag_;
  if (!below_->submit(std::move(request))) return false;
  below_requests_.emplace(next_tag_++, below);
  return true;
}

void StagingDevice::finish(uint64_t tag, int error, uint64_t begun_ns, uint32_t damaged) {
  done_.push_back({tag, error, monotonic_ns() - begun_ns, damaged});
}

void StagingDevice::take_completions() {
  std::array<IoCompletion, 32> completions;
  size_t count;
  do {
    count = below_->poll(completions);
    for (size_t i = 0; i < count; ++i) {
      const auto found = below_requests_.find(completions[i].tag);
      const Below below = found->second;
      below_requests_.erase(found);
      if (below.buffer != kNoBuffer) free_.push_back(below.buffer);
      finish(below.tag, completions[i].error, below.begun_ns, 0);
    }
  } while (count == completions.size());
}

size_t StagingDevice::poll(std::span<IoCompletion> completions) {
  event_.clear();
  take_completions();
  take_copies();
  begin_copies();
  const size_t count = std::min(completions.size(), done_.size());
  std::copy_n(done_.begin(), count, completions.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<ptrdiff_t>(count));
  in_flight_ -= count;
  if (!done_.empty()) event_.signal();
  return count;
}

bool StagingDevice::wait(Deadline deadline) {
  for (;;) {
    event_.clear();
    take_completions();
    take_copies();
    begin_copies();
    if (!done_.empty()) {
      event_.signal();
      return true;
    }
    if (in_flight_ == 0 || deadline.expired()) return false;
    pollfd either{either_.get(), POLLIN, 0};
    ::poll(&either, 1, deadline.remaining_ms());
  }
}

}  // namespace hicache
