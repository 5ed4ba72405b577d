// Pages that go down to a real disk and come up again, through a node and real clients.
#include <gtest/gtest.h>

#include <thread>

#include "ssd_bench.h"
#include "ssd_customer.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::key_of;
using testing::kPatienceMs;
using testing::SimpleClient;

class SsdTierTest : public testing::SsdNodeTest {
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
  /// Starts again with these pages on SSD alone.
  void start_with_pages_below(uint64_t count, const testing::SsdSetup& setup = {}) {
    start(setup);
    {
      const auto writer = client();
      put_pages(*writer, 0, count);
    }
    ASSERT_TRUE(node_->flush(kPatienceMs));
    start(setup);
    ASSERT_EQ(stat("ssd_pages"), count);
    ASSERT_EQ(stat("pages"), 0U);
  }
  /// Writes more than twice what the log holds.
  void fill_log(SimpleClient& client, const testing::SsdSetup& setup) {
    for (uint64_t n = 0; n < 2 * setup.size_limit / kPageSize; ++n) {
      put_pages(client, 10'000 + n, 1);
      if (n % 8 != 0) continue;
      ASSERT_TRUE(testing::eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") == 0; }));
    }
  }
  /// What puts find without waiting for a disk.
  uint64_t room() {
    return stat("pool_size_bytes") - stat("pool_used_bytes") + stat("pool_spare_bytes");
  }
  Code remove(SimpleClient& client, uint64_t n) {
    std::vector<Code> codes;
    const Key key = key_of(n);
    client.client.remove(client.space, {&key, 1}, codes);
    return codes.at(0);
  }
};

// ---------------------------------------------------------------- down

TEST_F(SsdTierTest, PagesBeyondThePoolAreReadBackFromTheDisk) {
  start();
  const auto one = client();
  for (uint64_t n = 0; n < 160; ++n) {  // 40 MiB through 16, no faster than the disk takes it.
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
    ASSERT_TRUE(testing::eventually(kPatienceMs, [&] { return room() > kMiB; }));
  }
  EXPECT_EQ(found(*one, 0, 160), 160U);
  EXPECT_EQ(stat("ssd_overrun_pages"), 0U);
  EXPECT_GT(one->client.stats().ssd_hit_pages.load(), 80U);
}

TEST_F(SsdTierTest, PagesBeyondAQuotaAreReadBackFromTheDisk) {
  constexpr uint64_t kQuota = 4 * kMiB;
  start({.quotas = {{"test", kQuota}}});
  const auto one = client();
  const auto has_room = [&] {
    return stat("pool_spare_bytes") >= kPageSize || stat("used_bytes") + kPageSize <= kQuota;
  };
  for (uint64_t n = 0; n < 100; ++n) {  // 25 MiB through 4 of a pool of 16.
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
    ASSERT_LE(stat("used_bytes"), kQuota);
    ASSERT_TRUE(testing::eventually(kPatienceMs, has_room));
  }
  EXPECT_EQ(stat("ssd_overrun_pages"), 0U);
  EXPECT_EQ(stat("put_over_quota_pages"), 0U);
  EXPECT_EQ(found(*one, 0, 100), 100U);
  EXPECT_LE(stat("used_bytes"), kQuota);
  EXPECT_LE(stat("pool_used_bytes"), kQuota);
}

TEST_F(SsdTierTest, PagesOfEverySizeSurviveARestart) {
  const std::vector<uint64_t> sizes{1,    2,     300,     4095,    4096,          4097,
                                    8192, 65535, 131'073, 1 << 20, (1 << 20) + 1, 1'500'000};
  start();
  const auto writer = client();
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (const uint64_t size : sizes) {
      const uint64_t n = size * 4 + static_cast<uint64_t>(repeat);
      ASSERT_EQ(writer->put(key_of(n), bytes_of(n, size)), Code::kOk);
    }
  }
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start();
  const auto reader = client();
  EXPECT_EQ(stat("pages"), 0U);
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (const uint64_t size : sizes) {
      EXPECT_EQ(found(*reader, size * 4 + static_cast<uint64_t>(repeat), 1, size), 1U) << size;
    }
  }
}

TEST_F(SsdTierTest, ScatteredPagesAreWrittenWhole) {
  start();
  const auto one = client();
  // Every second of many small pages is removed: what comes next lies in their gaps.
  for (uint64_t n = 0; n < 200; ++n) {
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, 64 * kKiB)), Code::kOk);
  }
  for (uint64_t n = 0; n < 200; n += 2) remove(*one, n);
  put_pages(*one, 1000, 8, 1 * kMiB + 4096);
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start();
  const auto reader = client();
  EXPECT_EQ(found(*reader, 1000, 8, 1 * kMiB + 4096), 8U);
}

