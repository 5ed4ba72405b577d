#include "io/io_transfer.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

namespace hicache {
namespace {

constexpr size_t kPartsMax = 1024;  // IOV_MAX of Linux.
constexpr uint32_t kRepeatsMax = 1000;
// The smallest unit of direct I/O that disks have. A read that ends inside of one met the end of
// the file; to go on from there would be misaligned.
constexpr uint64_t kSmallestSectorSize = 512;

bool is_aligned(uint64_t value) {
  return value % kSectorSize == 0;
}

bool has_parts(IoKind kind) {
  return kind == IoKind::kRead || kind == IoKind::kWrite || kind == IoKind::kWriteDurable;
}

IoTransfer::Step first_step(IoKind kind) {
  switch (kind) {
    case IoKind::kRead:
      return IoTransfer::Step::kRead;
    case IoKind::kWrite:
    case IoKind::kWriteDurable:
      return IoTransfer::Step::kWrite;
    case IoKind::kAllocate:
      return IoTransfer::Step::kAllocate;
    case IoKind::kDiscard:
      return IoTransfer::Step::kDiscard;
  }
  return IoTransfer::Step::kDone;
}

}  // namespace

int request_error(const IoRequest& request) {
  if (request.fd < 0) return EBADF;
  if (request.size == 0 || !is_aligned(request.offset) || !is_aligned(request.size)) return EINVAL;
  if (request.size > INT64_MAX || request.offset > INT64_MAX - request.size) return EINVAL;
  if (!has_parts(request.kind)) return request.parts.empty() ? 0 : EINVAL;
  uint64_t size = 0;
  for (const iovec& part : request.parts) {
    if (!is_aligned(reinterpret_cast<uintptr_t>(part.iov_base)) || !is_aligned(part.iov_len)) {
      return EINVAL;
    }
    if (part.iov_len == 0 || part.iov_len > request.size - size) return EINVAL;
    size += part.iov_len;
  }
  return size == request.size ? 0 : EINVAL;
}

IoTransfer::IoTransfer(IoRequest request) : request_(std::move(request)) {
  if (const int error = request_error(request_); error != 0) {
    finish(error);
  } else {
    step_ = first_step(request_.kind);
  }
}

std::span<const iovec> IoTransfer::parts() const {
  assert(step_ == Step::kRead || step_ == Step::kWrite);
  const auto left = std::span(request_.parts).subspan(first_part_);
  return left.first(std::min(left.size(), kPartsMax));
}

void IoTransfer::take(int64_t result) {
  // ECANCELED: the thread that submitted it has ended, and the kernel drops what it had not begun.
  if (result == -EINTR || result == -EAGAIN || result == -ECANCELED) {
    if (++repeat_count_ > kRepeatsMax) finish(static_cast<int>(-result));
    return;
  }
  repeat_count_ = 0;
  if (result < 0) {
    finish(static_cast<int>(-result));
  } else if (step_ == Step::kRead || step_ == Step::kWrite) {
    take_transferred(static_cast<uint64_t>(result));
  } else {
    finish(0);
  }
}

void IoTransfer::take_transferred(uint64_t size) {
  const uint64_t left = request_.size - transferred_;
  const bool met_end = step_ == Step::kRead && size < left && size % kSmallestSectorSize != 0;
  if (size == 0 || size > left || met_end) return finish(EIO);
  transferred_ += size;
  while (size != 0) {
    iovec& part = request_.parts[first_part_];
    const uint64_t taken = std::min<uint64_t>(size, part.iov_len);
    part.iov_base = static_cast<uint8_t*>(part.iov_base) + taken;
    part.iov_len -= taken;
    size -= taken;
    if (part.iov_len == 0) ++first_part_;
  }
  if (transferred_ != request_.size) return;
  if (request_.kind == IoKind::kWriteDurable) {
    step_ = Step::kFlush;
  } else {
    finish(0);
  }
}

void IoTransfer::finish(int error) {
  step_ = Step::kDone;
  error_ = error;
}

}  // namespace hicache
