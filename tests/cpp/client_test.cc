// What a client promises beyond single pages: batches of any size, a clear in the middle, an end.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "fake_node.h"
#include "node_bench.h"
#include "raw_client.h"

namespace hicache {
namespace {

using testing::eventually;
using testing::FakeNode;
using testing::key_of;
using testing::RawClient;
using testing::SimpleClient;
using testing::start_node;
using testing::stat_of;

/// Lets one thread wait until another has come somewhere.
class Gate {
 public:
  void open() {
    std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [this] { return is_open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false;
};

TEST(Client, BatchesOfAnySizeAreSplit) {
  constexpr size_t kCount = kBatchCountMax + 4464;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path(), 5000);
  std::vector<Key> keys;
  for (uint64_t i = 0; i < kCount; ++i) keys.push_back(key_of(i));
  uint64_t value = 0;
  std::vector<Code> codes;
  client.client.put(
      client.space, keys,
      [&](size_t, std::vector<MemorySegment>& segments) {
        segments.push_back({reinterpret_cast<uint8_t*>(&value), sizeof(value)});
      },
      {.chained = true}, codes);
  ASSERT_EQ(codes, std::vector<Code>(kCount, Code::kOk));
  client.client.lookup(client.space, keys, {false, true}, codes);
  EXPECT_EQ(codes, std::vector<Code>(kCount, Code::kOk));
  std::vector<uint64_t> read(kCount, 1);
  client.client.get(
      client.space, keys,
      [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
        segments.push_back({reinterpret_cast<uint8_t*>(&read[i]), size});
        return true;
      },
      codes);
  EXPECT_EQ(codes, std::vector<Code>(kCount, Code::kOk));
  EXPECT_EQ(read, std::vector<uint64_t>(kCount, 0));
  std::vector<Code> removed;
  client.client.remove(client.space, std::span(keys).subspan(3, 1), removed);
  client.client.lookup(client.space, keys, {false, true}, codes);
  EXPECT_EQ(std::count(codes.begin(), codes.end(), Code::kOk), 3);
  client.client.remove(client.space, keys, codes);
  EXPECT_EQ(std::count(codes.begin(), codes.end(), Code::kOk), static_cast<long>(kCount - 1));
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "pages") == 0; }));
}

TEST(Client, AClearEndsThePutsThatItMeets) {
  auto node = start_node(64 * kMiB);
  auto raw = RawClient::greeted(node->socket_path());
  ASSERT_TRUE(raw);
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  const Places first = raw->reserve(index, {key_of(1)}, 1000);
  ASSERT_EQ(first.places[0].code, Code::kOk);
  SimpleClient other(node->socket_path());
  ASSERT_TRUE(other.client.clear(other.space).ok());
  // What was reserved before cannot be committed, and a later range of the same put is refused.
  const auto committed = raw->call(RawClient::frame_of(
      NodeOp::kCommit, CommitRequest{0, 0, {{first.places[0].ref, 1, WriteOutcome::kWritten}}}));
  std::vector<Code> codes;
  ASSERT_TRUE(committed && decode_codes(WireReader(*committed), codes));
  EXPECT_EQ(codes, std::vector<Code>{Code::kCancelled});
  const Places later = raw->places(RawClient::frame_of(
      NodeOp::kReserve,
      ReserveRequest{index, 0, Pin::kNone, first.space, Key{}, {key_of(2)}, {1000}}));
  EXPECT_EQ(later.places.at(0).code, Code::kCancelled);
  EXPECT_NE(later.space, first.space);
  EXPECT_EQ(stat_of(*node, "pages"), 0U);
  EXPECT_EQ(stat_of(*node, "pool_reserved_bytes"), 0U);
}

TEST(Client, DisconnectWaitsForCallsThatTouchMemory) {
  auto node = start_node(16 * kMiB);
  SimpleClient client(node->socket_path());
  ASSERT_EQ(client.put(key_of(1), std::vector<uint8_t>(1000, 1)), Code::kOk);
  Gate inside;
  std::atomic<bool> may_return{false};
  Gate may_go_on;
  std::thread reader([&] {
    std::vector<Code> codes;
    std::vector<uint8_t> target(1000);
    const Key key = key_of(1);
    client.client.get(
        client.space, {&key, 1},
        [&](size_t, uint64_t size, std::vector<MemorySegment>& segments) {
          segments.push_back({target.data(), size});
          inside.open();
          return may_go_on.wait();
        },
        codes);
  });
  ASSERT_TRUE(inside.wait());
  std::thread closer([&] {
    client.client.disconnect();
    EXPECT_TRUE(may_return) << "the call was still running";
  });
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "clients") == 0; }));
  may_return = true;
  may_go_on.open();
  reader.join();
  closer.join();
  EXPECT_FALSE(client.client.is_connected());
}

