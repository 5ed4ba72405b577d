// The double that the tests of the SSD log stand on must itself be right.
#include "faulty_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "io/mapped_memory.h"
#include "support.h"

namespace hicache {
namespace {

using testing::FaultyDevice;
using testing::FaultyDisk;
using testing::Random;

class FaultyDeviceTest : public ::testing::Test {
 protected:
  static std::shared_ptr<FaultyDisk> make_disk(FaultyDisk::Options options) {
    return std::make_shared<FaultyDisk>(options);
  }
  /// `sectors` of them, filled with `value`; the tag is the value.
  IoRequest request(IoKind kind, int fd, uint64_t sector, uint64_t sectors, uint8_t value) {
    IoRequest made{kind, fd, sector * kSectorSize, sectors * kSectorSize};
    made.tag = value;
    if (kind == IoKind::kAllocate || kind == IoKind::kDiscard) return made;
    made.parts = {{memory_.address() + value * kMiB / 16, made.size}};
    if (kind != IoKind::kRead) std::memset(made.parts[0].iov_base, value, made.size);
    return made;
  }
  /// Tags of what completes until nothing does any more; each without an error.
  static std::vector<uint64_t> drain(BlockDevice& device) {
    std::vector<uint64_t> tags;
    IoCompletion completion{};
    while (device.poll(std::span(&completion, 1)) == 1) {
      EXPECT_EQ(completion.error, 0);
      tags.push_back(completion.tag);
    }
    return tags;
  }
  static int error_of(BlockDevice& device, IoRequest request) {
    EXPECT_TRUE(device.submit(std::move(request)));
    IoCompletion completion{};
    EXPECT_TRUE(device.wait(Deadline::after_ms(1000)));
    EXPECT_EQ(device.poll(std::span(&completion, 1)), 1U);
    return completion.error;
  }
  static std::vector<uint8_t> filled(std::initializer_list<uint8_t> values) {
    std::vector<uint8_t> bytes;
    for (const uint8_t value : values) bytes.insert(bytes.end(), kSectorSize, value);
    return bytes;
  }

  MappedMemory memory_ = MappedMemory::make(16 * kMiB);
};

TEST_F(FaultyDeviceTest, ReadsWhatWasWrittenAndRefusesWhatADeviceRefuses) {
  const auto disk = make_disk({.seed = 1, .capacity_bytes = 8 * kSectorSize});
  const int fd = disk->add_file();
  FaultyDevice device(disk, 4);
  EXPECT_EQ(error_of(device, request(IoKind::kRead, fd, 0, 1, 1)), EIO);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 1, 2, 2)), 0);
  EXPECT_EQ(disk->content(fd), filled({0, 2, 2}));
  EXPECT_EQ(error_of(device, request(IoKind::kRead, fd, 1, 2, 3)), 0);
  EXPECT_EQ(memory_.address()[3 * kMiB / 16], 2);
  EXPECT_EQ(error_of(device, request(IoKind::kAllocate, fd, 3, 2, 4)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kDiscard, fd, 2, 9, 5)), 0);
  EXPECT_EQ(disk->content(fd), filled({0, 2, 0, 0, 0}));
  EXPECT_EQ(error_of(device, request(IoKind::kAllocate, fd, 5, 4, 6)), ENOSPC);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd + 1, 0, 1, 7)), EBADF);
  IoRequest misaligned = request(IoKind::kWrite, fd, 0, 1, 8);
  misaligned.offset = 512;
  EXPECT_EQ(error_of(device, misaligned), EINVAL);
  disk->flip_bit(fd, kSectorSize, 0);
  EXPECT_EQ(disk->content(fd)[kSectorSize], 3);
}

TEST_F(FaultyDeviceTest, OrderIsRandomAndTheSameWithTheSameSeed) {
  const auto order = [&](uint64_t seed, bool out_of_order) {
    const auto disk = make_disk({.seed = seed, .out_of_order = out_of_order});
    const int fd = disk->add_file();
    FaultyDevice device(disk, 16);
    for (uint8_t i = 0; i < 16; ++i) {
      EXPECT_TRUE(device.submit(request(IoKind::kWrite, fd, i, 1, i)));
    }
    EXPECT_FALSE(device.submit(request(IoKind::kWrite, fd, 16, 1, 16)));
    return drain(device);
  };
  EXPECT_EQ(order(1, true), order(1, true));
  EXPECT_NE(order(1, true), order(2, true));
  EXPECT_TRUE(std::ranges::is_sorted(order(1, false)));
}

TEST_F(FaultyDeviceTest, PlannedFaultsHitTheRequestThatTheyWerePlannedFor) {
  const auto disk = make_disk({.seed = 1});
  const int fd = disk->add_file();
  FaultyDevice device(disk, 4);
  disk->fail(IoKind::kWrite, 1, ENOSPC);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 1)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kRead, fd, 0, 1, 1)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 2)), ENOSPC);
  disk->hang(IoKind::kRead, 0);
  EXPECT_TRUE(device.submit(request(IoKind::kRead, fd, 0, 1, 3)));
  EXPECT_EQ(error_of(device, request(IoKind::kRead, fd, 0, 1, 4)), 0);
  EXPECT_FALSE(device.wait(Deadline::after_ms(5)));
  EXPECT_EQ(device.in_flight(), 1U);
  disk->set_paused(true);
  EXPECT_TRUE(device.submit(request(IoKind::kWrite, fd, 0, 1, 5)));
  EXPECT_FALSE(device.wait(Deadline::after_ms(5)));
  disk->set_paused(false);
  EXPECT_EQ(drain(device), std::vector<uint64_t>{5});
  EXPECT_EQ(disk->content(fd), filled({5}));
}

