// A device that writes from huge pages what lies on small ones.
//
// A disk takes a limited number of memory segments in one request (a virtio disk 254), so that a
// large write from 4 KiB pages reaches it in many small ones; some disks are half as fast then.
// Here a thread copies such a write into a buffer on huge pages first, and compares the checksums
// of what it copies: bytes that are damaged are not written.
//
// Writes without checks, writes that fit no buffer, and everything that is not a write go to the
// device below as they are. A write that finds no buffer free waits for one.
//
// Threads: one owner, as of any BlockDevice; one of its own, from the first copy on.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "io/block_device.h"
#include "io/event_fd.h"
#include "io/mapped_memory.h"

namespace hicache {

class StagingDevice : public BlockDevice {
 public:
  struct Options {
    uint32_t depth;        // Requests in flight at most; `below` takes as many.
    uint64_t buffer_size;  // Whole huge pages. Of the largest write that is copied.
    uint32_t buffer_count;
  };

  /// `below` itself if the system allows no descriptors for more.
  static std::unique_ptr<BlockDevice> make(const Options& options,
                                           std::unique_ptr<BlockDevice> below);

  ~StagingDevice() override;

  bool submit(IoRequest request) override;
  size_t poll(std::span<IoCompletion> completions) override;
  bool wait(Deadline deadline) override;
  int event_fd() const override { return either_.get(); }
  size_t in_flight() const override { return in_flight_; }
  std::string_view engine_name() const override { return below_->engine_name(); }

 private:
  struct Write {
    IoRequest request;
    uint64_t begun_ns;
    uint32_t buffer;
    uint32_t damaged;
  };
  struct Below {
    uint64_t tag;
    uint64_t begun_ns;
    uint32_t buffer;  // kNoBuffer: as it came.
  };
  static constexpr uint32_t kNoBuffer = UINT32_MAX;

  StagingDevice(const Options& options, std::unique_ptr<BlockDevice> below, EventFd copied,
                Fd either);

  bool is_copied(const IoRequest& request);
  /// Buffers and thread, made if needed; false: there are none to be had.
  bool prepare();
  uint8_t* address_of(uint32_t buffer) const { return buffers_ + buffer * options_.buffer_size; }
  void begin_copies();
  void take_copies();
  void pass_on();
  bool pass(IoRequest request, uint64_t begun_ns, uint32_t buffer);
  void take_completions();
  void finish(uint64_t tag, int error, uint64_t begun_ns, uint32_t damaged);
  void copy_writes();

  const Options options_;
  std::unique_ptr<BlockDevice> below_;
  EventFd event_;  // Something was copied, or is done.
  Fd either_;      // An epoll: event_, or that of `below`.
  MappedMemory memory_;
  uint8_t* buffers_ = nullptr;                          // In memory_, the first one's beginning.
  std::vector<uint32_t> free_;                          // Buffers.
  std::deque<Write> waiting_;                           // For a buffer.
  std::deque<Write> ready_;                             // Copied.
  std::unordered_map<uint64_t, Below> below_requests_;  // By the tag that they have there.
  std::deque<IoCompletion> done_;
  uint64_t next_tag_ = 0;
  size_t in_flight_ = 0;

  bool has_thread_ = false;
  pthread_t thread_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Write> to_copy_;  // Guarded by mutex_, as what follows.
  std::deque<Write> copied_;
  bool is_closing_ = false;
};

}  // namespace hicache
