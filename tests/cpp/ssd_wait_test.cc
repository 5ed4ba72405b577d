// Puts that wait for a disk rather than push out what it has not yet.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "raw_client.h"
#include "ssd_bench.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::key_of;
using testing::kPatienceMs;
using testing::SimpleClient;

class SsdWaitTest : public testing::SsdNodeTest {
 protected:
  static constexpr uint64_t kPageSize = 256 * kKiB;

  void put_pages(SimpleClient& client, uint64_t first, uint64_t count, uint64_t size = kPageSize) {
    for (uint64_t n = first; n < first + count; ++n) {
      ASSERT_EQ(client.put(key_of(n), bytes_of(n, size)), Code::kOk) << n;
    }
  }
  /// How many of them are there; all have the right bytes.
  static uint64_t found(SimpleClient& client, uint64_t first, uint64_t count,
                        uint64_t size = kPageSize) {
    uint64_t hits = 0;
    for (uint64_t n = first; n < first + count; ++n) {
      std::vector<uint8_t> bytes;
      if (client.get(key_of(n), bytes) != Code::kOk) continue;
      EXPECT_EQ(bytes, bytes_of(n, size)) << n;
      ++hits;
    }
    return hits;
  }
};

TEST_F(SsdWaitTest, PutsThatWaitForTheDiskPushNothingOut) {
  start({.size_limit = 256 * kMiB});
  const auto one = client();
  std::vector<Key> keys;
  std::vector<std::vector<uint8_t>> pages;
  for (uint64_t n = 0; n < 400; ++n) {  // 100 MiB through 16, as fast as it can.
    keys.push_back(key_of(n));
    pages.push_back(bytes_of(n, kPageSize));
  }
  std::vector<Code> codes;
  one->client.put(
      one->space, keys,
      [&](size_t i, std::vector<MemorySegment>& segments) {
        segments.push_back({pages[i].data(), pages[i].size()});
      },
      {.chained = true, .ssd_wait_ms = kPatienceMs}, codes);
  EXPECT_EQ(codes, std::vector<Code>(400, Code::kOk));
  EXPECT_EQ(stat("ssd_overrun_pages"), 0U);
  EXPECT_EQ(stat("ssd_put_waits_in_vain"), 0U);
  EXPECT_EQ(found(*one, 0, 400), 400U);
}

TEST_F(SsdWaitTest, OthersGoOnWhileAPutWaits) {
  start({.size_limit = 256 * kMiB});
  const auto one = client();
  put_pages(*one, 1000, 1, 1000);
  std::atomic<bool> is_over{false};
  std::thread putter([&] {
    for (uint64_t n = 0; n < 300; ++n) {
      EXPECT_EQ(one->put(key_of(n), bytes_of(n, kPageSize), {.ssd_wait_ms = kPatienceMs}),
                Code::kOk);
    }
    is_over = true;
  });
  uint64_t gets = 0;
  for (; !is_over; ++gets) EXPECT_EQ(found(*one, 1000, 1, 1000), 1U) << "over the same connection";
  putter.join();
  EXPECT_GT(gets, 0U);
}

TEST_F(SsdWaitTest, APutWaitsForNoDiskThatMayNotBeWritten) {
  start({.write_budget = 1});
  const auto one = client();
  const uint64_t began_ms = monotonic_ms();
  for (uint64_t n = 0; n < 100; ++n) {
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize), {.ssd_wait_ms = kPatienceMs}), Code::kOk);
  }
  EXPECT_LT(monotonic_ms() - began_ms, kPatienceMs / 2);
  EXPECT_EQ(stat("ssd_put_waits_in_vain"), 0U);
}

TEST_F(SsdWaitTest, AfterAPutThatWaitedInVainNobodyWaitsForAWhile) {
  start({.size_limit = 256 * kMiB});
  {
    auto raw = testing::RawClient::greeted(node_->socket_path());
    const NamespaceIndex index = raw->open_namespace(testing::key_of(7));
    (void)raw->places(testing::RawClient::frame_of(
        NodeOp::kReserve,
        ReserveRequest{
            index, kReserveAgain, Pin::kNone, kAnySpace, Key{}, {key_of(1)}, {kPageSize}}));
  }
  EXPECT_EQ(stat("ssd_put_waits_in_vain"), 1U);
  const auto one = client();
  const uint64_t until_ms = monotonic_ms() + 1000;
  for (uint64_t n = 0; n < 100 && monotonic_ms() < until_ms; ++n) {
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize), {.ssd_wait_ms = kPatienceMs}), Code::kOk);
  }
  EXPECT_EQ(stat("ssd_put_waits"), 0U);
}

}  // namespace
}  // namespace hicache
