// A node with an SSD that is killed while it writes, reads and gives up regions, again and again on
// the same directory: what comes back is whole and never older than what was acknowledged.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "child_process.h"
#include "ssd_bench.h"
#include "ssd_customer.h"

namespace hicache {
namespace {

using testing::ChildProcess;
using testing::Customer;
using testing::Random;

constexpr uint64_t kCustomerCount = 2;
constexpr uint64_t kPageCount = 250;
constexpr uint64_t kPageSizeMax = 1 * kMiB;

/// HICACHE_KILL_ROUNDS of the environment.
uint64_t round_count() {
  const char* given = std::getenv("HICACHE_KILL_ROUNDS");
  return given != nullptr ? std::strtoull(given, nullptr, 0) : 200;
}

class SsdKillTest : public testing::SsdNodeTest {
 protected:
  SsdKillTest() {
    for (uint64_t n = 0; n < kCustomerCount; ++n) {
      customers_.push_back(std::make_unique<Customer>(n, kPageCount, kPageSizeMax));
    }
  }

  /// Customers at work until the node is killed under them.
  void live_and_die(bool write_through, Random& random) {
    const std::string path = testing::socket_name();
    ChildProcess node("ssd_node", {path, kv(), write_through ? "through" : "back"});
    ASSERT_TRUE(node.is_ready());
    const bool read_first = random.one_in(4);
    std::atomic<uint64_t> steps{0};
    std::vector<std::thread> threads;
    for (const auto& customer : customers_) {
      ASSERT_TRUE(customer->connect(path));
      threads.emplace_back([&customer, &steps, read_first] {
        if (read_first) customer->get_all();
        for (; customer->is_connected(); ++steps) customer->step();
      });
    }
    // Not by the clock: on a slow machine as much happens in a life as on a fast one.
    const uint64_t life = random.between(20, 1000);
    EXPECT_TRUE(testing::eventually(testing::kPatienceMs, [&] { return steps >= life; }));
    node.end();
    for (std::thread& thread : threads) thread.join();
  }

  uint64_t hits() const {
    uint64_t count = 0;
    for (const auto& customer : customers_) count += customer->hits();
    return count;
  }

  std::vector<std::unique_ptr<Customer>> customers_;
};

TEST_F(SsdKillTest, NothingTornOldOrRemovedComesBack) {
  HICACHE_TRACE_SEED();
  Random random(1);
  const uint64_t rounds = round_count();
  for (uint64_t round = 0; round < rounds && !HasFailure(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    live_and_die(random.one_in(2), random);
  }
  if (HasFailure()) return;
  // What is left: a node that holds pages, serves, and has lost no room.
  start();
  uint64_t from_ssd = 0;
  for (const auto& customer : customers_) {
    from_ssd += customer->stats().ssd_hit_pages;
    ASSERT_TRUE(customer->connect(node_->socket_path()));
    customer->get_all();
  }
  EXPECT_GT(stat("ssd_recovered_pages"), 0U);
  EXPECT_GT(from_ssd, rounds);
  EXPECT_GT(hits(), rounds * 10);
  const uint64_t before = customers_[0]->stored();
  for (int i = 0; i < 2000; ++i) customers_[0]->put(static_cast<uint64_t>(i) % kPageCount, true);
  EXPECT_EQ(customers_[0]->stored() - before, 2000U);
  // Pages that were looked up, are written or come up hold a pool as small as this one at times.
  EXPECT_LT(customers_[0]->refused() * 10, customers_[0]->stored());
  EXPECT_GT(stat("ssd_written_pages"), 0U);
  for (const auto& customer : customers_) customer->clear();
  EXPECT_TRUE(settles("ssd_pages", 0));
  EXPECT_TRUE(settles("pool_used_bytes", 0));
  EXPECT_EQ(stat("ssd_read_errors") + stat("ssd_write_errors"), 0U);
  EXPECT_EQ(stat("ssd_failed_directories"), 0U);
}

}  // namespace
}  // namespace hicache
