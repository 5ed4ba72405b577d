// A node that is about to leave gives its pages to the others.
#include <gtest/gtest.h>

#include <thread>

#include "child_process.h"
#include "cluster_rig.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::ClusterNode;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::soon;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kPageSize = 64 * kKiB;
constexpr uint64_t kPatienceMs = 30'000;

void expect_hits(ClusterNode& node, uint64_t first, uint64_t count) {
  for (uint64_t n = first; n < first + count; ++n) {
    std::vector<uint8_t> read;
    EXPECT_EQ(node.client.get(key_of(n), read), Code::kOk) << n;
    EXPECT_TRUE(read == bytes_of(n, kPageSize)) << n;
  }
}

TEST(Drain, WhatANodeHasIsWithTheOthersBeforeItLeaves) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 200, kPageSize);
  EXPECT_TRUE(a->node->drain(kPatienceMs));
  EXPECT_TRUE(b->is_known(keys_of(0, 200)));
  EXPECT_EQ(stat_of(*a->node, "drained_pages"), 200U);
  EXPECT_EQ(stat_of(*a->node, "drain_given_up_pages"), 0U);
  EXPECT_EQ(stat_of(*a->node, "drain_left_bytes"), 0U);
  expect_hits(*a, 0, 200);  // It serves as ever.
  a.reset();
  expect_hits(*b, 0, 200);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 200U) << "all of them before it left";
}

TEST(Drain, WhatOthersHaveIsNotSentAgain) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 30, kPageSize);
  expect_hits(*b, 0, 20);
  b->await_known(keys_of(0, 20));
  EXPECT_TRUE(a->node->drain(kPatienceMs));
  EXPECT_EQ(stat_of(*a->node, "drained_pages"), 10U);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 30U);
}

TEST(Drain, ByOrderItGoesOnUntilTheOrderIsTakenBack) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 10, kPageSize);
  const auto drain = [&](bool is_on) {
    const auto reply = b->directory->call<PlainReply>(DrainRequest{0, is_on, "a"}, soon());
    ASSERT_TRUE(reply.ok() && reply.value().head.code == Code::kOk);
    ASSERT_TRUE(eventually(kPatienceMs,
                           [&] { return (stat_of(*a->node, "cluster_draining") == 1) == is_on; }));
  };
  drain(true);
  b->await_known(keys_of(0, 10));
  a->put(10, 10, kPageSize);
  b->await_known(keys_of(10, 10));
  drain(false);
  a->put(20, 1, kPageSize);
  b->put(30, 1, kPageSize);
  EXPECT_EQ(stat_of(*a->node, "drain_left_bytes"), 0U);
  EXPECT_FALSE(b->is_known(keys_of(20, 1)));
}

TEST(Drain, WithNobodyElseItEndsAtOnce) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 10, kPageSize);
  EXPECT_FALSE(a->node->drain(600'000));
  expect_hits(*a, 0, 10);
}

TEST(Drain, WithoutAMasterItEndsAtOnce) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 10, kPageSize);
  cluster.stop_master();
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return !a->node->drain(600'000); }));
}

TEST(Drain, OnlyWhatWasReadPushesOthersPagesOut) {
  constexpr uint64_t kPool = 8 * kMiB;
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b", kPool);
  for (uint64_t n = 1000; n < 1000 + kPool / kPageSize; ++n) {
    ASSERT_EQ(b->client.put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
  }
  a->put(0, 20, kPageSize);
  expect_hits(*a, 0, 5);
  EXPECT_TRUE(a->node->drain(kPatienceMs)) << "nobody wants the rest";
  EXPECT_TRUE(b->is_known(keys_of(0, 5)));
  EXPECT_EQ(stat_of(*a->node, "drain_given_up_pages"), 15U);
  EXPECT_FALSE(b->is_known(keys_of(5, 15)));
}

TEST(Drain, WhatTheDirectoryHasNoRoomForIsGivenUpAtOnce) {
  constexpr uint64_t kRoom = 20;
  constexpr uint64_t kPages = 60;
  TestCluster cluster(kRoom);
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  for (uint64_t n = 0; n < kPages; ++n) {
    ASSERT_EQ(a->client.put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
  }
  // Less than what has not been told yet is waited for.
  EXPECT_LT(testing::duration_ms([&] { EXPECT_TRUE(a->node->drain(600'000)); }), 10'000);
  EXPECT_EQ(stat_of(*a->node, "drained_pages"), kRoom);
  EXPECT_EQ(stat_of(*a->node, "drain_given_up_pages"), kPages - kRoom);
  EXPECT_EQ(stat_of(*a->node, "drain_left_bytes"), 0U);
  EXPECT_EQ(stat_of(*b->node, "pages"), kRoom);
  expect_hits(*a, 0, kPages);
}

TEST(Drain, ANodeThatDiesMeanwhileIsReplacedByAnother) {
  TestCluster cluster;
  auto a = cluster.add("a");
  ChildProcess dying("cluster_node", {std::to_string(cluster.port()), "b", "1", "1024"});
  ASSERT_TRUE(dying.is_ready());
  dying.signal(SIGSTOP);  // It is chosen, for it has most room, and does not answer.
  auto c = cluster.add("c");
  a->put(1000, 50, kPageSize);
  bool is_done = false;
  std::thread draining([&] { is_done = a->node->drain(60'000); });
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*a->node, "cluster_draining") == 1; }));
  dying.end();
  draining.join();
  EXPECT_TRUE(is_done);
  EXPECT_TRUE(c->is_known(keys_of(1000, 50)));
}

TEST(Drain, TwoThatLeaveGiveNothingToEachOther) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 20, kPageSize);
  b->put(100, 20, kPageSize);
  bool a_done = false;
  std::thread other([&] { a_done = a->node->drain(kPatienceMs); });
  EXPECT_TRUE(b->node->drain(kPatienceMs));
  other.join();
  EXPECT_TRUE(a_done);
  EXPECT_TRUE(c->is_known(keys_of(0, 20)));
  EXPECT_TRUE(c->is_known(keys_of(100, 20)));
}

}  // namespace
}  // namespace hicache
