// The frames of the TCP transport as bytes: what is written is read, anything else is refused.
#include "transfer/tcp/tcp_frame.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <set>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

constexpr uint64_t kEpoch = 0x1234567890ABCDEF;

std::vector<TcpFrame> samples() {
  return {
      {.kind = FrameKind::kRead, .buffer = 1, .sequence = 1, .address = 0x7F0000001000, .size = 1},
      {.kind = FrameKind::kRead,
       .flags = kFlagChecksum | kFlagUrgent,
       .buffer = UINT32_MAX,
       .sequence = UINT64_MAX,
       .address = UINT64_MAX - kTcpPayloadSizeMax,
       .size = kTcpPayloadSizeMax},
      {.kind = FrameKind::kWrite,
       .flags = kFlagChecksum,
       .buffer = 3,
       .sequence = 77,
       .address = 0,
       .size = 4096},
      {.kind = FrameKind::kPing, .sequence = 5},
      {.kind = FrameKind::kReadReply, .flags = kFlagChecksum, .sequence = 1, .size = 1},
      {.kind = FrameKind::kReadReply, .code = Code::kInvalidArgument, .sequence = 1},
      {.kind = FrameKind::kWriteReply, .sequence = 6},
      {.kind = FrameKind::kWriteReply, .code = Code::kCorrupt, .sequence = 6},
      {.kind = FrameKind::kPingReply, .sequence = 9},
  };
}

/// Makes the check right again, as a peer can that knows the epoch.
void sign(TcpHeaderBytes& bytes) {
  std::memset(bytes.data() + 8, 0, 4);
  const auto check = static_cast<uint32_t>(XXH3_64bits_withSeed(bytes.data(), 40, kEpoch));
  std::memcpy(bytes.data() + 8, &check, sizeof(check));
}

TEST(TcpFrame, WhatIsWrittenIsRead) {
  for (const TcpFrame& frame : samples()) {
    const Result<TcpFrame> read = decode_tcp_frame(encode_tcp_frame(frame, kEpoch), kEpoch);
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read.value(), frame);
  }
}

TEST(TcpFrame, TheBytesAreThoseOfTheDiagram) {
  const TcpFrame frame{.kind = FrameKind::kWrite,
                       .flags = kFlagChecksum,
                       .buffer = 0x0A0B0C0D,
                       .sequence = 0x1112131415161718,
                       .address = 0x2122232425262728,
                       .size = 0x010203};
  TcpHeaderBytes expected{'M',  'H',  'T',  '1',  2,    1,    0,    0,    0,    0,
                          0,    0,    0x0D, 0x0C, 0x0B, 0x0A, 0x18, 0x17, 0x16, 0x15,
                          0x14, 0x13, 0x12, 0x11, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23,
                          0x22, 0x21, 3,    2,    1,    0,    0,    0,    0,    0};
  sign(expected);
  EXPECT_EQ(encode_tcp_frame(frame, kEpoch), expected);
}

TEST(TcpFrame, EveryChangedBitIsNoticed) {
  for (const TcpFrame& frame : samples()) {
    const TcpHeaderBytes bytes = encode_tcp_frame(frame, kEpoch);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      TcpHeaderBytes changed = bytes;
      changed[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      EXPECT_EQ(decode_tcp_frame(changed, kEpoch).status().code(), Code::kCorrupt) << bit;
    }
  }
}

TEST(TcpFrame, AFrameOfAnotherIncarnationIsRefused) {
  for (const TcpFrame& frame : samples()) {
    EXPECT_FALSE(decode_tcp_frame(encode_tcp_frame(frame, kEpoch), kEpoch + 1).ok());
  }
}

TEST(TcpFrame, OfMutatedFramesWithARightCheckOnlyTheSensibleAreReadAndOnlyInOneForm) {
  HICACHE_TRACE_SEED();
  Random random(520);
  const std::vector<TcpFrame> all = samples();
  size_t read_count = 0;
  for (int i = 0; i < 200'000; ++i) {
    TcpHeaderBytes bytes = encode_tcp_frame(random.pick(all), kEpoch);
    for (uint64_t flips = random.between(1, 3); flips > 0; --flips) {
      bytes[random.below(bytes.size())] = random.one_in(2) ? static_cast<uint8_t>(random.below(8))
                                                           : static_cast<uint8_t>(random.bits());
    }
    sign(bytes);
    const Result<TcpFrame> read = decode_tcp_frame(bytes, kEpoch);
    if (!read.ok()) continue;
    ++read_count;
    const TcpFrame& frame = read.value();
    EXPECT_EQ(encode_tcp_frame(frame, kEpoch), bytes);
    EXPECT_LE(frame.payload_size(), kTcpPayloadSizeMax);
    EXPECT_LE(frame.address, UINT64_MAX - frame.size);
    EXPECT_NE(frame.sequence, 0U);
    if (frame.kind == FrameKind::kRead || frame.kind == FrameKind::kWrite) {
      EXPECT_NE(frame.size, 0U);
      EXPECT_NE(frame.buffer, 0U);
    }
  }
  EXPECT_GT(read_count, 1000U) << "the mutations are too wild to say anything";
}

}  // namespace
}  // namespace hicache
