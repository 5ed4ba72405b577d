// The log on disks that damage what was written: a sector costs what it holds, and brings nothing
// back that was removed.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::FakeDisk;
using testing::key_of;
using testing::LogRig;
using testing::Random;
using testing::soak_rounds;

constexpr uint64_t kRegion = 64 * kKiB;
constexpr uint32_t kRegionSectors = kRegion / kSectorSize;
constexpr int kFirstFd = 1000;

struct GroupAt {
  uint32_t first_sector;
  GroupHeader header;
};

/// What a region holds, by the format alone; nothing if it has no head.
std::vector<GroupAt> groups_of(const std::vector<uint8_t>& image, uint32_t volume, uint32_t region,
                               bool& is_sealed) {
  const LogId log_id = LogRig::log_id(kFirstFd + static_cast<int>(volume));
  const uint8_t* const base = image.data() + kSuperblockSize + region * kRegion;
  std::vector<GroupAt> groups;
  for (uint32_t at = 0; at < kRegionSectors;) {
    GroupHeader header;
    const Sector sector(base + at * kSectorSize, kSectorSize);
    const bool is_next =
        decode(log_id, sector, at, kRegion, header) &&
        (groups.empty() || header.region_sequence == groups.front().header.region_sequence);
    if (!is_next) break;
    groups.push_back({at, header});
    at += header.sector_count;
  }
  RegionFooter footer;
  const Sector last(base + kRegion - kSectorSize, kSectorSize);
  is_sealed = !groups.empty() && decode(log_id, last, kRegion, footer) &&
              footer.region_sequence == groups.front().header.region_sequence;
  return groups;
}

std::vector<GroupAt> unsealed_groups(const std::vector<uint8_t>& image, uint32_t volume,
                                     uint32_t region) {
  bool is_sealed = false;
  const std::vector<GroupAt> groups = groups_of(image, volume, region, is_sealed);
  return is_sealed ? std::vector<GroupAt>{} : groups;
}

/// The pages that a damaged sector may cost, and no other: the one that it is a part of, or,
/// without a footer, those of the group whose header it is.
std::set<LogRig::Name> at_stake(const std::vector<GroupAt>& groups, uint32_t hit,
                                bool is_sealed = false) {
  std::set<LogRig::Name> names;
  for (const GroupAt& group : groups) {
    for (const SsdEntry& entry : group.header.entries) {
      if (entry.kind != SsdEntryKind::kPage) continue;
      const uint64_t end = entry.first_sector + sectors_of(entry.size);
      const bool is_in_page = hit >= entry.first_sector && hit < end;
      if (!is_in_page && (is_sealed || hit != group.first_sector)) continue;
      for (uint32_t space = 0; space < 2; ++space) {
        for (uint32_t n = 0; n < 60; ++n) {
          if (entry.key == key_of(n) && entry.name_space == LogRig::digest_of(space)) {
            names.insert({space, n});
          }
        }
      }
    }
  }
  return names;
}

/// As a disk would: a bit, a piece of 512 bytes, or all of it, with anything or with zeros.
void damage(Random& random, uint8_t* sector) {
  const uint64_t kind = random.below(4);
  if (kind == 0) {
    sector[random.below(kSectorSize)] ^= static_cast<uint8_t>(1U << random.below(8));
  } else if (kind == 1) {
    random.fill({sector + random.below(8) * 512, 512});
  } else {
    std::fill_n(sector, kSectorSize, uint8_t{0});
    if (kind == 2) random.fill({sector, kSectorSize});
  }
}

class Survivor {
 public:
  Survivor(const LogRig& original, const LogRig::Shape& shape, const LogRig::Images& images)
      : rig_(shape, 77) {
    rig_.put_images(images);
    rig_.adopt_oracle(original);
    rig_.allow_damage();
    rig_.lease_everything(true);
  }