TEST_F(FaultyDeviceTest, AnImageIsAPrefixOfTheWritesAndTheNextOneTorn) {
  const auto disk = make_disk({.seed = 1, .out_of_order = false});
  const int fd = disk->add_file(filled({9}));
  FaultyDevice device(disk, 4);
  for (const uint8_t value : {1, 2, 3}) {
    EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, value - 1, 2, value)), 0);
  }
  EXPECT_EQ(disk->completed_count(), 3U);
  EXPECT_EQ(disk->image_after(fd, 0), filled({9}));
  EXPECT_EQ(disk->image_after(fd, 2), filled({1, 2, 2}));
  EXPECT_EQ(disk->image_after(fd, 9), disk->content(fd));
  std::vector<uint8_t> torn = filled({1, 1});
  std::fill_n(torn.begin() + kSectorSize, 3 * FaultyDisk::kTornSize, uint8_t{2});
  EXPECT_EQ(disk->image_after(fd, 1, 3), torn);
}

/// What becomes of one sector over many power cuts: its first bytes, and whether it was torn.
struct Fates {
  std::set<int> whole;  // Values; -1: it is not there at all.
  bool is_torn = false;
};

Fates fates_of(const FaultyDisk& disk, int fd, size_t count, uint64_t sector) {
  Fates fates;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::vector<uint8_t> image = disk.image_after_power_cut(fd, count, seed);
    if (image.size() <= sector * kSectorSize) {
      fates.whole.insert(-1);
      continue;
    }
    image.resize((sector + 1) * kSectorSize);
    const auto bytes = std::span(image).subspan(sector * kSectorSize);
    if (std::ranges::count(bytes, bytes[0]) == kSectorSize) {
      fates.whole.insert(bytes[0]);
    } else {
      fates.is_torn = true;
    }
  }
  return fates;
}

TEST_F(FaultyDeviceTest, APowerCutSparesWhatWasFlushedAndTakesAnyPartOfTheRest) {
  const auto disk = make_disk({.seed = 1, .out_of_order = false});
  const int fd = disk->add_file(filled({9, 9, 9, 9}));
  const int other = disk->add_file();
  FaultyDevice device(disk, 4);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 1)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWriteDurable, fd, 1, 1, 2)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 2, 1, 3)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWriteDurable, other, 0, 1, 4)), 0);
  EXPECT_TRUE(device.submit(request(IoKind::kWriteDurable, fd, 3, 1, 5)));  // In flight.

  EXPECT_EQ(fates_of(*disk, fd, 1, 0).whole, (std::set<int>{1, 9}));  // Not flushed yet.
  EXPECT_TRUE(fates_of(*disk, fd, 1, 0).is_torn);
  for (const size_t count : {2U, 4U}) {
    EXPECT_EQ(fates_of(*disk, fd, count, 0).whole, std::set<int>{1});
    EXPECT_EQ(fates_of(*disk, fd, count, 1).whole, std::set<int>{2});
    EXPECT_FALSE(fates_of(*disk, fd, count, 0).is_torn);
  }
  EXPECT_EQ(fates_of(*disk, fd, 4, 2).whole, (std::set<int>{3, 9}));
  EXPECT_EQ(fates_of(*disk, fd, 4, 3).whole, (std::set<int>{5, 9}));
  EXPECT_TRUE(fates_of(*disk, fd, 4, 3).is_torn);
  EXPECT_EQ(fates_of(*disk, other, 4, 0).whole, std::set<int>{4});
}

TEST_F(FaultyDeviceTest, WithoutACacheWhatCompletedIsSafe) {
  const auto disk = make_disk({.seed = 1, .out_of_order = false, .volatile_cache = false});
  const int fd = disk->add_file(filled({9, 9, 9}));
  FaultyDevice device(disk, 4);
  disk->fail(IoKind::kWrite, 1, EIO);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 1)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 1, 1, 2)), EIO);
  EXPECT_TRUE(device.submit(request(IoKind::kWrite, fd, 2, 1, 3)));
  EXPECT_EQ(fates_of(*disk, fd, 1, 0).whole, std::set<int>{1});
  // What failed may be there in part, as what was on its way.
  EXPECT_EQ(fates_of(*disk, fd, 1, 1).whole, (std::set<int>{2, 9}));
  EXPECT_EQ(fates_of(*disk, fd, 1, 2).whole, (std::set<int>{3, 9}));
}

TEST_F(FaultyDeviceTest, WritesOfOneSectorThatWereNotFlushedSurviveInAnyCombination) {
  const auto disk = make_disk({.seed = 1});
  const int fd = disk->add_file(filled({9}));
  FaultyDevice device(disk, 4);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 1)), 0);
  EXPECT_EQ(error_of(device, request(IoKind::kWrite, fd, 0, 1, 2)), 0);
  EXPECT_EQ(fates_of(*disk, fd, 2, 0).whole, (std::set<int>{1, 2, 9}));
}

}  // namespace
}  // namespace hicache
