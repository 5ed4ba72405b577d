#include "base/notice_list.h"

#include <gtest/gtest.h>

namespace hicache {
namespace {

using Texts = std::vector<std::string>;
constexpr uint64_t kRepeatMs = NoticeList::kRepeatMs;

TEST(NoticeList, WhatFailsAgainLaterIsSaidAgain) {
  NoticeList list;
  list.add("disk a is silent", 10);
  list.add("disk a is silent", 9 + kRepeatMs);
  EXPECT_EQ(list.since(0), (Texts{"disk a is silent"}));
  list.add("disk a answers again", 20);
  list.add("disk a is silent", 10 + kRepeatMs);
  EXPECT_EQ(list.since(0), (Texts{"disk a is silent", "disk a answers again", "disk a is silent"}));
  EXPECT_EQ(list.since(1), (Texts{"disk a answers again", "disk a is silent"}));
  EXPECT_EQ(list.count(), 3u);
  EXPECT_EQ(list.since(3), Texts{});
}

TEST(NoticeList, TheNewestAreKept) {
  NoticeList list;
  const uint64_t count = 3 * NoticeList::kCountMax;
  for (uint64_t i = 0; i < count; ++i) list.add(std::to_string(i), i);
  EXPECT_EQ(list.count(), count);
  EXPECT_EQ(list.since(0).size(), NoticeList::kCountMax);
  EXPECT_EQ(list.since(0).front(), std::to_string(count - NoticeList::kCountMax));
  EXPECT_EQ(list.since(count - 1), Texts{std::to_string(count - 1)});
}

}  // namespace
}  // namespace hicache
