#include "tier/key_table.h"

#include <gtest/gtest.h>

#include <unordered_map>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

/// The table beside an unordered_map; `hash_mask` makes hashes collide.
void compare_with_map(uint64_t hash_mask, uint64_t stream) {
  Random random(stream);
  KeyTable table(0);
  std::vector<uint64_t> hashes;  // By page.
  std::vector<uint64_t> names;   // By page: what a key would be.
  std::unordered_map<uint64_t, PageIndex> oracle;
  const auto hash_of = [&](PageIndex page) { return hashes[page]; };
  const auto find = [&](uint64_t name, uint64_t hash) {
    return table.find(hash, [&](PageIndex page) { return names[page] == name; });
  };
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t name = random.below(700);
    const uint64_t hash = (name * 0x9E3779B97F4A7C15) & hash_mask;
    auto known = oracle.find(name);
    ASSERT_EQ(find(name, hash), known == oracle.end() ? kNoPage : known->second);
    if (known == oracle.end()) {
      const auto page = static_cast<PageIndex>(hashes.size());
      hashes.push_back(hash);
      names.push_back(name);
      table.reserve_one(hash_of);
      table.insert(hash, page);
      oracle.emplace(name, page);
    } else if (random.one_in(2)) {
      table.erase(hash, known->second, hash_of);
      oracle.erase(known);
      ASSERT_EQ(find(name, hash), kNoPage);
    }
    ASSERT_EQ(table.count(), oracle.size());
  }
  for (const auto& [name, page] : oracle) {
    ASSERT_EQ(find(name, (name * 0x9E3779B97F4A7C15) & hash_mask), page);
  }
}

TEST(KeyTable, AgreesWithAMap) {
  HICACHE_TRACE_SEED();
  compare_with_map(UINT64_MAX, 10);
}

TEST(KeyTable, AgreesWithAMapWhenTagsAreEqual) {
  HICACHE_TRACE_SEED();
  compare_with_map(0xFFFFFFFF, 11);
}

TEST(KeyTable, AgreesWithAMapWhenPlacesAreEqual) {
  HICACHE_TRACE_SEED();
  compare_with_map(0xFFFFFFFF00000000, 12);
}

TEST(KeyTable, AgreesWithAMapWhenAllHashesAreEqual) {
  HICACHE_TRACE_SEED();
  compare_with_map(0, 13);
}

TEST(KeyTable, AgreesWithAMapAroundTheEnd) {
  HICACHE_TRACE_SEED();
  compare_with_map(0xF00000000000003F, 14);  // Few places, so that runs of entries wrap around.
}

TEST(KeyTable, KeysThatDifferAnywhereHaveDifferentHashes) {
  // Keys may be chosen by people: "user-0000…" and its like must not fall into one place.
  std::unordered_map<uint64_t, int> seen;
  for (size_t byte = 0; byte < kKeySize; ++byte) {
    for (int value = 0; value < 256; ++value) {
      Key key;
      key.bytes.fill('0');
      key.bytes[byte] = static_cast<uint8_t>(value);
      ++seen[key.hash()];
    }
  }
  EXPECT_EQ(seen.size(), kKeySize * 255 + 1);
}

}  // namespace
}  // namespace hicache
