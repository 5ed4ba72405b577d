// The log's random life beside an oracle, with restarts; see ssd_log_rig.h.
#include "tier/ssd_log.h"

#include <gtest/gtest.h>

#include "ssd_log_rig.h"

namespace hicache {
namespace {

using testing::LogRig;
using testing::Random;
using testing::soak_rounds;

void do_anything(LogRig& rig) {
  Random& random = rig.random();
  const uint64_t chosen = random.below(100);
  if (chosen < 60) {
    rig.write(rig.any_name());
  } else if (chosen < 72) {
    rig.remove(rig.any_name());
  } else if (chosen < 84) {
    rig.lease(rig.any_name());
  } else if (chosen < 96) {
    rig.release_one();
  } else if (chosen < 97) {
    if (random.one_in(4)) rig.clear(static_cast<uint32_t>(random.below(2)));
  } else if (chosen < 98) {
    rig.log().seal_all();
  } else {
    rig.release_all();
  }
  for (uint64_t i = random.below(4); i != 0; --i) rig.step();
  while (rig.lease_count() > 4) rig.release_one();
  rig.check(rig.any_name());
}

/// Lives of a few hundred steps, each on what the last one left.
void live(LogRig& rig, int life_count, uint64_t steps_max) {
  Random& random = rig.random();
  for (int life = 0; life < life_count && !::testing::Test::HasFailure(); ++life) {
    rig.open();
    if (!random.one_in(3)) ASSERT_TRUE(rig.recover());
    for (uint64_t i = random.between(1, steps_max); i != 0; --i) {
      do_anything(rig);
      if (::testing::Test::HasFailure()) return;
      if (i % 64 == 0) rig.check_all();
    }
    ASSERT_TRUE(rig.recover());
    rig.check_space();
    const bool is_quiet = random.one_in(2);
    if (is_quiet) {
      rig.release_all();
      ASSERT_TRUE(rig.settle()) << "stuck: " << rig.pending_count() << " pages are not written";
      rig.log().seal_all();
      ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
    }
    const auto before = rig.check_all();
    const LogRig::Images images = rig.images();
    rig.close();
    rig.put_images(images);
    // What was there must be there again. Nothing is reclaimed until that was looked at.
    rig.open();
    rig.lease_everything(true);
    ASSERT_TRUE(rig.recover());
    const auto after = rig.check_all();
    for (const auto& [name, id] : before) {
      ASSERT_TRUE(after.contains(name)) << rig.text(name) << ": lost by a restart";
      ASSERT_EQ(after.at(name), id) << rig.text(name);
    }
    rig.lease_everything(false);
    const LogRig::Images again = rig.images();
    rig.close();
    rig.put_images(again);
  }
}

TEST(SsdLog, WhatItHoldsIsRightThroughARandomLifeWithRestarts) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 12 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 1 + static_cast<uint32_t>(stream % 3)}, stream);
    live(rig, 12, 600);
  }
}

TEST(SsdLog, LargerRegionsTakeGroupsOfManyPages) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 3 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.region_size = 512 * kKiB, .key_count = 400}, 100 + stream);
    live(rig, 5, 2000);
  }
}

}  // namespace
}  // namespace hicache
