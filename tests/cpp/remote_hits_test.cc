// Pages that another node has are found, brought here, verified and served.
#include <gtest/gtest.h>

#include <future>

#include "cluster_rig.h"
#include "raw_client.h"
#include "store/node_link.h"
#include "tls_files.h"

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

/// Reads pages n = first … in one call.
std::vector<Code> get_many(ClusterNode& node, uint64_t first, uint64_t count,
                           std::vector<std::vector<uint8_t>>& pages) {
  pages.assign(count, {});
  std::vector<Code> codes;
  node.client.client.get(
      node.client.space, keys_of(first, count),
      [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
        pages[i].resize(size);
        segments.push_back({pages[i].data(), size});
        return true;
      },
      codes);
  return codes;
}

void expect_hits(ClusterNode& node, uint64_t first, uint64_t count, uint64_t size) {
  std::vector<std::vector<uint8_t>> pages;
  const std::vector<Code> codes = get_many(node, first, count, pages);
  for (uint64_t i = 0; i < count; ++i) {
    EXPECT_EQ(codes[i], Code::kOk) << i;
    EXPECT_TRUE(pages[i] == bytes_of(first + i, size)) << i;
  }
}

/// A client maps the pool: no checksum knows of what it writes after a commit.
void flip_byte(Node& node, const Key& key) {
  auto raw = testing::RawClient::greeted(node.socket_path());
  ASSERT_TRUE(raw);
  const Places places = raw->lease(raw->open_namespace(testing::kTestNamespace), {&key, 1});
  ASSERT_EQ(places.places.at(0).code, Code::kOk);
  raw->pool->address()[places.extents.at(0).offset + 100] ^= 1;
}

TEST(RemoteHits, WhatOneNodeHasIsReadAtAnother) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 20, kPageSize);
  expect_hits(*b, 0, 20, kPageSize);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 20u);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_bytes"), 20 * kPageSize);
  EXPECT_EQ(stat_of(*a->node, "peer_leased_pages"), 20u);
  // Now they are here.
  expect_hits(*b, 0, 20, kPageSize);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 20u);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*a->node, "leases") == 0; }));
}

TEST(RemoteHits, WorkWhereEveryControlConnectionIsTls) {
  const testing::CertificateFolder folder;
  const testing::Authority authority(folder.path(), "cluster");
  TestCluster cluster(authority.member("master"));
  const auto add = [&](const std::string& name, const TlsContext::Files& files) {
    ClusterOptions options = cluster.options(name);
    options.tls = files;
    return cluster.add(options, 64 * kMiB);
  };
  auto a = add("a", authority.member("a"));
  auto b = add("b", authority.member("b"));
  a->put(0, 20, kPageSize);
  expect_hits(*b, 0, 20, kPageSize);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 20u);
  // One that another authority vouches for is not let in; its own pages it has all the same.
  const testing::Authority other(folder.path(), "other");
  Node::Options options = testing::node_options(testing::socket_name(), 64 * kMiB);
  options.cluster = cluster.options("stranger");
  options.cluster->tls = other.member("stranger");
  auto stranger = Node::start(options);
  ASSERT_TRUE(stranger.ok()) << stranger.status().message();
  testing::SimpleClient client(options.socket_path);
  EXPECT_EQ(client.put(key_of(100), bytes_of(100, kPageSize)), Code::kOk);
  EXPECT_TRUE(eventually(20'000, [&] {
    uint64_t known = 0;
    const auto notices = stranger.value()->notices_since(known);
    return std::any_of(notices.begin(), notices.end(), [](const std::string& notice) {
      return notice.find("certificate") != std::string::npos;
    });
  }));
  std::vector<uint8_t> bytes;
  EXPECT_NE(client.get(key_of(0), bytes), Code::kOk);
  EXPECT_EQ(client.get(key_of(100), bytes), Code::kOk);
}

TEST(RemoteHits, AGetFindsWhatIsNoMoreWhereItWas) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 5, kPageSize);
  const std::vector<Key> keys = keys_of(0, 5);
  std::vector<Code> codes;
  c->client.client.lookup(c->client.space, keys, {false, false}, codes);  // They are at a.
  EXPECT_EQ(codes, std::vector<Code>(5, Code::kOk));
  a->client.client.remove(a->client.space, keys, codes);
  b->put(0, 5, kPageSize);
  expect_hits(*c, 0, 5, kPageSize);
}