TEST_F(SsdTierTest, WriteThroughWritesEverythingAtOnce) {
  start({.write_through = true});
  const auto one = client();
  put_pages(*one, 0, 20);
  EXPECT_TRUE(settles("ssd_pages", 20));
  EXPECT_EQ(stat("pages"), 20U) << "they stay in the pool";
}

TEST_F(SsdTierTest, PagesStayInThePoolUntilTheirRoomIsNeeded) {
  struct Case {
    std::string what;
    testing::SsdSetup setup;
    uint64_t ttl_ms;
  };
  // The budget becomes scarce at 10 MiB, and is never spent.
  const std::vector<Case> cases{
      {"written", {}, 0},
      {"not written for their time to live", {}, 600'000},
      {"not all written for want of a budget",
       {.write_through = true, .write_budget = 160 * kMiB},
       0},
  };
  for (const auto& [what, setup, ttl_ms] : cases) {
    SCOPED_TRACE(what);
    start(setup);
    const auto one = client();
    const uint64_t first = 1000 * (1 + static_cast<uint64_t>(&what - &cases[0].what));
    for (uint64_t n = first; n < first + 63; ++n) {
      ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize), {.ttl_ms = ttl_ms}), Code::kOk);
    }
    ASSERT_TRUE(testing::eventually(kPatienceMs, [&] { return room() >= 2 * kMiB; }));
    EXPECT_GE(stat("pool_spare_bytes"), 7 * kMiB / 4);
    EXPECT_EQ(stat("evicted_pages"), 0U);
    EXPECT_EQ(found(*one, first, 63), 63U);
    EXPECT_EQ(one->client.stats().ssd_hit_pages, 0U);
    // All were read: none is spare for that, and others are chosen.
    ASSERT_TRUE(testing::eventually(kPatienceMs, [&] { return room() >= kMiB; }));
    put_pages(*one, first + 500, 4);
    EXPECT_EQ(stat("evicted_pages"), 3U);
    EXPECT_EQ(stat("ssd_overrun_pages"), 0U);
  }
}

TEST_F(SsdTierTest, APoolOfTwoPagesTakesEveryPut) {
  for (const bool write_through : {false, true}) {
    start({.pool_size = 2 * kMiB, .write_through = write_through});
    const auto one = client();
    put_pages(*one, write_through ? 100 : 0, 60, kMiB);
    EXPECT_EQ(stat("put_no_space_pages"), 0U);
  }
}

TEST_F(SsdTierTest, PagesThatWaitedToBeWrittenWhenTheyWereClearedStayCleared) {
  const testing::SsdSetup setup{
      .pool_size = 768 * kMiB, .size_limit = 2048 * kMiB, .region_size = 16 * kMiB};
  start(setup);
  {
    const auto one = client();
    put_pages(*one, 0, 2000);
    std::atomic<bool> is_flushed{false};
    std::thread flusher([&] { is_flushed = node_->flush(kPatienceMs); });
    EXPECT_TRUE(testing::eventually(kPatienceMs,
                                    [&] { return is_flushed || stat("ssd_writing_bytes") != 0; }));
    EXPECT_TRUE(one->client.clear(one->space).ok());
    flusher.join();
  }
  start(setup);
  EXPECT_EQ(found(*client(), 0, 2000), 0U);
}

