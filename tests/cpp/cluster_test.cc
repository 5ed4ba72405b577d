// Real nodes and a real directory: what nodes have is what the directory says, whatever happens to
// pages, nodes and masters.
#include <gtest/gtest.h>

#include <map>

#include "child_process.h"
#include "cluster_rig.h"
#include "ssd_bench.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::client_options;
using testing::cluster_options;
using testing::connected_client;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::kPatienceMs;
using testing::kTestNamespace;
using testing::node_options;
using testing::SimpleClient;
using testing::socket_name;
using testing::soon;
using testing::start_server;
using testing::stat_of;

constexpr uint64_t kPageSize = 64 * kKiB;

std::unique_ptr<Node> start_member(const Node::Options& options) {
  auto node = Node::start(options);
  EXPECT_TRUE(node.ok()) << node.status().message();
  return node.ok() ? std::move(node.value()) : nullptr;
}

class ClusterTest : public ::testing::Test {
 protected:
  ClusterTest() { lead(1); }

  /// A master without memory of the one before, at the same place.
  void lead(uint64_t epoch) {
    DirectoryServer::Options options = testing::server_options();
    options.port_min = options.port_max = port_;
    server_ = start_server(options, epoch);
    port_ = server_->port();
  }

  Node::Options options(const std::string& name, uint64_t pool_size = 16 * kMiB) const {
    Node::Options options = node_options(socket_name(), pool_size);
    options.cluster = cluster_options(port_, name);
    return options;
  }

  /// Where the directory says that page n is: node name -> tiers.
  std::map<std::string, uint8_t> places(uint64_t n) {
    std::map<std::string, uint8_t> found;
    auto asker = connected_client(client_options({port_}));
    LocateRequest request;
    request.digest = kTestNamespace;
    request.replicas_max = kReplicasMax;
    request.keys = {key_of(n)};
    const auto reply = asker->call<LocateReply>(std::move(request), soon());
    if (!reply.ok()) return found;
    for (const MemberView& member : server_->members()) {
      for (const Replica& replica : reply.value().replicas) {
        if (replica.node == member.index) found[member.member.name] = replica.tiers;
      }
    }
    return found;
  }
  using Places = std::map<std::string, uint8_t>;
  bool settles(uint64_t n, const Places& expected) {
    return eventually(kPatienceMs, [&] { return places(n) == expected; });
  }

  uint16_t port_ = 0;
  std::unique_ptr<DirectoryServer> server_;
};

