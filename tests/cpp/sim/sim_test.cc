// Worlds, one after the other. HICACHE_SIM_WORLDS: how many; HICACHE_SIM_WORLD: this one alone,
// with what happened in it. Both count from HICACHE_SEED.
#include <gtest/gtest.h>

#include <cstdlib>

#include "sim/sim_cluster.h"

namespace hicache {
namespace {

using testing::SimCluster;

uint64_t of_environment(const char* name, uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::strtoull(given, nullptr, 0) : otherwise;
}

TEST(Simulation, ClustersHealAndDeliverOnlyWhatWasPut) {
  HICACHE_TRACE_SEED();
  const uint64_t only = of_environment("HICACHE_SIM_WORLD", UINT64_MAX);
  const uint64_t first = only == UINT64_MAX ? 0 : only;
  const uint64_t count = only == UINT64_MAX ? of_environment("HICACHE_SIM_WORLDS", 200) : 1;
  uint64_t delivered_count = 0;
  for (uint64_t number = first; number < first + count; ++number) {
    SimCluster cluster(number, false);
    const std::string fault = cluster.live();
    delivered_count += cluster.delivered_count();
    if (fault.empty()) continue;
    // The same once more, to tell what happened.
    ADD_FAILURE() << SimCluster(number, true).live() << "\nHICACHE_SEED=" << testing::seed()
                  << " HICACHE_SIM_WORLD=" << number << " build/cpp/hicache_sim";
    break;
  }
  EXPECT_TRUE(HasFailure() || delivered_count > count);
}

TEST(Simulation, TheSameSeedIsTheSameWorld) {
  HICACHE_TRACE_SEED();
  for (uint64_t number = 0; number < 3; ++number) {
    SimCluster one(number, false);
    SimCluster other(number, true);
    EXPECT_EQ(one.live().empty(), other.live().empty());
    EXPECT_EQ(one.events_hash(), other.events_hash());
  }
}

}  // namespace
}  // namespace hicache
