// One request on its way: which system call comes next, and what its result means. The engines only
// make the calls, so both continue short transfers and judge errors alike.
//
// Pure: makes no calls, reads no clock.
// Threads: one owner at a time.
#pragma once

#include <cstdint>
#include <span>

#include "io/block_device.h"

namespace hicache {

/// 0, or the errno of a request that no engine takes: its range or its memory is misaligned or
/// empty, or `parts` and `size` differ.
int request_error(const IoRequest& request);

class IoTransfer {
 public:
  enum class Step : uint8_t { kRead, kWrite, kFlush, kAllocate, kDiscard, kDone };

  IoTransfer() = default;
  explicit IoTransfer(IoRequest request);

  const IoRequest& request() const { return request_; }
  Step step() const { return step_; }
  /// Of kDone: 0 or an errno.
  int error() const { return error_; }

  /// Of kRead and kWrite: what the next call transfers. No more than the kernel takes at once.
  std::span<const iovec> parts() const;
  uint64_t offset() const { return request_.offset + transferred_; }

  /// Takes the result of that call: a count of bytes, 0 for success, or a negative errno.
  void take(int64_t result);

 private:
  void take_transferred(uint64_t size);
  void finish(int error);

  IoRequest request_;
  Step step_ = Step::kDone;
  int error_ = 0;
  size_t first_part_ = 0;  // Parts before it are done; it is cut to what is left of it.
  uint64_t transferred_ = 0;
  uint32_t repeat_count_ = 0;  // Calls in a row that the kernel wants repeated.
};

}  // namespace hicache
