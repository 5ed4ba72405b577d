#include "tier/slot_allocator.h"

#include <gtest/gtest.h>

#include <map>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

uint64_t sum_of(const Extents& extents) {
  uint64_t sum = 0;
  for (const Extent& extent : extents) sum += extent.size;
  return sum;
}

/// Knows of every byte of the pool whose it is.
class ByteMap {
 public:
  explicit ByteMap(uint64_t size) : owners_(size, 0) {}

  void take(const Extents& extents, uint32_t owner) {
    for (const Extent& extent : extents) {
      ASSERT_LE(extent.offset + extent.size, owners_.size());
      for (uint64_t i = 0; i < extent.size; ++i) {
        ASSERT_EQ(owners_[extent.offset + i], 0U) << "byte " << extent.offset + i << " is taken";
        owners_[extent.offset + i] = owner;
      }
    }
  }
  void give_back(const Extents& extents, uint32_t owner) {
    for (const Extent& extent : extents) {
      for (uint64_t i = 0; i < extent.size; ++i) {
        ASSERT_EQ(owners_[extent.offset + i], owner);
        owners_[extent.offset + i] = 0;
      }
    }
  }

 private:
  std::vector<uint32_t> owners_;
};

TEST(SlotAllocator, NeverHandsOutAByteTwice) {
  HICACHE_TRACE_SEED();
  Random random(1);
  constexpr uint64_t kPoolSize = 2 * kMiB;
  for (const uint64_t size_max : {uint64_t{200}, kSlotSize / 2, kSlotSize, kPoolSize / 4}) {
    SlotAllocator allocator;
    allocator.add(0, kPoolSize / 2);
    allocator.add(kPoolSize / 2, kPoolSize / 2);
    ByteMap map(kPoolSize);
    std::map<uint32_t, Extents> live;
    uint64_t used = 0;
    for (uint32_t owner = 1; owner < 3000; ++owner) {
      const uint64_t size = random.size_up_to(size_max);
      Extents extents;
      if (!live.empty() && (random.one_in(3) || !allocator.allocate(size, extents))) {
        auto leaving = std::next(live.begin(), static_cast<ptrdiff_t>(random.below(live.size())));
        map.give_back(leaving->second, leaving->first);
        allocator.release(leaving->second);
        used -= sum_of(leaving->second);
        live.erase(leaving);
      } else {
        if (extents.empty()) {
          ASSERT_TRUE(allocator.allocate(size, extents));
        }
        ASSERT_EQ(sum_of(extents), size);
        map.take(extents, owner);
        used += size;
        live.emplace(owner, extents);
      }
      if (HasFatalFailure()) return;
      ASSERT_EQ(allocator.used_bytes(), used);
      ASSERT_EQ(allocator.size_bytes(), kPoolSize);
      ASSERT_EQ(allocator.free_bytes() + allocator.used_bytes() + allocator.waste_bytes(),
                kPoolSize);
      if (owner % 64 == 0) {
        ASSERT_EQ(allocator.check_invariants(), "");
      }
    }
    for (const auto& [owner, extents] : live) allocator.release(extents);
    EXPECT_EQ(allocator.free_bytes(), kPoolSize) << "an empty pool is one run of free slots";
    EXPECT_EQ(allocator.free_run_count(), 1U);
    EXPECT_EQ(allocator.check_invariants(), "");
  }
}

