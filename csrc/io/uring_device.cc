#include "io/uring_device.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kBufferSizeMax = kGiB;  // Of one registered buffer, as the kernel has it.
constexpr size_t kBuffersMax = 1024;
constexpr uint64_t kRegisteredShare = 4;     // A quarter of the limit on locked memory.
constexpr uint64_t kTransferSizeMax = kGiB;  // A queue entry's size has 32 bits.
constexpr uint64_t kProbeTimeoutMs = 5000;

constexpr std::array kOpcodes = {IORING_OP_READ,      IORING_OP_WRITE,      IORING_OP_READV,
                                 IORING_OP_WRITEV,    IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
                                 IORING_OP_FALLOCATE, IORING_OP_FSYNC};
// No completion is dropped, and what a queue entry points to may go once it was submitted.
constexpr unsigned kFeatures = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;

std::string text_of(int error) {
  return std::strerror(error);
}

std::string remedy(int error) {
  if (error == EPERM || error == ENOSYS || error == EACCES) {
    return "; allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp profile) or "
           "choose threads";
  }
  if (error == ENOMEM) return "; raise the limit on locked memory (ulimit -l) or choose threads";
  return "; choose threads";
}

bool is_passing(int error) {
  return error == EAGAIN || error == EBUSY || error == EINTR;
}

/// Whether the limit on locked memory leaves enough to others: rings count towards it too, and so
/// does all else of this user.
bool may_register(uint64_t size) {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return false;
  return limit.rlim_cur == RLIM_INFINITY || size <= limit.rlim_cur / kRegisteredShare;
}

}  // namespace

Result<std::unique_ptr<BlockDevice>> UringDevice::make(const Options& options) {
  std::unique_ptr<UringDevice> device(new UringDevice(options.depth));
  HICACHE_RETURN_IF_ERROR(device->set_up());
  device->register_memory(options.registered_memory);
  return std::unique_ptr<BlockDevice>(std::move(device));
}

UringDevice::UringDevice(uint32_t depth) : depth_(depth), slots_(depth) {
  for (uint32_t number = depth; number != 0; --number) free_.push_back(number - 1);
}

UringDevice::~UringDevice() {
  // The kernel cancels what it can, in the background, and keeps what it needs for the rest.
  if (has_ring_) io_uring_queue_exit(&ring_);
}

Status UringDevice::set_up() {
  const auto unsupported = [](const std::string& why) {
    return Status(Code::kUnsupported, "setting up io_uring: " + why);
  };
  event_ = EventFd::make();
  if (!event_.valid()) return unsupported("no descriptor (" + text_of(errno) + ")");
  // As many entries as requests, and twice as many completions: neither queue can overflow.
  const int error = -io_uring_queue_init(depth_, &ring_, 0);
  if (error != 0) return unsupported("io_uring_setup: " + text_of(error) + remedy(error));
  has_ring_ = true;
  const std::string missing = probe();
  return missing.empty() ? Status() : unsupported(missing);
}

std::string UringDevice::probe() {
  if ((ring_.features & kFeatures) != kFeatures) return "the kernel is too old; choose threads";
  io_uring_probe* const list = io_uring_get_probe_ring(&ring_);
  if (list == nullptr) return "the kernel does not list its operations; choose threads";
  const bool has_all = std::all_of(kOpcodes.begin(), kOpcodes.end(), [list](int opcode) {
    return io_uring_opcode_supported(list, opcode) != 0;
  });
  io_uring_free_probe(list);
  if (!has_all) return "the kernel lacks operations that we need; choose threads";
  if (const int error = -io_uring_register_eventfd(&ring_, event_.get()); error != 0) {
    return "io_uring_register: " + text_of(error) + remedy(error);
  }
  io_uring_prep_nop(io_uring_get_sqe(&ring_));
  if (const int count = io_uring_submit(&ring_); count != 1) {
    const int error = count < 0 ? -count : EIO;
    return "io_uring_enter: " + text_of(error) + remedy(error);
  }
  const Deadline deadline = Deadline::after_ms(kProbeTimeoutMs);
  while (io_uring_cq_ready(&ring_) == 0 && !deadline.expired()) event_.wait(deadline);
  if (io_uring_cq_ready(&ring_) == 0) return "it does not answer; choose threads";
  io_uring_cq_advance(&ring_, io_uring_cq_ready(&ring_));
  event_.clear();
  return {};
}

void UringDevice::register_memory(std::span<uint8_t> memory) {
  if (!may_register(memory.size())) return;
  for (uint64_t at = 0; at < memory.size() && registered_.size() < kBuffersMax;) {
    const uint64_t size = std::min<uint64_t>(memory.size() - at, kBufferSizeMax);
    registered_.push_back({memory.data() + at, size});
    at += size;
  }
  if (registered_.empty()) return;
  // Where it fails, requests are only a little slower.
  const auto count = static_cast<unsigned>(registered_.size());
  if (io_uring_register_buffers(&ring_, registered_.data(), count) != 0) registered_.clear();
}

