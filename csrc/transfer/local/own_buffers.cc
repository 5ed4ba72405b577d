#include "transfer/local/own_buffers.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "base/clock.h"
#include "transfer/local/mapped_window.h"

namespace hicache {
namespace {

/// A piece takes 100 us, and much longer only if its thread does not run or the kernel swaps.
constexpr uint64_t kUseWaitMs = 1000;

/// A descriptor of the same file for reading alone: it cannot be mapped for writing.
Fd reopen_for_reading(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return Fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

Result<std::unique_ptr<SharedMemory>> make_table(uint64_t size_bytes) {
  std::vector<std::string> notices;
  return SharedMemory::create({size_bytes, HugePages::kNever, -1}, notices);
}

/// All that this process has.
struct Everyone {
  std::mutex mutex;
  std::vector<std::weak_ptr<OwnBuffers>> members;
};
Everyone& everyone() {
  static Everyone all;
  return all;
}

}  // namespace

Result<std::shared_ptr<OwnBuffers>> OwnBuffers::make() {
  Result<std::unique_ptr<SharedMemory>> live = make_table(kLiveWordsSize);
  if (!live.ok()) return live.status();
  HICACHE_RETURN_IF_ERROR(live.value()->populate(0, kLiveWordsSize, SharedMemory::Access::kWrite));
  Fd live_fd = reopen_for_reading(live.value()->fd().get());
  if (!live_fd.valid()) return io_error("opening /proc/self/fd, to share memory", errno);
  std::shared_ptr<OwnBuffers> made(
      std::unique_ptr<OwnBuffers>(new OwnBuffers(std::move(live.value()), std::move(live_fd))));
  const std::lock_guard lock(everyone().mutex);
  std::erase_if(everyone().members, [](const auto& member) { return member.expired(); });
  everyone().members.push_back(made);
  return made;
}

OwnBuffers::Here OwnBuffers::find_here(const LocalWelcome& welcome) {
  const std::lock_guard all_lock(everyone().mutex);
  for (const auto& member : everyone().members) {
    const std::shared_ptr<OwnBuffers> owner = member.lock();
    if (owner == nullptr ||
        reinterpret_cast<uintptr_t>(owner->live_words()) != welcome.live_address) {
      continue;
    }
    const std::lock_guard lock(owner->mutex_);
    for (const auto& requester : owner->requesters_) {
      if (reinterpret_cast<uintptr_t>(requester->use_slots()) == welcome.slots_address) {
        return {owner, requester};
      }
    }
  }
  return {};
}

OwnBuffers::OwnBuffers(std::unique_ptr<SharedMemory> live, Fd live_fd)
    : live_(std::move(live)),
      live_fd_(std::move(live_fd)),
      nonce_(random_nonce()),
      places_(reinterpret_cast<LiveWord*>(live_->address())) {}

Result<bool> OwnBuffers::add(const Buffer& buffer) {
  if (buffer.shared_fd >= 0) {
    struct stat stat{};
    if (fstat(buffer.shared_fd, &stat) != 0 || buffer.shared_offset > UINT64_MAX - buffer.size ||
        static_cast<uint64_t>(stat.st_size) < buffer.shared_offset + buffer.size) {
      return Status(Code::kInvalidArgument,
                    "the memfd of a buffer is shorter than the buffer's end in it, " +
                        std::to_string(buffer.shared_offset) + " + " + std::to_string(buffer.size) +
                        " bytes");
    }
  }
  Entry entry{buffer, 0, false};
  // One that someone might shrink is not mapped by anybody: they reach it as other memory.
  entry.is_mappable = buffer.shared_fd >= 0 && buffer.kind == MemoryKind::kHost &&
                      is_sealed_memfd(buffer.shared_fd, buffer.shared_offset + buffer.size);
  const std::lock_guard lock(mutex_);
  if (!places_.add(buffer.id, &entry.place)) {
    return Status(Code::kNoSpace, "more than " + std::to_string(kBuffersMax) +
                                      " buffers are registered; register fewer, larger ones");
  }
  entries_.emplace(buffer.id, entry);
  return entry.is_mappable;
}

void OwnBuffers::remove(BufferId id) {
  std::vector<std::shared_ptr<Requester>> requesters;
  std::vector<bool> were_stuck;
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) return;
    places_.end(found->second.place, kNoBuffer);
    // Ids are never used again, so whoever still has this one does not take another for it.
    places_.give_back(found->second.place);
    entries_.erase(found);
    // Who comes after this finds the buffer gone.
    requesters = requesters_;
    forget_those_that_went_on();
    for (const auto& requester : requesters) were_stuck.push_back(is_stuck(*requester));
  }
  for (const auto& requester : requesters) requester->tell_removed(id);
  const Deadline deadline = Deadline::after_ms(kUseWaitMs);
  for (size_t i = 0; i < requesters.size(); ++i) {
    Requester& requester = *requesters[i];
    // One that is stuck is not waited for a second time, however many buffers it is stuck in.
    const Deadline until = were_stuck[i] ? Deadline::after_ms(0) : deadline;
    if (wait_unused(requester.use_slots(), id, requester.is_gone, until)) continue;
    const std::lock_guard lock(mutex_);
    stuck_.push_back({id, requesters[i]});
  }
}

