// Segment descriptors on the wire: what is written is read, and nothing else is.
#include "transfer/segment.h"

#include <gtest/gtest.h>

#include "support.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::Random;

SegmentDescriptor sample(Random& random) {
  SegmentDescriptor segment{"10.0.0.1:15001", random.bits(), random.bits(), {}, {}};
  segment.endpoints.push_back({TransportKind::kTcp, bytes_of(1, random.below(30))});
  if (random.one_in(2)) segment.endpoints.push_back({TransportKind::kRdma, bytes_of(2, 7)});
  uint64_t address = 4096;
  for (uint64_t i = random.below(6); i > 0; --i) {
    BufferDescriptor buffer{};
    buffer.id = static_cast<BufferId>(i);
    buffer.address = address + random.below(3) * 4096;
    buffer.size = random.size_up_to(uint64_t{1} << 40);
    buffer.kind = random.one_in(3) ? MemoryKind::kCuda : MemoryKind::kHost;
    buffer.remote_write = random.one_in(2);
    buffer.location = "cpu:0";
    if (random.one_in(2)) buffer.keys.push_back({TransportKind::kRdma, bytes_of(i, 12)});
    address = buffer.address + buffer.size;
    segment.buffers.push_back(buffer);
  }
  return segment;
}

TEST(Segment, WhatIsWrittenIsRead) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int i = 0; i < 300; ++i) {
    const SegmentDescriptor segment = sample(random);
    const Result<SegmentDescriptor> read = decode_segment(encode_segment(segment));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read.value(), segment);
  }
}

TEST(Segment, TruncatedAndExtendedOnesAreRefused) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int i = 0; i < 30; ++i) {
    std::vector<uint8_t> bytes = encode_segment(sample(random));
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_EQ(decode_segment(std::span(bytes).first(size)).status().code(), Code::kCorrupt);
    }
    bytes.push_back(0);
    EXPECT_EQ(decode_segment(bytes).status().code(), Code::kCorrupt);
  }
}

TEST(Segment, DamagedOnesAreRefusedOrReadAsWhatTheySay) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int i = 0; i < 3000; ++i) {
    std::vector<uint8_t> bytes = encode_segment(sample(random));
    for (uint64_t flips = random.between(1, 3); flips > 0; --flips) {
      bytes[random.below(bytes.size())] ^= static_cast<uint8_t>(1 << random.below(8));
    }
    const Result<SegmentDescriptor> read = decode_segment(bytes);
    if (read.ok()) {
      EXPECT_EQ(encode_segment(read.value()), bytes);
    }
  }
}

TEST(Segment, BuffersThatLieAreRefused) {
  const BufferDescriptor good{1, 4096, 4096, MemoryKind::kHost, true, "*", {}};
  const auto refused = [](std::vector<BufferDescriptor> buffers) {
    return decode_segment(encode_segment({"peer", 1, 1, {}, std::move(buffers)})).status().code() ==
           Code::kCorrupt;
  };
  EXPECT_FALSE(refused({good}));
  BufferDescriptor bad = good;
  bad.size = 0;
  EXPECT_TRUE(refused({bad}));
  bad.size = UINT64_MAX - 4095;
  EXPECT_TRUE(refused({bad})) << "it wraps around";
  bad = good;
  bad.id = kNoBuffer;
  EXPECT_TRUE(refused({bad}));
  bad = good;
  bad.address += 4095;
  EXPECT_TRUE(refused({good, bad})) << "they overlap";
  EXPECT_TRUE(refused({bad, good})) << "they are not in order";
}

TEST(Segment, ACountAloneAllocatesNothing) {
  std::vector<uint8_t> bytes = encode_segment({"peer", 1, 1, {}, {}});
  const uint32_t count = kBuffersMax;
  std::memcpy(bytes.data() + bytes.size() - sizeof(count), &count, sizeof(count));
  EXPECT_EQ(decode_segment(bytes).status().code(), Code::kCorrupt);
}

TEST(Segment, FindsTheBufferThatHoldsAWholeRange) {
  const SegmentDescriptor segment{"peer",
                                  1,
                                  1,
                                  {},
                                  {{1, 1000, 100, MemoryKind::kHost, true, "*", {}},
                                   {2, 1100, 100, MemoryKind::kHost, true, "*", {}},
                                   {3, 5000, 10, MemoryKind::kHost, true, "*", {}}}};
  for (uint64_t address = 900; address < 5100; ++address) {
    for (const uint64_t size : {0, 1, 10, 50, 100, 101, 200}) {
      const BufferDescriptor* expected = nullptr;
      for (const BufferDescriptor& buffer : segment.buffers) {
        // At the border of two, ranges of no bytes belong to the second.
        if (address >= buffer.address && address + size <= buffer.address + buffer.size) {
          expected = &buffer;
        }
      }
      EXPECT_EQ(segment.find(address, size), expected) << address << " " << size;
    }
  }
  EXPECT_EQ(segment.find(1000, UINT64_MAX), nullptr);
  EXPECT_EQ(segment.find(UINT64_MAX, 2), nullptr);
}

}  // namespace
}  // namespace hicache
