// BlockDevice over io_uring: one submission queue entry per request at any time, so that neither
// queue can overflow.
//
// Threads: one owner, as of any BlockDevice. It may move from thread to thread, so the ring is not
// set up for a single issuer.
#pragma once

#include <liburing.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "io/block_device.h"
#include "io/event_fd.h"
#include "io/io_transfer.h"

namespace hicache {

class UringDevice : public BlockDevice {
 public:
  /// Sets up a ring and sends something through it: what a kernel lists, a container's policy may
  /// still forbid. kUnsupported: it is not offered here; the message says why.
  static Result<std::unique_ptr<BlockDevice>> make(const Options& options);

  ~UringDevice() override;

  bool submit(IoRequest request) override;
  size_t poll(std::span<IoCompletion> completions) override;
  bool wait(Deadline deadline) override;
  int event_fd() const override { return event_.get(); }
  size_t in_flight() const override { return in_flight_; }
  std::string_view engine_name() const override { return "io_uring"; }

 private:
  struct Slot {
    IoTransfer transfer;
    uint64_t begun_ns = 0;
  };

  explicit UringDevice(uint32_t depth);
  Status set_up();
  /// What is missing: nothing for success.
  std::string probe();
  void register_memory(std::span<uint8_t> memory);
  int registered_index(const iovec& part) const;
  void prepare(const IoTransfer& transfer, io_uring_sqe* sqe) const;
  void enqueue(uint32_t number);
  void flush();
  void reap();
  void finish(uint32_t number, int error);
  /// Makes event_ readable if there is something to poll.
  void announce() const;
  /// The next call of a request, or its end.
  void advance(uint32_t number);

  const uint32_t depth_;
  size_t in_flight_ = 0;
  io_uring ring_{};
  bool has_ring_ = false;
  EventFd event_;
  std::vector<iovec> registered_;  // What the kernel keeps mapped, in pieces; by buffer index.
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::deque<uint32_t> unsubmitted_;  // In the ring, not taken by the kernel yet.
  std::deque<IoCompletion> done_;     // When not empty, event_ is readable.
  int ring_error_ = 0;                // Not 0: the kernel takes nothing from the ring any more.
};

}  // namespace hicache
