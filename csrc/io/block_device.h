// Asynchronous reads and writes past the page cache: io_uring, or threads with pread and pwrite
// where the kernel or a container's policy does not permit that. Offsets, addresses and sizes are
// multiples of kSectorSize.
//
// A device owns each request that it took until it completes, continues transfers that the kernel
// cut short, and completes each exactly once, in any order. It serves any number of files.
//
// Threads: one owner. Only wait() blocks. event_fd() lets the owner wait for other things as well.
//
// Memory: it must stay what it is until the request's completion was polled. A request that never
// completes (a disk that hangs) keeps its memory for good; whoever gives up on it drops the device
// and unmaps the memory: the kernel holds on to the physical memory, so nobody else's is written.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/status.h"

namespace hicache {

enum class IoKind : uint8_t {
  kRead,
  kWrite,
  kWriteDurable,  // On stable storage when it completes, and with it all that completed before it
                  // was submitted: a write, then a flush of the disk's own cache.
  kAllocate,  // Makes the file system set space aside for the range. The file reaches at least to
              // its end then.
  kDiscard,   // Gives the space of the range back; it reads as zeros afterwards.
};

/// Bytes of a write, counted from its beginning, and their checksum as their owner knows it.
struct IoCheck {
  uint64_t offset;
  uint64_t size;
  uint64_t checksum;
};

struct IoRequest {
  IoKind kind = IoKind::kRead;
  int fd = -1;
  uint64_t offset = 0;
  uint64_t size = 0;           // Of the range. Of reads and writes: what `parts` add up to.
  std::vector<iovec> parts{};  // Of reads and writes.
  uint64_t tag = 0;            // Handed back.
  /// Of writes, in order, at most 32: a device that copies the bytes anyway compares them.
  std::vector<IoCheck> checks{};
};

struct IoCompletion {
  uint64_t tag;
  int error;             // 0, or an errno: EIO, ENOSPC, … A read past the end of the file is EIO,
                         // a misaligned or contradictory request EINVAL.
  uint64_t duration_ns;  // Since submit().
  uint32_t damaged = 0;  // With EBADMSG, by bit: `checks` that did not hold. Nothing was written.
};

/// An error that says nothing of the disk: the machine was short of memory, and may not be soon.
inline bool is_want_of_memory(int error) {
  return error == ENOMEM || error == EAGAIN || error == EFAULT || error == ENOBUFS;
}

enum class IoEngine : uint8_t { kAuto, kUring, kThreads };

class BlockDevice {
 public:
  static constexpr uint32_t kDepthMax = 4096;

  struct Options {
    IoEngine engine;  // kAuto: io_uring if it works here, else threads.
    uint32_t depth;   // Requests in flight at most, 1 to kDepthMax. Threads: as many, at most 32.
    /// Memory that many requests will use, if known: the kernel then keeps it mapped. Advice.
    std::span<uint8_t> registered_memory{};
  };

  /// kUnsupported: `engine` is kUring and the kernel does not offer it; the message says why.
  static Result<std::unique_ptr<BlockDevice>> make(const Options& options);

  /// Abandons what is still in flight.
  virtual ~BlockDevice() = default;

  /// Takes a request; false, with nothing taken, while `depth` requests are in flight.
  virtual bool submit(IoRequest request) = 0;

  /// Fills in completions and returns how many. Does not block.
  virtual size_t poll(std::span<IoCompletion> completions) = 0;

  /// Blocks until poll() has something (true), or the deadline, or nothing is in flight (false).
  virtual bool wait(Deadline deadline) = 0;

  /// Readable when poll() may have something; cleared by poll().
  virtual int event_fd() const = 0;

  /// Requests taken whose completions were not polled.
  virtual size_t in_flight() const = 0;

  /// "io_uring" or "threads", for logs.
  virtual std::string_view engine_name() const = 0;
};

}  // namespace hicache