TEST(RemoteHits, NodesThatAreGoneTakeNobodysPlace) {
  TestCluster cluster;
  ClusterOptions options = cluster.options("reader");
  options.peers.peers_max = 2;
  auto reader = cluster.add(options, 64 * kMiB);
  for (uint64_t n = 0; n < 5; ++n) {
    auto writer = cluster.add("writer");  // Another process each time.
    writer->put(n, 1, kPageSize);
    std::vector<uint8_t> bytes;
    EXPECT_TRUE(eventually(20'000, [&] {
      return reader->client.get(key_of(n), bytes) == Code::kOk;
    })) << n;
  }
}

TEST(RemoteHits, NodesOfOneMachineReadOverWhatTransportsTheyHave) {
  TestCluster cluster;
  ClusterOptions options = cluster.options("a");
  options.peers.transports = {TransportKind::kLocal, TransportKind::kTcp};
  auto a = cluster.add(options, 64 * kMiB);
  options.name = "b";
  auto b = cluster.add(options, 64 * kMiB);
  a->put(0, 20, kPageSize);
  expect_hits(*b, 0, 20, kPageSize);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 20u);
}

TEST(RemoteHits, PagesOfAllSizesArriveWhole) {
  TestCluster cluster;
  auto a = cluster.add("a", 128 * kMiB);
  auto b = cluster.add("b", 128 * kMiB);
  uint64_t n = 0;
  for (const uint64_t size : {uint64_t{1}, uint64_t{777}, 4 * kKiB, 4 * kKiB + 1, 511 * kKiB,
                              512 * kKiB + 1, 4 * kMiB, 5 * kMiB + 3}) {
    a->put(n, 2, size);
    expect_hits(*b, n, 2, size);
    n += 2;
  }
}

TEST(RemoteHits, ManyBytesComeInParts) {
  constexpr uint64_t kCount = 160;  // More than may be on its way at a time, and a part.
  TestCluster cluster;
  auto a = cluster.add("a", 256 * kMiB);
  auto b = cluster.add("b", 256 * kMiB);
  a->put(0, kCount, kMiB);
  auto raw = testing::RawClient::greeted(b->node->socket_path());
  ASSERT_TRUE(raw);
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  const std::vector<Key> keys = keys_of(0, kCount + 1);  // Nobody has the last one.
  const auto codes_of = [&](uint8_t flags) {
    std::vector<Code> codes;
    const auto frame = testing::RawClient::keys_frame(NodeOp::kLease, index, flags, keys, 20'000);
    for (const Place& place : raw->places(frame, 20'000).places) codes.push_back(place.code);
    return codes;
  };
  const std::vector<Code> part = codes_of(kLeaseParts);
  ASSERT_EQ(part.size(), kCount + 1);
  const auto come = static_cast<uint64_t>(std::ranges::count(part, Code::kOk));
  EXPECT_GE(come, 32U);
  EXPECT_LT(come, kCount);
  EXPECT_EQ(std::ranges::count(part, Code::kBusy), static_cast<ptrdiff_t>(kCount + 1 - come));
  std::vector<Code> all(kCount, Code::kOk);
  all.push_back(Code::kNotFound);
  EXPECT_EQ(codes_of(0), all) << "whoever does not ask for parts waits for all";
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), kCount) << "each came once";
}

TEST(RemoteHits, AClientPutsThePartsTogether) {
  TestCluster cluster;
  auto a = cluster.add("a", 256 * kMiB);
  auto b = cluster.add("b", 256 * kMiB);
  a->put(0, 100, kMiB);
  b->client.put(key_of(1000), bytes_of(1000, kMiB));
  a->put(1001, 60, kMiB + 4321);
  expect_hits(*b, 0, 100, kMiB);
  expect_hits(*b, 1000, 1, kMiB);
  std::vector<std::vector<uint8_t>> pages;
  const std::vector<Code> codes = get_many(*b, 1001, 61, pages);
  for (uint64_t i = 0; i < 60; ++i) {
    ASSERT_EQ(codes[i], Code::kOk) << i;
    EXPECT_TRUE(pages[i] == bytes_of(1001 + i, kMiB + 4321)) << i;
  }
  EXPECT_EQ(codes[60], Code::kNotFound);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 160U);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*b->node, "leases") == 0; }));
}

