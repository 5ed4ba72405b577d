// Many threads on a pool that is far too small: everything read is right, nothing leaks or hangs.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "node_bench.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::eventually;
using testing::key_of;
using testing::Random;
using testing::SimpleClient;
using testing::start_node;
using testing::stat_of;

constexpr uint64_t kKeys = 60;

uint64_t size_of(uint64_t key) {
  return 1 + key * 7919 % 200'000;
}

struct Tally {
  std::atomic<uint64_t> hits{0};
  std::atomic<uint64_t> stored{0};
  std::atomic<uint64_t> wrong{0};
};

void put_batch(SimpleClient& client, Random& random, Tally& tally) {
  std::vector<Key> keys;
  std::vector<std::vector<uint8_t>> pages;
  for (uint64_t i = random.between(1, 6); i > 0; --i) {
    const uint64_t key = random.below(kKeys);
    keys.push_back(key_of(key));
    pages.push_back(bytes_of(key, size_of(key)));
  }
  std::vector<Code> codes;
  client.client.put(
      client.space, keys,
      [&](size_t i, std::vector<MemorySegment>& segments) {
        segments.push_back({pages[i].data(), pages[i].size()});
      },
      {.chained = random.one_in(2), .replace = random.one_in(3)}, codes);
  for (const Code code : codes) {
    tally.stored += code == Code::kOk;
    const bool is_expected = code == Code::kOk || code == Code::kAlreadyExists ||
                             code == Code::kNoSpace || code == Code::kCancelled;
    tally.wrong += !is_expected;
    EXPECT_TRUE(is_expected) << "put: " << code_name(code);
  }
}

void get_batch(SimpleClient& client, Random& random, Tally& tally) {
  std::vector<uint64_t> numbers;
  std::vector<Key> keys;
  for (uint64_t i = random.between(1, 8); i > 0; --i) {
    numbers.push_back(random.below(kKeys));
    keys.push_back(key_of(numbers.back()));
  }
  std::vector<Code> codes;
  if (random.one_in(2)) {
    client.client.lookup(client.space, keys, {true, random.one_in(2)}, codes);
  }
  std::vector<std::vector<uint8_t>> read(keys.size());
  client.client.get(
      client.space, keys,
      [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
        read[i].resize(size);
        segments.push_back({read[i].data(), size});
        return true;
      },
      codes);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (codes[i] == Code::kOk) {
      ++tally.hits;
      tally.wrong += read[i] != bytes_of(numbers[i], size_of(numbers[i]));
    } else {
      EXPECT_EQ(codes[i], Code::kNotFound) << code_name(codes[i]);
    }
  }
}

void hammer(SimpleClient& client, uint64_t stream, Tally& tally) {
  Random random(stream);
  for (int round = 0; round < 250; ++round) {
    if (random.one_in(2)) {
      put_batch(client, random, tally);
    } else {
      get_batch(client, random, tally);
    }
    const Key key = key_of(random.below(kKeys));
    std::vector<Code> codes;
    if (random.one_in(20)) client.client.remove(client.space, {&key, 1}, codes);
    if (random.one_in(20)) {
      client.client.set_pin(client.space, {&key, 1}, static_cast<Pin>(random.below(3)), codes);
    }
    if (random.one_in(100)) {
      EXPECT_TRUE(client.client.clear(client.space).ok());
    }
  }
}

void expect_sound(Node& node, const Tally& tally) {
  EXPECT_EQ(tally.wrong, 0U);
  EXPECT_GT(tally.hits, 0U);
  EXPECT_GT(tally.stored, 0U);
  EXPECT_EQ(stat_of(node, "corrupt_pages"), 0U);
  EXPECT_EQ(stat_of(node, "bad_frames"), 0U);
  EXPECT_EQ(stat_of(node, "pool_reserved_bytes"), 0U);
  EXPECT_GT(stat_of(node, "evicted_pages"), 0U);
}

TEST(Hammer, ManyThreadsShareOneClient) {
  HICACHE_TRACE_SEED();
  auto node = start_node(2 * kMiB);
  Tally tally;
  SimpleClient client(node->socket_path(), 20'000, 3);
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] { hammer(client, 100 + i, tally); });
  }
  for (std::thread& thread : threads) thread.join();
  expect_sound(*node, tally);
}

TEST(Hammer, ManyClientsShareOneNode) {
  HICACHE_TRACE_SEED();
  auto node = start_node(2 * kMiB);
  Tally tally;
  std::vector<std::thread> threads;
  std::atomic<bool> done{false};
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      SimpleClient client(node->socket_path(), 20'000, 2);
      hammer(client, 200 + i, tally);
    });
  }
  std::thread watcher([&] {
    while (!done) EXPECT_TRUE(node->stats_json().ok());
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  watcher.join();
  expect_sound(*node, tally);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "clients") == 0; }));
  EXPECT_EQ(stat_of(*node, "leases"), 0U);
}

TEST(Hammer, ReconnectingWhileOthersCall) {
  HICACHE_TRACE_SEED();
  auto first = start_node(2 * kMiB);
  auto second = start_node(2 * kMiB);
  SimpleClient client(first->socket_path(), 20'000, 2);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      Random random(300 + i);
      while (!done) {
        const uint64_t number = random.below(kKeys);
        const std::vector<uint8_t> bytes = bytes_of(number, size_of(number));
        client.put(key_of(number), bytes);
        std::vector<uint8_t> read;
        wrong += client.get(key_of(number), read) == Code::kOk && read != bytes;
      }
    });
  }
  for (int i = 0; i < 60; ++i) {
    const auto& node = i % 2 == 0 ? second : first;
    if (i % 5 == 0) client.client.disconnect();
    EXPECT_TRUE(client.client.connect(node->socket_path(), 5000).ok());
    usleep(5000);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(client.put(key_of(1), bytes_of(1, size_of(1)), {.replace = true}), Code::kOk);
}

}  // namespace
}  // namespace hicache
