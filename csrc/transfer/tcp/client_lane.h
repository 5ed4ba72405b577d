// One connection of a path: requests go out, answers come in, each matched to its part of an op.
//
// Lanes of a path share PathState: the table of ops and the mutex. A lane takes parts out of the
// table as long as it has room (a bound on bytes and on frames under way), gives each a number and
// sends it. Whoever finds that nobody is sending on the lane may send: the thread that submits, or
// the loop's. Receiving, timing out and closing are the loop's alone, so memory of an op is never
// written once it was given up: what still comes for a read goes to scrap, and a lane over which a
// write was given up is cut (with a reset, so that the peer drops what it has not applied).
//
// Threads: as each method says. "Locked": PathState::mutex is held.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "io/fd.h"
#include "io/io_loop.h"
#include "transfer/tcp/frame_receiver.h"
#include "transfer/tcp/frame_sender.h"
#include "transfer/tcp/op_table.h"
#include "transfer/tcp/tcp_counters.h"

namespace hicache {

class ClientLane;

/// What the lanes of a path share.
struct PathState {
  PathState(size_t ops_max, uint64_t part_size, CompletionSink& completion_sink,
            TcpCounters& transport_counters)
      : ops(ops_max, part_size), sink(completion_sink), counters(transport_counters) {}

  /// Locked. Tells the sink, without the lock. `done` is empty afterwards.
  void deliver(std::unique_lock<std::mutex>& lock, std::vector<OpDone>& done);
  /// Locked.
  void forget(const ClientLane& lane);
  bool has_lanes() const;

  std::mutex mutex;
  std::condition_variable changed;  // A lane closed, a ping was answered, completions went out.
  OpTable ops;
  std::vector<std::shared_ptr<ClientLane>> lanes;  // Null: closed.
  size_t deliveries = 0;                           // Under way.
  bool is_closed = false;
  CompletionSink& sink;
  TcpCounters& counters;
};

class ClientLane : public IoLoop::Source,
                   private FrameReceiver::Taker,
                   public std::enable_shared_from_this<ClientLane> {
 public:
  /// `bytes_max`: under way, about; twice that for urgent parts.
  ClientLane(Fd socket, IoLoop& loop, std::shared_ptr<PathState> path, uint64_t epoch,
             bool is_checked, uint64_t bytes_max);

  /// Locked. Once, after which events come.
  Status start();

  /// Locked. Whether another part of that priority may be given to it.
  bool has_room(Priority priority) const;
  uint64_t bytes_under_way() const { return bytes_under_way_; }
  /// Locked. To be sent by the next pump().
  void give(const OpPart& part);
  /// Locked. Whether more waits to be sent than the submitting thread should send.
  bool is_heavy() const { return payload_waiting_ > kOwnThreadMax; }

  /// Any thread, not locked: sends what waits unless someone is doing so, until the socket is full
  /// or about `budget` bytes went.
  void pump(uint64_t budget);
  /// Locked: has the loop send.
  void pump_later();
  static constexpr uint64_t kOwnThreadMax = 64 * kKiB;

  /// Locked: sends a ping. It is answered, or not; see has_answered().
  void ping();
  bool has_answered() const { return !is_pinging_; }
  /// Locked. Bytes that ever came.
  uint64_t received_total() const { return received_total_; }

  /// Locked: no more; the loop ends all its parts with this status (those past their deadline: with
  /// kTimeout) and closes the socket.
  void break_off(const Status& reason);
  void wake_by(uint64_t time_ns) { loop_.wake_by(time_ns); }

  void on_events(uint32_t events) override;
  uint64_t on_time(uint64_t now_ns) override;

 private:
  enum class State : uint8_t { kOpen, kBreaking, kClosed };

  /// A request without an answer.
  struct Request {
    OpPart part;
    uint64_t sequence = 0;
    bool is_used = false;
    bool is_ping = false;
    bool is_given_up = false;  // Its op is over; the answer is dropped.
  };
  struct EarlyReply {
    uint64_t sequence;
    Code code;
  };

  /// Whether its payload has a checksum of its own. Where the caller is told what arrived, and
  /// compares, one would say nothing that this does not.
  bool is_checked(const OpPart& part) const { return is_checked_ && part.arrival == nullptr; }
  Request& request_of(uint64_t sequence) { return requests_[sequence % kTcpUnansweredMax]; }

  bool on_header(const TcpFrame& frame) override;
  bool wants_sum() const override { return answered_->part.arrival != nullptr; }
  uint8_t* begin_piece(uint64_t offset, uint64_t size) override;
  void end_piece() override {}
  bool on_frame(bool is_intact) override;

  // All of these: locked.
  void commit();
  bool commit_next(Request& request);
  void note_sent(std::vector<OpDone>& done);
  void end_request(Request& request, Code code);
  void refill();
  void want_write(bool is_wanted);
  bool give_up(uint64_t now_ns);
  uint64_t earliest_deadline() const;
  void end_all(std::vector<OpDone>& done);
  Status status_of(const OpPart& part, Code code) const;

  void tear_down();

  Fd socket_;  // Open until kClosed.
  IoLoop& loop_;
  const std::shared_ptr<PathState> path_;
  const uint64_t epoch_;
  const bool is_checked_;
  const std::string name_;
  const uint64_t bytes_max_;

  // The loop's thread alone.
  FrameReceiver receiver_;
  TcpFrame reply_{};  // The one that is arriving.
  Request* answered_ = nullptr;

  // Guarded by the path's mutex.
  State state_ = State::kOpen;
  Status reason_;
  uint64_t id_ = 0;
  std::array<Request, kTcpUnansweredMax> requests_;
  std::deque<OpPart> urgent_;  // Given, not committed.
  std::deque<OpPart> background_;
  std::vector<OpDone> done_;
  std::vector<EarlyReply> early_;  // Of writes that are being sent, as far as the sender knows.
  uint64_t bytes_under_way_ = 0;
  uint64_t payload_waiting_ = 0;  // Of writes that are given and not committed.
  size_t frames_under_way_ = 0;
  uint64_t last_sequence_ = 0;
  uint64_t sent_sequence_ = 0;  // All of them up to this one left completely.
  uint64_t received_total_ = 0;
  bool must_ping_ = false;
  bool is_pinging_ = false;
  bool is_sending_ = false;  // Someone is in pump(): sender_ and the socket's output are theirs.
  bool wants_write_ = false;

  FrameSender sender_;  // Of whoever is sending.
};

}  // namespace hicache
