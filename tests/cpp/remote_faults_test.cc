// Remote hits while nodes are stopped, killed, replaced or lie; and of pages that are on SSD alone.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "child_process.h"
#include "cluster_rig.h"
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
using testing::Random;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kCount = 64;
constexpr uint64_t kPageSize = 1 * kMiB;
/// Far less than clients wait for.
constexpr uint64_t kSoonMs = 8000;

/// Budgets as in service, but for a client that waits for long: its calls end without its help.
ClusterOptions hasty_options(const TestCluster& cluster, const std::string& name) {
  ClusterOptions options = cluster.options(name);
  options.peers.lookup_timeout_ms = 500;
  options.peers.stall_timeout_ms = 1000;
  options.peers.call_timeout_ms = 500;
  options.peers.fetch_timeout_ms = 2000;
  return options;
}

/// Reads all pages in one call; none is wrong. Returns how many were there.
uint64_t hits(ClusterNode& node, uint64_t first, uint64_t count) {
  std::vector<std::vector<uint8_t>> pages(count);
  std::vector<Code> codes;
  testing::SimpleClient client(node.node->socket_path(), kPatienceMs);
  client.client.get(
      client.space, keys_of(first, count),
      [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
        pages[i].resize(size);
        segments.push_back({pages[i].data(), size});
        return true;
      },
      codes);
  uint64_t hits = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (codes[i] == Code::kOk) {
      ++hits;
      EXPECT_TRUE(pages[i] == bytes_of(first + i, kPageSize)) << first + i;
    } else {
      EXPECT_TRUE(codes[i] == Code::kNotFound || codes[i] == Code::kBusy) << code_name(codes[i]);
    }
  }
  return hits;
}

TEST(RemoteFaults, AStoppedNodeDelaysNobodyForLong) {
  TestCluster cluster;
  ChildProcess owner("cluster_node", {std::to_string(cluster.port()), "a", "64", "1048576"});
  ASSERT_TRUE(owner.is_ready());
  auto b = cluster.add(hasty_options(cluster, "b"), 256 * kMiB);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return hits(*b, 0, 1) == 1; }));
  owner.signal(SIGSTOP);
  EXPECT_LT(duration_ms([&] { EXPECT_EQ(hits(*b, 1, 8), 0U); }), kSoonMs);
  // Its breaker is open: what it has is missed at once, or found not to answer once more.
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return stat_of(*b->node, "remote_breaker_opens") > 0; }));
  std::vector<Code> codes;
  const auto look_up = [&] {
    b->client.client.lookup(b->client.space, keys_of(1, 8), {true, true}, codes);
  };
  EXPECT_LT(duration_ms(look_up), kSoonMs);
  EXPECT_EQ(codes, std::vector<Code>(8, Code::kNotFound));
  owner.signal(SIGCONT);
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return hits(*b, 1, 8) == 8; }));
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return stat_of(*b->node, "remote_coming_bytes") == 0; }));
}

TEST(RemoteFaults, ANodeThatIsKilledInTheMiddleCostsMissesAlone) {
  HICACHE_TRACE_SEED();
  Random random(7100);
  TestCluster cluster;
  auto b = cluster.add(hasty_options(cluster, "b"), 256 * kMiB);
  auto c = cluster.add(hasty_options(cluster, "c"), 256 * kMiB);
  c->put(1000, 4, kPageSize);
  for (int round = 0; round < 3; ++round) {
    ChildProcess owner("cluster_node", {std::to_string(cluster.port()), "a" + std::to_string(round),
                                        std::to_string(kCount), std::to_string(kPageSize)});
    ASSERT_TRUE(owner.is_ready());
    const uint64_t before = stat_of(*b->node, "remote_fetched_pages");
    std::atomic<bool> has_ended{false};
    std::thread reader([&] {
      EXPECT_LE(hits(*b, 0, kCount), kCount);
      has_ended = true;
    });
    const uint64_t some = random.below(kCount);
    eventually(kPatienceMs, [&] {
      return has_ended || stat_of(*b->node, "remote_fetched_pages") >= before + some;
    });
    if (random.one_in(2)) owner.signal(SIGSTOP);
    owner.end();
    EXPECT_LT(duration_ms([&] { reader.join(); }), kSoonMs);
    // The others go on.
    EXPECT_TRUE(eventually(kPatienceMs, [&] { return hits(*b, 1000, 4) == 4; }));
    std::vector<Code> codes;
    b->client.client.remove(b->client.space, keys_of(0, kCount), codes);
    EXPECT_TRUE(
        eventually(kPatienceMs, [&] { return stat_of(*b->node, "remote_coming_bytes") == 0; }));
  }
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return stat_of(*b->node, "pool_reserved_bytes") == 0; }));
}

TEST(RemoteFaults, AnotherProcessInItsPlaceIsNotTakenForIt) {
  TestCluster cluster;
  auto b = cluster.add(hasty_options(cluster, "b"), 64 * kMiB);
  auto a = cluster.add("a");
  a->put(0, 4, kPageSize);
  // Its successor listens where it did, and has none of its pages.
  ClusterOptions options = cluster.options("a");
  const HostPort address = parse_host_port(a->node->peer_addresses()[0]).value();
  a->node->stop();
  a->node.reset();
  options.port_min = address.port;
  options.port_max = static_cast<uint16_t>(address.port + 1);
  Node::Options successor = testing::node_options(testing::socket_name(), 64 * kMiB);
  successor.cluster = options;
  auto node = Node::start(successor);
  if (!node.ok()) GTEST_SKIP() << "somebody else has the port: " << node.status().message();
  EXPECT_EQ(hits(*b, 0, 4), 0U);
  EXPECT_EQ(stat_of(*b->node, "remote_corrupt_pages"), 0U);
}

TEST(RemoteFaults, PagesOnSsdAloneComeUpAtTheirOwnerFirst) {
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
    a->put(0, 6, kPageSize);
    ASSERT_TRUE(a->node->flush(kPatienceMs));
  }
  auto a = cluster.add(start());
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*a->node, "ssd_pages") == 6; }));
  ASSERT_EQ(stat_of(*a->node, "pages"), 0U);
  a->await_known(keys_of(0, 6));
  ClusterOptions patient = cluster.options("b");
  patient.peers.stall_timeout_ms = kPatienceMs;
  patient.peers.fetch_timeout_ms = kPatienceMs;
  auto b = cluster.add(patient, 64 * kMiB);
  EXPECT_EQ(hits(*b, 0, 3), 3U);
  // With intent.
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(3, 3), {true, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(3, Code::kOk));
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return stat_of(*b->node, "remote_fetched_pages") == 6; }));
  EXPECT_EQ(hits(*b, 0, 6), 6U);
}

TEST(RemoteFaults, AFullPoolMissesAndForgetsNothingThatIsHeld) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add(hasty_options(cluster, "b"), 8 * kMiB);
  a->put(0, 16, kPageSize);
  // All of B's pool is pinned or reserved: nothing can be brought there.
  b->put(100, 3, kPageSize);
  std::vector<Code> codes;
  b->client.client.set_pin(b->client.space, keys_of(100, 3), Pin::kHard, codes);
  EXPECT_TRUE(eventually(kPatienceMs, [&] {
    EXPECT_LE(hits(*b, 0, 16), 5U);
    return stat_of(*b->node, "remote_no_space_pages") > 0;
  }));
  EXPECT_EQ(hits(*b, 100, 3), 3U);
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*a->node, "leases") == 0; }));
}

}  // namespace
}  // namespace hicache
