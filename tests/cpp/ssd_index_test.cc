// The index beside slow and obvious statements of what it should say.
#include "tier/ssd_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "support.h"
#include "tier/ssd_format.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::Random;

const auto kNotInDram = [](uint64_t) { return false; };

uint64_t size_on_disk(uint64_t size) {
  return (size + kSectorSize - 1) / kSectorSize * kSectorSize;
}

SsdPage page_of(uint64_t n, RegionIndex region, uint64_t sequence) {
  SsdPage page;
  page.key = key_of(n);
  page.sequence = sequence;
  page.checksum = n;
  page.size = kSectorSize;
  page.place = {region, static_cast<uint32_t>(sequence)};
  return page;
}

uint64_t hash_of(const SsdPage& page) {
  return page_hash(page.space, page.key);
}

/// A few keys, some of which have one hash: those of `n` from 8 on.
Key colliding_key(uint64_t n) {
  if (n < 8) return key_of(n);
  Key key;
  const uint64_t words[4] = {0xA0761D6478BD642F, n, 1, 2};  // A factor of zero hides the second.
  std::memcpy(key.bytes.data(), words, sizeof(words));
  return key;
}

/// All pages in one list, in the order in which they came into their regions.
class Oracle {
 public:
  SsdIndex::Inserted insert(SsdPage page) {
    page.reads = 0;
    const auto old = find(page.space, page.key);
    const bool is_new = old == pages_.end();
    if (!is_new) {
      if (old->sequence >= page.sequence) return SsdIndex::Inserted::kOlder;
      pages_.erase(old);
    }
    pages_.push_back(page);
    return is_new ? SsdIndex::Inserted::kNew : SsdIndex::Inserted::kReplaced;
  }

  std::vector<SsdPage>::iterator find(SpaceIndex space, const Key& key) {
    return std::find_if(pages_.begin(), pages_.end(), [&](const SsdPage& page) {
      return page.space == space && page.key == key;
    });
  }

  uint32_t child_count(const SsdPage& parent) const {
    return static_cast<uint32_t>(
        std::count_if(pages_.begin(), pages_.end(),
                      [&](const SsdPage& page) { return page.parent_hash == hash_of(parent); }));
  }

  template <typename IsGone>
  uint64_t erase_if(IsGone is_gone) {
    return std::erase_if(pages_, is_gone);
  }

  std::vector<SsdPage>& pages() { return pages_; }

 private:
  std::vector<SsdPage> pages_;
};

void expect_same(const SsdIndex& index, Oracle& oracle) {
  ASSERT_EQ(index.check_invariants(), "");
  ASSERT_EQ(index.page_count(), oracle.pages().size());
  uint64_t live_bytes = 0;
  std::vector<std::vector<SsdPage>> by_region(index.region_count());
  for (const SsdPage& page : oracle.pages()) {
    live_bytes += size_on_disk(page.size);
    by_region[page.place.region].push_back(page);
  }
  ASSERT_EQ(index.live_bytes(), live_bytes);
  for (RegionIndex region = 0; region < index.region_count(); ++region) {
    const std::vector<SsdPageIndex> pages = index.pages_of(region);
    ASSERT_EQ(pages.size(), by_region[region].size());
    uint64_t reused_bytes = 0;
    for (size_t i = 0; i < pages.size(); ++i) {
      const SsdPage& page = index[pages[i]];
      const SsdPage& expected = by_region[region][i];
      ASSERT_EQ(page.key, expected.key);
      ASSERT_EQ(page.space, expected.space);
      ASSERT_EQ(page.sequence, expected.sequence);
      ASSERT_EQ(page.checksum, expected.checksum);
      ASSERT_EQ(page.parent_hash, expected.parent_hash);
      ASSERT_EQ(page.size, expected.size);
      ASSERT_EQ(page.place, expected.place);
      ASSERT_EQ(page.written_s, expected.written_s);
      ASSERT_EQ(page.reads, expected.reads);
      ASSERT_EQ(page.child_count, oracle.child_count(expected));
      ASSERT_EQ(index.find(page.space, page.key), pages[i]);
      if (page.reads != 0) reused_bytes += size_on_disk(page.size);
    }
    ASSERT_EQ(index.region(region).reused_bytes, reused_bytes);
  }
}

