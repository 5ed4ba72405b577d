// Removals and replacements at every node that has a page, and what is said of nodes that do not
// answer.
#include <gtest/gtest.h>

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

std::vector<Code> all_of(uint64_t count, Code code) {
  return std::vector<Code>(count, code);
}

std::vector<Code> remove(ClusterNode& node, uint64_t first, uint64_t count) {
  std::vector<Code> codes;
  node.client.client.remove(node.client.space, keys_of(first, count), codes);
  return codes;
}

/// One that has pages 0 … 3 and can be stopped.
struct Owner : ChildProcess {
  explicit Owner(const TestCluster& cluster)
      : ChildProcess("cluster_node",
                     {std::to_string(cluster.port()), "a", "4", std::to_string(kPageSize)}) {
    EXPECT_TRUE(is_ready());
  }
};

std::unique_ptr<ClusterNode> add_hasty(TestCluster& cluster, const std::string& name) {
  ClusterOptions options = cluster.options(name);
  options.peers.call_timeout_ms = 500;
  return cluster.add(options, 64 * kMiB);
}

TEST(RemoteRemoval, AHolderThatDoesNotAnswerLeavesThePageInDoubtAndTheOthersWithoutIt) {
  TestCluster cluster;
  Owner owner(cluster);
  auto b = add_hasty(cluster, "b");
  auto c = add_hasty(cluster, "c");
  c->put(0, 5, kPageSize);
  b->put(1, 1, kPageSize);
  owner.signal(SIGSTOP);
  std::vector<Code> codes;
  EXPECT_LT(duration_ms([&] { codes = remove(*b, 0, 6); }), kSoonMs);
  std::vector<Code> expected = all_of(4, Code::kUnavailable);
  expected.insert(expected.end(), {Code::kOk, Code::kNotFound});
  EXPECT_EQ(codes, expected);
  EXPECT_EQ(stat_of(*b->node, "pages"), 0U);
  EXPECT_EQ(stat_of(*c->node, "pages"), 0U);
  // It is left alone for a while, and not taken for one that has nothing.
  EXPECT_EQ(stat_of(*b->node, "remote_breaker_opens"), 1U);
  EXPECT_EQ(remove(*b, 0, 4), all_of(4, Code::kUnavailable));
  owner.signal(SIGCONT);
  EXPECT_TRUE(eventually(kPatienceMs, [&] {
    codes = remove(*b, 0, 4);
    return codes == all_of(4, Code::kNotFound) || codes == all_of(4, Code::kOk);
  }));
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(cluster.server(), "pages") == 0; }));
}

TEST(RemoteRemoval, WhoHadFoundThePageElsewhereFindsItNoMore) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 4, kPageSize);
  EXPECT_EQ(b->client.lookup(key_of(0)), Code::kOk);
  EXPECT_EQ(remove(*c, 0, 4), all_of(4, Code::kOk));
  // As soon as the directory has heard of it, long before another leader would be known well.
  EXPECT_TRUE(eventually(kSoonMs, [&] { return b->client.lookup(key_of(0)) == Code::kNotFound; }));
}

TEST(RemoteRemoval, AHolderThatDiedHasNothingOnceTheDirectoryKnows) {
  TestCluster cluster;
  Owner owner(cluster);
  auto b = add_hasty(cluster, "b");
  EXPECT_EQ(b->client.lookup(key_of(0)), Code::kOk);
  owner.end();
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return remove(*b, 0, 4) == all_of(4, Code::kNotFound); }));
}

TEST(RemoteRemoval, AReplacementThatAHolderDidNotHearOfSaysSo) {
  TestCluster cluster;
  Owner owner(cluster);
  auto b = add_hasty(cluster, "b");
  owner.signal(SIGSTOP);
  EXPECT_EQ(b->client.put(key_of(0), bytes_of(9, kPageSize), {.replace = true}),
            Code::kUnavailable);
  EXPECT_EQ(b->client.put(key_of(8), bytes_of(8, kPageSize), {.replace = true}), Code::kOk);
  std::vector<uint8_t> bytes;
  EXPECT_EQ(b->client.get(key_of(0), bytes), Code::kOk);
  EXPECT_TRUE(bytes == bytes_of(9, kPageSize));
  owner.signal(SIGCONT);
}

TEST(RemoteRemoval, WithoutAMasterNobodyKnowsWhoElseHasIt) {
  TestCluster cluster;
  auto b = add_hasty(cluster, "b");
  b->put(0, 2, kPageSize);
  cluster.stop_master();
  EXPECT_EQ(remove(*b, 0, 3), all_of(3, Code::kUnavailable));
  EXPECT_EQ(stat_of(*b->node, "pages"), 0U);
}

/// Pages of all nodes together, as the directory has been told.
uint64_t told_count(ClusterNode& node) {
  const auto members = node.directory->call<MembersReply>(MembersRequest{}, testing::soon());
  uint64_t count = 0;
  for (const MemberView& view : members.value().members) count += view.page_count;
  return count;
}

TEST(RemoteRemoval, ReachesMoreHoldersThanTheDirectoryNamesAtATime) {
  constexpr size_t kHolders = kReplicasMax + 4;
  TestCluster cluster;
  std::vector<std::unique_ptr<ClusterNode>> holders;
  for (size_t n = 0; n < kHolders; ++n) {
    ClusterOptions options = cluster.options("holder-" + std::to_string(n));
    options.peers.peers_max = 64;
    holders.push_back(cluster.add(options, 4 * kMiB));
    for (const uint64_t page : {n % 2, size_t{2}}) {
      ASSERT_EQ(holders.back()->client.put(key_of(page), bytes_of(page, kPageSize)), Code::kOk);
    }
  }
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return told_count(*holders[0]) == 2 * kHolders; }));
  EXPECT_EQ(remove(*holders.back(), 0, 4),
            (std::vector<Code>{Code::kOk, Code::kOk, Code::kOk, Code::kNotFound}));
  for (const auto& holder : holders) EXPECT_EQ(stat_of(*holder->node, "pages"), 0U);
}

TEST(RemoteRemoval, OfMoreKeysThanOneQuestionHasRoomForGoesInParts) {
  constexpr uint64_t kCount = kAskedCountMax + 100;
  TestCluster cluster;
  auto a = cluster.add("a", 128 * kMiB);
  auto b = cluster.add("b");
  std::vector<uint8_t> page(64, 7);
  std::vector<Code> codes;
  a->client.client.put(
      a->client.space, keys_of(0, kCount),
      [&](size_t, std::vector<MemorySegment>& segments) {
        segments.push_back({page.data(), page.size()});
      },
      {}, codes);
  ASSERT_EQ(codes, all_of(kCount, Code::kOk));
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return stat_of(cluster.server(), "pages") == kCount; }));
  EXPECT_EQ(remove(*b, 0, kCount), all_of(kCount, Code::kOk));
  EXPECT_EQ(stat_of(*a->node, "pages"), 0U);
  // Who asks for more in one request than a node asks others hears that, and no more.
  auto raw = testing::RawClient::greeted(b->node->socket_path());
  ASSERT_TRUE(raw);
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  const auto reply = raw->call(
      testing::RawClient::keys_frame(NodeOp::kRemove, index, 0, keys_of(0, kAskedCountMax + 1)));
  ASSERT_TRUE(reply && decode_codes(WireReader(*reply), codes));
  std::vector<Code> expected = all_of(kAskedCountMax, Code::kNotFound);
  expected.push_back(Code::kUnavailable);
  EXPECT_EQ(codes, expected);
}

}  // namespace
}  // namespace hicache
