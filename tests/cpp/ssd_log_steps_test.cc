// The log does not keep its owner long, however much there is: recovery goes on in steps, and pages
// that wait to be written are taken back without looking through the others.
#include <gtest/gtest.h>
#include <time.h>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::LogRig;

uint64_t cpu_time_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000 +
         static_cast<uint64_t>(time.tv_nsec) / 1'000'000;
}

TEST(SsdLogSteps, ALargeRegionIsTakenInPartsAndItsNamespaceAskedForOnceAPart) {
  HICACHE_TRACE_SEED();
  constexpr uint64_t kPages = 7000;
  constexpr uint64_t kPerStep = 4096;
  LogRig rig({.volume_count = 1,
              .region_size = 64 * kMiB,
              .region_count_max = 8,
              .space_count = 1,
              .key_count = kPages,
              .page_size_max = 100,
              .has_large_pages = false},
             1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  for (uint32_t n = 0; n < kPages; ++n) {
    rig.write({0, n});
    if (n % 32 == 0) rig.step();
  }
  ASSERT_TRUE(rig.settle());
  rig.log().seal_all();
  ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
  const uint64_t count = rig.log().index().page_count();
  const uint32_t regions = rig.log().volume(0).used_region_count();
  ASSERT_GT(count, kPerStep);
  const LogRig::Images images = rig.images();
  rig.close();
  rig.put_images(images);
  const uint64_t asked_before = rig.space_questions();
  rig.open();
  uint64_t before = 0;
  uint64_t most = 0;
  uint64_t parts = 0;
  const Deadline deadline = Deadline::after_ms(60'000);
  while (rig.log().is_recovering() && !deadline.expired()) {
    rig.step(0);
    const uint64_t now = rig.log().index().page_count();
    most = std::max(most, now - std::exchange(before, now));
    parts += 1;
    // What is removed in the middle of a region stays away.
    if (parts == 2) rig.remove({0, kPages - 1});
    sched_yield();
  }
  EXPECT_LE(most, kPerStep);
  // Twice a part: for its removals, and for its pages.
  EXPECT_LE(rig.space_questions() - asked_before, 2 * (count / kPerStep + 1 + regions));
  EXPECT_GE(rig.check_all().size(), count - 1);
}

TEST(SsdLogSteps, PagesThatWaitAreTakenBackWithoutLookingAtTheOthers) {
  HICACHE_TRACE_SEED();
  constexpr uint32_t kPages = 50'000;
  LogRig rig({.volume_count = 1,
              .space_count = 1,
              .key_count = kPages,
              .page_size_max = 10,
              .has_large_pages = false},
             2);
  rig.open();
  ASSERT_TRUE(rig.recover());
  for (uint32_t n = 0; n < kPages; ++n) ASSERT_TRUE(rig.write({0, n}));
  uint64_t spent_ms = 0;
  for (uint32_t n = kPages; n-- != 1;) {
    const uint64_t before_ms = cpu_time_ms();
    rig.log().remove(rig.space({0, n}), LogRig::digest_of(0), LogRig::key({0, n}));
    spent_ms += cpu_time_ms() - before_ms;
  }
  EXPECT_LT(spent_ms, 2000u);
  EXPECT_EQ(rig.pending_count(), 1u);
  ASSERT_TRUE(rig.settle());
  EXPECT_EQ(rig.check_all().size(), 1u);
}

}  // namespace
}  // namespace hicache
