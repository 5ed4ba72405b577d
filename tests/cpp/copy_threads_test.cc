#include "transfer/copy_threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

TEST(CopyThreads, RunsEachTaskOnce) {
  for (const unsigned count : {1U, 2U, 5U}) {
    CopyThreads threads(count);
    EXPECT_EQ(threads.count(), count);
    for (const size_t tasks : {0, 1, 2, 3, 17, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      threads.run(tasks, [&](size_t i) { ++runs[i]; });
      for (const auto& ran : runs) ASSERT_EQ(ran, 1);
    }
  }
}

TEST(CopyThreads, NothingRunsAfterReturn) {
  // Each call's memory is plain and leaves with the call: the sanitizers see any late touch.
  CopyThreads threads(4);
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint64_t> values(1 + static_cast<size_t>(round) % 40);
    threads.run(values.size(), [&](size_t i) { values[i] = i + 1; });
    uint64_t sum = 0;
    for (const uint64_t value : values) sum += value;
    ASSERT_EQ(sum, values.size() * (values.size() + 1) / 2);
  }
}

TEST(CopyThreads, ManyCallersShareTheThreads) {
  HICACHE_TRACE_SEED();
  CopyThreads threads(3);
  std::vector<std::thread> callers;
  std::atomic<uint64_t> wrong{0};
  for (uint64_t caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      Random random(60 + caller);
      for (int round = 0; round < 400; ++round) {
        std::vector<uint32_t> runs(random.between(0, 64));
        threads.run(runs.size(), [&](size_t i) { ++runs[i]; });
        for (const uint32_t ran : runs) wrong += ran != 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0U);
}

TEST(CopyThreads, ABatchTakesNoMoreThreadsThanItMay) {
  CopyThreads threads(4);
  for (const unsigned most : {1U, 2U, 3U, 9U}) {
    const unsigned expected = std::min(most, threads.count());
    std::atomic<unsigned> inside{0};
    std::atomic<unsigned> greatest{0};
    threads.run(
        64,
        [&](size_t i) {
          const unsigned now = ++inside;
          unsigned seen = greatest;
          while (now > seen && !greatest.compare_exchange_weak(seen, now)) {
          }
          // The first ones wait for each other: all that may come do come.
          while (i < expected && greatest < expected) std::this_thread::yield();
          --inside;
        },
        most);
    EXPECT_EQ(greatest, expected) << "of at most " << most;
  }
}

TEST(CopyThreads, ASlowBatchDoesNotHoldUpAnother) {
  CopyThreads threads(2);
  std::atomic<bool> release{false};
  std::thread slow([&] {
    threads.run(2, [&](size_t) {
      while (!release) std::this_thread::yield();
    });
  });
  std::atomic<int> ran{0};
  threads.run(50, [&](size_t) { ++ran; });
  EXPECT_EQ(ran, 50);
  release = true;
  slow.join();
}

}  // namespace
}  // namespace hicache
