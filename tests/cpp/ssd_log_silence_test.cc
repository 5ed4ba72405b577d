// The log when its process stands still, when a disk does not answer for a while, and when the
// machine has no memory to spare.
#include <gtest/gtest.h>

#include <array>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::LogRig;
using Health = SsdVolume::Health;

constexpr uint64_t kTimeoutMs = 500;

void write_pages(LogRig& rig, uint32_t first, uint32_t count) {
  for (uint32_t n = first; n < first + count; ++n) {
    rig.write({0, n});
    rig.step();
  }
}

TEST(SsdLogSilence, AProcessThatStandsStillLosesNoDirectory) {
  HICACHE_TRACE_SEED();
  uint64_t in_flight_count = 0;
  for (uint64_t stream = 0; stream < 30; ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2, .io_timeout_ms = kTimeoutMs}, 5000 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    for (uint32_t n = 0; n < 40; n += 8) {
      write_pages(rig, n, 8);
      in_flight_count += rig.pending_count();
      rig.step(rig.random().between(kTimeoutMs, 100 * kTimeoutMs));
      ASSERT_TRUE(rig.step_until(
          [&] { return rig.log().volume(0).is_idle() && rig.log().volume(1).is_idle(); }));
    }
    ASSERT_TRUE(rig.settle());
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(rig.log().volume(i).health(), Health::kGood);
      EXPECT_FALSE(rig.log().volume(i).is_silent());
    }
    EXPECT_TRUE(rig.notices().empty()) << rig.notices().front();
  }
  EXPECT_GT(in_flight_count, 0u) << "nothing could be late";
}

TEST(SsdLogSilence, ADiskThatAnswersAgainIsUsedAgain) {
  HICACHE_TRACE_SEED();
  // Room for all on one disk: nothing is dropped while the other one is silent.
  LogRig rig({.volume_count = 2, .region_count_max = 40, .io_timeout_ms = kTimeoutMs}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 0, 20);
  ASSERT_TRUE(rig.settle());
  const auto before = rig.check_all();
  rig.disk(0).set_paused(true);
  write_pages(rig, 20, 10);
  ASSERT_TRUE(rig.step_until([&] { return rig.log().volume(0).is_silent(); }));
  EXPECT_EQ(rig.log().volume(0).health(), Health::kGood);
  EXPECT_EQ(rig.notices().size(), 1u);
  const auto meanwhile = rig.check_all();
  const auto is_missed = [&](const auto& page) { return !meanwhile.contains(page.first); };
  EXPECT_TRUE(std::any_of(before.begin(), before.end(), is_missed))
      << "readers are sent to a disk that does not answer";
  // The other one takes what comes now.
  const size_t waiting = rig.pending_count();
  write_pages(rig, 30, 10);
  ASSERT_TRUE(rig.step_until([&] { return rig.pending_count() <= waiting; }, 300));
  rig.disk(0).set_paused(false);
  ASSERT_TRUE(rig.settle());
  ASSERT_TRUE(rig.step_until([&] { return !rig.log().volume(0).is_silent(); }));
  const auto after = rig.check_all();
  for (const auto& [name, id] : before) EXPECT_TRUE(after.contains(name)) << rig.text(name);
  EXPECT_EQ(after.size(), 40u);
  EXPECT_EQ(rig.notices().size(), 2u);
}

TEST(SsdLogSilence, ADiskThatAnswersSomeRequestsIsSlowAndNotSilent) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .region_count_max = 20, .io_timeout_ms = kTimeoutMs}, 7);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 0, 4);
  ASSERT_TRUE(rig.settle());
  // One read never ends; others are answered well within the limit.
  rig.disk(0).set_outcome([is_first = true](const IoRequest& request) mutable {
    if (request.kind != IoKind::kRead) return 0;
    return std::exchange(is_first, false) ? testing::FakeDisk::kNever : 0;
  });
  const SsdPage page = rig.log().index()[rig.find({0, 2})];
  std::vector<MappedMemory> memories;
  const auto read = [&] {
    const MappedMemory& memory =
        memories.emplace_back(MappedMemory::make(sectors_of(page.size) * kSectorSize));
    rig.log().read(page, {{memory.address(), memory.size()}}, memories.size(), rig.now_ms());
  };
  const uint64_t begun_ms = rig.now_ms();
  read();
  while (rig.now_ms() < begun_ms + 4 * kTimeoutMs) {
    read();
    for (uint64_t i = 0; i < kTimeoutMs / 10; ++i) rig.step();
    ASSERT_FALSE(rig.log().volume(0).is_silent()) << "after " << rig.now_ms() - begun_ms << " ms";
  }
  EXPECT_TRUE(rig.notices().empty()) << rig.notices().front();
  EXPECT_EQ(rig.reads_done().size(), memories.size() - 1);
  EXPECT_EQ(rig.check_all().size(), 4u);
  // But nobody waits for ever.
  ASSERT_TRUE(rig.step_until([&] { return rig.log().volume(0).health() == Health::kFailed; }));
  EXPECT_GE(rig.now_ms() - begun_ms, 5 * kTimeoutMs);
}