/// One small world: few keys, spaces and regions, so that everything meets.
class World {
 public:
  explicit World(uint64_t stream) : random_(stream) {
    for (RegionIndex i = 0; i < kRegionCount; ++i) EXPECT_EQ(index_.add_region(), i);
  }

  void step() {
    const uint64_t choice = random_.below(20);
    if (choice < 9) return insert();
    const SpaceIndex space = random_space();
    const Key key = random_key();
    const SsdPageIndex page = index_.find(space, key);
    const auto known = oracle_.find(space, key);
    ASSERT_EQ(page == kNoSsdPage, known == oracle_.pages().end());
    if (choice < 14 && page != kNoSsdPage) {
      ASSERT_EQ(index_.page_at(known->place), page);
      index_.note_read(page);
      ++known->reads;
    } else if (choice < 18 && page != kNoSsdPage) {
      const SsdPlace place = known->place;
      index_.erase(page);
      oracle_.pages().erase(known);
      ASSERT_EQ(index_.find(space, key), kNoSsdPage);
      ASSERT_EQ(index_.page_at(place), kNoSsdPage);
    } else if (choice == 18 && random_.one_in(3)) {
      const auto region = static_cast<RegionIndex>(random_.below(kRegionCount));
      ASSERT_EQ(index_.drop_region(region),
                oracle_.erase_if([&](const SsdPage& one) { return one.place.region == region; }));
      index_.begin_region(region, ++sequence_);
      ASSERT_EQ(index_.region(region).sequence, sequence_);
    } else if (choice == 19 && random_.one_in(3)) {
      drop_space(space);
    }
  }

  void check() { expect_same(index_, oracle_); }

 private:
  static constexpr RegionIndex kRegionCount = 4;

  SpaceIndex random_space() { return static_cast<SpaceIndex>(random_.below(3)); }
  Key random_key() { return colliding_key(random_.below(12)); }

  void insert() {
    SsdPage page;
    page.space = random_space();
    page.key = random_key();
    page.sequence = random_.one_in(4) ? random_.below(sequence_ + 1) : ++sequence_;
    page.checksum = random_.bits();
    // Of any page, itself included; sometimes of none.
    if (!random_.one_in(5)) page.parent_hash = page_hash(random_space(), random_key());
    page.size = static_cast<uint32_t>(random_.size_up_to(5 * kSectorSize));
    // Two pages never lie at one place.
    page.place = {static_cast<RegionIndex>(random_.below(kRegionCount)), ++place_};
    page.written_s = static_cast<uint32_t>(random_.bits());
    page.reads = 9;
    page.child_count = 9;
    page.next = 1;
    page.previous = 2;
    ASSERT_EQ(index_.insert(page), oracle_.insert(page));
  }

  void drop_space(SpaceIndex space) {
    const size_t count_max = random_.between(1, 8);
    const auto is_gone = [&](const SsdPage& page) {
      return page.space == space && index_.find(space, page.key) == kNoSsdPage;
    };
    bool is_more = true;
    for (int calls = 0; is_more; ++calls) {
      ASSERT_LT(calls, 1000);
      is_more = index_.drop_space(space, count_max);
      ASSERT_LE(oracle_.erase_if(is_gone), count_max) << "bounded per call";
      ASSERT_NO_FATAL_FAILURE(check());
      // New pages come meanwhile, even late ones of the space that ends.
      if (is_more && random_.one_in(3)) ASSERT_NO_FATAL_FAILURE(insert());
    }
    for (const SsdPage& page : oracle_.pages()) ASSERT_NE(page.space, space);
  }

  Random random_;
  SsdIndex index_{0};
  Oracle oracle_;
  uint64_t sequence_ = 0;
  uint32_t place_ = 0;
};