  /// What recovery finds; whatever it says is checked.
  std::map<LogRig::Name, uint64_t> recover() {
    rig_.open();
    EXPECT_TRUE(rig_.recover());
    return rig_.check_all();
  }
  LogRig& rig() { return rig_; }

 private:
  LogRig rig_;
};

struct Tally {
  uint64_t rounds = 0;
  uint64_t missed = 0;
};

/// Damages a sector of a region that is being written, and compares what is left with what was.
void damage_one(const LogRig& rig, const LogRig::Shape& shape, Random& random, Tally& tally) {
  LogRig::Images images = rig.images();
  struct Candidate {
    uint32_t volume;
    uint32_t region;
    std::vector<GroupAt> groups;
  };
  std::vector<Candidate> candidates;
  for (uint32_t volume = 0; volume < images.size(); ++volume) {
    for (uint32_t region = 0; kSuperblockSize + (region + 1) * kRegion <= images[volume].size();
         ++region) {
      auto groups = unsealed_groups(images[volume], volume, region);
      if (!groups.empty()) candidates.push_back({volume, region, std::move(groups)});
    }
  }
  if (candidates.empty()) return;
  const auto before = Survivor(rig, shape, images).recover();
  const Candidate& chosen = candidates[random.below(candidates.size())];
  const GroupAt& last = chosen.groups.back();
  const auto hit =
      static_cast<uint32_t>(random.below(last.first_sector + last.header.sector_count));
  SCOPED_TRACE("volume " + std::to_string(chosen.volume) + ", region " +
               std::to_string(chosen.region) + ", sector " + std::to_string(hit));
  damage(random, images[chosen.volume].data() + kSuperblockSize + chosen.region * kRegion +
                     hit * kSectorSize);
  Survivor survivor(rig, shape, images);
  const auto after = survivor.recover();
  const std::set<LogRig::Name> excused = at_stake(chosen.groups, hit);
  ++tally.rounds;
  for (const auto& [name, id] : before) {
    const auto found = after.find(name);
    const bool is_same = found != after.end() && found->second == id;
    tally.missed += !is_same;
    EXPECT_TRUE(is_same || excused.contains(name)) << rig.text(name) << " was not hit";
  }
  // The start after that finds the same: what was damaged does not come back either.
  survivor.rig().lease_everything(false);
  survivor.rig().log().seal_all();
  EXPECT_TRUE(survivor.rig().step_until([&] { return survivor.rig().log().is_quiet(); }));
  for (const auto& [name, id] : Survivor(rig, shape, survivor.rig().images()).recover()) {
    const auto found = after.find(name);
    EXPECT_TRUE(found != after.end() && found->second == id) << rig.text(name) << " came back";
  }
}

