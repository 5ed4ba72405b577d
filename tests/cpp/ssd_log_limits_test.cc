// The log under size limits that change between its lives, and on files with holes.
#include <gtest/gtest.h>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::LogRig;
using testing::soak_rounds;
using RegionState = SsdVolume::RegionState;

constexpr uint64_t kRegion = 64 * kKiB;
constexpr uint32_t kManyRegions = 16;

uint32_t used_beyond(const SsdVolume& volume, uint32_t limit) {
  uint32_t count = 0;
  for (uint32_t region = limit; region < volume.region_count(); ++region) {
    count += volume.state(region) != RegionState::kFree;
  }
  return count;
}

/// Begins a life with that limit, on what the last one left.
void restart(LogRig& rig, uint32_t limit) {
  const LogRig::Images images = rig.images();
  rig.close();
  rig.put_images(images);
  rig.limit_regions(limit);
  rig.open();
  ASSERT_TRUE(rig.recover());
}

void fill(LogRig& rig, uint32_t count) {
  for (uint32_t n = 0; n < count; ++n) {
    rig.write({0, n});
    rig.step();
  }
  ASSERT_TRUE(rig.settle());
  rig.log().seal_all();
  ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
}

TEST(SsdLogLimits, WhatLiesBeyondALowerLimitIsServedAndThenGivenBack) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .region_count_max = kManyRegions}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  fill(rig, 30);
  const auto there = rig.check_all();
  ASSERT_GT(used_beyond(rig.log().volume(0), 5), 3u);
  rig.lease_everything(true);  // Readers of all of it: nothing can be given back.
  restart(rig, 5);
  // Also what was dropped, but not removed, from a region that was not written to again.
  const auto found = rig.check_all();
  for (const auto& [name, id] : there) EXPECT_TRUE(found.contains(name) && found.at(name) == id);
  const size_t before = found.size();
  rig.lease_everything(false);
  ASSERT_TRUE(rig.step_until([&] { return used_beyond(rig.log().volume(0), 5) == 0; }));
  ASSERT_TRUE(rig.step_until([&] { return rig.log().volume(0).is_idle(); }));
  EXPECT_GE(rig.disk(0).hole_bytes(), 4 * kRegion);
  const size_t after = rig.check_all().size();
  EXPECT_GT(after, 0u);
  EXPECT_LT(after, before);
  fill(rig, 30);  // Within the limit it goes on.
  EXPECT_EQ(used_beyond(rig.log().volume(0), 5), 0u);
}

TEST(SsdLogLimits, WhatIsRemovedUnderALowerLimitStaysAwayUnderAHigherOne) {
  HICACHE_TRACE_SEED();
  for (const bool is_idle : {false, true}) {
    SCOPED_TRACE(is_idle ? "after it was given back" : "at once");
    LogRig rig({.volume_count = 2, .region_count_max = kManyRegions, .space_count = 1}, 2);
    rig.open();
    ASSERT_TRUE(rig.recover());
    fill(rig, 60);
    restart(rig, 4);
    for (uint32_t n = 0; n < 60; ++n) rig.remove({0, n});
    ASSERT_TRUE(rig.settle());
    if (is_idle) {
      ASSERT_TRUE(rig.step_until([&] { return used_beyond(rig.log().volume(0), 4) == 0; }));
    }
    restart(rig, kManyRegions);
    EXPECT_EQ(rig.check_all().size(), 0u);
  }
}

TEST(SsdLogLimits, LimitsThatChangeWithEachLifeBringNothingBack) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 8 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig(
        {.volume_count = 1 + static_cast<uint32_t>(stream % 2), .region_count_max = kManyRegions},
        2000 + stream);
    rig.open();
    for (int life = 0; life < 12 && !HasFailure(); ++life) {
      ASSERT_TRUE(rig.recover());
      for (uint64_t i = rig.random().between(1, 400); i != 0 && !HasFailure(); --i) {
        rig.random().one_in(4) ? (void)rig.remove(rig.any_name()) : (void)rig.write(rig.any_name());
        if (rig.random().one_in(200)) rig.clear(static_cast<uint32_t>(rig.random().below(2)));
        rig.step();
        rig.check(rig.any_name());
      }
      if (rig.random().one_in(2)) {
        ASSERT_TRUE(rig.settle()) << "stuck: " << rig.pending_count() << " pages are not written";
      }
      rig.check_all();
      restart(rig, static_cast<uint32_t>(rig.random().between(4, kManyRegions)));
    }
  }
}

