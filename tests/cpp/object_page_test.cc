#include "store/object_page.h"

#include <gtest/gtest.h>

#include <set>

#include "store/client.h"
#include "support.h"

namespace hicache {
namespace {

using testing::Random;

std::string random_name(Random& random, size_t size) {
  std::string name(size, '\0');
  for (char& c : name) c = static_cast<char>(random.below(256));
  return name;
}

TEST(ObjectPage, AHeadTellsItsNameWhateverFollows) {
  Random random;
  for (size_t size = 0; size < 300; ++size) {
    const std::string name = random_name(random, size);
    std::vector<uint8_t> page = object_head(name);
    EXPECT_EQ(page.size() % kObjectHeadUnit, 0U);
    EXPECT_GE(page.size(), 16 + size);
    page.resize(page.size() + random.below(200), 0xAA);
    EXPECT_EQ(object_name(page, object_key(name)), name);
  }
  const std::string longest(kObjectNameSizeMax, 'x');
  EXPECT_EQ(object_head(longest).size(), kObjectHeadSizeMax);
  EXPECT_EQ(object_name(object_head(longest), object_key(longest)), longest);
}

TEST(ObjectPage, BytesThatAreNoHeadOfTheKeyHaveNoName) {
  Random random;
  for (int round = 0; round < 2000; ++round) {
    const std::string name = random_name(random, random.below(100));
    const Key key = object_key(name);
    std::vector<uint8_t> head = object_head(name);
    EXPECT_EQ(object_name(head, object_key(name + "x")), std::nullopt);
    const size_t flipped = random.below(head.size());
    std::vector<uint8_t> wrong = head;
    wrong[flipped] ^= static_cast<uint8_t>(1 + random.below(255));
    EXPECT_EQ(object_name(wrong, key), std::nullopt) << "byte " << flipped;
    head.resize(random.below(head.size()));
    EXPECT_EQ(object_name(head, key), std::nullopt);
  }
}

TEST(ObjectPage, HeadsOfTwoNamesDiffer) {
  Random random;
  std::set<std::string> heads;
  std::set<std::string> names;
  for (int i = 0; i < 2000; ++i) names.insert(random_name(random, random.below(20)));
  for (const std::string& name : names) {
    const std::vector<uint8_t> head = object_head(name);
    heads.emplace(head.begin(), head.end());
  }
  EXPECT_EQ(heads.size(), names.size());
}

}  // namespace
}  // namespace hicache
