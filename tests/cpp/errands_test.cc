// Errands that block: whom they hold up, and whom they do not.
#include "transfer/errands.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <thread>
#include <vector>

#include "support.h"

namespace hicache {
namespace {

using testing::eventually;
using testing::Random;
using Urgency = Errands::Urgency;

class ErrandsTest : public ::testing::Test {
 protected:
  ~ErrandsTest() override { open_.count_down(); }

  const void* owner(size_t n) const { return &owners_[n]; }
  /// One that blocks until the test ends.
  void add_blocking(size_t n, Urgency urgency) {
    ASSERT_TRUE(errands_.add(owner(n), urgency, [this] {
      ++blocked_;
      open_.wait();
    }));
  }
  bool runs(size_t n, Urgency urgency) {
    auto has_run = std::make_shared<std::atomic<bool>>(false);
    EXPECT_TRUE(errands_.add(owner(n), urgency, [has_run] { *has_run = true; }));
    return eventually(2000, [&] { return has_run->load(); });
  }

  static constexpr size_t kThreads = 12;
  char owners_[64] = {};
  std::latch open_{1};
  std::atomic<size_t> blocked_{0};
  Errands errands_{kThreads};
};

TEST_F(ErrandsTest, AnOwnerWhoseErrandsBlockHoldsUpNoOther) {
  for (int i = 0; i < 100; ++i) add_blocking(0, Urgency::kAwaited);
  ASSERT_TRUE(eventually(20'000, [&] { return blocked_ == Errands::kOfOneOwnerMax; }));
  EXPECT_TRUE(runs(1, Urgency::kAwaited));
  EXPECT_TRUE(runs(2, Urgency::kProbe));
  EXPECT_EQ(blocked_, Errands::kOfOneOwnerMax);
}

TEST_F(ErrandsTest, ClosingsFindAThreadHoweverManyOwnersBlock) {
  for (size_t n = 0; n < 32; ++n) add_blocking(n, Urgency::kAwaited);
  ASSERT_TRUE(eventually(20'000, [&] { return blocked_ == kThreads - Errands::kForClosings; }));
  EXPECT_TRUE(runs(0, Urgency::kClosing));
  EXPECT_TRUE(runs(40, Urgency::kClosing));
}

TEST_F(ErrandsTest, ProbesThatBlockDoNotHoldUpWhatTransfersWaitFor) {
  for (int i = 0; i < 100; ++i) add_blocking(0, Urgency::kProbe);
  ASSERT_TRUE(eventually(20'000, [&] { return blocked_ == Errands::kProbesOfOneOwnerMax; }));
  EXPECT_TRUE(runs(0, Urgency::kAwaited));
}

TEST(Errands, EachRunsOnceAndNoneAfterTheStop) {
  HICACHE_TRACE_SEED();
  Random random;
  constexpr size_t kCount = 2000;
  std::vector<std::atomic<unsigned>> runs(kCount);
  char owners[8] = {};
  Errands errands(9);
  const auto add = [&](size_t i) {
    return errands.add(&owners[random.below(8)], static_cast<Urgency>(random.below(3)),
                       [&runs, i] { ++runs[i]; });
  };
  const auto count = [&](unsigned times) {
    return std::ranges::count_if(runs, [&](const auto& one) { return one == times; });
  };
  for (size_t i = 0; i < kCount / 2; ++i) ASSERT_TRUE(add(i));
  EXPECT_TRUE(eventually(10'000, [&] { return count(1) == kCount / 2; }));
  for (size_t i = kCount / 2; i < kCount; ++i) ASSERT_TRUE(add(i));
  errands.stop();
  const auto before = count(1);
  EXPECT_EQ(count(0) + count(1), static_cast<ptrdiff_t>(kCount));
  EXPECT_FALSE(add(0));
  errands.stop();
  EXPECT_EQ(count(1), before);
}

}  // namespace
}  // namespace hicache
