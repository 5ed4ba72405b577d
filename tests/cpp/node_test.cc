// A node and its clients over a real socket, in one process.
#include "store/node.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

#include "node_bench.h"
#include "raw_client.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::duration_ms;
using testing::eventually;
using testing::kBusyMs;
using testing::key_of;
using testing::keys_of;
using testing::Random;
using testing::RawClient;
using testing::SimpleClient;
using testing::start_node;
using testing::stat_of;

TEST(Node, StoresPagesOfEverySize) {
  HICACHE_TRACE_SEED();
  Random random(80);
  constexpr uint64_t kPool = 96 * kMiB;
  auto node = start_node(kPool);
  SimpleClient client(node->socket_path());
  std::vector<uint64_t> sizes = {1,     63,     64,      65,      4096,    65535,         65536,
                                 65537, 524288, 1179648, 4497408, 9437184, 33 * kMiB + 5, kPool - 1,
                                 kPool};
  for (int i = 0; i < 20; ++i) sizes.push_back(random.size_up_to(16 * kMiB));
  for (uint64_t i = 0; i < sizes.size(); ++i) {
    const std::vector<uint8_t> bytes = bytes_of(i, sizes[i]);
    ASSERT_EQ(client.put(key_of(i), bytes), Code::kOk) << sizes[i];
    std::vector<uint8_t> read;
    ASSERT_EQ(client.get(key_of(i), read), Code::kOk) << sizes[i];
    ASSERT_TRUE(read == bytes) << sizes[i];
  }
  EXPECT_EQ(client.put(key_of(1000), std::vector<uint8_t>(kPool + 1)), Code::kNoSpace);
  EXPECT_EQ(stat_of(*node, "corrupt_pages"), 0U);
  EXPECT_EQ(stat_of(*node, "leases"), 0U);
}

TEST(Node, TheFirstPutIntoASmallPoolSucceeds) {
  for (int round = 0; round < 10; ++round) {
    auto node = start_node(2 * kMiB);
    SimpleClient client(node->socket_path());
    ASSERT_EQ(client.put(key_of(1), bytes_of(1, kMiB)), Code::kOk) << round;
  }
}

TEST(Node, APageMayOutrunTheGrowthOfThePool) {
  // Room is given out at once; the client itself makes the kernel back what the node has not yet.
  constexpr uint64_t kPage = 320 * kMiB;
  auto node = start_node(kPage);
  SimpleClient client(node->socket_path(), 2000);
  ASSERT_EQ(client.put(key_of(1), std::vector<uint8_t>(kPage, 7)), Code::kOk);
  EXPECT_EQ(stat_of(*node, "pool_grown_bytes"), kPage);
  EXPECT_EQ(stat_of(*node, "put_no_space_pages"), 0U);
}

TEST(Node, ThePoolGrowsToWhatItsClientsContribute) {
  auto options = testing::node_options(testing::socket_name(), 4 * kMiB);
  options.pool_size_max_bytes = 24 * kMiB;
  auto node = Node::start(options);
  ASSERT_TRUE(node.ok()) << node.status().message();
  const auto size = [&] { return stat_of(*node.value(), "pool_size_bytes"); };
  const std::string& path = options.socket_path;
  const auto bytes = bytes_of(1, kMiB);
  // The first two want no more than there is; this one's mapping is older than what follows.
  SimpleClient early(path, 2000, 2, true, 3 * kMiB);
  EXPECT_EQ(size(), 4 * kMiB);
  {
    SimpleClient second(path, 2000, 2, true, 13 * kMiB);
    EXPECT_EQ(size(), 16 * kMiB);
    for (uint64_t i = 0; i < 16; ++i) EXPECT_EQ(second.put(key_of(i), bytes), Code::kOk) << i;
  }
  // It keeps what it has, and a client that comes again contributes no more than it did.
  const SimpleClient again(path, 2000, 2, true, 13 * kMiB);
  EXPECT_EQ(size(), 16 * kMiB);
  EXPECT_EQ(stat_of(*node.value(), "pages"), 16U);
  for (uint64_t i = 0; i < 16; ++i) {
    std::vector<uint8_t> found;
    EXPECT_EQ(early.get(key_of(i), found), Code::kOk) << i;
    EXPECT_EQ(found, bytes) << i;
  }
  // Absurd sums end at what was asked for when it started, and are told of.
  const SimpleClient greedy(path, 2000, 2, true, UINT64_MAX);
  const SimpleClient greedier(path, 2000, 2, true, UINT64_MAX);
  EXPECT_EQ(size(), 24 * kMiB);
  EXPECT_EQ(stat_of(*node.value(), "pool_size_max_bytes"), 24 * kMiB);
  uint64_t known = 0;
  const auto notices = node.value()->notices_since(known);
  EXPECT_TRUE(std::any_of(notices.begin(), notices.end(), [](const std::string& notice) {
    return notice.find("raise pool_size_max") != std::string::npos;
  }));
}

