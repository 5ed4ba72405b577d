#include "directory/frame_pipe.h"

#include <xxhash.h>

#include <cstring>
#include <utility>

namespace hicache {
namespace {

/// Larger buffers are given back when they are empty.
constexpr size_t kKeepMax = 256 * kKiB;

constexpr size_t kSealSize = 8;

}  // namespace

void seal_frame(std::vector<uint8_t>& frame, uint16_t op, uint64_t request_id) {
  const uint64_t seal =
      XXH3_64bits(frame.data() + kFrameHeaderSize, frame.size() - kFrameHeaderSize);
  const size_t at = frame.size();
  frame.resize(at + kSealSize);
  std::memcpy(frame.data() + at, &seal, kSealSize);
  end_frame(frame, op, request_id);
}

Result<size_t> FramePipe::receive() {
  if (consumed_ != 0) {
    std::memmove(in_.data(), in_.data() + consumed_, filled_ - consumed_);
    filled_ -= std::exchange(consumed_, 0);
  }
  if (filled_ == 0 && in_.size() > kKeepMax) in_ = {};
  if (in_.size() - filled_ < kReceiveMax) in_.resize(filled_ + kReceiveMax);
  Result<size_t> got = stream_.read_some(std::span(in_).subspan(filled_, kReceiveMax));
  if (got.ok()) filled_ += got.value();
  return got;
}

Result<FramePipe::Frame> FramePipe::next() {
  const std::span<const uint8_t> unread = std::span(in_).subspan(consumed_, filled_ - consumed_);
  if (unread.size() < kFrameHeaderSize) return Frame{{}, {}, false};
  Result<FrameHeader> header = decode_frame_header(unread.first<kFrameHeaderSize>());
  if (!header.ok()) return header.status();
  const size_t size = header.value().payload_size;
  if (size < kSealSize || size > payload_size_max_ + kSealSize) {
    return Status(Code::kCorrupt, "a frame announces " + std::to_string(size) + " bytes");
  }
  if (unread.size() - kFrameHeaderSize < size) return Frame{{}, {}, false};
  consumed_ += kFrameHeaderSize + size;
  const std::span<const uint8_t> payload = unread.subspan(kFrameHeaderSize, size - kSealSize);
  uint64_t seal = 0;
  std::memcpy(&seal, unread.data() + kFrameHeaderSize + payload.size(), kSealSize);
  if (seal != XXH3_64bits(payload.data(), payload.size())) {
    return Status(Code::kCorrupt, "a frame was changed on its way");
  }
  return Frame{header.value(), payload, true};
}

void FramePipe::say_version() {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  seal_frame(frame, kVersionOp, 0);
  append(frame);
  (void)flush();
}

/// Who closes because of the version has said so before, as the first that it ever said.
Status FramePipe::why_unsent(Status failed) {
  const Result<size_t> got = receive();
  if (!got.ok() || got.value() == 0) return failed;
  const Result<Frame> frame = next();
  return frame.status().code() == Code::kUnsupported ? frame.status() : failed;
}

Result<size_t> FramePipe::flush() {
  size_t sent_now = 0;
  while (sent_ < out_.size()) {
    Result<size_t> sent = stream_.write_some(std::span(out_).subspan(sent_));
    if (!sent.ok()) return why_unsent(sent.status());
    if (sent.value() == 0) return sent_now;
    sent_ += sent.value();
    sent_now += sent.value();
  }
  out_.clear();
  if (out_.capacity() > kKeepMax) out_ = {};
  sent_ = 0;
  return sent_now;
}

}  // namespace hicache