TEST(SsdIndex, AgreesWithAListOfPages) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 600; stream < 640; ++stream) {
    World world(stream);
    for (int step = 0; step < 600; ++step) {
      ASSERT_NO_FATAL_FAILURE(world.step()) << stream << " step " << step;
      ASSERT_NO_FATAL_FAILURE(world.check()) << stream << " step " << step;
    }
  }
}

TEST(SsdIndex, ChildrenAreCountedWhoeverComesOrLeavesFirst) {
  SsdIndex index(0);
  index.add_region();
  SsdPage parent = page_of(0, 0, 1);
  SsdPage first = page_of(1, 0, 2);
  SsdPage second = page_of(2, 0, 3);
  first.parent_hash = second.parent_hash = hash_of(parent);
  index.insert(first);
  index.insert(parent);
  index.insert(second);
  EXPECT_EQ(index[index.find(0, parent.key)].child_count, 2U);
  index.erase(index.find(0, parent.key));
  index.erase(index.find(0, first.key));
  parent.sequence = 4;
  index.insert(parent);
  EXPECT_EQ(index[index.find(0, parent.key)].child_count, 1U);
  second.sequence = 5;
  second.parent_hash = 0;  // The new copy's parent is unknown.
  index.insert(second);
  EXPECT_EQ(index[index.find(0, parent.key)].child_count, 0U);
  EXPECT_EQ(index.check_invariants(), "");
}