TEST_F(SsdTierTest, APageThatIsDamagedInThePoolIsNotWritten) {
  std::vector<std::string> notices;
  const auto pool = SharedMemory::create({16 * kMiB, HugePages::kAuto, -1}, notices);
  ASSERT_TRUE(pool.ok());
  if (pool.value()->may_be_huge() || !huge_pages_can_be_had()) {
    GTEST_SKIP() << "writes are not copied here";
  }
  start();
  {
    const auto one = client();
    put_pages(*one, 0, 10);
  }
  ASSERT_TRUE(testing::flip_bit_in_pool(bytes_of(4, kPageSize)));
  ASSERT_TRUE(node_->flush(kPatienceMs));
  EXPECT_EQ(stat("ssd_pages"), 9U);
  EXPECT_TRUE(settles("corrupt_pages", 1));
  EXPECT_EQ(stat("pages"), 9U);
  EXPECT_EQ(stat("ssd_failed_directories"), 0U);
  EXPECT_EQ(damage(4, kPageSize), 0) << "it is on the disk";
  start();
  const auto one = client();
  EXPECT_EQ(found(*one, 0, 10), 9U);
  EXPECT_EQ(found(*one, 4, 1), 0U);
}

TEST_F(SsdTierTest, PagesThatAreReplacedAndRemovedWhileTheyAreWrittenComeBackAsTheyWereLast) {
  HICACHE_TRACE_SEED();
  testing::Random random(70);
  const testing::SsdSetup setup{.write_through = true};
  start(setup);
  std::map<uint64_t, uint64_t> sizes;  // Each version of a page has a size of its own.
  {
    const auto one = client();
    for (int step = 0; step < 600; ++step) {
      const uint64_t n = random.below(12);
      if (random.one_in(4)) {
        remove(*one, n);
        sizes.erase(n);
        continue;
      }
      const uint64_t size = random.between(1, 1200) * kKiB;
      if (one->put(key_of(n), bytes_of(n, size), {.replace = true}) == Code::kOk) sizes[n] = size;
    }
  }
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start(setup);
  const auto one = client();
  for (uint64_t n = 0; n < 12; ++n) {
    std::vector<uint8_t> bytes;
    const Code code = one->get(key_of(n), bytes);
    EXPECT_EQ(code == Code::kOk, sizes.contains(n)) << n;
    if (code == Code::kOk) EXPECT_TRUE(bytes == bytes_of(n, sizes[n])) << n;
  }
}

TEST_F(SsdTierTest, PagesWithATimeToLiveAreNotWritten) {
  start({.write_through = true});
  const auto one = client();
  ASSERT_EQ(one->put(key_of(1), bytes_of(1, kPageSize), {.ttl_ms = 60'000}), Code::kOk);
  put_pages(*one, 2, 1);
  ASSERT_TRUE(settles("ssd_pages", 1));
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start();
  EXPECT_EQ(client()->lookup(key_of(1)), Code::kNotFound);
  EXPECT_EQ(stat("ssd_pages"), 1U);
}

TEST_F(SsdTierTest, PinnedPagesStayInThePool) {
  start();
  const auto one = client();
  ASSERT_EQ(one->put(key_of(1), bytes_of(1, kPageSize), {.pin = Pin::kHard}), Code::kOk);
  put_pages(*one, 100, 120);
  const uint64_t before = one->client.stats().ssd_hit_pages;
  EXPECT_EQ(found(*one, 1, 1), 1U);
  EXPECT_EQ(one->client.stats().ssd_hit_pages, before);
}

TEST_F(SsdTierTest, AScarceBudgetTakesOnlyWhatWasReadAndASpentOneNothing) {
  // An eighth of a day's worth is at hand: 8 MiB.
  start({.write_through = true, .write_budget = 64 * kMiB});
  const auto one = client();
  put_pages(*one, 0, 20);
  // How many were admitted before it was scarce depends on the disk.
  ASSERT_TRUE(testing::eventually(kPatienceMs, [&] {
    return stat("ssd_writing_bytes") == 0 && stat("ssd_pages") + stat("ssd_refused_pages") == 20;
  }));
  EXPECT_GE(stat("ssd_pages"), 14U);
  ASSERT_LT(stat("ssd_budget_left_bytes"), 9 * kMiB / 2);
  put_pages(*one, 100, 4);
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] {
    return stat("ssd_pages") + stat("ssd_refused_pages") == 24 && stat("ssd_refused_pages") >= 2;
  }));
  // Beyond the pool everything is dropped that was not read.
  put_pages(*one, 200, 80);
  EXPECT_GT(stat("ssd_overrun_pages") + stat("ssd_refused_pages"), 40U);
  EXPECT_LE(stat("ssd_written_bytes"), 9 * kMiB);
}

