// The disk double of the SSD tests: what a power cut may take, and what it may not.
#include "fake_disk.h"

#include <gtest/gtest.h>

#include <array>

#include "io/mapped_memory.h"

namespace hicache {
namespace {

using testing::FakeDevice;
using testing::FakeDisk;
using testing::Random;

constexpr int kFd = 1000;
constexpr uint64_t kSectorCount = 8;

class FakeDiskTest : public ::testing::Test {
 protected:
  using Sectors = std::array<uint64_t, kSectorCount>;  // How many 512-byte parts are the new ones.

  bool submit(IoKind kind, uint64_t sector, uint8_t value = 0) {
    memories_.push_back(MappedMemory::make(kSectorSize));
    const MappedMemory& memory = memories_.back();
    std::memset(memory.address(), value, memory.size());
    return device_.submit({.kind = kind,
                           .fd = kFd,
                           .offset = sector * kSectorSize,
                           .size = kSectorSize,
                           .parts = {{memory.address(), memory.size()}},
                           .tag = next_tag_++});
  }
  /// Completes one request; its errno.
  int complete() {
    IoCompletion completion{};
    while (device_.poll({&completion, 1}) == 0) {
    }
    return completion.error;
  }
  void write(IoKind kind, uint64_t sector, uint8_t value) {
    ASSERT_TRUE(submit(kind, sector, value));
    ASSERT_EQ(complete(), 0);
  }
  /// Of an image: parts of each sector that are `value`; all others are zero.
  static Sectors parts_of(const std::vector<uint8_t>& image, uint8_t value) {
    Sectors parts{};
    for (uint64_t at = 0; at < image.size(); at += FakeDisk::kTornSize) {
      const auto first = image.begin() + static_cast<ptrdiff_t>(at);
      const uint64_t count = static_cast<uint64_t>(
          std::count(first, first + static_cast<ptrdiff_t>(FakeDisk::kTornSize), value));
      EXPECT_TRUE(count == 0 || count == FakeDisk::kTornSize) << "torn in a part, at " << at;
      parts[at / kSectorSize] += count != 0;
    }
    return parts;
  }

  static constexpr uint64_t kWhole = kSectorSize / FakeDisk::kTornSize;
  std::shared_ptr<FakeDisk> disk_ =
      std::make_shared<FakeDisk>(std::vector<uint8_t>(kSectorCount * kSectorSize));
  FakeDevice device_{{{kFd, disk_}}, true, 1};
  std::deque<MappedMemory> memories_;
  uint64_t next_tag_ = 1;
  Random random_{1};
};

TEST_F(FakeDiskTest, APowerCutSparesWhatWasFlushedAndTakesAnyPartOfTheRest) {
  HICACHE_TRACE_SEED();
  write(IoKind::kWrite, 0, 7);
  write(IoKind::kWriteDurable, 1, 7);
  write(IoKind::kWrite, 2, 7);
  ASSERT_TRUE(submit(IoKind::kWrite, 3, 7));
  EXPECT_TRUE(disk_->is_stable(0, 2 * kSectorSize));
  EXPECT_FALSE(disk_->is_stable(kSectorSize, 2 * kSectorSize));
  EXPECT_EQ(parts_of(disk_->image(), 7), (Sectors{kWhole, kWhole, kWhole})) << "reads see it";
  std::array<std::array<int, 3>, 2> seen{};  // Of sectors 2 and 3: none, some, all of it.
  for (int i = 0; i < 300; ++i) {
    const Sectors parts = parts_of(disk_->cut(random_), 7);
    EXPECT_EQ(parts[0], kWhole);
    EXPECT_EQ(parts[1], kWhole);
    for (size_t k = 0; k < 2; ++k) ++seen[k][parts[2 + k] == 0 ? 0 : parts[2 + k] < kWhole ? 1 : 2];
    for (size_t sector = 4; sector < kSectorCount; ++sector) EXPECT_EQ(parts[sector], 0u);
  }
  for (const auto& counts : seen) {
    for (const int count : counts) EXPECT_GT(count, 10);
  }
}

TEST_F(FakeDiskTest, AFlushIsOfWhatWasCompleteWhenItWasAskedFor) {
  HICACHE_TRACE_SEED();
  ASSERT_TRUE(submit(IoKind::kWrite, 0, 7));
  ASSERT_TRUE(submit(IoKind::kWriteDurable, 1, 7));
  EXPECT_EQ(complete(), 0);
  EXPECT_EQ(complete(), 0);
  EXPECT_FALSE(disk_->is_stable(0, kSectorSize));
  EXPECT_TRUE(disk_->is_stable(kSectorSize, kSectorSize));
  write(IoKind::kWriteDurable, 2, 7);
  EXPECT_TRUE(disk_->is_stable(0, 3 * kSectorSize));
}

TEST_F(FakeDiskTest, AWriteThatFailsMayHaveComeThroughInParts) {
  disk_->set_outcome([](const IoRequest& request) { return request.offset == 0 ? EIO : 0; });
  ASSERT_TRUE(submit(IoKind::kWriteDurable, 0, 7));
  EXPECT_EQ(complete(), EIO);
  const Sectors parts = parts_of(disk_->image(), 7);
  EXPECT_GT(parts[0], 0u);
  EXPECT_LT(parts[0], kWhole);
  EXPECT_FALSE(disk_->is_stable(0, kSectorSize));
}

TEST_F(FakeDiskTest, WhatNeverCompletesStaysInFlight) {
  disk_->set_outcome([](const IoRequest&) { return FakeDisk::kNever; });
  ASSERT_TRUE(submit(IoKind::kWrite, 0, 7));
  IoCompletion completion{};
  for (int i = 0; i < 100; ++i) EXPECT_EQ(device_.poll({&completion, 1}), 0u);
  EXPECT_FALSE(device_.wait(Deadline::after_ms(1)));
  EXPECT_EQ(device_.in_flight(), 1u);
}

}  // namespace
}  // namespace hicache
