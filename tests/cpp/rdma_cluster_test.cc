// Pages between nodes of a cluster over real RDMA devices, and over nothing else.
//
// Runs in the guest kernel (tests/rdma): device rxe0 is one node's, rxe2 the other's.
#include <gtest/gtest.h>

#include <cstdlib>

#include "cluster_rig.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kPageSize = 256 * kKiB;
constexpr uint64_t kPages = 64;

class RdmaCluster : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("HICACHE_GUEST") == nullptr) {
      GTEST_SKIP() << "needs RDMA devices; make test-rdma";
    }
  }
  std::unique_ptr<ClusterNode> add(const std::string& name, const std::string& device) {
    Node::Options options = node_options(socket_name(), 64 * kMiB);
    options.pool_size_max_bytes = 1 * kGiB;
    options.cluster = cluster_.options(name);
    options.cluster->peers.transports = {TransportKind::kRdma};
    options.cluster->peers.rdma_devices = device;
    return cluster_.add(options);
  }

  TestCluster cluster_;
};

TEST_F(RdmaCluster, WhatOneNodeHasIsReadAtAnother) {
  auto a = add("a", "rxe0");
  auto b = add("b", "rxe2");
  // A device has the whole pool registered, so that there is no room to grow.
  EXPECT_EQ(stat_of(*a->node, "pool_size_max_bytes"), 64 * kMiB);
  a->put(0, kPages, kPageSize);
  for (uint64_t n = 0; n < kPages; ++n) {
    std::vector<uint8_t> bytes;
    ASSERT_EQ(b->client.get(key_of(n), bytes), Code::kOk) << n;
    ASSERT_TRUE(bytes == bytes_of(n, kPageSize)) << n;
  }
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), kPages);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_bytes"), kPages * kPageSize);
}

TEST_F(RdmaCluster, ANodeThatStopsHasItsPagesReadByAnother) {
  auto a = add("a", "rxe0");
  auto b = add("b", "rxe2");
  a->put(0, kPages, kPageSize);
  EXPECT_TRUE(a->node->drain(60'000));
  a.reset();
  for (uint64_t n = 0; n < kPages; ++n) {
    std::vector<uint8_t> bytes;
    ASSERT_EQ(b->client.get(key_of(n), bytes), Code::kOk) << n;
    ASSERT_TRUE(bytes == bytes_of(n, kPageSize)) << n;
  }
}

TEST_F(RdmaCluster, ANodeThatIsGoneIsAMissInTime) {
  auto a = add("a", "rxe0");
  auto b = add("b", "rxe2");
  a->put(0, kPages, kPageSize);
  std::vector<uint8_t> bytes;
  ASSERT_EQ(b->client.get(key_of(0), bytes), Code::kOk);
  a.reset();
  for (uint64_t n = 0; n < kPages; ++n) {
    const Code code = b->client.get(key_of(n), bytes);
    ASSERT_EQ(code == Code::kOk, n == 0) << n;
  }
}

}  // namespace
}  // namespace hicache::testing