TEST_F(ClusterTest, WhatIsPutIsLocatedAndWhatIsRemovedIsNot) {
  auto one = start_member(options("one"));
  auto two = start_member(options("two"));
  SimpleClient a(one->socket_path());
  SimpleClient b(two->socket_path());
  ASSERT_EQ(a.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  ASSERT_EQ(b.put(key_of(2), bytes_of(2, kPageSize)), Code::kOk);
  EXPECT_TRUE(settles(1, {{"one", kInDram}}));
  EXPECT_TRUE(settles(2, {{"two", kInDram}}));
  ASSERT_EQ(b.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  EXPECT_TRUE(settles(1, {{"one", kInDram}, {"two", kInDram}}));
  std::vector<Code> codes;
  a.client.remove(a.space, keys_of(1, 1), codes);
  EXPECT_TRUE(settles(1, {}));  // Wherever it was.
  EXPECT_EQ(stat_of(*one, "cluster_joined"), 1U);
  one->stop();
  two->stop();  // They say farewell: nobody has to probe.
  EXPECT_EQ(stat_of(*server_, "nodes_gone"), 2U);
}

TEST_F(ClusterTest, WhatIsEvictedIsLocatedNoMore) {
  auto node = start_member(options("one", 2 * kMiB));
  SimpleClient client(node->socket_path());
  constexpr uint64_t kCount = 100;
  for (uint64_t n = 0; n < kCount; ++n) {
    ASSERT_EQ(client.put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
  }
  for (uint64_t n = 0; n < kCount; ++n) {
    const bool is_here = client.lookup(key_of(n)) == Code::kOk;
    EXPECT_TRUE(settles(n, is_here ? Places{{"one", kInDram}} : Places{})) << n;
  }
}

TEST_F(ClusterTest, WhatWentToAnSsdIsLocatedThereAndAfterARestart) {
  const testing::TestFolder folder;
  const auto ssd_options = [&] {
    Node::Options made =
        testing::ssd_node_options(socket_name(), {folder.path() + "/kv"}, {.write_through = true});
    made.cluster = cluster_options(port_, "one");
    return made;
  };
  {
    auto node = start_member(ssd_options());
    SimpleClient client(node->socket_path());
    ASSERT_EQ(client.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
    EXPECT_TRUE(settles(1, {{"one", kInDram | kOnSsd}}));
    EXPECT_TRUE(node->flush(kPatienceMs));
  }
  EXPECT_TRUE(settles(1, {}));
  auto node = start_member(ssd_options());
  EXPECT_TRUE(settles(1, {{"one", kOnSsd}}));
}

TEST_F(ClusterTest, ANewMasterIsToldEverything) {
  auto one = start_member(options("one"));
  SimpleClient client(one->socket_path());
  for (uint64_t n = 0; n < 50; ++n) {
    ASSERT_EQ(client.put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
  }
  EXPECT_TRUE(settles(49, {{"one", kInDram}}));
  server_->stop();
  server_.reset();
  // Without a master the node serves as ever.
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*one, "cluster_joined") == 0; }));
  ASSERT_EQ(client.put(key_of(50), bytes_of(50, kPageSize)), Code::kOk);
  EXPECT_EQ(client.lookup(key_of(3)), Code::kOk);
  lead(2);
  for (uint64_t n = 0; n <= 50; ++n) EXPECT_TRUE(settles(n, {{"one", kInDram}})) << n;
}

TEST_F(ClusterTest, AMasterThatComesLaterIsJoined) {
  server_->stop();
  server_.reset();
  auto one = start_member(options("one"));
  SimpleClient client(one->socket_path());
  ASSERT_EQ(client.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  lead(1);
  EXPECT_TRUE(settles(1, {{"one", kInDram}}));
}

TEST_F(ClusterTest, ClearingANamespaceClearsItEverywhereButNotWhatIsPutAfterwards) {
  auto one = start_member(options("one"));
  auto two = start_member(options("two"));
  SimpleClient a(one->socket_path());
  SimpleClient b(two->socket_path());
  for (int round = 0; round < 10; ++round) {
    ASSERT_EQ(a.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
    ASSERT_EQ(b.put(key_of(2), bytes_of(2, kPageSize)), Code::kOk);
    ASSERT_TRUE(settles(1, {{"one", kInDram}}));
    ASSERT_TRUE(settles(2, {{"two", kInDram}}));
    const Result<uint64_t> cleared = a.client.clear(a.space);
    ASSERT_TRUE(cleared.ok()) << cleared.status().message();
    ASSERT_EQ(a.put(key_of(3), bytes_of(3, kPageSize)), Code::kOk);
    EXPECT_TRUE(settles(1, {}));
    EXPECT_TRUE(settles(2, {}));
    const auto orders = static_cast<uint64_t>(round) + 1;
    EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*two, "cluster_orders") == orders; }));
    EXPECT_EQ(stat_of(*two, "pages"), 0U);
    EXPECT_TRUE(settles(3, {{"one", kInDram}}));
    EXPECT_EQ(a.lookup(key_of(3)), Code::kOk);
    EXPECT_EQ(stat_of(*one, "cluster_orders"), 0U);
  }
}

TEST_F(ClusterTest, ClearingWithoutAMasterSaysThatOthersMayKeepTheirs) {
  auto one = start_member(options("one"));
  SimpleClient client(one->socket_path());
  ASSERT_EQ(client.put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  server_->stop();
  server_.reset();
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat_of(*one, "cluster_joined") == 0; }));
  const Result<uint64_t> cleared = client.client.clear(client.space);
  ASSERT_FALSE(cleared.ok());
  EXPECT_EQ(cleared.status().code(), Code::kUnavailable) << cleared.status().message();
  EXPECT_EQ(stat_of(*one, "pages"), 0U);
}

TEST_F(ClusterTest, ANodeThatIsKilledIsLocatedNoMore) {
  ChildProcess killed("cluster_node", {std::to_string(port_), "one", "5", "65536"});
  ASSERT_TRUE(killed.is_ready());
  EXPECT_TRUE(settles(4, {{"one", kInDram}}));
  killed.end();
  EXPECT_TRUE(settles(4, {}));
  EXPECT_EQ(stat_of(*server_, "expiries"), 1U);
}

}  // namespace
}  // namespace hicache
