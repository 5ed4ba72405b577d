// BlockDevice over pread, pwrite and their like, each on one of a few threads.
//
// Threads are started as they are needed and are detached: one that is stuck in a system call ends
// when that returns, long after the device is gone. All they touch is shared with them, and each
// names the file by a descriptor of its own, so that one that is late cannot meet another file
// which was given the same number.
//
// Threads: one owner, as of any BlockDevice.
#pragma once

#include <memory>

#include "io/block_device.h"

namespace hicache {

class ThreadDevice : public BlockDevice {
 public:
  /// kUnavailable: the system allows not even one thread or its descriptors.
  static Result<std::unique_ptr<BlockDevice>> make(const Options& options);

  ~ThreadDevice() override;

  bool submit(IoRequest request) override;
  size_t poll(std::span<IoCompletion> completions) override;
  bool wait(Deadline deadline) override;
  int event_fd() const override;
  size_t in_flight() const override { return in_flight_; }
  std::string_view engine_name() const override { return "threads"; }

 private:
  struct Shared;
  struct Job;

  ThreadDevice(const Options& options, std::shared_ptr<Shared> shared);
  bool start_thread();
  static void run(Shared& shared, int own_fd);
  static void perform(Shared& shared, Job& job, int own_fd);

  const uint32_t depth_;
  const uint32_t thread_count_max_;
  uint32_t thread_count_ = 0;
  size_t in_flight_ = 0;
  std::shared_ptr<Shared> shared_;
};

}  // namespace hicache
