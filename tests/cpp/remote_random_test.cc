// Several nodes that put, read, look up, remove and restart at random. A page's bytes are a
// function of its key: whatever is read anywhere is that, or a miss.
#include <gtest/gtest.h>

#include <thread>

#include "cluster_rig.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ClusterNode;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::Random;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kPages = 120;
constexpr uint64_t kPoolSize = 16 * kMiB;
constexpr size_t kNodes = 3;
constexpr uint64_t kSoonMs = 30'000;

uint64_t size_of(uint64_t n) {
  constexpr uint64_t kSizes[] = {300, 4096, 12'345, 65'536, 200'000, 524'289, 1'048'576};
  return kSizes[n % std::size(kSizes)];
}

/// What one thread does with one node after the other.
class Visitor {
 public:
  Visitor(std::vector<std::unique_ptr<ClusterNode>>& nodes, uint64_t number)
      : nodes_(nodes), random_(9300 + number) {}

  void step() {
    ClusterNode& node = *nodes_[random_.below(nodes_.size())];
    testing::SimpleClient& client = client_of(node);
    const uint64_t n = random_.below(kPages);
    if (random_.one_in(40)) {
      (void)client.client.clear(client.space);  // While others look its pages up.
      return;
    }
    switch (random_.below(8)) {
      case 0:
      case 1: {
        const Code code = client.put(key_of(n), bytes_of(n, size_of(n)));
        EXPECT_TRUE(code == Code::kOk || code == Code::kAlreadyExists || code == Code::kNoSpace ||
                    code == Code::kCancelled)  // Cleared meanwhile.
            << code_name(code);
        return;
      }
      case 2: {
        std::vector<Code> codes;
        const Key key = key_of(n);
        client.client.remove(client.space, {&key, 1}, codes);
        return;
      }
      case 3:
        return look_up(client, n, random_.one_in(2));
      default:
        return get(client, n, random_.between(1, 12));
    }
  }
  uint64_t hits() const { return hits_; }

 private:
  testing::SimpleClient& client_of(ClusterNode& node) {
    auto& client = clients_[&node];
    if (!client) client = std::make_unique<testing::SimpleClient>(node.node->socket_path(), 20'000);
    return *client;
  }
  void look_up(testing::SimpleClient& client, uint64_t first, bool leases) {
    std::vector<Code> codes;
    client.client.lookup(client.space, keys_of(first, 12), {leases, true}, codes);
    bool is_chained = true;
    for (const Code code : codes) {
      EXPECT_TRUE(code == Code::kOk || code == Code::kNotFound) << code_name(code);
      EXPECT_TRUE(is_chained || code == Code::kNotFound);
      is_chained = is_chained && code == Code::kOk;
    }
  }
  void get(testing::SimpleClient& client, uint64_t first, uint64_t count) {
    std::vector<std::vector<uint8_t>> pages(count);
    std::vector<Code> codes;
    client.client.get(
        client.space, keys_of(first, count),
        [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
          pages[i].resize(size);
          segments.push_back({pages[i].data(), size});
          return true;
        },
        codes);
    for (uint64_t i = 0; i < count; ++i) {
      EXPECT_TRUE(codes[i] == Code::kOk || codes[i] == Code::kNotFound || codes[i] == Code::kBusy)
          << code_name(codes[i]);
      if (codes[i] != Code::kOk) continue;
      ++hits_;
      EXPECT_TRUE(pages[i] == bytes_of(first + i, size_of(first + i))) << first + i;
    }
  }

  std::vector<std::unique_ptr<ClusterNode>>& nodes_;
  Random random_;
  std::map<ClusterNode*, std::unique_ptr<testing::SimpleClient>> clients_;
  uint64_t hits_ = 0;
};

void visit(std::vector<std::unique_ptr<ClusterNode>>& nodes, uint64_t round, int steps) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&nodes, round, steps, t] {
      Visitor visitor(nodes, round * 10 + t);
      for (int i = 0; i < steps; ++i) visitor.step();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(RemoteRandom, WhateverIsReadAnywhereIsRight) {
  HICACHE_TRACE_SEED();
  Random random(9200);
  TestCluster cluster;
  std::vector<std::unique_ptr<ClusterNode>> nodes;
  for (size_t i = 0; i < kNodes; ++i) {
    nodes.push_back(cluster.add("node " + std::to_string(i), kPoolSize));
  }
  for (uint64_t round = 0; round < 3; ++round) {
    visit(nodes, round, 60);
    // One of them begins anew, empty, while the directory still tells of its pages.
    const size_t restarted = random.below(kNodes);
    nodes[restarted].reset();
    nodes[restarted] = cluster.add("node " + std::to_string(restarted), kPoolSize);
  }
  visit(nodes, 99, 60);
  for (const auto& node : nodes) {
    const auto settles = [&](const std::string& name) {
      return eventually(kSoonMs, [&] { return stat_of(*node->node, name) == 0; });
    };
    EXPECT_TRUE(settles("remote_coming_bytes"));
    EXPECT_TRUE(settles("pool_reserved_bytes"));
    EXPECT_EQ(stat_of(*node->node, "remote_corrupt_pages"), 0U);
    EXPECT_EQ(stat_of(*node->node, "corrupt_pages"), 0U);
  }
}

TEST(RemoteRandom, WhatALookUpPromisesAGetDelivers) {
  HICACHE_TRACE_SEED();
  Random random(9400);
  TestCluster cluster;
  std::vector<std::unique_ptr<ClusterNode>> nodes;
  for (size_t i = 0; i < kNodes; ++i) {
    nodes.push_back(cluster.add("node " + std::to_string(i), 8 * kPoolSize));
  }
  for (uint64_t n = 0; n < kPages; ++n) {
    ClusterNode& owner = *nodes[random.below(kNodes)];
    if (!random.one_in(10)) owner.put(n, 1, size_of(n));
  }
  for (int round = 0; round < 20; ++round) {
    ClusterNode& reader = *nodes[random.below(kNodes)];
    const std::vector<Key> keys = keys_of(random.below(kPages), random.between(1, 30));
    std::vector<Code> promised;
    reader.client.client.lookup(reader.client.space, keys, {true, true}, promised);
    for (size_t i = 0; i < keys.size() && promised[i] == Code::kOk; ++i) {
      std::vector<uint8_t> bytes;
      EXPECT_EQ(reader.client.get(keys[i], bytes), Code::kOk) << i;
    }
  }
}

}  // namespace
}  // namespace hicache
