// What all nodes of a cluster have, as a client of one of them lists it.
#include <gtest/gtest.h>

#include <set>

#include "child_process.h"
#include "cluster_rig.h"
#include "raw_client.h"
#include "ssd_bench.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::ClusterNode;
using testing::duration_ms;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::kPatienceMs;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kPageSize = 4 * kKiB;
constexpr uint64_t kSoonMs = 8000;

struct Listed {
  Code code = Code::kOk;
  std::multiset<uint64_t> keys;  // Hashes.
  uint64_t turns = 0;
  uint64_t heads = 0;
};

Listed list(ClusterNode& node) {
  Listed listed;
  uint64_t cursor = 0;
  while (cursor != kListEnd && listed.code == Code::kOk) {
    ListReply reply;
    listed.code = node.client.client.list(node.client.space, &cursor, reply).code();
    if (listed.code != Code::kOk) break;
    ++listed.turns;
    for (const Key& key : reply.keys) listed.keys.insert(key.hash());
    for (const uint16_t size : reply.head_sizes) listed.heads += size != 0;
  }
  return listed;
}

bool has_each_once(const Listed& listed, uint64_t first, uint64_t count) {
  for (const Key& key : keys_of(first, count)) {
    if (listed.keys.count(key.hash()) != 1) return false;
  }
  return listed.keys.size() == count;
}

TEST(RemoteList, HasWhatAllNodesHave) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 10, kPageSize);
  b->put(10, 10, kPageSize);
  c->put(20, 10, kPageSize);
  for (ClusterNode* node : {a.get(), b.get(), c.get()}) {
    const Listed listed = list(*node);
    EXPECT_EQ(listed.code, Code::kOk);
    EXPECT_TRUE(has_each_once(listed, 0, 30));
    EXPECT_EQ(listed.heads, 20U) << "of those elsewhere; its own it reads for itself";
    EXPECT_EQ(stat_of(*node->node, "pages"), 10U) << "nothing was brought here";
  }
  b->node->stop();
  EXPECT_TRUE(eventually(kPatienceMs, [&] {
    const Listed listed = list(*a);
    return listed.code == Code::kOk && listed.keys.size() == 20;
  }));
}

TEST(RemoteList, GoesOnFromTurnToTurn) {
  constexpr uint64_t kCount = 2 * kListHeadsMax + 10;
  TestCluster cluster;
  auto a = cluster.add("a", 128 * kMiB);
  auto b = cluster.add("b", 128 * kMiB);
  for (ClusterNode* node : {a.get(), b.get()}) {
    std::vector<uint8_t> page(64, 7);
    std::vector<Code> codes;
    node->client.client.put(
        node->client.space, keys_of(node == a.get() ? 0 : kCount, kCount),
        [&](size_t, std::vector<MemorySegment>& segments) {
          segments.push_back({page.data(), page.size()});
        },
        {}, codes);
  }
  const Listed listed = list(*b);
  EXPECT_EQ(listed.code, Code::kOk);
  EXPECT_TRUE(has_each_once(listed, 0, 2 * kCount));
  EXPECT_GE(listed.turns, 4U);
}

TEST(RemoteList, AMemberThatDoesNotAnswerIsNoEnd) {
  TestCluster cluster;
  ChildProcess owner("cluster_node",
                     {std::to_string(cluster.port()), "a", "4", std::to_string(kPageSize)});
  ASSERT_TRUE(owner.is_ready());
  ClusterOptions options = cluster.options("b");
  options.peers.call_timeout_ms = 500;
  auto b = cluster.add(options, 64 * kMiB);
  EXPECT_TRUE(has_each_once(list(*b), 0, 4));
  owner.signal(SIGSTOP);
  Listed listed;
  EXPECT_LT(duration_ms([&] { listed = list(*b); }), kSoonMs);
  EXPECT_EQ(listed.code, Code::kUnavailable);
  EXPECT_EQ(list(*b).code, Code::kUnavailable) << "also while it is left alone";
  owner.signal(SIGCONT);
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return has_each_once(list(*b), 0, 4); }));
  owner.end();
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return list(*b).code == Code::kOk; }));
}

TEST(RemoteList, WithoutAMasterNobodyKnowsWhomToAsk) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 2, kPageSize);
  cluster.stop_master();
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return list(*a).code == Code::kUnavailable; }));
}

TEST(RemoteList, WhatIsOnSsdAloneIsReadByBringingItHere) {
  testing::TestFolder folder;
  TestCluster cluster;
  const testing::SsdSetup setup{.pool_size = 32 * kMiB};
  const auto start = [&] {
    Node::Options options =
        testing::ssd_node_options(testing::socket_name(), {folder.path() + "/kv"}, setup);
    options.cluster = cluster.options("a");
    return options;
  };
  {
    auto a = cluster.add(start());
    a->put(0, 3, kPageSize);
    ASSERT_TRUE(a->node->flush(kPatienceMs));
  }
  auto a = cluster.add(start());
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*a->node, "ssd_pages") == 3; }));
  ASSERT_EQ(stat_of(*a->node, "pages"), 0U);
  a->await_known(keys_of(0, 3));
  auto b = cluster.add("b");
  const Listed listed = list(*b);
  EXPECT_TRUE(has_each_once(listed, 0, 3));
  EXPECT_EQ(listed.heads, 0U);
  std::vector<std::vector<uint8_t>> heads;
  std::vector<Code> codes;
  b->client.client.heads(b->client.space, keys_of(0, 4), {100, true}, heads, codes);
  EXPECT_EQ(codes, (std::vector<Code>{Code::kOk, Code::kOk, Code::kOk, Code::kNotFound}));
  for (uint64_t n = 0; n < 3; ++n) {
    std::vector<uint8_t> page = bytes_of(n, kPageSize);
    page.resize(100);
    EXPECT_TRUE(heads[n] == page);
  }
}

TEST(RemoteList, AClientMayAskForAnyCursor) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 2, kPageSize);
  auto raw = testing::RawClient::greeted(b->node->socket_path());
  ASSERT_TRUE(raw);
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  for (const uint64_t cursor : {kListMembers - 1, kListMembers, kListMembers * 2 - 1,
                                kListMembers * 5000 + 3, kListEnd - 1, kListEnd}) {
    const auto answer =
        raw->call(testing::RawClient::frame_of(NodeOp::kList, ListRequest{index, cursor, 1000}));
    ListReply reply;
    ASSERT_TRUE(answer && decode(WireReader(*answer), reply)) << cursor;
    EXPECT_EQ(reply.code, Code::kOk) << cursor;
    EXPECT_TRUE(reply.cursor > cursor || cursor == kListEnd) << cursor;
  }
}

}  // namespace
}  // namespace hicache