/// With the lock held.
void OwnBuffers::forget_those_that_went_on() {
  std::erase_if(stuck_, [](const Stuck& stuck) {
    return stuck.requester->is_gone || is_unused(stuck.requester->use_slots(), stuck.buffer);
  });
}

/// With the lock held.
bool OwnBuffers::is_stuck(const Requester& requester) const {
  return std::ranges::any_of(
      stuck_, [&](const Stuck& stuck) { return stuck.requester.get() == &requester; });
}

Status OwnBuffers::untouched(BufferId id) {
  const std::lock_guard lock(mutex_);
  forget_those_that_went_on();
  const auto found = std::ranges::find(stuck_, id, &Stuck::buffer);
  if (found == stuck_.end()) return Status();
  return Status(Code::kTimeout,
                "process " + std::to_string(found->requester->pid) +
                    " of this machine has been in the middle of reading or writing it for a "
                    "second: it was stopped there, or is held up (see its state in /proc); keep "
                    "the memory as it is until that process goes on or ends, and try again then");
}

void OwnBuffers::end() {
  std::vector<BufferId> ids;
  std::vector<std::shared_ptr<Requester>> requesters;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      places_.end(entry.place, kOwnerEnded);
      ids.push_back(id);
    }
    entries_.clear();
    requesters = requesters_;
  }
  const Deadline deadline = Deadline::after_ms(kUseWaitMs);
  for (const BufferId id : ids) {
    for (const auto& requester : requesters) {
      (void)wait_unused(requester->use_slots(), id, requester->is_gone, deadline);
    }
  }
}

LocalRange OwnBuffers::describe(BufferId id, Fd& memfd) const {
  // The descriptor is borrowed until the buffer is removed: it is opened again under the lock.
  const std::lock_guard lock(mutex_);
  LocalRange range{};
  range.buffer = id;
  const auto found = entries_.find(id);
  if (found == entries_.end()) return range;
  const Buffer& buffer = found->second.buffer;
  if (found->second.is_mappable) {
    memfd = buffer.remote_write ? Fd(fcntl(buffer.shared_fd, F_DUPFD_CLOEXEC, 0))
                                : reopen_for_reading(buffer.shared_fd);
  }
  range.is_there = true;
  range.is_mappable = memfd.valid();
  range.remote_write = buffer.remote_write;
  range.is_on_device = buffer.kind == MemoryKind::kCuda;
  range.place = found->second.place;
  range.address = buffer.address;
  range.size = buffer.size;
  range.offset = range.is_mappable ? buffer.shared_offset : 0;
  return range;
}

Result<std::shared_ptr<OwnBuffers::Requester>> OwnBuffers::admit(
    pid_t pid, std::function<void(BufferId)> tell_removed) {
  Result<std::unique_ptr<SharedMemory>> slots = make_table(kUseSlotsSize);
  if (!slots.ok()) return slots.status();
  HICACHE_RETURN_IF_ERROR(slots.value()->populate(0, kUseSlotsSize, SharedMemory::Access::kWrite));
  auto requester = std::make_shared<Requester>();
  requester->pid = pid;
  requester->slots = std::move(slots.value());
  requester->tell_removed = std::move(tell_removed);
  const std::lock_guard lock(mutex_);
  requesters_.push_back(requester);
  return requester;
}

void OwnBuffers::part(const std::shared_ptr<Requester>& requester) {
  requester->is_gone = true;
  const std::lock_guard lock(mutex_);
  std::erase(requesters_, requester);
}

LocalWelcome OwnBuffers::welcome(const Requester& requester) const {
  return {.nonce_address = reinterpret_cast<uintptr_t>(nonce_.data()),
          .nonce = nonce_,
          .live_address = reinterpret_cast<uintptr_t>(live_->address()),
          .slots_address = reinterpret_cast<uintptr_t>(requester.slots->address())};
}

}  // namespace hicache