TEST(SsdLogSilence, ADiskThatNeverAnswersIsGivenUpInTheEnd) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .io_timeout_ms = kTimeoutMs}, 2);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 0, 5);
  ASSERT_TRUE(rig.settle());
  rig.disk(0).set_paused(true);
  write_pages(rig, 5, 1);
  const uint64_t begun_ms = rig.now_ms();
  ASSERT_TRUE(rig.step_until([&] { return rig.log().volume(0).health() == Health::kFailed; }));
  EXPECT_GE(rig.now_ms() - begun_ms, 5 * kTimeoutMs);
  EXPECT_EQ(rig.pending_count(), 0u);
}

TEST(SsdLogSilence, WhatThereWasNoMemoryForIsWrittenLater) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20; ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2, .region_count_max = 20}, 6000 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    auto random = std::make_shared<testing::Random>(stream);
    auto failures = std::make_shared<int>(0);
    for (size_t i = 0; i < 2; ++i) {
      rig.disk(i).set_outcome([random, failures](const IoRequest& request) {
        if (request.kind == IoKind::kRead || random->one_in(2)) return 0;
        return std::array{ENOMEM, EAGAIN, EFAULT}[++*failures % 3];
      });
    }
    write_pages(rig, 0, 30);
    rig.remove({0, 3});
    ASSERT_TRUE(rig.settle());
    rig.log().seal_all();
    ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
    EXPECT_GT(*failures, 3);
    EXPECT_TRUE(rig.notices().empty()) << rig.notices().front();
    const LogRig::Images images = rig.images();
    rig.close();
    rig.put_images(images);
    rig.open();
    ASSERT_TRUE(rig.recover());
    EXPECT_EQ(rig.check_all().size(), 29u);
  }
}

TEST(SsdLogSilence, ADirectoryForWhichThereIsNeverMemoryIsNotWrittenAnyMore) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 3);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 0, 5);
  ASSERT_TRUE(rig.settle());
  const auto before = rig.check_all();
  rig.disk(0).set_outcome(
      [](const IoRequest& request) { return request.kind == IoKind::kRead ? 0 : ENOMEM; });
  write_pages(rig, 5, 1);
  const uint64_t begun_ms = rig.now_ms();
  ASSERT_TRUE(rig.step_until([&] { return rig.pending_count() == 0; }, 200'000));
  EXPECT_GE(rig.now_ms() - begun_ms, 50'000u);
  EXPECT_EQ(rig.log().volume(0).health(), Health::kReadOnly);
  EXPECT_EQ(rig.check_all(), before);
}

TEST(SsdLogSilence, ReadsThatFindNoMemoryEndNoDirectory) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 4);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 0, 4);
  ASSERT_TRUE(rig.settle());
  rig.disk(0).set_outcome(
      [](const IoRequest& request) { return request.kind == IoKind::kRead ? ENOMEM : 0; });
  const SsdPage page = rig.log().index()[rig.find({0, 2})];
  MappedMemory memory = MappedMemory::make(sectors_of(page.size) * kSectorSize);
  for (uint64_t i = 0; i < 40; ++i) {
    rig.log().read(page, {{memory.address(), memory.size()}}, i, rig.now_ms());
    ASSERT_TRUE(rig.step_until([&] { return rig.reads_done().size() > i; }));
  }
  EXPECT_EQ(rig.log().volume(0).health(), Health::kGood);
}

}  // namespace
}  // namespace hicache
