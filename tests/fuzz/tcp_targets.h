// What the fuzzers call of the TCP transport: a header, and a stream of frames as a lane reads it.
#pragma once

#include <sys/socket.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "io/fd.h"
#include "transfer/tcp/frame_receiver.h"
#include "transfer/tcp/tcp_frame.h"

namespace hicache::fuzz {

inline constexpr uint64_t kTcpEpoch = 7;

/// The check of a header, so that what it covers is looked at, too.
inline TcpHeaderBytes signed_header(std::span<const uint8_t> input) {
  TcpHeaderBytes bytes{};
  std::copy_n(input.begin(), std::min(input.size(), bytes.size()), bytes.begin());
  std::memcpy(bytes.data(), "MHT1", 4);
  std::memset(bytes.data() + 8, 0, 4);
  const auto check =
      static_cast<uint32_t>(XXH3_64bits_withSeed(bytes.data(), bytes.size(), kTcpEpoch));
  std::memcpy(bytes.data() + 8, &check, sizeof(check));
  return bytes;
}

inline void tcp_frame(std::span<const uint8_t> input) {
  const TcpHeaderBytes bytes = signed_header(input);
  const Result<TcpFrame> frame = decode_tcp_frame(bytes, kTcpEpoch);
  if (!frame.ok()) return;
  if (frame.value().payload_size() > kTcpPayloadSizeMax) std::abort();
  if (encode_tcp_frame(frame.value(), kTcpEpoch) != bytes) std::abort();
  if (decode_tcp_frame(bytes, kTcpEpoch + 1).ok()) std::abort();
}

/// Takes every frame, into memory that is as large as the largest payload and no larger.
class TcpStreamTaker : public FrameReceiver::Taker {
 public:
  bool on_header(const TcpFrame& frame) override {
    frame_ = frame;
    last_offset_ = 0;
    return true;
  }
  uint8_t* begin_piece(uint64_t offset, uint64_t size) override {
    if (offset < last_offset_ || size == 0) std::abort();
    if (offset > frame_.payload_size() || size > frame_.payload_size() - offset) std::abort();
    last_offset_ = offset;
    return (frame_.address & 1) != 0 ? nullptr : memory_.data() + offset;
  }
  void end_piece() override {}
  bool on_frame(bool) override { return true; }

 private:
  std::vector<uint8_t> memory_ = std::vector<uint8_t>(kTcpPayloadSizeMax);
  TcpFrame frame_{};
  uint64_t last_offset_ = 0;
};

/// The input, with whatever stands where a header does signed.
inline void tcp_stream(std::span<const uint8_t> input) {
  static TcpStreamTaker taker;
  std::vector<uint8_t> stream;
  while (input.size() >= kTcpHeaderSize && stream.size() < 64 * kKiB) {
    const TcpHeaderBytes header = signed_header(input.first(kTcpHeaderSize));
    stream.insert(stream.end(), header.begin(), header.end());
    input = input.subspan(kTcpHeaderSize);
    const Result<TcpFrame> frame = decode_tcp_frame(header, kTcpEpoch);
    if (!frame.ok()) break;
    const uint64_t wanted =
        frame.value().payload_size() + (frame.value().has_trailer() ? kTcpTrailerSize : 0);
    const auto size = static_cast<size_t>(std::min<uint64_t>(wanted, input.size()));
    stream.insert(stream.end(), input.begin(), input.begin() + static_cast<ptrdiff_t>(size));
    input = input.subspan(size);
  }
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return;
  const Fd in(ends[0]);
  Fd out(ends[1]);
  const ssize_t sent = send(out.get(), stream.data(), stream.size(), MSG_NOSIGNAL);
  if (sent < 0 && !stream.empty()) return;
  out.reset();
  FrameReceiver receiver(taker, kTcpEpoch);
  std::vector<uint8_t> scrap(kKiB);
  while (receiver.receive(in.get(), 64 * kKiB, scrap) == FrameReceiver::Outcome::kMore) {
  }
}

}  // namespace hicache::fuzz