TEST(SsdLogLimits, SpaceThatWasGivenBackIsSetAsideAgainAfterARestart) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 3);
  rig.open();
  ASSERT_TRUE(rig.recover());
  fill(rig, 30);
  ASSERT_TRUE(rig.step_until([&] {
    if (rig.now_ms() % 20 == 0) rig.log().note_free_space(0, 0, kMiB, rig.now_ms());
    const SsdVolume& volume = rig.log().volume(0);
    const uint64_t free_count = volume.region_count() - volume.used_region_count();
    return volume.used_region_count() <= 1 && volume.is_idle() &&
           rig.disk(0).hole_bytes() == free_count * kRegion;
  }));
  ASSERT_GT(rig.disk(0).hole_bytes(), 0u);
  rig.close();
  rig.open();  // On the same disk, which knows its holes, and objects to writes into them.
  ASSERT_TRUE(rig.recover());
  fill(rig, 30);
  EXPECT_GT(rig.check_all().size(), 0u);
}

TEST(SsdLogLimits, FreeRegionsAreGivenBackAfterARestartToo) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 4);
  rig.open();
  ASSERT_TRUE(rig.recover());
  fill(rig, 30);
  const uint32_t count = rig.log().volume(0).region_count();
  const LogRig::Images nothing{std::vector<uint8_t>(kSuperblockSize + count * kRegion)};
  rig.close();
  rig.put_images(nothing);  // As if it had been erased region by region.
  rig.open();
  ASSERT_TRUE(rig.recover());
  rig.log().note_free_space(0, 0, kMiB, rig.now_ms());
  ASSERT_TRUE(rig.step_until([&] { return rig.log().volume(0).is_idle(); }));
  EXPECT_EQ(rig.disk(0).hole_bytes(), count * kRegion);
}

TEST(SsdLogLimits, AFileSystemWithRoomForOneOrTwoRegionsTakesPagesToo) {
  HICACHE_TRACE_SEED();
  for (uint32_t room = 1; room < 4; ++room) {
    for (uint64_t stream = 0; stream < 5 && !HasFailure(); ++stream) {
      SCOPED_TRACE(std::to_string(room) + " regions, stream " + std::to_string(stream));
      LogRig rig({.volume_count = 1, .space_count = 1, .page_size_max = 12 * kKiB},
                 60 + room * 100 + stream);
      const auto be_small = [&] {
        rig.disk(0).set_outcome([room](const IoRequest& request) {
          const bool is_beyond = request.offset >= kSuperblockSize + room * kRegion;
          return request.kind == IoKind::kAllocate && is_beyond ? ENOSPC : 0;
        });
      };
      be_small();
      rig.open();
      ASSERT_TRUE(rig.recover());
      for (uint32_t n = 0; n < 60; ++n) {
        rig.write({0, n});
        if (rig.random().one_in(6)) rig.remove({0, static_cast<uint32_t>(rig.random().below(60))});
        rig.step();
      }
      ASSERT_TRUE(rig.settle()) << rig.pending_count() << " pages wait";
      EXPECT_GT(rig.log().counts().written_pages, 30u);
      rig.check_all();
      rig.log().seal_all();
      ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); })) << "a flush would not end";
      const LogRig::Images images = rig.images();
      rig.close();
      rig.put_images(images);
      be_small();
      rig.open();
      ASSERT_TRUE(rig.recover());
      rig.check_all();
      rig.write({0, 1});
      ASSERT_TRUE(rig.settle()) << "after a restart nothing is written";
      EXPECT_NE(rig.find({0, 1}), kNoSsdPage);
    }
  }
}

TEST(SsdLogLimits, WhatIsLeftOfARegionIsFilledWhileNoOtherCanBeHad) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .space_count = 1, .page_size_max = 9000, .has_large_pages = false},
             5);
  rig.disk(0).set_outcome([](const IoRequest& request) {
    const bool is_beyond = request.offset >= kSuperblockSize + 2 * kRegion;
    return request.kind == IoKind::kAllocate && is_beyond ? ENOSPC : 0;
  });
  rig.open();
  ASSERT_TRUE(rig.recover());
  fill(rig, 3);
  rig.lease_everything(true);  // Nothing is given back: what is open is all there is.
  for (uint32_t n = 10; n < 40; ++n) rig.write({0, n});
  const uint64_t before = rig.log().counts().written_pages;
  for (int i = 0; i < 500; ++i) rig.step();
  EXPECT_GT(rig.log().counts().written_pages, before);
  rig.lease_everything(false);
  ASSERT_TRUE(rig.settle());
}

}  // namespace
}  // namespace hicache
