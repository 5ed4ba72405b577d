// Sends frames over a non-blocking socket: several in one system call, each byte hashed once, right
// before the kernel copies it.
//
// It holds what was committed to be sent next, at most kBatchSize bytes and kFramesMax frames (or
// one frame): what is urgent overtakes the queues before it, never a frame in here.
//
// Threads: one at a time. Payload is read during send() alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "transfer/tcp/slice_checksum.h"
#include "transfer/tcp/tcp_frame.h"

namespace hicache {

class FrameSender {
 public:
  static constexpr size_t kFramesMax = 64;
  static constexpr uint64_t kBatchSize = 256 * kKiB;

  struct Outgoing {
    TcpFrame frame;
    TcpHeaderBytes header;
    uint64_t payload_address;  // Of frame.payload_size() bytes.
    uint64_t hashed = 0;       // Bytes of the payload.
    uint64_t trailer = 0;      // Right once everything is hashed.
  };

  enum class Outcome : uint8_t { kAll, kBlocked, kBroken };

  bool empty() const { return frames_.empty(); }
  bool has_room() const { return frames_.size() < kFramesMax && waiting_ < kBatchSize; }
  void push(const TcpFrame& frame, uint64_t payload_address, uint64_t epoch);

  /// One system call. kAll: everything that was offered to the kernel was taken; more may wait.
  /// kBroken: errno says why.
  Outcome send(int socket);
  /// How many of the frames the next send() touches at most.
  const std::deque<Outgoing>& frames() const { return frames_; }
  /// Whether bytes of the n-th frame have left already.
  bool has_started(size_t index) const { return index == 0 && sent_ != 0; }
  /// Puts another frame, without payload, in the place of one that has not started.
  void replace(size_t index, const TcpFrame& frame, uint64_t epoch);
  uint64_t sent_total() const { return sent_total_; }

 private:
  class Batch;

  void hash(Outgoing& outgoing, uint64_t end);
  void advance(uint64_t sent);
  static uint64_t size_of(const TcpFrame& frame);

  std::deque<Outgoing> frames_;
  uint64_t sent_ = 0;        // Of the first frame: header, payload and trailer.
  uint64_t waiting_ = 0;     // Bytes of all frames.
  uint64_t sent_total_ = 0;  // Ever.
  SliceChecksum checksum_;   // Of the one frame of which a part is hashed.
};

}  // namespace hicache
