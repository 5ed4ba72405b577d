#include "transfer/rdma/memory_keys.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "base/bytes.h"
#include "transfer/copy_threads.h"
#include "transfer/gpu_dmabuf.h"

namespace hicache {
namespace {

// Pinning is bound by the kernel, which walks and accounts pages: more threads only wait.
constexpr unsigned kThreadsMax = 8;
constexpr uint64_t kPieceUnit = 2 * kMiB;  // Pieces begin where huge pages begin.
// Pieces of one buffer are pinned in parallel; smaller ones are not worth the keys.
constexpr uint64_t kPieceSizeMax = 64 * kGiB;

uint64_t piece_size(uint64_t region_size_max) {
  const uint64_t size = std::min(region_size_max, kPieceSizeMax);
  return size >= kPieceUnit ? size / kPieceUnit * kPieceUnit : size;
}

/// What limits locked memory, for people.
std::string lock_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return "`ulimit -l` is unlimited, so the machine (or its cgroup) is out of memory, or max_mr "
           "is "
           "reached";
  }
  return "`ulimit -l` is " + std::to_string(limit.rlim_cur / kKiB) +
         " KiB: raise it (limits.conf: memlock unlimited; systemd: LimitMEMLOCK=infinity; docker: "
         "--ulimit memlock=-1)";
}

}  // namespace

/// One buffer. Counts its users; the registering thread and remove() own the rest.
struct MemoryKeys::Registration {
  struct OnRail {
    uint64_t piece_size = 0;
    std::vector<ibv_mr*> regions;
    KeyedRange local;  // With local keys; empty if the rail refused.
    std::atomic<bool> is_refused{false};
    std::mutex mutex;
    Status refusal;  // Guarded by mutex while pieces are registered.
  };

  Buffer buffer;
  std::vector<std::unique_ptr<OnRail>> rails;
  std::atomic<uint32_t> users{0};
};

/// One piece of a buffer on one rail.
struct MemoryKeys::Task {
  size_t rail;
  size_t piece;
};

MemoryKeys::Pin::Pin(std::shared_ptr<Registration> registration)
    : registration_(std::move(registration)) {
  registration_->users.fetch_add(1, std::memory_order_relaxed);
}

MemoryKeys::Pin& MemoryKeys::Pin::operator=(Pin&& other) noexcept {
  if (this != &other) {
    reset();
    registration_ = std::move(other.registration_);
  }
  return *this;
}

void MemoryKeys::Pin::reset() {
  if (registration_ == nullptr) return;
  if (registration_->users.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    registration_->users.notify_all();
  }
  registration_.reset();
}

MemoryKeys::~MemoryKeys() {
  for (const auto& [id, registration] : registrations_) drop(*registration);
}

std::shared_ptr<MemoryKeys::Registration> MemoryKeys::plan(const Buffer& buffer,
                                                           std::vector<Task>& tasks) const {
  auto registration = std::make_shared<Registration>();
  registration->buffer = buffer;
  for (size_t rail = 0; rail < rails_.size(); ++rail) {
    auto on_rail = std::make_unique<Registration::OnRail>();
    on_rail->piece_size = std::max<uint64_t>(1, piece_size(rails_[rail]->limits().region_size_max));
    const uint64_t count = (buffer.size - 1) / on_rail->piece_size + 1;
    const uint64_t share = kMemoryKeysMax / rails_.size();
    if (count > share) {
      on_rail->is_refused = true;
      on_rail->refusal =
          Status(Code::kNoSpace,
                 "RDMA: " + rails_[rail]->name() + ": registering " + std::to_string(buffer.size) +
                     " bytes takes " + std::to_string(count) + " pieces of max_mr_size (" +
                     std::to_string(on_rail->piece_size) + " bytes), more than " +
                     std::to_string(share) + "; register the memory as several buffers");
    } else {
      on_rail->regions.resize(count, nullptr);
      for (size_t piece = 0; piece < count; ++piece) tasks.push_back({rail, piece});
    }
    registration->rails.push_back(std::move(on_rail));
  }
  return registration;
}

Status MemoryKeys::refusal(const RdmaRail& rail, const Buffer& buffer, uint64_t size,
                           int error_number) const {
  std::string remedy;
  switch (error_number) {
    case ENOMEM:
    case EAGAIN:
    case EPERM:
      remedy = lock_limit() + "; max_mr = " + std::to_string(rail.limits().regions_max);
      break;
    case EFAULT:
      remedy = "is the whole range mapped, and writable?";
      break;
    default:
      remedy = "max_mr_size = " + std::to_string(rail.limits().region_size_max) +
               ", max_mr = " + std::to_string(rail.limits().regions_max);
  }
  const Code code =
      error_number == EFAULT || error_number == EINVAL ? Code::kInvalidArgument : Code::kNoSpace;
  return rail.error(code,
                    "ibv_reg_mr of " + std::to_string(size) + " bytes (of the buffer of " +
                        std::to_string(buffer.size) + " at " + std::to_string(buffer.address) + ")",
                    error_number, remedy);
}

