// Tests of transfer/checksum_copy, compiled twice: as it is built, and without SIMD.
#include <gtest/gtest.h>
#include <xxhash.h>

#include "support.h"

#ifndef HICACHE_COPY_SUITE
#error "define HICACHE_COPY_SUITE, and include transfer/checksum_copy before"
#endif

namespace hicache::testing_copy {

using ::hicache::testing::Random;

/// Bytes between two guards, at any alignment.
class GuardedBytes {
 public:
  GuardedBytes(size_t size, size_t alignment_offset)
      : storage_(size + alignment_offset + 2 * kGuard + 64, kGuardByte), size_(size) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data()) + kGuard;
    start_ =
        (address + 63) / 64 * 64 - reinterpret_cast<uintptr_t>(storage_.data()) + alignment_offset;
  }
  uint8_t* data() { return storage_.data() + start_; }
  std::span<uint8_t> bytes() { return {data(), size_}; }
  bool guards_hold() const {
    const auto is_guard = [](uint8_t byte) { return byte == kGuardByte; };
    return std::all_of(storage_.begin(), storage_.begin() + static_cast<ptrdiff_t>(start_),
                       is_guard) &&
           std::all_of(storage_.begin() + static_cast<ptrdiff_t>(start_ + size_), storage_.end(),
                       is_guard);
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kGuardByte = 0xA5;
  std::vector<uint8_t> storage_;
  size_t size_;
  size_t start_;
};

inline void copy_in_pieces(Random& random, size_t size, size_t piece_max,
                           HICACHE_COPY::Store store) {
  GuardedBytes source(size, random.one_in(2) ? 0 : random.below(64));
  GuardedBytes target(size, random.one_in(2) ? 0 : random.below(64));
  random.fill(source.bytes());
  HICACHE_COPY::ChecksumCopy copy(size, store);
  for (size_t done = 0; done < size;) {
    const size_t piece = std::min<size_t>(size - done, random.between(1, piece_max));
    copy.copy(target.data() + done, source.data() + done, piece);
    done += piece;
  }
  const uint64_t checksum = copy.finish();
  ASSERT_EQ(checksum, XXH3_64bits(source.data(), size)) << size << " bytes";
  ASSERT_EQ(std::memcmp(target.data(), source.data(), size), 0);
  ASSERT_TRUE(target.guards_hold()) << "bytes outside of the target were written";
}

TEST(HICACHE_COPY_SUITE, IsXxh3OfEverySmallSize) {
  HICACHE_TRACE_SEED();
  Random random(50);
  for (size_t size = 1; size < 4200; size += size < 600 ? 1 : random.between(1, 40)) {
    copy_in_pieces(random, size, size, HICACHE_COPY::Store::kCached);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(HICACHE_COPY_SUITE, IsXxh3AroundEveryBoundary) {
  HICACHE_TRACE_SEED();
  Random random(51);
  for (size_t kib = 1; kib <= 6; ++kib) {
    for (size_t delta = 0; delta <= 130; ++delta) {
      copy_in_pieces(random, kib * 1024 + delta - 65, 1 << 14, HICACHE_COPY::Store::kStreaming);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(HICACHE_COPY_SUITE, IsXxh3InAnyPieces) {
  HICACHE_TRACE_SEED();
  Random random(52);
  for (int i = 0; i < 1500; ++i) {
    copy_in_pieces(
        random, random.size_up_to(60'000), random.size_up_to(5000),
        random.one_in(2) ? HICACHE_COPY::Store::kCached : HICACHE_COPY::Store::kStreaming);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(HICACHE_COPY_SUITE, IsXxh3OfWholeStripes) {
  HICACHE_TRACE_SEED();
  Random random(53);
  for (const size_t piece_max : {size_t{4096}, size_t{100'000}, size_t{1} << 20}) {
    copy_in_pieces(random, HICACHE_COPY::kStripeSize, piece_max, HICACHE_COPY::Store::kStreaming);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(HICACHE_COPY_SUITE, ChecksumOfAPageIsItsStripesFolded) {
  HICACHE_TRACE_SEED();
  Random random(54);
  constexpr uint64_t kStripe = HICACHE_COPY::kStripeSize;
  for (const uint64_t size :
       {uint64_t{1}, kStripe - 1, kStripe, kStripe + 1, 3 * kStripe, 3 * kStripe + 77}) {
    const std::vector<uint8_t> bytes = ::hicache::testing::bytes_of(size, size);
    std::vector<uint64_t> stripes;
    for (uint64_t offset = 0; offset < size; offset += kStripe) {
      stripes.push_back(XXH3_64bits(bytes.data() + offset, std::min(kStripe, size - offset)));
    }
    const uint64_t expected =
        stripes.size() == 1
            ? stripes[0]
            : XXH3_64bits_withSeed(stripes.data(), stripes.size() * sizeof(uint64_t), size);
    EXPECT_EQ(HICACHE_COPY::stripe_count(size), stripes.size());
    EXPECT_EQ(HICACHE_COPY::fold_stripes(stripes, size), expected);
    EXPECT_EQ(HICACHE_COPY::page_checksum(bytes.data(), size), expected);
  }
}

TEST(HICACHE_COPY_SUITE, EveryFlippedBitShows) {
  HICACHE_TRACE_SEED();
  Random random(55);
  std::vector<uint8_t> bytes = ::hicache::testing::bytes_of(1, 9000);
  const uint64_t checksum = HICACHE_COPY::page_checksum(bytes.data(), bytes.size());
  std::vector<uint8_t> target(bytes.size());
  for (int i = 0; i < 2000; ++i) {
    const uint64_t bit = random.below(bytes.size() * 8);
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    HICACHE_COPY::ChecksumCopy copy(bytes.size(), HICACHE_COPY::Store::kCached);
    copy.copy(target.data(), bytes.data(), bytes.size());
    ASSERT_NE(copy.finish(), checksum) << "bit " << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
}

TEST(HICACHE_COPY_SUITE, PlainCopiesCopyExactly) {
  HICACHE_TRACE_SEED();
  Random random(56);
  for (int i = 0; i < 600; ++i) {
    const size_t size = random.size_up_to(20'000);
    GuardedBytes source(size, random.below(64));
    GuardedBytes target(size, random.one_in(2) ? 0 : random.below(64));
    random.fill(source.bytes());
    HICACHE_COPY::plain_copy(
        target.data(), source.data(), size,
        random.one_in(2) ? HICACHE_COPY::Store::kCached : HICACHE_COPY::Store::kStreaming);
    HICACHE_COPY::fence_stores();
    ASSERT_EQ(std::memcmp(target.data(), source.data(), size), 0);
    ASSERT_TRUE(target.guards_hold());
  }
}

}  // namespace hicache::testing_copy
