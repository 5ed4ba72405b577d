// A requester's connection to one local peer: what the peer has, and how it is copied.
//
// Descriptions of buffers are asked for when they are first wanted and come over the socket; what
// they say is checked before it is believed. The copying is done by whoever calls copy().
//
// Threads: any, but for on_events() and on_time(), which the loop's thread calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

#include "base/clock.h"
#include "io/fd.h"
#include "io/io_loop.h"
#include "net/greeting.h"
#include "transfer/local/local_wire.h"
#include "transfer/local/mapped_window.h"
#include "transfer/local/own_buffers.h"
#include "transfer/local/use_table.h"
#include "transfer/transport.h"

namespace hicache {

/// A piece of an op is never larger: what happens to the peer or to a buffer is noticed after it.
inline constexpr uint64_t kLocalPieceMax = kMiB;

class PeerLink : public IoLoop::Source, public std::enable_shared_from_this<PeerLink> {
 public:
  /// Who uses the link. Called by the loop's thread without a lock of the link held.
  class User {
   public:
    virtual ~User() = default;
    /// Something is known about buffers that was not before.
    virtual void on_news() = 0;
    /// The peer is gone.
    virtual void on_lost() = 0;
    /// As IoLoop::Source::on_time().
    virtual uint64_t on_link_time(uint64_t now_ns) = 0;
  };

  /// A buffer of the peer, as the peer described it.
  struct RemoteBuffer {
    LocalRange range;
    MappedWindow window;  // Invalid: not mapped.
  };

  /// Connects and proves both ends. kUnavailable: no such peer on this machine, or not for us, with
  /// the reason. Blocks until the deadline.
  static Result<std::shared_ptr<PeerLink>> connect(uint64_t peer_epoch, const Secret& secret,
                                                   IoLoop& loop, Deadline deadline);
  ~PeerLink() override = default;

  /// Begins to receive. `user` is told until it is gone. Call it once.
  void start(std::weak_ptr<User> user);
  /// Ends the connection; the peer waits for us no more. No copy() may run or follow.
  void close();

  const std::string& name() const { return name_; }
  bool is_lost() const { return is_lost_.load(std::memory_order_relaxed); }
  /// Whether the peer is in this process.
  bool is_own_process() const { return reach_ == Reach::kSelf; }
  /// Whether memory that is not mapped can be reached.
  bool can_copy_unmapped() const { return reach_ != Reach::kMapped; }

  /// nullptr: nothing is known yet; it has been asked for and on_news() will follow. A buffer that
  /// the peer does not have has range.is_there false.
  std::shared_ptr<RemoteBuffer> find(BufferId buffer);
  /// Forgets buffers that the peer dropped, and their mappings, and asks for new ones.
  void update(const SegmentDescriptor& peer);

  /// Copies a piece, at most kLocalPieceMax bytes, within the buffer's range.
  /// Returns: as completions of a path do.
  Status copy(RemoteBuffer& buffer, Direction direction, uint8_t* local, uint64_t remote_address,
              uint64_t size, bool is_streaming);
  /// Calls `touch` while the buffer may be touched. Returns: what it said, or as copy() when the
  /// buffer or the peer is gone.
  template <typename Touch>
  Status use(const RemoteBuffer& buffer, Touch touch);
  /// Whether the peer is there and can be reached, by asking the system.
  Status probe();

  void on_events(uint32_t events) override;
  uint64_t on_time(uint64_t now_ns) override;

  /// How many buffers are mapped.
  uint64_t mapped_count() const;

 private:
  enum class Reach : uint8_t {
    kSelf,       // The peer is in this process.
    kProcessVm,  // The system permits process_vm_*.
    kMapped,     // Nothing but what is mapped.
  };

  PeerLink(Fd socket, pid_t pid, IoLoop& loop)
      : loop_(loop), socket_(std::move(socket)), pid_(pid) {}

  Status greet(uint64_t peer_epoch, const Secret& secret, Deadline deadline);
  Status take_tables(const LocalWelcome& welcome, std::span<Fd> passed);
  void choose_reach(const LocalWelcome& welcome);
  Status receive_range();
  void ask_more();
  Status watch();
  Status move(RemoteBuffer& buffer, Direction direction, uint8_t* local, uint64_t remote_address,
              uint64_t size, bool is_streaming);
  Status move_by_kernel(Direction direction, uint8_t* local, uint64_t remote_address,
                        uint64_t size);
  bool is_gone_now() const;
  BufferUse::Outcome begin_use(BufferUse& use) const;
  Status lost_status() const;
  Status gone_status(const LiveWord& word) const;
  void lose();

  IoLoop& loop_;
  const Fd socket_;
  const pid_t pid_;
  Fd pidfd_;
  std::string name_;
  Reach reach_ = Reach::kMapped;
  LocalWelcome welcome_{};
  OwnBuffers::Here here_;  // kSelf: the tables belong to them.
  MappedWindow live_window_;
  MappedWindow slots_window_;
  const LiveWord* live_ = nullptr;
  UseSlot* slots_ = nullptr;

  std::atomic<bool> is_lost_{false};
  std::weak_ptr<User> user_;
  uint64_t id_ = 0;  // The loop's thread; 0: not watched.
  uint64_t watch_id_ = 0;

  mutable std::mutex mutex_;                                             // Of what follows.
  std::unordered_map<BufferId, std::shared_ptr<RemoteBuffer>> buffers_;  // Null: asked for.
  std::deque<BufferId> to_ask_;
  size_t unanswered_ = 0;
};

template <typename Touch>
Status PeerLink::use(const RemoteBuffer& buffer, Touch touch) {
  const LiveWord& word = live_[buffer.range.place];
  BufferUse use(word, buffer.range.buffer);
  if (begin_use(use) == BufferUse::Outcome::kGone) return gone_status(word);
  const Status touched = touch();
  const bool is_there = use.end();
  if (is_lost_) return lost_status();
  return is_there ? touched : gone_status(word);
}

}  // namespace hicache
