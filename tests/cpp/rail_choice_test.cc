// Which rail gets a slice: costs, windows, tiers, failures, and how a rail comes back.
#include "transfer/rail_choice.h"

#include <gtest/gtest.h>

#include <array>
#include <map>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kMiB8 = 8 * kMiB;
constexpr PathCost kFast{5'000, 0.1};  // 10 GB/s
constexpr PathCost kSlow{5'000, 0.2};

RailIndex choose(const RailChoice& rails, uint64_t waiting = 0, uint64_t size = kMiB) {
  return rails.choose(size, 0, kNoRail, std::max(waiting, size)).rail;
}

/// Moves `bytes` in slices over rails that really have these speeds. Returns when it is done, and
/// how much each has moved.
struct Moved {
  uint64_t end_ns;
  std::array<uint64_t, 4> bytes;
};
Moved move(RailChoice& rails, const std::vector<double>& ns_per_byte, uint64_t bytes,
           uint64_t start_ns) {
  struct Flight {
    RailIndex rail;
    uint64_t size;
    uint64_t started_ns;
  };
  std::multimap<uint64_t, Flight> flights;  // By the time of their end.
  std::array<uint64_t, 4> free_at_ns{};
  Moved moved{start_ns, {}};
  while (bytes != 0 || !flights.empty()) {
    while (bytes != 0) {
      const RailIndex rail = choose(rails, bytes, std::min(bytes, kMiB));
      if (rail == kNoRail) break;
      const uint64_t size = std::min(bytes, kMiB);
      rails.begin(rail, size, moved.end_ns);
      free_at_ns[rail] = std::max(free_at_ns[rail], moved.end_ns) +
                         static_cast<uint64_t>(static_cast<double>(size) * ns_per_byte[rail]);
      flights.emplace(free_at_ns[rail], Flight{rail, size, moved.end_ns});
      bytes -= size;
    }
    const auto first = flights.begin();
    if (first == flights.end()) break;
    moved.end_ns = first->first;
    const Flight flight = first->second;
    flights.erase(first);
    rails.end(flight.rail, flight.size, true, flight.started_ns, moved.end_ns);
    moved.bytes[flight.rail] += flight.size;
  }
  return moved;
}

TEST(RailChoice, TwoRailsTogetherMoveAsMuchAsBothAlone) {
  for (const double slower : {1.0, 2.0, 3.0}) {
    RailChoice rails;
    rails.add(kFast, 0, kMiB);
    rails.add({kFast.fixed_ns, kFast.ns_per_byte * slower}, 0, kMiB);
    const Moved moved = move(rails, {0.1, 0.1 * slower}, kGiB, 0);
    const double ideal_ns = static_cast<double>(kGiB) * 0.1 / (1 + 1 / slower);
    EXPECT_LT(static_cast<double>(moved.end_ns), ideal_ns * 1.1) << slower;
  }
}

TEST(RailChoice, ACostThatWasToldWrongIsCorrectedByWhatIsMeasured) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  rails.add(kFast, 0, kMiB);
  (void)move(rails, {0.1, 1.0}, kGiB, 0);
  EXPECT_NEAR(rails.rail(0).cost.ns_per_byte, 0.1, 0.02);
  EXPECT_NEAR(rails.rail(1).cost.ns_per_byte, 1.0, 0.2);
  const Moved moved = move(rails, {0.1, 1.0}, kGiB, 1'000'000'000'000);
  EXPECT_LT(static_cast<double>(moved.end_ns - 1'000'000'000'000),
            static_cast<double>(kGiB) * 0.1 / 1.1 * 1.1);
  EXPECT_GT(moved.bytes[0], moved.bytes[1] * 7);
}

TEST(RailChoice, ASmallSliceGoesToTheRailWithTheShortestQueue) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  rails.add(kSlow, 0, kMiB);
  EXPECT_EQ(choose(rails, 0, 4096), 0);
  rails.begin(0, kMiB, 0);
  EXPECT_EQ(choose(rails, 0, 4096), 1) << "a megabyte is before it on the other";
}

TEST(RailChoice, OnlyTheBestTierThatWorksIsUsed) {
  RailChoice rails;
  rails.add(kSlow, 0, kMiB);
  rails.add(kFast, 1, kMiB);
  for (uint64_t i = 0; i < 1000; ++i) {
    const RailIndex rail = choose(rails, kGiB);
    if (rail == kNoRail) break;
    EXPECT_EQ(rail, 0);
    rails.begin(rail, kMiB, 0);
  }
  EXPECT_TRUE(rails.choose(kMiB, 0, kNoRail, kGiB).any_usable) << "it is busy, not gone";
  EXPECT_EQ(rails.choose(kMiB, 1, kNoRail, kMiB).rail, 1) << "asked for a worse tier";
  rails.fail(0, 0);
  EXPECT_EQ(choose(rails), 1);
  rails.fail(1, 0);
  EXPECT_EQ(choose(rails), kNoRail);
  EXPECT_FALSE(rails.choose(kMiB, 0, kNoRail, kMiB).any_usable);
}