TEST(RemoteHits, ScatteredPagesArriveWhole) {
  TestCluster cluster;
  auto a = cluster.add("a", 16 * kMiB);
  auto b = cluster.add("b", 16 * kMiB);
  // Every other small page goes, so that what comes then has to lie in between.
  for (auto* node : {a.get(), b.get()}) {
    const uint64_t first = node == a.get() ? 1000 : 5000;
    for (uint64_t n = first; n < first + 256; ++n) {
      ASSERT_EQ(node->client.put(key_of(n), bytes_of(n, 60 * kKiB)), Code::kOk);
    }
    std::vector<Key> gone;
    for (uint64_t n = first; n < first + 256; n += 2) gone.push_back(key_of(n));
    std::vector<Code> codes;
    node->client.client.remove(node->client.space, gone, codes);
  }
  a->put(0, 2, 2 * kMiB + 12'345);
  expect_hits(*b, 0, 2, 2 * kMiB + 12'345);
}

TEST(RemoteHits, ALookUpWithIntentBringsTheChainHere) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 30, kPageSize);
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 40), {true, true}, codes);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(codes[i], i < 30 ? Code::kOk : Code::kNotFound) << i;
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*b->node, "remote_fetched_pages") == 30; }));
  expect_hits(*b, 0, 30, kPageSize);
  EXPECT_EQ(stat_of(*a->node, "peer_leased_pages"), 30u);
}

TEST(RemoteHits, ForALookUpOfWhatIsInMemoryPagesCountOnceTheyAreHere) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 8, kPageSize);
  const auto resident = [&] {
    std::vector<Code> codes;
    b->client.client.lookup(b->client.space, keys_of(0, 10), {true, true, true}, codes);
    return std::count(codes.begin(), codes.end(), Code::kOk);
  };
  EXPECT_EQ(resident(), 0);
  EXPECT_TRUE(eventually(20'000, [&] { return resident() == 8; }));
  expect_hits(*b, 0, 8, kPageSize);
}

TEST(RemoteHits, ALookUpWithoutIntentMovesNothing) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 5, kPageSize);
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 6), {false, false}, codes);
  EXPECT_EQ(codes, (std::vector<Code>{Code::kOk, Code::kOk, Code::kOk, Code::kOk, Code::kOk,
                                      Code::kNotFound}));
  EXPECT_EQ(stat_of(*a->node, "peers"), 0u);
  EXPECT_EQ(stat_of(*b->node, "remote_fetched_pages"), 0u);
}

TEST(RemoteHits, AChainEndsAtTheFirstPageThatNobodyHas) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  // 0 … 9 at A but for 6; 2, 3 and 8 here as well.
  a->put(0, 6, kPageSize);
  a->put(7, 3, kPageSize);
  b->put(2, 2, kPageSize);
  b->put(8, 1, kPageSize);
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 10), {true, true}, codes);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(codes[i], i < 6 ? Code::kOk : Code::kNotFound) << i;
  b->client.client.lookup(b->client.space, keys_of(0, 10), {true, false}, codes);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(codes[i], i != 6 ? Code::kOk : Code::kNotFound) << i;
}

TEST(RemoteHits, WhatTheDirectoryWronglySaysIsAMiss) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 3, kPageSize);
  a->lie(keys_of(3, 3));  // It has not.
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 6), {true, true}, codes);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(codes[i], i < 3 ? Code::kOk : Code::kNotFound) << i;
  std::vector<std::vector<uint8_t>> pages;
  const std::vector<Code> read = get_many(*b, 0, 6, pages);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(read[i], i < 3 ? Code::kOk : Code::kNotFound) << i;
  EXPECT_GE(stat_of(*b->node, "remote_stale_pages"), 3u);
}

TEST(RemoteHits, OfTwoReplicasTheOneThatIsThereIsRead) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  // The directory may name either first: each of them lacks two that it is said to have.
  a->put(2, 2, kPageSize);
  c->put(0, 2, kPageSize);
  a->lie(keys_of(0, 2));
  c->lie(keys_of(2, 2));
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 4), {true, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(4, Code::kOk));
  expect_hits(*b, 0, 4, kPageSize);
}

TEST(RemoteHits, TheOtherReplicaIsReadWhenANodeIsGone) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 8, kPageSize);
  c->put(0, 8, kPageSize);
  a->node->stop();
  expect_hits(*b, 0, 8, kPageSize);
}

TEST(RemoteHits, AFlippedByteIsNeverDelivered) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 3, kPageSize);
  flip_byte(*a->node, key_of(1));
  std::vector<std::vector<uint8_t>> pages;
  const std::vector<Code> codes = get_many(*b, 0, 3, pages);
  EXPECT_EQ(codes, (std::vector<Code>{Code::kOk, Code::kNotFound, Code::kOk}));
  EXPECT_EQ(stat_of(*b->node, "remote_corrupt_pages"), 1u);
  // The owner has heard of it.
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*a->node, "corrupt_pages") == 1; }));
  EXPECT_EQ(a->client.lookup(key_of(1)), Code::kNotFound);
}