// ---------------------------------------------------------------- up

TEST_F(SsdTierTest, ALookUpBringsItsPagesUp) {
  start_with_pages_below(12);
  const auto one = client();
  std::vector<Code> codes;
  one->client.lookup(one->space, testing::keys_of(0, 12), {.lease = true, .prefix = true}, codes);
  EXPECT_EQ(std::count(codes.begin(), codes.end(), Code::kOk), 12);
  EXPECT_TRUE(settles("ssd_staged_pages", 12));
  EXPECT_EQ(found(*one, 0, 12), 12U);
  EXPECT_EQ(one->client.stats().ssd_hit_pages, 0U);
}

TEST_F(SsdTierTest, ForALookUpOfWhatIsInMemoryPagesCountOnceTheyHaveComeUp) {
  start_with_pages_below(12);
  const auto one = client();
  const auto resident = [&](bool prefix) {
    std::vector<Code> codes;
    one->client.lookup(one->space, testing::keys_of(0, 14), {true, prefix, true}, codes);
    return std::count(codes.begin(), codes.end(), Code::kOk);
  };
  EXPECT_EQ(resident(true), 0) << "the first is on the SSD alone";
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] { return resident(true) == 12; }));
  EXPECT_EQ(resident(false), 12) << "two are nowhere";
  EXPECT_EQ(found(*one, 0, 12), 12U);
}

TEST_F(SsdTierTest, PagesComeUpAlsoWhereClientsReadTheDisksAllTheTime) {
  testing::SsdSetup setup;
  setup.size_limit = 256 * kMiB;
  start(setup);
  {
    const auto writer = client();
    for (uint64_t n = 0; n < 300; ++n) {
      put_pages(*writer, n, 1);
      ASSERT_TRUE(testing::eventually(kPatienceMs, [&] { return room() > kMiB; }));
    }
  }
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start(setup);
  ASSERT_EQ(stat("ssd_pages"), 300U);
  std::atomic<bool> is_over{false};
  std::thread reading([&] {
    const auto reader = client();
    while (!is_over) EXPECT_EQ(found(*reader, 20, 280), 280U);
  });
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] { return stat("ssd_hit_pages") > 20; }));
  const auto one = client();
  std::vector<Code> codes;
  one->client.lookup(one->space, testing::keys_of(0, 12), {.lease = true, .prefix = true}, codes);
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] { return stat("ssd_staged_pages") >= 12; }));
  is_over = true;
  reading.join();
}

TEST_F(SsdTierTest, GetsBesideStagingReadTheRightBytes) {
  start_with_pages_below(40);
  const auto one = client();
  const auto other = client();
  std::vector<Code> codes;
  one->client.lookup(one->space, testing::keys_of(0, 40), {.lease = true, .prefix = false}, codes);
  EXPECT_EQ(found(*other, 0, 40), 40U);
  EXPECT_EQ(found(*one, 0, 40), 40U);
}

