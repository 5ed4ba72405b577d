#include "transfer/tcp/frame_sender.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cassert>
#include <cerrno>

#include "transfer/tcp/range_table.h"

namespace hicache {

/// The pieces of one system call.
class FrameSender::Batch {
 public:
  /// Adds a piece without its first `skip` bytes; takes those that it skips off `skip`.
  void add(const void* bytes, uint64_t size, uint64_t& skip) {
    const uint64_t skipped = std::min(skip, size);
    skip -= skipped;
    if (skipped == size) return;
    pieces_[count_++] = {const_cast<uint8_t*>(static_cast<const uint8_t*>(bytes)) + skipped,
                         size - skipped};
    size_ += size - skipped;
  }
  bool has_room() const { return count_ + 3 <= kPiecesMax && size_ < kBatchSize; }
  uint64_t room() const { return size_ < kBatchSize ? kBatchSize - size_ : 0; }
  uint64_t size() const { return size_; }
  iovec* pieces() { return pieces_; }
  size_t count() const { return count_; }

 private:
  static constexpr size_t kPiecesMax = 3 * kFramesMax;
  iovec pieces_[kPiecesMax];
  size_t count_ = 0;
  uint64_t size_ = 0;
};

uint64_t FrameSender::size_of(const TcpFrame& frame) {
  return kTcpHeaderSize + frame.payload_size() + (frame.has_trailer() ? kTcpTrailerSize : 0);
}

void FrameSender::push(const TcpFrame& frame, uint64_t payload_address, uint64_t epoch) {
  frames_.push_back({frame, encode_tcp_frame(frame, epoch), payload_address});
  waiting_ += size_of(frame);
}

void FrameSender::replace(size_t index, const TcpFrame& frame, uint64_t epoch) {
  assert(!has_started(index) && frame.payload_size() == 0);
  Outgoing& outgoing = frames_[index];
  waiting_ -= size_of(outgoing.frame);
  outgoing = {frame, encode_tcp_frame(frame, epoch), 0};
  waiting_ += size_of(frame);
}

void FrameSender::hash(Outgoing& outgoing, uint64_t end) {
  if (!outgoing.frame.has_trailer() || end <= outgoing.hashed) return;
  const uint8_t* payload = tcp_memory_at(outgoing.payload_address);
  const uint64_t size = outgoing.frame.payload_size();
  if (outgoing.hashed == 0 && end == size) {
    outgoing.trailer = SliceChecksum::of(payload, size);
  } else {
    if (outgoing.hashed == 0) checksum_.start();
    checksum_.add(payload + outgoing.hashed, end - outgoing.hashed);
    if (end == size) outgoing.trailer = checksum_.finish();
  }
  outgoing.hashed = end;
}

FrameSender::Outcome FrameSender::send(int socket) {
  Batch batch;
  uint64_t skip = sent_;
  for (Outgoing& outgoing : frames_) {
    if (!batch.has_room()) break;
    batch.add(outgoing.header.data(), kTcpHeaderSize, skip);
    const uint64_t size = outgoing.frame.payload_size();
    if (size == 0) continue;
    const uint64_t end = std::min(size, std::max(skip + batch.room(), uint64_t{1}));
    hash(outgoing, end);
    batch.add(tcp_memory_at(outgoing.payload_address), end, skip);
    if (end != size) break;
    if (outgoing.frame.has_trailer()) batch.add(&outgoing.trailer, kTcpTrailerSize, skip);
  }
  msghdr message{};
  message.msg_iov = batch.pieces();
  message.msg_iovlen = batch.count();
  ssize_t sent;
  while ((sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && errno == EINTR) {
  }
  if (sent < 0) {
    return errno == EAGAIN || errno == EWOULDBLOCK ? Outcome::kBlocked : Outcome::kBroken;
  }
  const auto taken = static_cast<uint64_t>(sent);
  advance(taken);
  return taken == batch.size() ? Outcome::kAll : Outcome::kBlocked;
}

void FrameSender::advance(uint64_t sent) {
  sent_total_ += sent;
  sent_ += sent;
  while (!frames_.empty() && sent_ >= size_of(frames_.front().frame)) {
    const uint64_t size = size_of(frames_.front().frame);
    sent_ -= size;
    waiting_ -= size;
    frames_.pop_front();
  }
}

}  // namespace hicache
