// The word that tells waiters that a batch is done: no batch's end hides another's.
#include "transfer/done_signal.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

TEST(DoneSignal, AnEarlierBatchThatIsToldLateDoesNotHideTheEndOfALaterOne) {
  DoneSignal signal;
  signal.begin(10);
  // Batch 10 is done, found so by poll() and released; its slot serves batch 12 from now on. The
  // thread that has ended batch 10 comes to tell of it last.
  signal.begin(12);
  signal.signal(12);
  signal.signal(10);
  EXPECT_TRUE(signal.is_done(12));
  EXPECT_TRUE(signal.wait(12, monotonic_ns() + kSecond, 0));
}

TEST(DoneSignal, AnEarlierBatchThatIsToldLateDoesNotEndALaterOne) {
  DoneSignal signal;
  signal.begin(10);
  signal.begin(12);
  signal.signal(10);
  EXPECT_TRUE(signal.is_done(10));
  EXPECT_FALSE(signal.is_done(12));
}

TEST(DoneSignal, GenerationsWrapAround) {
  DoneSignal signal;
  for (const uint32_t generation : {UINT32_MAX - 1, UINT32_MAX, 1U, 2U}) {
    signal.begin(generation);
    EXPECT_FALSE(signal.is_done(generation));
    signal.signal(generation);
    EXPECT_TRUE(signal.is_done(generation));
  }
}

/// As in a peer: one thread ends the batch before, another one this batch, a third waits for it.
TEST(DoneSignal, NoWaiterMissesItsBatchWhateverTheOthersDo) {
  DoneSignal signal;
  constexpr uint32_t kRounds = 5000;
  std::atomic<uint32_t> round{0};
  std::atomic<uint32_t> told{0};
  const auto tell = [&](uint32_t offset) {
    for (uint32_t done = 0; done < kRounds; ++done) {
      while (round <= done) std::this_thread::yield();
      signal.signal(4 * (done + 1) + offset);
      ++told;
    }
  };
  std::thread earlier(tell, 0);
  std::thread later(tell, 2);
  uint32_t missed = 0;
  for (uint32_t i = 1; i <= kRounds; ++i) {
    signal.begin(4 * i);
    signal.begin(4 * i + 2);
    round = i;
    if (!signal.wait(4 * i + 2, monotonic_ns() + kSecond / 5, 0)) ++missed;
    while (told != 2 * i) std::this_thread::yield();
    if (missed > 20) break;
  }
  round = kRounds;
  earlier.join();
  later.join();
  EXPECT_EQ(missed, 0U);
}

}  // namespace
}  // namespace hicache