TEST(RailChoice, ASliceNeverGoesToARailThatCannotReachIt) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  const auto choose_without = [&](const RailSet& without) {
    return rails.choose(kMiB, 0, kNoRail, kMiB, {}, without);
  };
  EXPECT_FALSE(choose_without(1).any_usable) << "the only one";
  EXPECT_FALSE(rails.has_tier(0, 1)) << "waiting for it is of no use";
  rails.add(kSlow, 0, kMiB);
  rails.add(kFast, 1, kMiB);
  EXPECT_EQ(choose_without(0b001).rail, 1);
  EXPECT_EQ(choose_without(0b010).rail, 0);
  EXPECT_EQ(choose_without(0b011).rail, 2) << "none of the better tier can";
  EXPECT_FALSE(choose_without(0b111).any_usable);
  EXPECT_TRUE(rails.has_tier(1, 0b011));
  EXPECT_FALSE(rails.has_tier(0, 0b111));
  rails.fail(1, 0);
  EXPECT_EQ(choose_without(0b001).rail, 2) << "the other one of that tier is down";
  EXPECT_TRUE(rails.has_tier(0, 0b001));
}

TEST(RailChoice, ASliceAvoidsTheRailOnWhichItFailedIfThereIsAnother) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  EXPECT_EQ(rails.choose(kMiB, 0, 0, kMiB).rail, 0);
  rails.add(kSlow, 0, kMiB);
  EXPECT_EQ(rails.choose(kMiB, 0, 0, kMiB).rail, 1);
  rails.fail(1, 0);
  EXPECT_EQ(rails.choose(kMiB, 0, 0, kMiB).rail, 0);
}

TEST(RailChoice, AWindowBoundsWhatARailHolds) {
  RailChoice rails;
  rails.add({0, 1.0}, 0, kMiB);
  uint64_t count = 0;
  while (choose(rails, kGiB) != kNoRail) {
    rails.begin(0, kMiB, 0);
    ++count;
  }
  EXPECT_EQ(count, 10u) << "10 ms at 1 GB/s, in whole slices";
  rails.end(0, kMiB, true, 0, 1);
  EXPECT_EQ(choose(rails, kGiB), 0);
  rails.set_full(0);
  EXPECT_EQ(choose(rails, kGiB), kNoRail);
  rails.end(0, kMiB, false, 0, 1);
  EXPECT_EQ(choose(rails, kGiB), 0) << "a completion makes room, whatever it says";
  EXPECT_LE(rails.rail(0).outstanding_bytes, kMiB8);
}

TEST(RailChoice, ARailIsBackWithinFiveSecondsOfWorkingAgain) {
  HICACHE_TRACE_SEED();
  Random random;
  constexpr uint64_t kProbeNs = 1000 * kMs;  // As long as a probe may take.
  for (int round = 0; round < 300; ++round) {
    RailChoice rails;
    rails.add(kFast, 0, kMiB);
    uint64_t now_ns = random.below(1000) * kMs;
    const uint64_t works_from_ns = now_ns + random.below(120'000) * kMs;
    EXPECT_TRUE(rails.fail(0, now_ns));
    EXPECT_FALSE(rails.fail(0, now_ns)) << "it had failed before";
    unsigned probes = 0;
    while (!rails.rail(0).is_alive) {
      now_ns = rails.next_probe_ns();
      ASSERT_EQ(rails.take_probe(now_ns - 1), std::nullopt);
      ASSERT_EQ(rails.take_probe(now_ns), 0);
      ASSERT_EQ(rails.take_probe(now_ns), std::nullopt) << "one probe at a time";
      const bool works = now_ns >= works_from_ns;
      now_ns += kProbeNs;
      rails.probe_ended(0, works, now_ns);
      ++probes;
    }
    EXPECT_LE(now_ns, works_from_ns + 5000 * kMs);
    EXPECT_LE(probes, 130u) << "probes back off";
    EXPECT_EQ(rails.next_probe_ns(), UINT64_MAX);
  }
}

TEST(RailChoice, ARailThatFailsAgainAndAgainIsTriedLessOften) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  uint64_t now_ns = 0;
  std::vector<uint64_t> pauses_ns;
  for (int i = 0; i < 8; ++i) {
    rails.fail(0, now_ns);
    pauses_ns.push_back(rails.next_probe_ns() - now_ns);
    now_ns = rails.next_probe_ns();
    ASSERT_TRUE(rails.take_probe(now_ns));
    rails.probe_ended(0, true, now_ns);
    now_ns += 10 * kMs;
  }
  EXPECT_EQ(pauses_ns.front(), 100 * kMs);
  EXPECT_EQ(pauses_ns.back(), 2000 * kMs);
  now_ns += 60'000 * kMs;
  rails.fail(0, now_ns);
  EXPECT_EQ(rails.next_probe_ns() - now_ns, 100 * kMs) << "it had been well for a minute";
}

TEST(RailChoice, DamagedBytesFailARailOnlyWhenTheyComeInARow) {
  RailChoice rails;
  rails.add(kFast, 0, kMiB);
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(rails.fail_corrupt(0, 0));
    EXPECT_FALSE(rails.fail_corrupt(0, 0));
    rails.begin(0, 1, 0);
    rails.end(0, 1, true, 0, 1);
  }
  EXPECT_FALSE(rails.fail_corrupt(0, 0));
  EXPECT_FALSE(rails.fail_corrupt(0, 0));
  EXPECT_TRUE(rails.fail_corrupt(0, 0));
}

}  // namespace
}  // namespace hicache