TEST_F(SsdTierTest, WhatIsRemovedReplacedOrClearedOnItsWayUpStaysSo) {
  HICACHE_TRACE_SEED();
  testing::Random random;
  for (int round = 0; round < 10; ++round) {
    std::filesystem::remove_all(kv());
    start_with_pages_below(30);
    const auto one = client();
    std::vector<Code> codes;
    one->client.lookup(one->space, testing::keys_of(0, 30), {.lease = true, .prefix = false},
                       codes);
    const bool clears = random.one_in(3);
    for (uint64_t n = 0; n < 30 && !clears; n += 2) {
      if (n % 4 == 0) {
        EXPECT_EQ(remove(*one, n), Code::kOk) << n;
      } else {
        const std::vector<uint8_t> newer = bytes_of(500 + n, kPageSize);
        ASSERT_EQ(one->put(key_of(n), newer, {.replace = true}), Code::kOk);
      }
    }
    if (clears) {
      ASSERT_TRUE(one->client.clear(one->space).ok());
    }
    for (uint64_t n = 0; n < 30; ++n) {
      std::vector<uint8_t> bytes;
      const Code code = one->get(key_of(n), bytes);
      if (clears || n % 4 == 0) {
        EXPECT_EQ(code, Code::kNotFound) << n;
      } else {
        ASSERT_EQ(code, Code::kOk) << n;
        EXPECT_EQ(bytes, bytes_of(n % 4 == 2 ? 500 + n : n, kPageSize)) << n;
      }
    }
  }
}

TEST_F(SsdTierTest, SmallPagesComeUpToo) {
  start();
  for (uint64_t n = 0; n < 20; ++n) {
    ASSERT_EQ(client()->put(key_of(n), bytes_of(n, 100 + n * 1000)), Code::kOk);
  }
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start();
  const auto one = client();
  // Beside one that is in its slot already.
  ASSERT_EQ(one->put(key_of(100), bytes_of(100, 300)), Code::kOk);
  // A pin is for memory: the page comes up first.
  std::vector<Code> codes;
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] {
    one->client.set_pin(one->space, testing::keys_of(0, 20), Pin::kHard, codes);
    return codes == std::vector<Code>(20, Code::kOk);
  }));
  for (uint64_t n = 0; n < 20; ++n) EXPECT_EQ(found(*one, n, 1, 100 + n * 1000), 1U) << n;
  EXPECT_EQ(found(*one, 100, 1, 300), 1U);
  EXPECT_EQ(one->client.stats().ssd_hit_pages, 0U);
}

// ---------------------------------------------------------------- reuse

TEST_F(SsdTierTest, PagesThatWereReadInMemoryOutliveTheirRegion) {
  const testing::SsdSetup setup{
      .pool_size = 4 * kMiB, .size_limit = 24 * kMiB, .write_through = true};
  start_with_pages_below(4, setup);
  const auto one = client();
  // A look-up would bring them up too, but promises them for a while.
  std::vector<Code> codes;
  const std::vector<Key> keys = testing::keys_of(0, 4);
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] {
    one->client.set_pin(one->space, keys, Pin::kHard, codes);
    return codes == std::vector<Code>(4, Code::kOk);
  }));
  one->client.set_pin(one->space, keys, Pin::kNone, codes);
  EXPECT_EQ(found(*one, 0, 4), 4U);
  ASSERT_EQ(stat("ssd_hit_pages"), 0U) << "they were read in memory";
  fill_log(*one, setup);
  EXPECT_EQ(found(*one, 0, 4), 4U);
}

TEST_F(SsdTierTest, PagesThatWerePutAgainOutliveTheirRegion) {
  const testing::SsdSetup setup{
      .pool_size = 4 * kMiB, .size_limit = 24 * kMiB, .write_through = true};
  start_with_pages_below(4, setup);
  const auto one = client();
  for (uint64_t n = 0; n < 4; ++n) {
    EXPECT_EQ(one->put(key_of(n), bytes_of(n, kPageSize)), Code::kAlreadyExists);
  }
  ASSERT_EQ(stat("pages"), 0U) << "they are on SSD alone";
  fill_log(*one, setup);
  EXPECT_EQ(found(*one, 0, 4), 4U);
}

// ---------------------------------------------------------------- damage

