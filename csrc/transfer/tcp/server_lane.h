// A lane that a peer opened: its requests are carried out on registered memory, and answered.
//
// Answers go out in any order, urgent ones first. A lane whose peer has closed or reset it is
// closed without applying what is left in its buffer: a write that was given up must not come late.
// What breaks the rules closes the lane, is counted, and costs no memory.
//
// Memory of a GPU is read and written through pinned slots, a few for each lane (lane_slots.h):
// what is read is copied there before the answer waits to be sent; what is written is received
// there, copied, and acknowledged when the copy is done. While no slot is free, nothing more is
// received.
//
// Threads: the loop's thread alone, but for the constructor.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>

#include "io/fd.h"
#include "io/io_loop.h"
#include "transfer/tcp/frame_receiver.h"
#include "transfer/tcp/frame_sender.h"
#include "transfer/tcp/lane_slots.h"
#include "transfer/tcp/range_table.h"
#include "transfer/tcp/tcp_counters.h"

namespace hicache {

class ServerLane : public IoLoop::Source,
                   private FrameReceiver::Taker,
                   public std::enable_shared_from_this<ServerLane> {
 public:
  /// `ranges`, `staging` and `counters` outlive the loop's sources.
  ServerLane(Fd socket, IoLoop& loop, const RangeTable& ranges, DeviceStaging& staging,
             TcpCounters& counters, uint64_t epoch);
  ~ServerLane() override;

  void start();

  void on_events(uint32_t events) override;
  uint64_t on_time(uint64_t) override { return IoLoop::kNever; }

 private:
  struct Reply {
    TcpFrame frame;
    BufferId buffer = kNoBuffer;  // Of the payload, if it has one.
    uint64_t address = 0;
    LaneSlots::Lent slot = nullptr;  // Where the payload was copied to.
  };
  /// A read of memory of a GPU that waits for a slot.
  struct StagedRead {
    TcpFrame request;
    bool is_urgent;
  };

  bool on_header(const TcpFrame& frame) override;
  bool is_ready() override;
  uint8_t* begin_piece(uint64_t offset, uint64_t size) override;
  void end_piece() override { use_.end(); }
  bool on_frame(bool is_intact) override;

  void answer_read();
  void answer(FrameKind kind, Code code, bool is_urgent);
  void answer(const TcpFrame& request, FrameKind kind, Code code, bool is_urgent);
  void start_staged_reads();
  void start_copy(const StagedRead& read, LaneSlots::Lent slot);
  void finish_read(const StagedRead& read, const LaneSlots::Lent& slot, Code code);
  void apply_staged_write(bool is_urgent);
  void go_on();
  /// False: the lane must be closed.
  bool pump();
  void commit();
  bool pin(RangeTable::Use* uses);
  void want_write(bool is_wanted);
  void watch(bool is_held, bool wants_write);
  void close(bool is_hostile);
  bool was_reset() const;

  Fd socket_;
  IoLoop& loop_;
  const RangeTable& ranges_;
  TcpCounters& counters_;
  const uint64_t epoch_;
  uint64_t id_ = 0;

  FrameReceiver receiver_;
  TcpFrame request_{};       // The one that is arriving.
  bool is_refused_ = false;  // A write outside what is registered: dropped as it comes.
  Code refusal_ = Code::kInvalidArgument;
  bool is_staged_ = false;  // A write to memory of a GPU.
  LaneSlots::Lent write_slot_;
  bool is_reset_ = false;
  RangeTable::Use use_;
  uint64_t last_sequence_ = 0;
  uint64_t unanswered_ = 0;

  std::deque<Reply> urgent_;
  std::deque<Reply> background_;
  FrameSender sender_;
  std::deque<Reply> sending_;  // As sender_.frames().
  bool wants_write_ = false;
  bool is_held_ = false;  // Nothing is received.

  DeviceStaging& staging_;
  std::shared_ptr<LaneSlots> slots_;  // Once they are wanted.
  std::deque<StagedRead> staged_reads_;
};

}  // namespace hicache
