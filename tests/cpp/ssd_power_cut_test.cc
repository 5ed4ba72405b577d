// The log after power cuts at any write: torn writes, and writes that the disk's cache lost.
#include <gtest/gtest.h>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::LogRig;
using testing::Random;
using testing::soak_rounds;

/// Starts on what a power cut left, and cuts the power once more while recovery writes footers.
class Survivor {
 public:
  Survivor(const LogRig& original, const LogRig::Shape& shape, uint64_t stream)
      : shape_(shape), random_(stream), stream_(stream), original_(original) {}

  std::map<LogRig::Name, uint64_t> recover(const LogRig::Images& images) {
    LogRig rig(shape_, stream_ * 2);
    start(rig, images);
    // In the middle of it the power goes again.
    for (uint64_t i = random_.below(12); i != 0; --i) rig.step(0);
    const LogRig::Images again = rig.cut(random_);
    EXPECT_TRUE(rig.recover()) << "recovery does not end";
    const auto there = rig.check_all();
    // Removals of copies that came twice may need room first.
    rig.lease_everything(false);
    rig.log().seal_all();
    EXPECT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
    rig.check_space();

    LogRig second(shape_, stream_ * 2 + 1);
    start(second, again);
    EXPECT_TRUE(second.recover()) << "recovery does not end";
    EXPECT_EQ(second.check_all(), there) << "the second recovery found something else";
    return there;
  }

 private:
  void start(LogRig& rig, const LogRig::Images& images) {
    rig.put_images(images);
    rig.adopt_oracle(original_);
    rig.allow_damage();
    rig.lease_everything(true);
    rig.open();
  }

  const LogRig::Shape shape_;
  Random random_;
  const uint64_t stream_;
  const LogRig& original_;
};

void run_with_cuts(const LogRig::Shape& shape, uint64_t stream, uint64_t step_count,
                   uint64_t cut_interval) {
  LogRig rig(shape, stream);
  Random random(stream + 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  uint64_t write_steps = 0;
  uint64_t cuts = 0;
  const auto cut = [&] {
    if (++write_steps % cut_interval != 0 || ::testing::Test::HasFailure()) return;
    SCOPED_TRACE("stream " + std::to_string(stream) + ", power cut " + std::to_string(++cuts) +
                 " at write step " + std::to_string(write_steps));
    const auto safe = rig.stable_pages();
    const auto left = Survivor(rig, shape, stream * 100'000 + cuts).recover(rig.cut(random));
    for (const auto& [name, id] : safe) {
      ASSERT_TRUE(left.contains(name)) << rig.text(name) << ": was safe on the disk, and is lost";
      ASSERT_EQ(left.at(name), id) << rig.text(name);
    }
  };
  for (uint32_t i = 0; i < shape.volume_count; ++i) rig.disk(i).on_write_step = cut;
  for (uint64_t i = 0; i < step_count && !::testing::Test::HasFailure(); ++i) {
    const uint64_t chosen = random.below(100);
    if (chosen < 60) {
      rig.write(rig.any_name());
    } else if (chosen < 85) {
      rig.remove(rig.any_name());
    } else if (chosen < 95) {
      rig.lease(rig.any_name());
    } else if (chosen < 96 && random.one_in(3)) {
      rig.clear(static_cast<uint32_t>(random.below(2)));
    } else if (chosen < 97) {
      rig.log().seal_all();
    }
    for (uint64_t left = random.below(3); left != 0; --left) rig.step();
    while (rig.lease_count() > 2) rig.release_one();
  }
  EXPECT_GT(cuts, 0u);
  for (uint32_t i = 0; i < shape.volume_count; ++i) rig.disk(i).on_write_step = [] {};
}

TEST(SsdPowerCut, EveryStepOfAWrite) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 2 * soak_rounds() && !HasFailure(); ++stream) {
    run_with_cuts({.volume_count = 1, .region_count_max = 6, .key_count = 20}, 500 + stream, 500,
                  1);
  }
}

TEST(SsdPowerCut, NowAndThenInManyRuns) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 16 * soak_rounds() && !HasFailure(); ++stream) {
    run_with_cuts({.volume_count = 1 + static_cast<uint32_t>(stream % 2),
                   .region_count_max = 8,
                   .key_count = 30},
                  600 + stream, 800, 37);
  }
}

}  // namespace
}  // namespace hicache