int UringDevice::registered_index(const iovec& part) const {
  if (registered_.empty()) return -1;
  const auto begin = reinterpret_cast<uintptr_t>(registered_.front().iov_base);
  const auto address = reinterpret_cast<uintptr_t>(part.iov_base);
  if (address < begin) return -1;
  const uint64_t index = (address - begin) / kBufferSizeMax;
  if (index >= registered_.size()) return -1;
  const uint64_t offset = (address - begin) % kBufferSizeMax;
  const uint64_t size = registered_[index].iov_len;
  return offset <= size && part.iov_len <= size - offset ? static_cast<int>(index) : -1;
}

void UringDevice::prepare(const IoTransfer& transfer, io_uring_sqe* sqe) const {
  const IoRequest& request = transfer.request();
  const IoTransfer::Step step = transfer.step();
  if (step == IoTransfer::Step::kFlush) {
    io_uring_prep_fsync(sqe, request.fd, IORING_FSYNC_DATASYNC);
    return;
  }
  if (step == IoTransfer::Step::kAllocate || step == IoTransfer::Step::kDiscard) {
    const int mode =
        step == IoTransfer::Step::kAllocate ? 0 : FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    io_uring_prep_fallocate(sqe, request.fd, mode, static_cast<off_t>(request.offset),
                            static_cast<off_t>(request.size));
    return;
  }
  const bool is_read = step == IoTransfer::Step::kRead;
  const auto parts = transfer.parts();
  if (parts.size() > 1) {
    io_uring_prep_rw(is_read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, request.fd, parts.data(),
                     static_cast<unsigned>(parts.size()), transfer.offset());
    return;
  }
  const iovec& part = parts.front();
  const auto size = static_cast<unsigned>(std::min<uint64_t>(part.iov_len, kTransferSizeMax));
  const int index = registered_index(part);
  if (index < 0) {
    io_uring_prep_rw(is_read ? IORING_OP_READ : IORING_OP_WRITE, sqe, request.fd, part.iov_base,
                     size, transfer.offset());
  } else {
    io_uring_prep_rw(is_read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED, sqe, request.fd,
                     part.iov_base, size, transfer.offset());
    sqe->buf_index = static_cast<uint16_t>(index);
  }
}

bool UringDevice::submit(IoRequest request) {
  if (in_flight_ == depth_) return false;
  ++in_flight_;
  const uint32_t number = free_.back();
  free_.pop_back();
  slots_[number] = {IoTransfer(std::move(request)), monotonic_ns()};
  advance(number);
  flush();
  announce();
  return true;
}

void UringDevice::advance(uint32_t number) {
  const IoTransfer& transfer = slots_[number].transfer;
  if (transfer.step() == IoTransfer::Step::kDone) {
    finish(number, transfer.error());
  } else if (ring_error_ != 0) {
    finish(number, ring_error_);
  } else {
    enqueue(number);
  }
}

void UringDevice::enqueue(uint32_t number) {
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
  prepare(slots_[number].transfer, sqe);
  io_uring_sqe_set_data64(sqe, number);
  unsubmitted_.push_back(number);
}

void UringDevice::flush() {
  while (!unsubmitted_.empty() && ring_error_ == 0) {
    const int count = io_uring_submit(&ring_);
    if (count > 0) {
      unsubmitted_.erase(unsubmitted_.begin(), unsubmitted_.begin() + count);
    } else if (is_passing(-count) || count == 0) {
      event_.signal();  // The owner polls, and that tries again.
      return;
    } else {
      ring_error_ = -count;
    }
  }
  if (ring_error_ == 0) return;
  for (const uint32_t number : std::exchange(unsubmitted_, {})) finish(number, ring_error_);
}

void UringDevice::finish(uint32_t number, int error) {
  Slot& slot = slots_[number];
  done_.push_back({slot.transfer.request().tag, error, monotonic_ns() - slot.begun_ns});
  slot = Slot();
  free_.push_back(number);
}

void UringDevice::announce() const {
  if (!done_.empty()) event_.signal();
}

void UringDevice::reap() {
  // Only what is there now: what goes on at once may complete at once, for ever.
  for (unsigned left = io_uring_cq_ready(&ring_); left != 0; --left) {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_peek_cqe(&ring_, &cqe) != 0) break;
    const auto number = static_cast<uint32_t>(io_uring_cqe_get_data64(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    slots_[number].transfer.take(result);
    advance(number);
  }
  flush();
}

size_t UringDevice::poll(std::span<IoCompletion> completions) {
  event_.clear();
  reap();
  const size_t count = std::min(completions.size(), done_.size());
  std::copy_n(done_.begin(), count, completions.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<ptrdiff_t>(count));
  in_flight_ -= count;
  announce();
  return count;
}

bool UringDevice::wait(Deadline deadline) {
  for (;;) {
    if (!done_.empty()) return true;
    event_.clear();
    reap();
    announce();
    if (!done_.empty()) return true;
    if (in_flight_ == 0 || deadline.expired()) return false;
    event_.wait(deadline);
  }
}

}  // namespace hicache
