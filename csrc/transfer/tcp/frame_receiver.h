// Receives frames from a non-blocking socket: payload straight into its destination, hashed while
// it is in the cache.
//
// What comes is read ahead into a small buffer, so that a small frame costs one system call; of a
// large payload the first few KiB are copied from there and the rest goes where it belongs,
// together with the read-ahead of what follows it. Nothing is allocated for what a peer announces.
//
// Threads: one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "transfer/tcp/slice_checksum.h"
#include "transfer/tcp/tcp_frame.h"

namespace hicache {

class FrameReceiver {
 public:
  /// What is done with frames.
  class Taker {
   public:
    virtual ~Taker() = default;
    /// A header came. False: it breaks the rules; nothing more is taken.
    virtual bool on_header(const TcpFrame& frame) = 0;
    /// Of the frame whose header came: whether sum() is asked for, though it has no checksum.
    virtual bool wants_sum() const { return false; }
    /// Whether its payload can be taken now. If not, receive() says kHeld, and goes on when it is
    /// called again. Once it can, it can to the end of the frame.
    virtual bool is_ready() { return true; }
    /// Where the next piece of its payload goes; null: it is not wanted (and not verified).
    virtual uint8_t* begin_piece(uint64_t offset, uint64_t size) = 0;
    /// The piece was written, or left alone.
    virtual void end_piece() = 0;
    /// All of it came. `is_intact`: the checksum, if it has one, is right. False as above.
    virtual bool on_frame(bool is_intact) = 0;
  };

  enum class Outcome : uint8_t {
    kDrained,  // Nothing more is there.
    kMore,     // More may be there: the budget is used up.
    kHeld,     // The payload that comes next cannot be taken yet.
    kClosed,   // The peer closed.
    kBroken,   // errno says why.
    kHostile,  // What came is no frame, or breaks the rules.
  };

  FrameReceiver(Taker& taker, uint64_t epoch) : taker_(taker), epoch_(epoch) {}

  /// Receives about `budget` bytes at most. `scrap` takes what nobody wants.
  Outcome receive(int socket, uint64_t budget, std::span<uint8_t> scrap);
  uint64_t received_total() const { return received_total_; }
  /// In on_frame(), of a payload that has a checksum or of which wants_sum(): XXH3-64 of it, if no
  /// piece of it was left alone.
  uint64_t sum() const { return sum_; }

 private:
  static constexpr size_t kAheadSize = 8 * kKiB;
  static constexpr uint64_t kPieceSize = 256 * kKiB;

  enum class Stage : uint8_t { kHeader, kPayload, kTrailer };

  bool parse();
  bool parse_header();
  void take_ahead();
  bool end_frame();
  void count_payload(const uint8_t* bytes, uint64_t size);
  int64_t receive_piece(int socket, std::span<uint8_t> scrap, uint64_t& asked);
  size_t ahead_size() const { return ahead_end_ - ahead_begin_; }

  Taker& taker_;
  const uint64_t epoch_;
  Stage stage_ = Stage::kHeader;
  TcpFrame frame_{};
  uint64_t payload_done_ = 0;
  bool is_verified_ = true;  // No piece of the payload was left alone.
  bool is_summed_ = false;
  bool is_held_ = false;
  uint64_t received_total_ = 0;
  uint64_t sum_ = 0;
  SliceChecksum checksum_;
  size_t ahead_begin_ = 0;
  size_t ahead_end_ = 0;
  uint8_t ahead_[kAheadSize];
};

}  // namespace hicache
