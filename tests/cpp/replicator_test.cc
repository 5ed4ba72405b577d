// Pages that were put with replicas have copies at other nodes, and get them again when they are
// lost.
#include <gtest/gtest.h>

#include "child_process.h"
#include "cluster_rig.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ClusterNode;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kPageSize = 64 * kKiB;
constexpr uint64_t kPatienceMs = 30'000;
/// Longer than from one walk over the pool to the next.
constexpr uint64_t kRepairMs = 120'000;

void put_replicated(ClusterNode& node, uint64_t first, uint64_t count, uint8_t replica_count) {
  for (uint64_t n = first; n < first + count; ++n) {
    Client::PutOptions options;
    options.replica_count = replica_count;
    ASSERT_EQ(node.client.put(key_of(n), bytes_of(n, kPageSize), options), Code::kOk);
  }
}

void expect_own(ClusterNode& node, uint64_t first, uint64_t count) {
  const uint64_t before = stat_of(*node.node, "remote_fetched_pages");
  for (uint64_t n = first; n < first + count; ++n) {
    std::vector<uint8_t> read;
    EXPECT_EQ(node.client.get(key_of(n), read), Code::kOk) << n;
    EXPECT_TRUE(read == bytes_of(n, kPageSize)) << n;
  }
  EXPECT_EQ(stat_of(*node.node, "remote_fetched_pages"), before) << "they were there";
}

TEST(Replicator, APagePutWithReplicasOutlivesItsNode) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(1000, 5, kPageSize);
  put_replicated(*a, 0, 50, 2);
  b->await_known(keys_of(0, 50));
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*a->node, "replicated_pages") == 50; }));
  EXPECT_EQ(stat_of(*a->node, "replica_pages"), 50U);
  EXPECT_EQ(stat_of(*b->node, "replica_pages"), 0U) << "their copies are looked after at one node";
  EXPECT_FALSE(b->is_known(keys_of(1000, 5)));
  a.reset();
  expect_own(*b, 0, 50);
}

TEST(Replicator, EachCopyIsAtAnotherNode) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  put_replicated(*a, 0, 20, 3);
  b->await_known(keys_of(0, 20));
  c->await_known(keys_of(0, 20));
  expect_own(*b, 0, 20);
  expect_own(*c, 0, 20);
}

TEST(Replicator, WithTooFewNodesEachHasOneAndALaterNodeGetsItsOwn) {
  TestCluster cluster;
  auto a = cluster.add("a");
  put_replicated(*a, 0, 20, 3);
  auto b = cluster.add("b");
  EXPECT_TRUE(eventually(kRepairMs, [&] { return b->is_known(keys_of(0, 20)); }));
  auto c = cluster.add("c");
  EXPECT_TRUE(eventually(kRepairMs, [&] { return c->is_known(keys_of(0, 20)); }));
}

TEST(Replicator, CopiesThatWereLostAreMadeAnew) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  put_replicated(*a, 0, 20, 2);
  b->await_known(keys_of(0, 20));
  b.reset();
  auto c = cluster.add("c");
  EXPECT_TRUE(eventually(kRepairMs, [&] { return c->is_known(keys_of(0, 20)); }));
}

TEST(Replicator, WhatIsRemovedIsCopiedNoMore) {
  TestCluster cluster;
  auto a = cluster.add("a");
  put_replicated(*a, 0, 20, 2);
  EXPECT_EQ(stat_of(*a->node, "replica_pages"), 20U);
  std::vector<Code> codes;
  a->client.client.remove(a->client.space, keys_of(0, 10), codes);
  EXPECT_EQ(stat_of(*a->node, "replica_pages"), 10U);
  auto b = cluster.add("b");
  EXPECT_TRUE(eventually(kRepairMs, [&] { return b->is_known(keys_of(10, 10)); }));
  EXPECT_EQ(stat_of(*b->node, "pages"), 10U);
}

}  // namespace
}  // namespace hicache