TEST(Client, ALookUpSaysBeforeItSleeps) {
  auto node = start_node(16 * kMiB);
  SimpleClient client(node->socket_path(), 20'000);
  const Key key = key_of(1);
  ASSERT_EQ(client.put(key, std::vector<uint8_t>(kMiB, 1)), Code::kOk);
  int told = 0;
  std::vector<Code> codes;
  const auto look = [&](uint64_t awake_ms) {
    const Waiting waiting{monotonic_ns() + awake_ms * 1'000'000, [&told] { ++told; }};
    client.client.lookup(client.space, {&key, 1}, {false, false}, codes, &waiting);
  };
  look(20'000);
  EXPECT_EQ(codes, std::vector<Code>{Code::kOk});
  EXPECT_EQ(told, 0);
}

TEST(Client, ALookUpSaysBeforeItWaitsForItsTurn) {
  FakeNode node({}, 0);
  Gate may_answer;
  std::atomic<bool> is_asked{false};
  node.lease = [&](const KeysRequest&) {
    is_asked = true;
    may_answer.wait();
    return FakeNode::Locations();
  };
  SimpleClient client(node.path, 20'000);
  std::thread reader([&] {
    std::vector<uint8_t> bytes;
    EXPECT_NE(client.get(key_of(1), bytes), Code::kOk);
  });
  ASSERT_TRUE(eventually(20'000, [&] { return is_asked.load(); }));
  // It opens the gate itself: if it waited with what it holds, nothing would go on.
  const Waiting waiting{monotonic_ns() + 20'000'000'000, [&] { may_answer.open(); }};
  std::vector<Code> codes;
  const Key key = key_of(2);
  const uint64_t begun_ns = monotonic_ns();
  client.client.lookup(client.space, {&key, 1}, {false, false}, codes, &waiting);
  EXPECT_NE(codes.at(0), Code::kOk) << "the answer to the other call was nonsense";
  EXPECT_LT(monotonic_ns() - begun_ns, 9'000'000'000) << "the gate opened by itself";
  reader.join();
}

TEST(Client, OneThatCannotMapThePoolDoesNotTakeItFromOthers) {
  auto node = start_node(16 * kMiB);
  SimpleClient good(node->socket_path());
  for (uint64_t i = 0; i < 8; ++i) {
    ASSERT_EQ(good.put(key_of(i), std::vector<uint8_t>(kMiB, 1)), Code::kOk);
  }
  // The node's own thread has been everywhere by now: it knows that there is memory.
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "pool_backed_bytes") == 16 * kMiB; }));
  auto raw = RawClient::greeted(node->socket_path());
  ASSERT_TRUE(raw);
  const NamespaceIndex index = raw->open_namespace(testing::kTestNamespace);
  for (uint64_t round = 0; round < 50; ++round) {
    const Places places = raw->reserve(index, {key_of(1000 + round)}, 2 * kMiB);
    ASSERT_EQ(places.places[0].code, Code::kOk) << "round " << round;
    const auto answer = raw->call(RawClient::frame_of(
        NodeOp::kCommit,
        CommitRequest{0, 0, {{places.places[0].ref, 0, WriteOutcome::kUnbacked}}}));
    std::vector<Code> codes;
    ASSERT_TRUE(answer && decode_codes(WireReader(*answer), codes));
    EXPECT_EQ(codes, std::vector<Code>{Code::kNoSpace});
  }
  EXPECT_EQ(stat_of(*node, "pool_grown_bytes"), 16 * kMiB);
  EXPECT_EQ(stat_of(*node, "pages"), 8U);
  EXPECT_EQ(good.put(key_of(99), std::vector<uint8_t>(8 * kMiB, 1)), Code::kOk);
}

}  // namespace
}  // namespace hicache