TEST(SlotAllocator, FreeSlotsAreNeverUselessForBeingScattered) {
  HICACHE_TRACE_SEED();
  Random random(2);
  constexpr uint64_t kSlots = 256;
  SlotAllocator allocator;
  allocator.add(0, kSlots * kSlotSize);
  std::vector<Extents> singles(kSlots);
  for (Extents& single : singles) ASSERT_TRUE(allocator.allocate(kSlotSize, single));
  for (uint64_t i = 0; i < kSlots; i += 2) allocator.release(singles[i]);
  Extents scattered;
  ASSERT_TRUE(allocator.allocate(kSlots / 2 * kSlotSize, scattered));
  EXPECT_EQ(scattered.size(), kSlots / 2);
  EXPECT_EQ(allocator.free_bytes(), 0U);
  Extents none;
  EXPECT_FALSE(allocator.allocate(1, none));
  EXPECT_FALSE(allocator.allocate(kSlotSize, none));
  EXPECT_TRUE(none.empty());
  allocator.release(scattered);
  for (uint64_t i = 1; i < kSlots; i += 2) allocator.release(singles[i]);
  EXPECT_EQ(allocator.free_run_count(), 1U);
}

TEST(SlotAllocator, RefusesWhatNoPoolHolds) {
  SlotAllocator allocator;
  allocator.add(0, kMiB);
  for (const uint64_t size :
       {kMiB + 1, UINT64_MAX, UINT64_MAX - kSlotSize, UINT64_MAX / 2, UINT64_MAX - kSlotSize + 2}) {
    Extents extents;
    EXPECT_FALSE(allocator.allocate(size, extents)) << size;
    EXPECT_TRUE(extents.empty());
    EXPECT_EQ(allocator.used_bytes(), 0U);
  }
  Extents whole;
  EXPECT_TRUE(allocator.allocate(kMiB, whole));
  EXPECT_EQ(whole.size(), 1U);
}

TEST(SlotAllocator, WastesLittleOnTheSizesOfRealModelsAtHighFill) {
  HICACHE_TRACE_SEED();
  Random random(3);
  const std::vector<std::vector<uint64_t>> mixes = {
      {524288, 589824 * 2, 9437184},
      {515328, 4497408, 524288},
      {4497408, 9437184, 1048576},
      {524288, 589824 * 2, 4497408, 515328, 9437184, 2097152, 65536 * 3},
  };
  constexpr uint64_t kPoolSize = 4 * kGiB;
  for (const std::vector<uint64_t>& sizes : mixes) {
    SlotAllocator allocator;
    allocator.add(0, kPoolSize);
    std::vector<Extents> live;
    uint64_t worst_waste = 0;
    uint64_t extents_made = 0;
    uint64_t pages_made = 0;
    for (int i = 0; i < 20'000; ++i) {
      const uint64_t size = random.pick(sizes);
      Extents extents;
      while (allocator.used_bytes() + size > kPoolSize / 100 * 95 ||
             !allocator.allocate(size, extents)) {
        std::swap(live[random.below(live.size())], live.back());
        allocator.release(live.back());
        live.pop_back();
      }
      ASSERT_EQ(sum_of(extents), size);
      extents_made += extents.size();
      ++pages_made;
      live.push_back(std::move(extents));
      worst_waste = std::max(worst_waste, allocator.waste_bytes());
    }
    EXPECT_EQ(allocator.check_invariants(), "");
    EXPECT_GE(allocator.used_bytes(), kPoolSize / 100 * 94);
    EXPECT_LE(worst_waste, kPoolSize / 100 * 5);
    EXPECT_LE(extents_made, 8 * pages_made) << "pages are scattered over too many extents";
  }
}

TEST(SlotAllocator, SmallObjectsShareSlots) {
  HICACHE_TRACE_SEED();
  Random random(4);
  SlotAllocator allocator;
  allocator.add(0, 64 * kMiB);
  std::vector<Extents> live;
  for (int i = 0; i < 20'000; ++i) {
    Extents extents;
    ASSERT_TRUE(allocator.allocate(random.between(64, 2048), extents));
    ASSERT_EQ(extents.size(), 1U);
    live.push_back(std::move(extents));
  }
  EXPECT_LE(allocator.waste_bytes(), allocator.used_bytes() / 4);
  for (const Extents& extents : live) allocator.release(extents);
  EXPECT_EQ(allocator.free_bytes(), allocator.size_bytes());
}

}  // namespace
}  // namespace hicache