void MemoryKeys::carry_out(Registration& registration, const Task& task) const {
  Registration::OnRail& on_rail = *registration.rails[task.rail];
  if (on_rail.is_refused) return;
  const RdmaRail& rail = *rails_[task.rail];
  const Buffer& buffer = registration.buffer;
  const uint64_t offset = task.piece * on_rail.piece_size;
  const uint64_t size = std::min(on_rail.piece_size, buffer.size - offset);
  unsigned access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ;
  if (buffer.remote_write) access |= IBV_ACCESS_REMOTE_WRITE;
  if (rail.limits().odp && buffer.kind == MemoryKind::kHost) access |= IBV_ACCESS_ON_DEMAND;
  if (rail.settings().relaxed_ordering) access |= IBV_ACCESS_RELAXED_ORDERING;
  void* address = reinterpret_cast<void*>(buffer.address + offset);
  ibv_mr*& region = on_rail.regions[task.piece];
  region = rail.verbs().register_memory(rail.domain(), address, size, access);
  if (region != nullptr) return;
  const int error_number = errno;
  if (buffer.kind == MemoryKind::kCuda) {
    const Result<GpuDmabuf> dmabuf = gpu_dmabuf_of(buffer.address + offset, size);
    if (dmabuf.ok()) {
      region = rail.verbs().register_dmabuf(rail.domain(), dmabuf.value().fd.get(),
                                            dmabuf.value().offset, size, buffer.address + offset,
                                            access);
    }
    if (region != nullptr) return;
  }
  const std::lock_guard lock(on_rail.mutex);
  if (!on_rail.is_refused.exchange(true)) {
    on_rail.refusal = refusal(rail, buffer, size, error_number);
  }
}

void MemoryKeys::drop(Registration& registration) const {
  for (size_t rail = 0; rail < registration.rails.size(); ++rail) {
    for (ibv_mr*& region : registration.rails[rail]->regions) {
      if (region != nullptr) (void)rails_[rail]->verbs().deregister_memory(region);
      region = nullptr;
    }
  }
}

Result<std::vector<uint8_t>> MemoryKeys::add(const Buffer& buffer) {
  if (buffer.size == 0) {
    return Status(Code::kInvalidArgument, "RDMA: a buffer of 0 bytes cannot be registered");
  }
  std::vector<Task> tasks;
  const std::shared_ptr<Registration> registration = plan(buffer, tasks);
  {
    CopyThreads threads(std::min<unsigned>(kThreadsMax, static_cast<unsigned>(tasks.size()) + 1));
    threads.run(tasks.size(), [&](size_t i) { carry_out(*registration, tasks[i]); });
  }
  std::vector<RailKeys> keys;
  Status first_refusal;
  for (size_t rail = 0; rail < rails_.size(); ++rail) {
    Registration::OnRail& on_rail = *registration->rails[rail];
    if (on_rail.is_refused) {
      refusals_.fetch_add(1, std::memory_order_relaxed);
      if (first_refusal.ok()) first_refusal = on_rail.refusal;
      for (ibv_mr*& region : on_rail.regions) {
        if (region != nullptr) (void)rails_[rail]->verbs().deregister_memory(region);
        region = nullptr;
      }
      continue;
    }
    auto local_keys = std::make_shared<std::vector<uint32_t>>();
    RailKeys& remote = keys.emplace_back();
    remote.rail = static_cast<uint8_t>(rail);
    remote.piece_size = on_rail.piece_size;
    for (const ibv_mr* region : on_rail.regions) {
      local_keys->push_back(region->lkey);
      remote.keys.push_back(region->rkey);
    }
    on_rail.local = KeyedRange{buffer.address, on_rail.piece_size, std::move(local_keys)};
  }
  if (keys.empty() && buffer.kind == MemoryKind::kCuda) {
    return Status(Code::kUnsupported,
                  first_refusal.message() +
                      "; memory of a GPU needs the kernel module nvidia-peermem, or a driver and a "
                      "device that know dma-buf. Without them it is moved over TCP");
  }
  if (keys.empty()) return first_refusal;
  const std::lock_guard lock(mutex_);
  registrations_.insert_or_assign(buffer.id, registration);
  return encode_keys(keys);
}

void MemoryKeys::remove(BufferId id) {
  std::shared_ptr<Registration> registration;
  {
    const std::lock_guard lock(mutex_);
    const auto found = registrations_.find(id);
    if (found == registrations_.end()) return;
    registration = std::move(found->second);
    registrations_.erase(found);
  }
  for (uint32_t users = registration->users; users != 0; users = registration->users) {
    registration->users.wait(users);
  }
  drop(*registration);
}

bool MemoryKeys::Pin::is_on_device() const {
  return registration_ != nullptr && registration_->buffer.kind == MemoryKind::kCuda;
}

Result<MemoryKeys::Local> MemoryKeys::use(BufferId id, size_t rail, uint64_t address,
                                          uint64_t size) const {
  const std::shared_lock lock(mutex_);
  const auto found = registrations_.find(id);
  if (found == registrations_.end()) {
    return Status(Code::kUnsupported, "RDMA: the local range at " + std::to_string(address) +
                                          " lies in no buffer that is registered with its devices");
  }
  const Buffer& buffer = found->second->buffer;
  if (address < buffer.address || address - buffer.address > buffer.size ||
      size > buffer.size - (address - buffer.address)) {
    return Status(Code::kInvalidArgument, "RDMA: the local range at " + std::to_string(address) +
                                              " of " + std::to_string(size) +
                                              " bytes leaves its registered buffer");
  }
  const Registration::OnRail& on_rail = *found->second->rails[rail];
  if (on_rail.is_refused) return Status(Code::kNotFound, on_rail.refusal.message());
  return Local{on_rail.local, Pin(found->second)};
}

size_t MemoryKeys::count() const {
  const std::shared_lock lock(mutex_);
  return registrations_.size();
}

}  // namespace hicache
