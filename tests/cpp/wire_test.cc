// Frames and messages: what was written is read, and nothing else is.
#include "net/wire.h"

#include <gtest/gtest.h>

#include "messages_samples.h"
#include "net/frame.h"
#include "store/messages.h"
#include "support.h"

namespace hicache {
namespace {

using testing::Random;
using testing::Sample;

TEST(Wire, ReadsWhatWasWritten) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(uint8_t{7});
  writer.put(uint64_t{1} << 60);
  writer.put_string("page");
  writer.put_string("");
  writer.put_array(std::span<const uint32_t>(std::vector<uint32_t>{1, 2, 3}));
  WireReader reader(bytes);
  EXPECT_EQ(reader.get<uint8_t>(), 7);
  EXPECT_EQ(reader.get<uint64_t>(), uint64_t{1} << 60);
  EXPECT_EQ(reader.get_string(4), "page");
  EXPECT_EQ(reader.get_string(0), "");
  EXPECT_FALSE(reader.finished());
  std::vector<uint32_t> values{9};
  reader.get_array(values, 3);
  EXPECT_EQ(values, (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_TRUE(reader.finished());
  EXPECT_EQ(reader.get<uint32_t>(), 0U);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.get_string(10), "") << "it does not recover";
  EXPECT_FALSE(reader.finished());
}

TEST(Wire, ACountIsNotBelieved) {
  std::vector<uint8_t> bytes;
  WireWriter(bytes).put(UINT32_MAX);
  bytes.resize(bytes.size() + 16);
  std::vector<uint64_t> values;
  WireReader reader(bytes);
  reader.get_array(values, UINT32_MAX);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(values.capacity(), 0U) << "nothing is allocated for bytes that are not there";
  WireReader bounded(bytes);
  EXPECT_EQ(bounded.get_string(3), "");
  EXPECT_FALSE(bounded.ok());
}

TEST(Frame, HeaderReadsBack) {
  std::vector<uint8_t> frame{1, 2, 3};
  begin_frame(frame);
  frame.insert(frame.end(), {9, 9, 9});
  end_frame(frame, 12, 0xABCDEF);
  const auto header = decode_frame_header(std::span(frame).first<kFrameHeaderSize>());
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(header.value().op, 12);
  EXPECT_EQ(header.value().payload_size, 3U);
  EXPECT_EQ(header.value().request_id, 0xABCDEFU);
}

TEST(Frame, EveryFlippedBitIsSeen) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  end_frame(frame, 3, 1);
  for (size_t bit = 0; bit < kFrameHeaderSize * 8; ++bit) {
    frame[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    EXPECT_FALSE(decode_frame_header(std::span(frame).first<kFrameHeaderSize>()).ok()) << bit;
    frame[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
}

TEST(Frame, TooLargeAPayloadIsRefused) {
  for (const uint32_t size : {kPayloadSizeMax, kPayloadSizeMax + 1, UINT32_MAX}) {
    const std::vector<uint8_t> header = testing::frame_header(3, size);
    EXPECT_EQ(decode_frame_header(std::span(header).first<kFrameHeaderSize>()).ok(),
              size <= kPayloadSizeMax);
  }
}

TEST(Messages, ReadBackEqual) {
  for (const Sample& sample : testing::samples()) {
    SCOPED_TRACE(sample.name);
    EXPECT_EQ(sample.decode_and_encode(sample.bytes), sample.bytes);
  }
}

TEST(Messages, TruncatedAnywhereAreRefused) {
  for (const Sample& sample : testing::samples()) {
    SCOPED_TRACE(sample.name);
    for (size_t size = 0; size < sample.bytes.size(); ++size) {
      // A copy of exactly that size: reading beyond it is an error that sanitizers see.
      const std::vector<uint8_t> cut(sample.bytes.begin(),
                                     sample.bytes.begin() + static_cast<ptrdiff_t>(size));
      EXPECT_FALSE(sample.decode_and_encode(cut).has_value()) << size;
    }
    std::vector<uint8_t> longer = sample.bytes;
    longer.push_back(0);
    EXPECT_FALSE(sample.decode_and_encode(longer).has_value());
  }
}

TEST(Messages, MutatedOnesAreReadAsTheyAreOrRefused) {
  HICACHE_TRACE_SEED();
  Random random(70);
  for (const Sample& sample : testing::samples()) {
    SCOPED_TRACE(sample.name);
    for (int round = 0; round < 3000; ++round) {
      std::vector<uint8_t> bytes = sample.bytes;
      for (uint64_t flips = random.between(1, 4); flips > 0 && !bytes.empty(); --flips) {
        bytes[random.below(bytes.size())] = static_cast<uint8_t>(random.bits());
      }
      if (random.one_in(4)) bytes.resize(random.below(bytes.size() + 20));
      const auto again = sample.decode_and_encode(bytes);
      if (again) {
        ASSERT_EQ(again->size(), bytes.size());
      }
    }
  }
}

TEST(Messages, BoundsHold) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode_keys(writer, 1, 0, std::vector<Key>(kBatchCountMax + 1));
  KeysRequest keys;
  EXPECT_FALSE(decode(WireReader(bytes), keys));
  bytes.clear();
  encode(writer, HelloRequest{std::string(kClientNameSizeMax + 1, 'x')});
  HelloRequest hello;
  EXPECT_FALSE(decode(WireReader(bytes), hello));
  bytes.clear();
  encode(writer, ReserveRequest{0, 0, Pin::kNone, kAnySpace, Key{}, {Key{}}, {0}});
  ReserveRequest reserve;
  EXPECT_FALSE(decode(WireReader(bytes), reserve)) << "an empty page";
  bytes.clear();
  encode(writer, ReserveRequest{0, 0, Pin::kNone, kAnySpace, Key{}, {Key{}}, {1, 2}});
  EXPECT_FALSE(decode(WireReader(bytes), reserve)) << "more sizes than keys";
  bytes.clear();
  encode(writer, ReserveRequest{0, 0, static_cast<Pin>(3), kAnySpace, Key{}, {}, {}});
  EXPECT_FALSE(decode(WireReader(bytes), reserve)) << "an unknown pin";
  std::vector<Code> codes;
  const std::vector<uint8_t> wrong_code{1, 0, 0, 0, kCodeCount};
  EXPECT_FALSE(decode_codes(WireReader(wrong_code), codes));
}

TEST(Messages, PlacesOutsideThePoolAreRefused) {
  constexpr uint64_t kPool = 1 * kMiB;
  const auto is_read = [&](std::vector<Extent> extents, uint64_t size) {
    const auto location = testing::location_of(Code::kOk, {1, 1}, size, 0, 0, extents);
    std::vector<uint8_t> bytes;
    WireWriter writer(bytes);
    encode_locations(writer, {&location, 1});
    Places places;
    return decode(WireReader(bytes), places, {kPool, 0});
  };
  EXPECT_TRUE(is_read({{0, kPool}}, kPool));
  EXPECT_TRUE(is_read({{kPool - 1, 1}, {0, 5}}, 6));
  EXPECT_FALSE(is_read({{0, kPool}}, kPool - 1)) << "extents that do not add up";
  EXPECT_FALSE(is_read({{1, kPool}}, kPool));
  EXPECT_FALSE(is_read({{kPool, 1}}, 1));
  EXPECT_FALSE(is_read({{UINT64_MAX, 2}}, 2));
  EXPECT_FALSE(is_read({{UINT64_MAX - 1, UINT64_MAX}}, UINT64_MAX));
  EXPECT_FALSE(is_read({{0, UINT64_MAX}, {0, 2}}, 1)) << "a sum that wraps";
  EXPECT_FALSE(is_read({}, 0));
  EXPECT_FALSE(is_read({{0, 0}}, 0)) << "an empty page";
}

TEST(Messages, PlacesOutsideTheFilesAreRefused) {
  const auto is_read = [&](uint8_t device, std::vector<Extent> extents, uint64_t size) {
    const auto location = testing::location_of(Code::kOk, {1, 1}, size, 0, device, extents);
    std::vector<uint8_t> bytes;
    WireWriter writer(bytes);
    encode_locations(writer, {&location, 1});
    Places places;
    return decode(WireReader(bytes), places, {kMiB, 2});
  };
  EXPECT_TRUE(is_read(1, {{0, 1}}, 1));
  EXPECT_TRUE(is_read(2, {{kSectorSize, 5 * kMiB}}, 5 * kMiB)) << "larger than the pool";
  EXPECT_TRUE(is_read(1, {{kFileSizeMax - kFilePageSizeMax, kFilePageSizeMax}}, kFilePageSizeMax));
  EXPECT_FALSE(is_read(3, {{0, 1}}, 1)) << "a file that was not announced";
  EXPECT_FALSE(is_read(UINT8_MAX, {{0, 1}}, 1));
  EXPECT_FALSE(is_read(1, {{1, 4096}}, 4096)) << "inside a sector";
  EXPECT_FALSE(is_read(1, {{kSectorSize / 2, 4096}}, 4096));
  EXPECT_FALSE(is_read(1, {{0, 4096}, {4096, 4096}}, 8192)) << "two extents";
  EXPECT_FALSE(is_read(1, {}, 0));
  EXPECT_FALSE(is_read(1, {{0, 0}}, 0)) << "an empty page";
  EXPECT_FALSE(is_read(1, {{0, 10}}, 9));
  EXPECT_FALSE(is_read(1, {{0, kFilePageSizeMax + 1}}, kFilePageSizeMax + 1));
  EXPECT_FALSE(is_read(1, {{kFileSizeMax, 1}}, 1));
  EXPECT_FALSE(is_read(1, {{UINT64_MAX - kSectorSize + 1, kSectorSize}}, kSectorSize));
  EXPECT_FALSE(is_read(0, {{0, 5 * kMiB}}, 5 * kMiB)) << "the pool has its own bounds";
}

TEST(Messages, AHelloWithTooManyFilesIsRefused) {
  for (const int count : {0, 1, int{kSsdFilesMax}, kSsdFilesMax + 1, 255}) {
    std::vector<uint8_t> bytes;
    WireWriter writer(bytes);
    encode(writer, HelloReply{1, kMiB, static_cast<uint8_t>(count)});
    EXPECT_EQ(bytes.size(), kHelloReplySize);
    HelloReply reply{};
    EXPECT_EQ(decode(WireReader(bytes), reply), count <= kSsdFilesMax) << count;
  }
}

TEST(Messages, EveryOpHasAName) {
  for (uint16_t op = 0; op < 100; ++op) {
    EXPECT_EQ(!op_name(static_cast<NodeOp>(op)).empty(), op >= 1 && op < kOpCount) << op;
  }
}

}  // namespace
}  // namespace hicache