TEST(Node, OneBatchMayNameAKeyTwice) {
  auto node = start_node(4 * kMiB);
  SimpleClient client(node->socket_path());
  const std::vector<Key> keys{key_of(1), key_of(1), key_of(2)};
  std::vector<uint8_t> bytes = bytes_of(1, 1000);
  std::vector<Code> codes;
  client.client.put(
      client.space, keys,
      [&](size_t, std::vector<MemorySegment>& segments) {
        segments.push_back({bytes.data(), bytes.size()});
      },
      {.chained = true}, codes);
  EXPECT_EQ(codes, (std::vector{Code::kOk, Code::kAlreadyExists, Code::kOk}));
  std::vector<std::vector<uint8_t>> read(3, std::vector<uint8_t>(1000));
  client.client.get(
      client.space, keys,
      [&](size_t i, uint64_t, std::vector<MemorySegment>& segments) {
        segments.push_back({read[i].data(), 1000});
        return true;
      },
      codes);
  EXPECT_EQ(codes, std::vector<Code>(3, Code::kOk));
  EXPECT_TRUE(read == std::vector<std::vector<uint8_t>>(3, bytes));
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "leases") == 0; }));
}

TEST(Node, GathersAndScatters) {
  HICACHE_TRACE_SEED();
  Random random(81);
  auto node = start_node(16 * kMiB);
  SimpleClient client(node->socket_path(), 2000, 3);
  for (int round = 0; round < 40; ++round) {
    const std::vector<Key> keys = keys_of(static_cast<uint64_t>(round) * 100, random.between(1, 9));
    std::vector<std::vector<uint8_t>> pages;
    for (size_t i = 0; i < keys.size(); ++i) pages.push_back(bytes_of(i, random.size_up_to(kMiB)));
    const auto cut = [&](std::vector<uint8_t>& page, std::vector<MemorySegment>& segments) {
      for (uint64_t done = 0; done < page.size();) {
        const uint64_t size = std::min(page.size() - done, random.size_up_to(300'000));
        segments.push_back({page.data() + done, size});
        if (random.one_in(4)) segments.push_back({page.data() + done, 0});
        done += size;
      }
    };
    std::vector<Code> codes;
    client.client.put(
        client.space, keys,
        [&](size_t i, std::vector<MemorySegment>& segments) { cut(pages[i], segments); },
        {.chained = true}, codes);
    ASSERT_EQ(codes, std::vector<Code>(keys.size(), Code::kOk));
    std::vector<std::vector<uint8_t>> read(keys.size());
    client.client.get(
        client.space, keys,
        [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
          read[i].resize(size);
          cut(read[i], segments);
          return size == pages[i].size();
        },
        codes);
    ASSERT_EQ(codes, std::vector<Code>(keys.size(), Code::kOk));
    ASSERT_TRUE(read == pages);
  }
}

TEST(Node, APageOfAnotherSizeIsAMiss) {
  auto node = start_node(4 * kMiB);
  SimpleClient client(node->socket_path());
  ASSERT_EQ(client.put(key_of(1), bytes_of(1, 1000)), Code::kOk);
  std::vector<Code> codes;
  const Key key = key_of(1);
  client.client.get(
      client.space, {&key, 1},
      [](size_t, uint64_t size, std::vector<MemorySegment>&) { return size == 999; }, codes);
  EXPECT_EQ(codes[0], Code::kNotFound);
  EXPECT_EQ(client.client.stats().foreign_size_pages, 1U);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "leases") == 0; }));
}