TEST(SsdLogDamage, OfAnySectorOfARegionBeingWrittenCostsWhatItHoldsAndBringsNothingBack) {
  HICACHE_TRACE_SEED();
  Tally tally;
  for (uint64_t stream = 0; stream < 6 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    const LogRig::Shape shape{.volume_count = 1 + static_cast<uint32_t>(stream % 2),
                              .region_count_max = 8,
                              .page_size_max = 9000};
    LogRig rig(shape, 700 + stream);
    Random random(stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    uint64_t steps = 0;
    // The node is killed: what it had given to the kernel may be on its way still.
    const auto kill = [&] {
      if (++steps % 11 != 0 || HasFailure()) return;
      SCOPED_TRACE("write step " + std::to_string(steps));
      damage_one(rig, shape, random, tally);
    };
    for (uint32_t i = 0; i < shape.volume_count; ++i) rig.disk(i).on_write_step = kill;
    for (int i = 0; i < 700 && !HasFailure(); ++i) {
      const uint64_t what = random.below(100);
      if (what < 55) {
        rig.write(rig.any_name());
      } else if (what < 95) {
        rig.remove(rig.any_name());
      } else if (what < 97) {
        rig.clear(static_cast<uint32_t>(random.below(2)));
      } else {
        rig.log().seal_all();
      }
      for (uint64_t left = random.below(3); left != 0; --left) rig.step();
    }
    for (uint32_t i = 0; i < shape.volume_count; ++i) rig.disk(i).on_write_step = [] {};
  }
  EXPECT_GT(tally.rounds, 100u);
  EXPECT_GT(tally.missed, 0u);
}

/// A log of one volume with ten pages, of which one was removed and one replaced; not sealed.
LogRig::Images small_log(LogRig& rig) {
  rig.open();
  EXPECT_TRUE(rig.recover());
  for (uint32_t n = 0; n < 10; ++n) {
    rig.write({0, n});
    rig.step();
  }
  rig.remove({0, 3});
  EXPECT_TRUE(rig.settle());
  return rig.images();
}

const LogRig::Shape kSmall{
    .volume_count = 1, .region_count_max = 12, .key_count = 12, .page_size_max = 9000};

TEST(SsdLogDamage, OfTheFirstSectorOfARegionCostsNothing) {
  HICACHE_TRACE_SEED();
  Random random(1);
  LogRig rig(kSmall, 4);
  const LogRig::Images images = small_log(rig);
  const auto before = Survivor(rig, kSmall, images).recover();
  EXPECT_EQ(before.size(), 9u);
  for (uint32_t sector = 0; sector < kLeadSectors; ++sector) {
    for (int round = 0; round < 20; ++round) {
      SCOPED_TRACE("sector " + std::to_string(sector));
      LogRig::Images damaged = images;
      for (uint64_t at = kSuperblockSize; at < damaged[0].size(); at += kRegion) {
        damage(random, damaged[0].data() + at + sector * kSectorSize);
      }
      Survivor survivor(rig, kSmall, damaged);
      EXPECT_EQ(survivor.recover(), before);
      EXPECT_EQ(survivor.rig().log().counts().corrupt_pages, 0u);
    }
  }
}

TEST(SsdLogDamage, OfTheWholeLeadIsCountedBringsNoEarlierLifeBackAndIsUsedAgain) {
  HICACHE_TRACE_SEED();
  Random random(2);
  for (uint64_t stream = 0; stream < 10 && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig::Shape shape = kSmall;
    shape.region_count_max = 6;
    LogRig rig(shape, 40 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    // Regions that were used several times have groups of earlier lives behind those of the last.
    for (int i = 0; i < 120; ++i) {
      rig.random().one_in(3) ? (void)rig.remove(rig.any_name()) : (void)rig.write(rig.any_name());
      rig.step();
    }
    ASSERT_TRUE(rig.settle());
    LogRig::Images images = rig.images();
    uint64_t damaged = 0;
    for (uint32_t region = 0; kSuperblockSize + (region + 1) * kRegion <= images[0].size();
         ++region) {
      if (unsealed_groups(images[0], 0, region).empty()) continue;
      random.fill(
          {images[0].data() + kSuperblockSize + region * kRegion, kLeadSectors * kSectorSize});
      ++damaged;
    }
    Survivor survivor(rig, shape, images);
    // Of its removals nothing is left; but no page comes from it either.
    survivor.rig().forget_promises();
    const auto there = survivor.recover();
    EXPECT_EQ(survivor.rig().log().counts().corrupt_pages, damaged);
    ASSERT_TRUE(
        survivor.rig().step_until([&] { return survivor.rig().log().volume(0).is_idle(); }));
    Survivor second(rig, shape, survivor.rig().images());
    second.rig().forget_promises();
    EXPECT_EQ(second.recover(), there);
    EXPECT_EQ(second.rig().log().counts().corrupt_pages, 0u) << "it was not erased";
  }
}

TEST(SsdLogDamage, OfHeadersIsCounted) {
  HICACHE_TRACE_SEED();
  Random random(5);
  LogRig rig(kSmall, 6);
  const LogRig::Images images = small_log(rig);
  for (uint32_t region = 0; kSuperblockSize + (region + 1) * kRegion <= images[0].size();
       ++region) {
    for (const GroupAt& group : unsealed_groups(images[0], 0, region)) {
      if (group.header.entries.empty()) continue;
      const bool is_echo = group.header.entries.front().kind != SsdEntryKind::kPage;
      SCOPED_TRACE("region " + std::to_string(region) + ", sector " +
                   std::to_string(group.first_sector) + (is_echo ? ", removals" : ""));
      LogRig::Images damaged = images;
      uint8_t* const sector =
          damaged[0].data() + kSuperblockSize + region * kRegion + group.first_sector * kSectorSize;
      sector[200 + random.below(500)] ^= 1;
      Survivor survivor(rig, kSmall, damaged);
      survivor.recover();
      EXPECT_EQ(survivor.rig().log().counts().corrupt_pages, 1u);
    }
  }
}

TEST(SsdLogDamage, ASectorThatCannotBeReadCostsNoMoreThanADamagedOne) {
  HICACHE_TRACE_SEED();
  LogRig rig(kSmall, 8);
  const LogRig::Images images = small_log(rig);
  const auto before = Survivor(rig, kSmall, images).recover();
  const std::vector<GroupAt> groups = unsealed_groups(images[0], 0, 0);
  std::vector<GroupAt> all = groups;
  uint32_t region = 0;
  while (all.empty()) all = unsealed_groups(images[0], 0, ++region);
  const uint32_t end = all.back().first_sector + all.back().header.sector_count;
  for (uint32_t bad = 0; bad < end; ++bad) {
    SCOPED_TRACE("sector " + std::to_string(bad));
    Survivor survivor(rig, kSmall, images);
    const uint64_t at = kSuperblockSize + region * kRegion + bad * kSectorSize;
    survivor.rig().disk(0).set_outcome([at](const IoRequest& request) {
      const bool has_it = request.offset <= at && at < request.offset + request.size;
      return request.kind == IoKind::kRead && has_it ? EIO : 0;
    });
    const auto after = survivor.recover();
    const std::set<LogRig::Name> excused = at_stake(all, bad);
    for (const auto& [name, id] : before) {
      EXPECT_TRUE(after.contains(name) || excused.contains(name)) << rig.text(name);
    }
  }
}

TEST(SsdLogDamage, AFlippedBitCostsAtMostWhatItHits) {
  HICACHE_TRACE_SEED();
  Random random(3);
  for (const bool is_sealed : {false, true}) {
    LogRig rig(kSmall, 4);
    LogRig::Images images = small_log(rig);
    if (is_sealed) {
      rig.log().seal_all();
      ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
      images = rig.images();
    }
    const auto before = Survivor(rig, kSmall, images).recover();
    uint64_t misses = 0;
    for (uint64_t at = kSuperblockSize; at < images[0].size() && !HasFailure();
         at += random.between(1, 600)) {
      SCOPED_TRACE("sealed " + std::to_string(is_sealed) + ", byte " + std::to_string(at));
      auto flipped = images;
      flipped[0][at] ^= static_cast<uint8_t>(1U << random.below(8));
      const auto there = Survivor(rig, kSmall, flipped).recover();
      const uint64_t in_file = at - kSuperblockSize;
      const auto hit = static_cast<uint32_t>(in_file % kRegion / kSectorSize);
      const auto region = static_cast<uint32_t>(in_file / kRegion);
      bool has_footer = false;
      const auto groups = groups_of(images[0], 0, region, has_footer);
      const std::set<LogRig::Name> excused = at_stake(groups, hit, has_footer);
      for (const auto& [name, id] : before) {
        if (there.contains(name)) continue;
        ++misses;
        EXPECT_TRUE(excused.contains(name)) << rig.text(name) << " was not hit";
      }
    }
    EXPECT_GT(misses, 0u);
  }
}

}  // namespace
}  // namespace hicache
