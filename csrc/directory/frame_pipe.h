// Frames in both directions over one stream that does not block.
//
// A payload ends with its XXH3-64: TCP's own sum lets some flipped bits pass, and an epoch or a
// node that nobody said would do harm for longer than one lost connection.
//
// What arrives is kept until a frame is whole; the buffer grows with what is really there, never
// with what a header announces. What is to be sent is kept until the socket takes it: whoever fills
// it looks at unsent_size() first.
//
// Threads: one owner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "net/frame.h"
#include "net/stream.h"

namespace hicache {

/// Completes a frame whose payload was appended after begin_frame().
void seal_frame(std::vector<uint8_t>& frame, uint16_t op, uint64_t request_id);

class FramePipe {
 public:
  FramePipe(Stream stream, size_t payload_size_max)
      : stream_(std::move(stream)), payload_size_max_(payload_size_max) {}

  int fd() const { return stream_.socket().get(); }
  const Fd& socket() const { return stream_.socket(); }

  /// Receives some of what is there, at most kReceiveMax. 0: nothing for now. kUnavailable: gone.
  Result<size_t> receive();

  struct Frame {
    FrameHeader header;
    std::span<const uint8_t> payload;  // Until the next call of receive() or next().
    bool is_whole;                     // False: wait for more.
  };
  /// The next whole frame. kCorrupt: what came is no frame, too large, or was changed on its way;
  /// kUnsupported: it is of another version.
  Result<Frame> next();

  void append(std::span<const uint8_t> frame) {
    out_.insert(out_.end(), frame.begin(), frame.end());
  }
  /// Sends what the socket takes. Returns how much that was. kUnsupported: nothing, because the
  /// other end has said that it is of another version.
  Result<size_t> flush();
  /// Tells the other end, which is of another version, this one's, if the socket takes it. Close
  /// it after that.
  void say_version();
  size_t unsent_size() const { return out_.size() - sent_; }

  static constexpr size_t kReceiveMax = 64 * kKiB;

 private:
  Status why_unsent(Status failed);

  Stream stream_;
  size_t payload_size_max_;
  std::vector<uint8_t> in_;
  size_t filled_ = 0;
  size_t consumed_ = 0;
  std::vector<uint8_t> out_;
  size_t sent_ = 0;
};

}  // namespace hicache
