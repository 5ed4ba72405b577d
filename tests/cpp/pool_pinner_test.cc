// The pool is pinned for GPUs where it has memory, and as it comes to have more.
#include "store/pool_pinner.h"

#include <gtest/gtest.h>

#include "fake_gpu.h"
#include "node_bench.h"

namespace hicache::testing {
namespace {

using State = PoolPinner::State;
constexpr uint64_t kUnit = PoolPinner::kUnitSize;
constexpr uint64_t kPatienceMs = 20'000;

struct Pool {
  Pool() {
    std::vector<std::string> notices;
    memory = std::move(SharedMemory::create({4 * kUnit, HugePages::kNever, -1}, notices).value());
    lane = std::move(GpuLane::open(0).value());
  }
  void back(uint64_t offset, uint64_t size) {
    ASSERT_TRUE(memory->populate(offset, size, SharedMemory::Access::kWrite).ok());
  }

  FakeGpu gpu;
  std::unique_ptr<SharedMemory> memory;
  std::shared_ptr<GpuLane> lane;
};

TEST(PoolPinner, FollowsTheMemoryAndBacksNone) {
  Pool pool;
  pool.back(0, kUnit + 4 * kKiB);
  PoolPinner pinner(*pool.memory, pool.lane);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return pinner.state(0) == State::kPinned; }));
  pool.back(2 * kUnit, kUnit);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return pinner.state(2 * kUnit) == State::kPinned; }));
  EXPECT_EQ(pinner.state(kUnit), State::kOpen) << "it has a page of memory, and not all";
  EXPECT_EQ(pool.memory->backed_bytes(), 2 * kUnit + 4 * kKiB);
}

TEST(PoolPinner, IsWokenByACopyThatComesToANewUnit) {
  Pool pool;
  PoolPinner pinner(*pool.memory, pool.lane);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return pinner.is_asleep(); }));
  pool.back(0, 2 * kUnit);
  ASSERT_TRUE(pinner.pin_unit(0));
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return pinner.state(kUnit) == State::kPinned; }));
}

TEST(PoolPinner, AUnitThatTheDriverRefusesIsNotTriedAgain) {
  Pool pool;
  pool.gpu.set_no_pinned_memory(true);
  pool.back(0, kUnit);
  PoolPinner pinner(*pool.memory, pool.lane);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return pinner.state(0) == State::kRefused; }));
  pool.gpu.set_no_pinned_memory(false);
  EXPECT_FALSE(pinner.pin_unit(0));
}

}  // namespace
}  // namespace hicache::testing