TEST(Node, AFlippedBitIsAMissCountedAndDropped) {
  HICACHE_TRACE_SEED();
  Random random(82);
  auto node = start_node(16 * kMiB);
  SimpleClient client(node->socket_path());
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  const std::vector<uint64_t> sizes = {1, 200, 4096, 700'000, 3 * kMiB};
  for (uint64_t i = 0; i < sizes.size(); ++i) {
    const Key key = key_of(i);
    ASSERT_EQ(client.put(key, bytes_of(i, sizes[i])), Code::kOk);
    const Places places = raw->lease(index, {&key, 1});
    const Extent extent = places.extents[random.below(places.extents.size())];
    raw->pool->address()[extent.offset + random.below(extent.size)] ^=
        static_cast<uint8_t>(1 << random.below(8));
    std::vector<uint8_t> read;
    EXPECT_EQ(client.get(key, read), Code::kCorrupt);
    EXPECT_EQ(client.get(key, read), Code::kNotFound);
    EXPECT_EQ(stat_of(*node, "corrupt_pages"), i + 1);
    EXPECT_EQ(client.client.stats().corrupt_pages, i + 1);
    EXPECT_EQ(client.put(key, bytes_of(i, sizes[i])), Code::kOk) << "the page can come back";
    EXPECT_EQ(client.get(key, read), Code::kOk);
  }
  EXPECT_TRUE(client.client.is_connected());
}

TEST(Node, NoSpaceAtOnceWhenAllIsLeased) {
  auto node = start_node(8 * kMiB);
  SimpleClient client(node->socket_path());
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_EQ(client.put(key_of(i), bytes_of(i, kMiB)), Code::kOk);
  raw->lease(index, keys_of(0, 8));
  EXPECT_LE(
      duration_ms([&] { EXPECT_EQ(client.put(key_of(100), bytes_of(100, 1000)), Code::kNoSpace); }),
      500U);
  raw.reset();
  EXPECT_TRUE(eventually(20'000, [&] {
    return client.put(key_of(100), bytes_of(100, 1000)) == Code::kOk;
  })) << "the reader has gone, and its leases with it";
}

TEST(Node, NamespacesSurviveAReconnect) {
  auto first = start_node(4 * kMiB);
  auto second = start_node(4 * kMiB);
  SimpleClient client(first->socket_path());
  ASSERT_EQ(client.put(key_of(1), bytes_of(1, 100)), Code::kOk);
  const size_t other = client.client.open_namespace(key_of(2), "other");
  ASSERT_TRUE(client.client.connect(second->socket_path(), 1000).ok());
  EXPECT_EQ(client.lookup(key_of(1)), Code::kNotFound);
  EXPECT_EQ(client.put(key_of(1), bytes_of(1, 100)), Code::kOk);
  EXPECT_EQ(client.client.open_namespace(testing::kTestNamespace, ""), client.space);
  EXPECT_NE(other, client.space);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*first, "clients") == 0; }));
  ASSERT_TRUE(client.client.connect(first->socket_path(), 1000).ok());
  EXPECT_EQ(client.lookup(key_of(1)), Code::kOk);
  const Result<uint64_t> cleared = client.client.clear(client.space);
  ASSERT_TRUE(cleared.ok());
  EXPECT_EQ(cleared.value(), 1U);
  std::vector<Code> codes;
  const Key key = key_of(1);
  client.client.lookup(77, {&key, 1}, {false, false}, codes);
  EXPECT_EQ(codes[0], Code::kInvalidArgument) << "a namespace that was never opened";
}

