#include "transfer/tcp/frame_receiver.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace hicache {

FrameReceiver::Outcome FrameReceiver::receive(int socket, uint64_t budget,
                                              std::span<uint8_t> scrap) {
  const uint64_t end = received_total_ + budget;
  if (is_held_ && !parse()) return Outcome::kHostile;
  if (is_held_) return Outcome::kHeld;
  while (received_total_ < end) {
    uint64_t asked = 0;
    const int64_t received = receive_piece(socket, scrap, asked);
    if (received == 0) return Outcome::kClosed;
    if (received < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK ? Outcome::kDrained : Outcome::kBroken;
    }
    if (!parse()) return Outcome::kHostile;
    if (is_held_) return Outcome::kHeld;
    if (static_cast<uint64_t>(received) < asked) return Outcome::kDrained;
  }
  return Outcome::kMore;
}

/// Requires: no byte is waiting to be parsed unless it is the beginning of a header or trailer.
int64_t FrameReceiver::receive_piece(int socket, std::span<uint8_t> scrap, uint64_t& asked) {
  if (ahead_begin_ != 0) {
    std::memmove(ahead_, ahead_ + ahead_begin_, ahead_size());
    ahead_end_ = ahead_size();
    ahead_begin_ = 0;
  }
  iovec pieces[2];
  size_t count = 0;
  uint64_t payload = 0;
  uint8_t* target = nullptr;
  bool is_last = true;
  if (stage_ == Stage::kPayload) {
    const uint64_t left = frame_.payload_size() - payload_done_;
    payload = std::min(left, kPieceSize);
    target = taker_.begin_piece(payload_done_, payload);
    if (target == nullptr) {
      is_verified_ = false;
      payload = std::min<uint64_t>(payload, scrap.size());
    }
    pieces[count++] = {target != nullptr ? target : scrap.data(), payload};
    is_last = payload == left;
  }
  const size_t ahead_room = kAheadSize - ahead_end_;
  if (is_last) pieces[count++] = {ahead_ + ahead_end_, ahead_room};
  asked = payload + (is_last ? ahead_room : 0);
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  const int64_t received = recvmsg(socket, &message, MSG_DONTWAIT);
  if (received > 0) {
    received_total_ += static_cast<uint64_t>(received);
    const uint64_t of_payload = std::min(static_cast<uint64_t>(received), payload);
    ahead_end_ += static_cast<uint64_t>(received) - of_payload;
    if (payload != 0) count_payload(target, of_payload);
  }
  if (payload != 0) taker_.end_piece();
  return received;
}

void FrameReceiver::count_payload(const uint8_t* bytes, uint64_t size) {
  if (bytes != nullptr && is_verified_ && is_summed_) {
    if (payload_done_ == 0 && size == frame_.payload_size()) {
      sum_ = SliceChecksum::of(bytes, size);
    } else {
      if (payload_done_ == 0) checksum_.start();
      checksum_.add(bytes, size);
      if (payload_done_ + size == frame_.payload_size()) sum_ = checksum_.finish();
    }
  }
  payload_done_ += size;
}

/// Works on what was read ahead until it needs more.
bool FrameReceiver::parse() {
  for (;;) {
    switch (stage_) {
      case Stage::kHeader:
        if (ahead_size() < kTcpHeaderSize) return true;
        if (!parse_header()) return false;
        break;
      case Stage::kPayload:
        if (payload_done_ < frame_.payload_size()) {
          is_held_ = !taker_.is_ready();
          if (is_held_ || ahead_size() == 0) return true;
          take_ahead();
          break;
        }
        stage_ = Stage::kTrailer;
        break;
      case Stage::kTrailer:
        if (frame_.has_trailer() && ahead_size() < kTcpTrailerSize) return true;
        if (!end_frame()) return false;
        break;
    }
  }
}

bool FrameReceiver::parse_header() {
  const Result<TcpFrame> frame = decode_tcp_frame(
      std::span<const uint8_t, kTcpHeaderSize>(ahead_ + ahead_begin_, kTcpHeaderSize), epoch_);
  if (!frame.ok()) return false;
  ahead_begin_ += kTcpHeaderSize;
  frame_ = frame.value();
  payload_done_ = 0;
  is_verified_ = true;
  stage_ = Stage::kPayload;
  if (!taker_.on_header(frame_)) return false;
  is_summed_ = frame_.has_trailer() || taker_.wants_sum();
  return true;
}

void FrameReceiver::take_ahead() {
  const uint64_t size = std::min<uint64_t>(ahead_size(), frame_.payload_size() - payload_done_);
  uint8_t* target = taker_.begin_piece(payload_done_, size);
  if (target != nullptr) {
    std::memcpy(target, ahead_ + ahead_begin_, size);
  } else {
    is_verified_ = false;
  }
  // Hashed where others may not write: the target is shared memory.
  count_payload(target != nullptr ? ahead_ + ahead_begin_ : nullptr, size);
  taker_.end_piece();
  ahead_begin_ += size;
}

bool FrameReceiver::end_frame() {
  bool is_intact = true;
  if (frame_.has_trailer()) {
    uint64_t trailer;
    std::memcpy(&trailer, ahead_ + ahead_begin_, sizeof(trailer));
    ahead_begin_ += kTcpTrailerSize;
    is_intact = !is_verified_ || trailer == sum_;
  }
  stage_ = Stage::kHeader;
  return taker_.on_frame(is_intact);
}

}  // namespace hicache