TEST(SsdIndex, ReadsSaturate) {
  SsdIndex index(0);
  index.add_region();
  index.insert(page_of(0, 0, 1));
  const SsdPageIndex page = index.find(0, key_of(0));
  for (int i = 0; i < 70'000; ++i) index.note_read(page);
  EXPECT_EQ(index[page].reads, UINT16_MAX);
  EXPECT_EQ(index.region(0).reused_bytes, kSectorSize);
}

TEST(SsdIndex, DroppingASpaceLooksAtSoManyPagesPerCallOnly) {
  SsdIndex index(0);
  index.add_region();
  for (uint64_t n = 0; n < 1000; ++n) {
    SsdPage page = page_of(n, 0, n + 1);
    page.space = n % 2;
    index.insert(page);
  }
  int calls = 1;
  while (index.drop_space(1, 10)) ++calls;
  EXPECT_EQ(calls, 100);
  EXPECT_EQ(index.page_count(), 500U);
  EXPECT_FALSE(index.drop_space(1, 10));
  EXPECT_TRUE(index.drop_space(0, 0)) << "nothing was looked at";
  EXPECT_EQ(index.check_invariants(), "");
}

// ---------------------------------------------------------------- memory

TEST(SsdIndex, APageTakesAboutAHundredBytes) {
  // At the end of a step of growth of the key table, and right after it.
  for (const uint64_t count : {196'608U, 196'609U}) {
    for (const bool are_orphans : {false, true}) {
      SsdIndex index(0);
      index.add_region();
      uint64_t parent = 0;
      for (uint64_t n = 0; n < count; ++n) {
        SsdPage page = page_of(n, 0, n + 1);
        page.parent_hash = are_orphans ? page_hash(1, n) : parent;
        parent = hash_of(page);
        index.insert(page);
      }
      const uint64_t per_page = are_orphans ? 118 + 19 : 118;
      const uint64_t growth = 65'536 * sizeof(SsdPage);  // Set aside, not yet touched.
      EXPECT_LE(index.memory_size_bytes(), count * per_page + growth) << count;
      EXPECT_GE(index.memory_size_bytes(), count * sizeof(SsdPage));
      RecordProperty(std::to_string(count) + (are_orphans ? " orphans" : " of a chain"),
                     std::to_string(index.memory_size_bytes()));
      const uint64_t full = index.memory_size_bytes();
      index.drop_region(0);
      EXPECT_EQ(index.check_invariants(), "");
      if (are_orphans) EXPECT_LT(index.memory_size_bytes(), full - count * 14) << "it shrinks";
    }
  }
}

// ---------------------------------------------------------------- choices

RegionIndex plain_victim(const SsdIndex& index, const std::set<RegionIndex>& eligible) {
  std::vector<RegionIndex> by_age(eligible.begin(), eligible.end());
  std::stable_sort(by_age.begin(), by_age.end(), [&](RegionIndex a, RegionIndex b) {
    return index.region(a).sequence < index.region(b).sequence;
  });
  if (by_age.empty()) return kNoRegion;
  for (const RegionIndex region : by_age) {
    if (index.region(region).page_count == 0) return region;
  }
  const auto half = static_cast<ptrdiff_t>(std::max<size_t>(1, by_age.size() / 2));
  by_age.erase(by_age.begin() + half, by_age.end());
  RegionIndex best = by_age[0];
  for (const RegionIndex region : by_age) {
    if (index.region(region).reused_bytes < index.region(best).reused_bytes) best = region;
  }
  return best;
}

TEST(SsdIndex, ChoosesTheVictimThatItsRuleNames) {
  HICACHE_TRACE_SEED();
  Random random(650);
  std::map<RegionIndex, int> seen;
  for (int world = 0; world < 2000; ++world) {
    SsdIndex index(0);
    const uint64_t region_count = random.between(1, 9);
    std::set<RegionIndex> eligible;
    uint64_t sequence = 0;
    for (RegionIndex region = 0; region < region_count; ++region) {
      index.add_region();
      if (!random.one_in(5)) index.begin_region(region, random.below(8));
      if (!random.one_in(4)) eligible.insert(region);
      for (uint64_t pages = random.below(random.one_in(4) ? 1 : 4) + !random.one_in(9); pages > 0;
           --pages) {
        ++sequence;
        index.insert(page_of(sequence, region, sequence));
        if (random.one_in(2)) index.note_read(index.find(0, key_of(sequence)));
      }
    }
    const auto is_eligible = [&](RegionIndex region) { return eligible.contains(region); };
    const RegionIndex victim = index.choose_victim(is_eligible);
    ASSERT_EQ(victim, plain_victim(index, eligible));
    ++seen[victim];
  }
  EXPECT_EQ(seen.size(), 10U) << "each of nine regions, and none";
}

/// The rule of choose_rewrites() as a text would put it, page by page and chain by chain.
class PlainRewrites {
 public:
  PlainRewrites(const SsdIndex& index, RegionIndex region, std::set<uint64_t> dram)
      : index_(index), region_(region), dram_(std::move(dram)), pages_(index.pages_of(region)) {}

  std::vector<SsdPageIndex> choose(uint64_t bytes_max) const {
    std::vector<SsdPageIndex> wanted = pages_;
    std::stable_sort(wanted.begin(), wanted.end(), [this](SsdPageIndex a, SsdPageIndex b) {
      const auto rank = [this](SsdPageIndex page) {
        return std::pair(index_[page].reads, index_[page].child_count > 0);
      };
      return rank(a) > rank(b);
    });
    std::set<SsdPageIndex> chosen;
    uint64_t left = bytes_max;
    for (const SsdPageIndex page : wanted) {
      if (index_[page].reads == 0 && index_[page].child_count == 0) continue;
      std::set<SsdPageIndex> chain;
      if (!climbs_out(page, chain)) continue;
      uint64_t size = 0;
      for (const SsdPageIndex one : chain) {
        if (!chosen.contains(one)) size += size_on_disk(index_[one].size);
      }
      if (size > left) continue;
      left -= size;
      chosen.insert(chain.begin(), chain.end());
    }
    std::vector<SsdPageIndex> ordered;
    for (const SsdPageIndex page : pages_) {
      if (chosen.contains(page)) ordered.push_back(page);
    }
    return ordered;
  }

 private:
  /// Whether its chain can be reached; the part of it in this region comes into `chain`.
  bool climbs_out(SsdPageIndex page, std::set<SsdPageIndex>& chain) const {
    if (!chain.insert(page).second) return false;  // Round in a circle.
    const uint64_t parent_hash = index_[page].parent_hash;
    if (parent_hash == 0) return true;
    for (RegionIndex region = 0; region < index_.region_count(); ++region) {
      for (const SsdPageIndex other : index_.pages_of(region)) {
        if (hash_of(index_[other]) != parent_hash) continue;
        return region != region_ || climbs_out(other, chain);
      }
    }
    return dram_.contains(parent_hash);
  }

  const SsdIndex& index_;
  RegionIndex region_;
  std::set<uint64_t> dram_;
  std::vector<SsdPageIndex> pages_;
};

TEST(SsdIndex, ChoosesTheRewritesThatItsRuleNames) {
  HICACHE_TRACE_SEED();
  Random random(660);
  uint64_t chosen_count = 0;
  for (int world = 0; world < 3000; ++world) {
    SsdIndex index(0);
    for (int i = 0; i < 2; ++i) index.add_region();
    const uint64_t key_count = random.between(1, 16);
    std::set<uint64_t> dram;
    std::vector<uint64_t> order(key_count);
    for (uint64_t n = 0; n < key_count; ++n) order[n] = n;
    for (uint64_t n = key_count; n > 1; --n) std::swap(order[n - 1], order[random.below(n)]);
    for (const uint64_t n : order) {
      // Some are nowhere, some in the other region; parents may lie anywhere, in circles too.
      if (random.one_in(5)) dram.insert(page_hash(0, key_of(n)));
      if (random.one_in(6)) continue;
      SsdPage page = page_of(n, random.one_in(4) ? 1 : 0, n + 1);
      const bool is_tame = random.one_in(2);
      const uint64_t parent = is_tame ? n - std::min<uint64_t>(n, 1) : random.below(key_count);
      if (parent != n || random.one_in(20)) page.parent_hash = page_hash(0, key_of(parent));
      page.size = static_cast<uint32_t>(random.size_up_to(4 * kSectorSize));
      index.insert(page);
      for (uint64_t reads = random.below(4); reads > 0; --reads) {
        index.note_read(index.find(0, page.key));
      }
    }
    const auto is_in_dram = [&](uint64_t hash) { return dram.contains(hash); };
    for (const uint64_t sectors : {uint64_t{0}, random.below(20), uint64_t{1000}}) {
      const uint64_t bytes_max = sectors * kSectorSize + random.below(kSectorSize);
      const auto chosen = index.choose_rewrites(0, bytes_max, is_in_dram);
      ASSERT_EQ(chosen, PlainRewrites(index, 0, dram).choose(bytes_max)) << world;
      uint64_t size = 0;
      for (const SsdPageIndex page : chosen) size += size_on_disk(index[page].size);
      ASSERT_LE(size, bytes_max);
      chosen_count += chosen.size();
    }
  }
  EXPECT_GT(chosen_count, 3000U);
}

TEST(SsdIndex, ALeafThatNobodyReadIsNotRewritten) {
  SsdIndex index(0);
  index.add_region();
  SsdPage root = page_of(0, 0, 1);
  SsdPage leaf = page_of(1, 0, 2);
  leaf.parent_hash = hash_of(root);
  SsdPage lost = page_of(2, 0, 3);
  lost.parent_hash = page_hash(0, key_of(77));
  for (const SsdPage& page : {root, leaf, lost}) index.insert(page);
  index.note_read(index.find(0, lost.key));
  using Pages = std::vector<SsdPageIndex>;
  const SsdPageIndex root_index = index.find(0, root.key);
  const SsdPageIndex leaf_index = index.find(0, leaf.key);
  EXPECT_EQ(index.choose_rewrites(0, kMiB, kNotInDram), Pages{root_index});
  EXPECT_EQ(index.choose_rewrites(0, kMiB, [&](uint64_t hash) { return hash == lost.parent_hash; }),
            (Pages{root_index, index.find(0, lost.key)}));
  index.note_read(leaf_index);
  EXPECT_EQ(index.choose_rewrites(0, kMiB, kNotInDram), (Pages{root_index, leaf_index}));
  EXPECT_EQ(index.choose_rewrites(0, kSectorSize, kNotInDram), Pages{root_index})
      << "the leaf does not fit with its parent, the parent does";
}

}  // namespace
}  // namespace hicache
