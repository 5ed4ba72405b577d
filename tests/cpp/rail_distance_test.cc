// Rails are chosen by how far they are from the memory that they move.
#include "transfer/rail_distance.h"

#include <gtest/gtest.h>

#include "transfer/rail_choice.h"

namespace hicache {
namespace {

constexpr uint64_t kMiB = 1 << 20;

/// Two sockets, a device at each; from the other one a byte costs twice as much.
std::shared_ptr<const Topology> two_sockets() {
  auto parsed = Topology::parse(R"({"version": 1, "locations": {
      "cpu:0": {"preferred": ["rxe0"], "others": ["rxe1"],
                "costs": {"rxe0": {"fixed_ns": 1000, "ns_per_byte": 0.1},
                          "rxe1": {"fixed_ns": 1000, "ns_per_byte": 0.2}}},
      "cpu:1": {"preferred": ["rxe1"], "others": ["rxe0"],
                "costs": {"rxe0": {"fixed_ns": 1000, "ns_per_byte": 0.2},
                          "rxe1": {"fixed_ns": 1000, "ns_per_byte": 0.1}}}}})");
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return std::make_shared<const Topology>(std::move(parsed.value()));
}

TEST(RailDistance, NothingIsAddedWithoutATopologyOrForOneRail) {
  RailDistance distance;
  distance.add_rail("rxe0");
  EXPECT_TRUE(distance.extra_ns_per_byte("cpu:0").empty());
  distance.set_topology(two_sockets());
  EXPECT_TRUE(distance.extra_ns_per_byte("cpu:0").empty());
  distance.add_rail("rxe1");
  EXPECT_FALSE(distance.extra_ns_per_byte("cpu:0").empty());
  distance.set_topology(nullptr);
  EXPECT_TRUE(distance.extra_ns_per_byte("cpu:0").empty());
}

TEST(RailDistance, FarDevicesCostMoreAndUnknownOnesNothing) {
  RailDistance distance;
  distance.set_topology(two_sockets());
  for (const char* device : {"rxe0", "rxe1", "unknown", ""}) distance.add_rail(device);
  const auto here = distance.extra_ns_per_byte("cpu:0");
  ASSERT_EQ(here.size(), 4U);
  EXPECT_DOUBLE_EQ(here[0], 0);
  EXPECT_DOUBLE_EQ(here[1], 0.1);
  EXPECT_DOUBLE_EQ(here[2], 0);
  EXPECT_DOUBLE_EQ(here[3], 0);
  EXPECT_DOUBLE_EQ(distance.extra_ns_per_byte("cpu:1")[0], 0.1);
  for (const double extra : distance.extra_ns_per_byte("cuda:0")) EXPECT_DOUBLE_EQ(extra, 0);
}

TEST(RailDistance, ASliceGoesToTheNearRailUntilThatHasMuchToDo) {
  RailDistance distance;
  distance.set_topology(two_sockets());
  RailChoice rails;
  for (const char* device : {"rxe0", "rxe1"}) {
    rails.add({1000, 0.1}, 0, kMiB);
    distance.add_rail(device);
  }
  const auto choose = [&](const char* location) {
    return rails.choose(kMiB, 0, kNoRail, kMiB, distance.extra_ns_per_byte(location)).rail;
  };
  EXPECT_EQ(choose("cpu:0"), 0);
  EXPECT_EQ(choose("cpu:1"), 1);
  rails.begin(1, 4 * kMiB, 0);
  EXPECT_EQ(choose("cpu:1"), 0) << "the far rail would be done first";
}

}  // namespace
}  // namespace hicache