TEST(Node, StopsWhenAskedAndSaysSo) {
  auto node = start_node(4 * kMiB);
  SimpleClient client(node->socket_path());
  EXPECT_EQ(node->idle_ms(), 0U);
  EXPECT_FALSE(node->wait_stopped(10));
  ASSERT_TRUE(client.client.stop_node().ok());
  EXPECT_TRUE(node->wait_stopped(UINT64_MAX));
  EXPECT_EQ(client.lookup(key_of(1)), Code::kNotFound) << "its owner decides when";
  std::thread both[2];
  for (std::thread& thread : both) thread = std::thread([&] { node->stop(); });
  for (std::thread& thread : both) thread.join();
  EXPECT_TRUE(client.client.wait_disconnected(20'000));
  EXPECT_EQ(client.lookup(key_of(1)), Code::kUnavailable);
  EXPECT_EQ(client.put(key_of(1), bytes_of(1, 10)), Code::kUnavailable);
  EXPECT_LE(duration_ms([&] { EXPECT_EQ(node->stats_json().status().code(), Code::kClosed); }),
            kBusyMs);
}

TEST(Node, CountsIdleTime) {
  auto node = start_node(4 * kMiB);
  EXPECT_TRUE(eventually(20'000, [&] { return node->idle_ms() > 0; }));
  {
    SimpleClient client(node->socket_path());
    ASSERT_EQ(client.lookup(key_of(1)), Code::kNotFound);
    EXPECT_EQ(node->idle_ms(), 0U);
  }
  EXPECT_TRUE(eventually(20'000, [&] { return node->idle_ms() > 0; }));
}

TEST(Node, RefusesMoreClientsThanItMayHave) {
  testing::Random random(83);
  auto options = testing::node_options(testing::socket_name(), 4 * kMiB);
  options.clients_max = 3;
  auto node = Node::start(options);
  ASSERT_TRUE(node.ok());
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(RawClient::greeted(options.socket_path));
    ASSERT_TRUE(clients.back());
  }
  EXPECT_FALSE(RawClient::greeted(options.socket_path));
  EXPECT_EQ(stat_of(*node.value(), "rejected_clients"), 1U);
  clients.pop_back();
  EXPECT_TRUE(
      eventually(20'000, [&] { return RawClient::greeted(options.socket_path) != nullptr; }));
}

TEST(Node, SaysWhatIsWrongWithItsOptions) {
  auto small = testing::node_options(testing::socket_name(), 1000);
  EXPECT_EQ(Node::start(small).status().code(), Code::kInvalidArgument);
  auto path = testing::node_options("/tmp/" + std::string(200, 'x'), 4 * kMiB);
  EXPECT_EQ(Node::start(path).status().code(), Code::kInvalidArgument);
  auto huge = testing::node_options(testing::socket_name(), uint64_t{1} << 50);
  huge.huge_pages = HugePages::kAlways;
  EXPECT_EQ(Node::start(huge).status().code(), Code::kNoSpace);
  auto node = start_node(4 * kMiB);
  auto second = testing::node_options(node->socket_path(), 4 * kMiB);
  EXPECT_EQ(Node::start(second).status().code(), Code::kIo) << "the address is in use";
}

TEST(Node, HandsOutNoDescriptorTwice) {
  auto node = start_node(4 * kMiB);
  const auto descriptors = [] {
    size_t count = 0;
    for (int fd = 0; fd < 1024; ++fd) count += fcntl(fd, F_GETFD) >= 0;
    return count;
  };
  {
    SimpleClient warm(node->socket_path());
  }
  ASSERT_TRUE(eventually(20'000, [&] { return stat_of(*node, "clients") == 0; }));
  const size_t before = descriptors();
  for (int i = 0; i < 50; ++i) {
    SimpleClient client(node->socket_path());
    ASSERT_EQ(client.lookup(key_of(1)), Code::kNotFound);
  }
  EXPECT_TRUE(eventually(20'000, [&] { return descriptors() == before; }));
}

TEST(Node, IdlesWithoutUsingTheProcessor) {
  auto node = start_node(4 * kMiB);
  SimpleClient client(node->socket_path());
  ASSERT_EQ(client.put(key_of(1), bytes_of(1, 1000)), Code::kOk);
  const auto used_us = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec * 1'000'000 + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_sec * 1'000'000 + usage.ru_stime.tv_usec;
  };
  const auto before = used_us();
  usleep(400'000);
  EXPECT_LT(used_us() - before, 100'000) << "of 400 ms";
}

TEST(Node, ABatchThatNamesTooManyExtentsIsCut) {
  // One page of 256 scattered slots, asked for 8192 times: 32 MiB of extents, and a frame holds 16.
  constexpr uint64_t kSlots = 512;
  auto node = start_node(kSlots * kSlotSize);
  SimpleClient client(node->socket_path(), 20'000);
  const std::vector<uint8_t> slot = bytes_of(1, kSlotSize);
  for (uint64_t i = 0; i < kSlots; ++i) ASSERT_EQ(client.put(key_of(i), slot), Code::kOk);
  std::vector<Key> leaving;
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  const Places all = raw->lease(index, keys_of(0, kSlots));
  for (uint64_t i = 0; i < kSlots; ++i) {
    const uint64_t slot_number = all.extents_of(all.places[i])[0].offset / kSlotSize;
    if (slot_number % 2 == 0) leaving.push_back(key_of(i));
  }
  RefsRequest refs;
  for (const Place& place : all.places) refs.refs.push_back(place.ref);
  ASSERT_TRUE(raw->send(RawClient::frame_of(NodeOp::kRelease, refs)));
  std::vector<Code> codes;
  client.client.remove(client.space, leaving, codes);
  ASSERT_EQ(client.put(key_of(5000), bytes_of(5000, kSlots / 2 * kSlotSize)), Code::kOk);
  const std::vector<Key> same(8192, key_of(5000));
  const Places places = raw->lease(index, same);
  ASSERT_EQ(places.places.size(), same.size());
  EXPECT_EQ(places.places.front().code, Code::kOk);
  EXPECT_EQ(places.places.front().extents_count, kSlots / 2);
  EXPECT_EQ(places.places.back().code, Code::kBusy);
  for (const Place& place : places.places) {
    if (place.code == Code::kOk) refs.refs.push_back(place.ref);
  }
  ASSERT_TRUE(raw->send(RawClient::frame_of(NodeOp::kRelease, refs)));
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "leases") == 0; }))
      << "the leases of what was cut are gone as well";
}

}  // namespace
}  // namespace hicache