TEST_F(SsdTierTest, ADamagedPageIsAMissAndForgotten) {
  start_with_pages_below(4);
  ASSERT_EQ(damage(2, kPageSize), 1);
  const auto one = client();
  std::vector<uint8_t> bytes;
  EXPECT_NE(one->get(key_of(2), bytes), Code::kOk);
  EXPECT_TRUE(settles("ssd_corrupt_pages", 1));
  EXPECT_EQ(stat("ssd_pages"), 3U);
  EXPECT_EQ(one->lookup(key_of(2)), Code::kNotFound);
  EXPECT_EQ(one->client.stats().corrupt_pages, 1U);
  EXPECT_EQ(one->put(key_of(2), bytes_of(2, kPageSize)), Code::kOk);
  EXPECT_EQ(found(*one, 0, 4), 4U);
}

TEST_F(SsdTierTest, APageThatCameUpDamagedIsForgottenInBothPlaces) {
  start_with_pages_below(4);
  ASSERT_EQ(damage(2, kPageSize), 1);
  const auto one = client();
  ASSERT_EQ(one->lookup(key_of(2), true), Code::kOk);
  ASSERT_TRUE(settles("ssd_staged_pages", 1));
  std::vector<uint8_t> bytes;
  EXPECT_NE(one->get(key_of(2), bytes), Code::kOk);
  EXPECT_TRUE(settles("ssd_pages", 3));
  EXPECT_EQ(one->lookup(key_of(2)), Code::kNotFound);
  EXPECT_EQ(one->put(key_of(2), bytes_of(2, kPageSize)), Code::kOk);
  EXPECT_EQ(found(*one, 0, 4), 4U);
}

// ---------------------------------------------------------------- leases

TEST_F(SsdTierTest, ARegionIsNotReusedWhileSomebodyReadsThere) {
  testing::SsdSetup setup;
  setup.size_limit = 24 * kMiB;
  setup.write_through = true;
  setup.read_lease_ttl_ms = 600'000;  // Longer than any machine takes to write all that.
  start_with_pages_below(4, setup);
  const auto reader = client();
  const auto writer = client();
  std::vector<uint8_t> bytes;
  const Code code = reader->get(key_of(1), bytes, [&] {
    // Three times the log, while the page is leased and not read yet.
    for (uint64_t n = 1000; n < 1300; ++n) {
      ASSERT_EQ(writer->put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
      if (n % 16 == 0) {
        ASSERT_TRUE(
            testing::eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") == 0; }));
      }
    }
  });
  EXPECT_GT(stat("ssd_dropped_pages"), 100U);
  ASSERT_EQ(code, Code::kOk);
  EXPECT_EQ(bytes, bytes_of(1, kPageSize));
  EXPECT_EQ(reader->client.stats().ssd_hit_pages, 1U);
}

// ---------------------------------------------------------------- everything at once

TEST_F(SsdTierTest, ManyClientsAtRandomFindNothingOldOrTorn) {
  HICACHE_TRACE_SEED();
  const char* given = std::getenv("HICACHE_SSD_RANDOM_S");
  const uint64_t seconds = given != nullptr ? std::strtoull(given, nullptr, 0) : 15;
  start();
  std::vector<std::unique_ptr<testing::Customer>> customers;
  std::vector<std::thread> threads;
  const Deadline until = Deadline::after_ms(seconds * 1000);
  for (uint64_t n = 0; n < 4; ++n) {
    customers.push_back(std::make_unique<testing::Customer>(n, 150, 1 * kMiB));
    ASSERT_TRUE(customers.back()->connect(node_->socket_path()));
    threads.emplace_back([&until, &customer = *customers.back()] {
      while (!until.expired() && customer.is_connected() && !HasFailure()) customer.step();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& customer : customers) {
    EXPECT_TRUE(customer->is_connected());
    EXPECT_GT(customer->hits(), 10U);
    EXPECT_LT(customer->refused() * 5, customer->stored());
    EXPECT_GT(customer->stats().ssd_hit_pages, 0U);
    customer->clear();
  }
  EXPECT_TRUE(settles("ssd_pages", 0));
  EXPECT_TRUE(settles("pool_used_bytes", 0));
}

}  // namespace
}  // namespace hicache
