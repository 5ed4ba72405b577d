// The buffers that this process lets local requesters reach, and who those requesters are.
//
// Threads: any. remove() and end() block while a requester is in the middle of a piece, for a
// second at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "io/fd.h"
#include "io/memory.h"
#include "transfer/local/local_wire.h"
#include "transfer/local/use_table.h"
#include "transfer/segment.h"

namespace hicache {

class OwnBuffers {
 public:
  /// One connection of one requester.
  struct Requester {
    pid_t pid;
    std::unique_ptr<SharedMemory> slots;
    std::atomic<bool> is_gone{false};  // It will touch nothing any more: its process or path ended.
    /// Has it told that a buffer is gone, so that it lets go of its mapping. Does not block.
    std::function<void(BufferId)> tell_removed;

    UseSlot* use_slots() const { return reinterpret_cast<UseSlot*>(slots->address()); }
  };

  /// kNoSpace, kIo: no memory or descriptors for the tables.
  static Result<std::shared_ptr<OwnBuffers>> make();

  /// Whether others may map it. kInvalidArgument: the memfd is too short. kNoSpace: too many
  /// buffers.
  Result<bool> add(const Buffer& buffer);
  /// When it returns no requester touches the buffer, but one that has been in the middle of a
  /// piece for a second: stopped there, or held up by the kernel.
  void remove(BufferId id);
  /// Of a buffer that was removed. kTimeout: such a requester may still touch it; names it.
  Status untouched(BufferId id);
  /// The owner ends: as remove() for all buffers, and requesters hear that the peer is gone.
  void end();

  /// What requesters are told of a buffer, and the descriptor that goes with it, if any: open for
  /// writing only if they may write.
  LocalRange describe(BufferId id, Fd& memfd) const;

  Result<std::shared_ptr<Requester>> admit(pid_t pid, std::function<void(BufferId)> tell_removed);
  void part(const std::shared_ptr<Requester>& requester);

  /// The owner and the requester of a connection whose both ends are in this process, kept alive;
  /// null if they are not.
  struct Here {
    std::shared_ptr<OwnBuffers> owner;
    std::shared_ptr<Requester> requester;
  };
  static Here find_here(const LocalWelcome& welcome);

  const LiveWord* live_words() const { return reinterpret_cast<const LiveWord*>(live_->address()); }

  /// The tables of who touches what, and a secret value to be found in memory.
  LocalWelcome welcome(const Requester& requester) const;
  /// The table of live buffers, read-only; invalid if the system refuses.
  const Fd& live_fd() const { return live_fd_; }

 private:
  struct Entry {
    Buffer buffer;
    uint32_t place;
    bool is_mappable;
  };

  /// A requester that is stuck in a piece of a buffer that was removed.
  struct Stuck {
    BufferId buffer;
    std::shared_ptr<Requester> requester;
  };

  OwnBuffers(std::unique_ptr<SharedMemory> live, Fd live_fd);
  void forget_those_that_went_on();
  bool is_stuck(const Requester& requester) const;

  const std::unique_ptr<SharedMemory> live_;
  const Fd live_fd_;
  const Nonce nonce_;

  mutable std::mutex mutex_;  // Of what follows.
  LivePlaces places_;
  std::unordered_map<BufferId, Entry> entries_;
  std::vector<std::shared_ptr<Requester>> requesters_;
  std::vector<Stuck> stuck_;
};

}  // namespace hicache