TEST(RemoteHits, WithAnotherSecretNothingIsLearned) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 3, kPageSize);
  ClusterOptions options = cluster.options("b");
  options.secret = secret_from_text("of another cluster");
  Node::Options stranger = testing::node_options(testing::socket_name(), 64 * kMiB);
  stranger.cluster = options;
  auto b = ClusterNode::started(stranger);
  testing::SimpleClient client(b->socket_path());
  std::vector<uint8_t> bytes;
  EXPECT_EQ(client.get(key_of(0), bytes), Code::kNotFound);
  // Nor does it when it knows where A is.
  auto link = NodeLink::start({.own_name = "b",
                               .address = parse_host_port(a->node->peer_addresses()[0]).value(),
                               .incarnation = a->node->peer_incarnation(),
                               .secret = options.secret,
                               .tls = nullptr,
                               .connect_timeout_ms = 5000,
                               .call_timeout_ms = 5000,
                               .back_off_min_ms = 1,
                               .back_off_max_ms = 1,
                               .calls_max = 1});
  std::promise<Code> answered;
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, PeerKeysRequest{testing::kTestNamespace, 0, keys_of(0, 3)});
  link.value()->ask(NodeOp::kLease, message, [&](Result<NodeLink::Answer> answer) {
    answered.set_value(answer.status().code());
  });
  EXPECT_EQ(answered.get_future().get(), Code::kUnavailable);
  EXPECT_EQ(stat_of(*a->node, "peers"), 0u);
}

TEST(RemoteHits, KnownPagesAreReadWithoutAMaster) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  a->put(0, 6, kPageSize);
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 6), {false, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(6, Code::kOk));
  cluster.stop_master();
  b->client.client.lookup(b->client.space, keys_of(0, 6), {true, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(6, Code::kOk));
  expect_hits(*b, 0, 6, kPageSize);
  // What was not known is missed, and without delay.
  std::vector<uint8_t> bytes;
  EXPECT_EQ(b->client.get(key_of(99), bytes), Code::kNotFound);
}

TEST(RemoteHits, WhatIsRemovedAtOneNodeIsRemovedAtAll) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 4, kPageSize);
  b->put(1, 4, kPageSize);
  std::vector<Code> codes;
  c->client.client.remove(c->client.space, keys_of(0, 6), codes);
  EXPECT_EQ(codes, (std::vector<Code>{Code::kOk, Code::kOk, Code::kOk, Code::kOk, Code::kOk,
                                      Code::kNotFound}));
  for (auto* node : {a.get(), b.get()}) EXPECT_EQ(stat_of(*node->node, "pages"), 0u);
  std::vector<uint8_t> bytes;
  for (auto* node : {a.get(), b.get(), c.get()}) {
    for (uint64_t n = 0; n < 6; ++n) EXPECT_EQ(node->client.get(key_of(n), bytes), Code::kNotFound);
  }
}

TEST(RemoteHits, WhatIsReplacedAtOneNodeIsReadAnewAtAll) {
  TestCluster cluster;
  auto a = cluster.add("a");
  auto b = cluster.add("b");
  auto c = cluster.add("c");
  a->put(0, 2, kPageSize);
  expect_hits(*b, 0, 2, kPageSize);
  b->await_known(keys_of(0, 2));
  std::vector<uint8_t> bytes;
  ASSERT_EQ(c->client.put(key_of(0), bytes_of(77, kPageSize), {.replace = true}), Code::kOk);
  c->await_known({key_of(0)});
  for (auto* node : {a.get(), b.get(), c.get()}) {
    EXPECT_EQ(node->client.get(key_of(0), bytes), Code::kOk);
    EXPECT_TRUE(bytes == bytes_of(77, kPageSize));
    EXPECT_EQ(node->client.get(key_of(1), bytes), Code::kOk);
    EXPECT_TRUE(bytes == bytes_of(1, kPageSize));
  }
}

TEST(RemoteHits, WhatIsRemovedWhileItComesStaysAway) {
  TestCluster cluster;
  auto a = cluster.add("a", 256 * kMiB);
  auto b = cluster.add("b", 256 * kMiB);
  a->put(0, 20, 4 * kMiB);
  std::vector<Code> codes;
  b->client.client.lookup(b->client.space, keys_of(0, 20), {true, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(20, Code::kOk));
  a->client.client.remove(a->client.space, keys_of(0, 20), codes);
  b->client.client.remove(b->client.space, keys_of(0, 20), codes);
  EXPECT_TRUE(eventually(20'000, [&] {
    return stat_of(*b->node, "remote_coming_bytes") == 0 && stat_of(cluster.server(), "pages") == 0;
  }));
  b->client.client.lookup(b->client.space, keys_of(0, 20), {false, false}, codes);
  EXPECT_EQ(codes, std::vector<Code>(20, Code::kNotFound));
}

}  // namespace
}  // namespace hicache
