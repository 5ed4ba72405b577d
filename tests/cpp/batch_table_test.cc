// The batch table beside a slow and obvious one: every byte of every request is moved once, and
// batches end when they should.
#include "transfer/batch_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;
using Verdict = BatchTable::Verdict;

constexpr BatchTable::Limits kLimits{8, 64, 16, 3};

BatchTable::Request request_of(uint64_t address, uint64_t size) {
  return {Direction::kRead, 1, 2, address, address + 1'000'000, size};
}

Op take(BatchTable& table, uint64_t size_max, uint64_t now_ns = 0) {
  Op op{};
  table.take(0, size_max, now_ns, op);
  return op;
}

TEST(BatchTable, CutsRequestsIntoSlicesAndCountsTheirBytes) {
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 250), request_of(5000, 100)};
  const BatchKey key = table.add(requests, Priority::kUrgent, 99, 1).value();
  std::vector<Op> ops;
  while (table.next()) ops.push_back(take(table, 100));
  ASSERT_EQ(ops.size(), 4u);
  EXPECT_EQ(ops[2].local_address, 1200u);
  EXPECT_EQ(ops[2].remote_address, 1'001'200u);
  EXPECT_EQ(ops[2].size, 50u);
  EXPECT_EQ(ops[3].local_address, 5000u);
  EXPECT_EQ(ops[3].deadline_ns, 99u);
  for (const Op& op : ops) {
    EXPECT_FALSE(table.state(key)->is_done);
    EXPECT_EQ(table.settle(op.token, Verdict::kDone, Status(), 0).is_done, &op == &ops.back());
  }
  EXPECT_TRUE(table.state(key)->is_done);
  EXPECT_EQ(table.state(key)->bytes_done, 350u);
  EXPECT_TRUE(table.release(key));
  EXPECT_FALSE(table.state(key));
  EXPECT_EQ(table.slice_count(), 0u);
}

TEST(BatchTable, BogusStaleAndForeignIdsFindNothing) {
  HICACHE_TRACE_SEED();
  Random random;
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 10)};
  const BatchKey key = table.add(requests, Priority::kUrgent, 99, 7).value();
  const Op op = take(table, 10);
  for (int i = 0; i < 10'000; ++i) {
    const uint64_t token = random.one_in(2) ? random.bits() : op.token + random.between(1, 1000);
    EXPECT_EQ(table.find(token), nullptr);
    const BatchKey bogus{static_cast<uint32_t>(random.below(20)),
                         static_cast<uint32_t>(random.bits())};
    if (bogus == key) continue;
    EXPECT_FALSE(table.state(bogus));
    EXPECT_FALSE(table.cancel(bogus, Status(Code::kCancelled, "")));
    EXPECT_FALSE(table.release(bogus));
  }
  EXPECT_FALSE(table.release(key)) << "it is in flight";
  (void)table.settle(op.token, Verdict::kDone, Status(), 0);
  EXPECT_EQ(table.find(op.token), nullptr) << "a second completion";
  EXPECT_TRUE(table.release(key));
  EXPECT_FALSE(table.release(key));
}

TEST(BatchTable, WhatIsUrgentOvertakesWhatIsNotAndBatchesTakeTurns) {
  BatchTable table(kLimits);
  const std::vector slow{request_of(10'000, 300)};
  const std::vector first{request_of(20'000, 200)};
  const std::vector second{request_of(30'000, 200)};
  (void)table.add(slow, Priority::kBackground, 99, 1);
  EXPECT_EQ(take(table, 100).local_address, 10'000u);
  (void)table.add(first, Priority::kUrgent, 99, 2);
  (void)table.add(second, Priority::kUrgent, 99, 3);
  std::vector<uint64_t> order;
  while (table.next()) order.push_back(take(table, 100).local_address);
  EXPECT_EQ(order, (std::vector<uint64_t>{20'000, 30'000, 20'100, 30'100, 10'100, 10'200}));
}

TEST(BatchTable, ASliceIsTriedAgainAndThenFailsItsBatch) {
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 100), request_of(2000, 100)};
  const BatchKey key = table.add(requests, Priority::kUrgent, 99, 1).value();
  for (unsigned tries = 1; tries <= kLimits.tries_max; ++tries) {
    const Op op = take(table, 100);
    EXPECT_EQ(op.local_address, 1000u) << "a slice that failed goes before new ones";
    (void)table.settle(op.token, Verdict::kRetry, Status(Code::kUnavailable, "down"), 5);
  }
  EXPECT_FALSE(table.next()) << "nothing more is begun of a batch that has failed";
  EXPECT_TRUE(table.state(key)->is_done);
  EXPECT_EQ(table.state(key)->status.code(), Code::kUnavailable);
  EXPECT_EQ(table.state(key)->bytes_done, 0u);
}

TEST(BatchTable, RailsThatCannotReachASliceAreRememberedAndCostItNoTry) {
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 200)};
  const BatchKey key = table.add(requests, Priority::kUrgent, 99, 1).value();
  for (RailIndex rail = 0; rail < 3 * kLimits.tries_max; ++rail) {
    for (RailIndex other = 0; other < 200; ++other) {
      EXPECT_EQ(other < table.next()->without.size() && table.next()->without[other], other < rail);
    }
    Op op{};
    table.take(rail, 100, 5, op);
    EXPECT_EQ(op.local_address, 1000U);
    EXPECT_FALSE(
        table.settle(op.token, Verdict::kRetryOtherRail, Status(Code::kNotFound, "no key"), 5)
            .is_done);
    EXPECT_EQ(table.next()->tier_min, 0);
  }
  const Op first = take(table, 100, 5);
  EXPECT_TRUE(table.next()->without.none()) << "of the next slice nothing is known";
  (void)table.settle(first.token, Verdict::kDone, Status(), 5);
  (void)table.settle(take(table, 100, 5).token, Verdict::kDone, Status(), 5);
  EXPECT_TRUE(table.state(key)->is_done && table.state(key)->status.ok());
}

TEST(BatchTable, ARailTooManyToBeRememberedStandsForItsWholeTier) {
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 100)};
  ASSERT_TRUE(table.add(requests, Priority::kUrgent, 99, 1).ok());
  Op op{};
  table.take(static_cast<RailIndex>(RailSet().size()), 100, 5, op);
  (void)table.settle(op.token, Verdict::kRetryOtherRail, Status(Code::kNotFound, "no key"), 5);
  EXPECT_EQ(table.next()->tier_min, 1);
  EXPECT_TRUE(table.next()->without.none());
}

TEST(BatchTable, ASliceThatFailsAfterTheDeadlineIsNotTriedAgain) {
  BatchTable table(kLimits);
  const std::vector requests{request_of(1000, 100)};
  const BatchKey key = table.add(requests, Priority::kUrgent, 50, 1).value();
  const Op op = take(table, 100);
  EXPECT_TRUE(table.settle(op.token, Verdict::kRetry, Status(Code::kTimeout, "late"), 50).is_done);
  EXPECT_EQ(table.state(key)->status.code(), Code::kTimeout);
}

TEST(BatchTable, LimitsAreKept) {
  BatchTable table({2, 3, 2, 3});
  const std::vector two{request_of(1000, 100), request_of(2000, 100)};
  const std::vector one{request_of(3000, 100)};
  ASSERT_TRUE(table.add(two, Priority::kUrgent, 99, 1).ok());
  EXPECT_EQ(table.add(two, Priority::kUrgent, 99, 2).status().code(), Code::kBusy);
  ASSERT_TRUE(table.add(one, Priority::kUrgent, 99, 3).ok());
  EXPECT_EQ(table.add({}, Priority::kUrgent, 99, 4).status().code(), Code::kBusy);
  (void)take(table, 10);
  const Op op = take(table, 10);
  EXPECT_FALSE(table.next()) << "two slices are under way";
  (void)table.settle(op.token, Verdict::kRetry, Status(Code::kUnavailable, ""), 0);
  ASSERT_TRUE(table.next());
  EXPECT_TRUE(table.next()->is_retry) << "the one that there is goes on";

  BatchTable other(kLimits);
  const std::vector endless{request_of(1, UINT64_MAX), request_of(1, UINT64_MAX)};
  EXPECT_EQ(other.add(endless, Priority::kUrgent, 99, 1).status().code(), Code::kInvalidArgument);
}

/// What a batch should be, byte by byte.
struct SlowBatch {
  BatchKey key;
  Priority priority;
  uint64_t deadline_ns;
  std::set<uint64_t> left;       // Addresses of bytes that nobody has begun, or that wait again.
  std::set<uint64_t> in_flight;  // Of bytes.
  std::set<uint64_t> parked;     // Of bytes.
  std::set<uint64_t> addresses;  // Of all its bytes.
  uint64_t bytes_done = 0;
  bool has_failed = false;

  bool is_done() const { return in_flight.empty() && left.empty() && parked.empty(); }
};

class BatchTableOracle : public ::testing::Test {
 protected:
  void add() {
    std::vector<BatchTable::Request> requests;
    SlowBatch batch{};
    const size_t count = random_.below(5);
    for (size_t i = 0; i < count; ++i) {
      const uint64_t size = random_.below(40);
      requests.push_back(request_of(next_address_, size));
      for (uint64_t j = 0; j < size; ++j) batch.left.insert(next_address_ + j);
      batch.addresses.insert(batch.left.begin(), batch.left.end());
      next_address_ += 100;
    }
    batch.priority = random_.one_in(2) ? Priority::kUrgent : Priority::kBackground;
    batch.deadline_ns = now_ + random_.between(1, 200);
    const Result<BatchKey> key =
        table_.add(requests, batch.priority, batch.deadline_ns, ++generation_);
    size_t requests_open = 0;
    for (const auto& [slot, other] : requests_of_) requests_open += other;
    const bool fits = batches_.size() < kLimits.batches_max &&
                      requests_open + requests.size() <= kLimits.requests_max;
    ASSERT_EQ(key.ok(), fits);
    if (!fits) return;
    batch.key = key.value();
    requests_of_[generation_] = static_cast<size_t>(std::ranges::count_if(
        requests, [](const BatchTable::Request& request) { return request.size != 0; }));
    batches_.push_back(batch);
  }
  SlowBatch& batch_of(uint64_t address) {
    for (SlowBatch& batch : batches_) {
      if (batch.addresses.contains(address)) return batch;
    }
    ADD_FAILURE() << address << " belongs to no batch that is open";
    return batches_.front();
  }
  void begin() {
    const auto next = table_.next();
    const bool any = std::ranges::any_of(batches_, [](const auto& b) { return !b.left.empty(); });
    if (!next) {
      EXPECT_TRUE(!any || ops_.size() + waiting_slices_ + parked_.size() >= kLimits.slices_max);
      return;
    }
    Op op{};
    table_.take(static_cast<RailIndex>(random_.below(3)), random_.between(1, 30), now_, op);
    SlowBatch& batch = batch_of(op.local_address);
    EXPECT_FALSE(batch.has_failed);
    EXPECT_EQ(batch.priority, op.priority);
    if (next->is_retry) --waiting_slices_;
    for (uint64_t i = 0; i < op.size; ++i) {
      EXPECT_EQ(batch.left.erase(op.local_address + i), 1u) << "a byte that is not to be moved";
      batch.in_flight.insert(op.local_address + i);
    }
    ops_.push_back(op);
  }
  void end() {
    if (ops_.empty()) return;
    const size_t index = random_.below(ops_.size());
    const Op op = ops_[index];
    ops_.erase(ops_.begin() + static_cast<ptrdiff_t>(index));
    SlowBatch& batch = batch_of(op.local_address);
    for (uint64_t i = 0; i < op.size; ++i) batch.in_flight.erase(op.local_address + i);
    if (random_.one_in(6)) {
      const unsigned tries = tries_[op.local_address];
      const BatchTable::Settled undone = table_.undo(op.token);
      put_back(batch, op, tries, undone);
      return;
    }
    const Verdict verdict = random_.one_in(8)   ? Verdict::kFail
                            : random_.one_in(5) ? Verdict::kPark
                            : random_.one_in(3) ? Verdict::kRetry
                                                : Verdict::kDone;
    const unsigned tries = ++tries_[op.local_address];
    const BatchTable::Settled settled =
        table_.settle(op.token, verdict, Status(Code::kIo, "broke"), now_);
    if (verdict == Verdict::kDone) {
      batch.bytes_done += op.size;
    } else if (verdict == Verdict::kFail || now_ >= batch.deadline_ns || batch.has_failed ||
               (verdict == Verdict::kPark ? were_parked_.contains(op.local_address)
                                          : tries >= kLimits.tries_max)) {
      fail(batch);
    } else if (verdict == Verdict::kPark) {
      were_parked_.insert(op.local_address);
      for (uint64_t i = 0; i < op.size; ++i) batch.parked.insert(op.local_address + i);
      parked_.push_back({op, table_.parks()});
    } else {
      put_back(batch, op, tries, settled);
      return;
    }
    EXPECT_EQ(settled.batch, batch.key);
    EXPECT_EQ(settled.is_done, batch.is_done());
  }
  void put_back(SlowBatch& batch, const Op& op, unsigned tries, BatchTable::Settled settled) {
    if (!batch.has_failed) {
      for (uint64_t i = 0; i < op.size; ++i) batch.left.insert(op.local_address + i);
      tries_[op.local_address] = tries;
      ++waiting_slices_;
    }
    EXPECT_EQ(settled.is_done, batch.is_done());
  }
  void fail(SlowBatch& batch) {
    batch.has_failed = true;
    batch.left.clear();
    batch.parked.clear();
    std::erase_if(parked_, [&](const Parked& parked) {
      return batch.addresses.contains(parked.op.local_address);
    });
    waiting_slices_ = table_.slice_count() - ops_.size() - parked_.size();
  }
  /// Some of what was parked is looked up: of some batches it is there, of others it is not.
  void unpark() {
    const uint64_t parks_max = table_.parks() - std::min(table_.parks(), random_.below(3));
    std::vector<BatchKey> bad;
    for (const SlowBatch& batch : batches_) {
      if (random_.one_in(4)) bad.push_back(batch.key);
    }
    const auto is_bad = [&](uint64_t address) {
      return std::ranges::count(bad, batch_of(address).key) != 0;
    };
    std::vector<BatchKey> done;
    table_.unpark(
        parks_max,
        [&](BatchTable::Request& request) {
          return is_bad(request.local_address) ? Status(Code::kNotFound, "gone") : Status();
        },
        done);
    std::vector<BatchKey> failed;
    for (const Parked& parked : std::vector(parked_)) {
      SlowBatch& batch = batch_of(parked.op.local_address);
      if (parked.at > parks_max || batch.has_failed) continue;
      if (is_bad(parked.op.local_address)) {
        failed.push_back(batch.key);
        fail(batch);
        continue;
      }
      std::erase_if(parked_, [&](const Parked& other) { return other.at == parked.at; });
      for (uint64_t i = 0; i < parked.op.size; ++i) {
        batch.parked.erase(parked.op.local_address + i);
        batch.left.insert(parked.op.local_address + i);
      }
    }
    waiting_slices_ = table_.slice_count() - ops_.size() - parked_.size();
    for (const SlowBatch& batch : batches_) {
      const bool is_done_by_that = std::ranges::count(failed, batch.key) != 0 && batch.is_done();
      EXPECT_EQ(std::ranges::count(done, batch.key), is_done_by_that ? 1 : 0);
    }
  }
  void expire() {
    now_ += random_.below(40);
    std::vector<BatchKey> done;
    table_.expire(now_, "", done);
    for (SlowBatch& batch : batches_) {
      if ((batch.left.empty() && batch.parked.empty()) || batch.deadline_ns > now_) continue;
      fail(batch);
      EXPECT_EQ(std::ranges::count(done, batch.key), batch.is_done() ? 1 : 0);
    }
  }
  void release() {
    if (batches_.empty()) return;
    const size_t index = random_.below(batches_.size());
    const bool is_done = batches_[index].is_done();
    EXPECT_EQ(table_.release(batches_[index].key), is_done);
    if (!is_done) return;
    requests_of_.erase(batches_[index].key.generation);
    batches_.erase(batches_.begin() + static_cast<ptrdiff_t>(index));
  }
  void compare() {
    uint64_t waiting = 0;
    uint64_t deadline_ns = UINT64_MAX;
    for (const SlowBatch& batch : batches_) {
      const auto state = table_.state(batch.key);
      ASSERT_TRUE(state);
      EXPECT_EQ(state->is_done, batch.is_done());
      EXPECT_EQ(state->bytes_done, batch.bytes_done);
      EXPECT_EQ(state->status.ok(), !batch.has_failed);
      waiting += batch.left.size();
      if (!batch.left.empty() || !batch.parked.empty())
        deadline_ns = std::min(deadline_ns, batch.deadline_ns);
    }
    EXPECT_EQ(table_.waiting_bytes(), waiting);
    EXPECT_EQ(table_.next_deadline_ns(), deadline_ns);
    EXPECT_EQ(table_.has_parked(), !parked_.empty());
    EXPECT_EQ(table_.batch_count(), batches_.size());
    EXPECT_LE(table_.slice_count(), kLimits.slices_max);
  }

  struct Parked {
    Op op;
    uint64_t at;
  };

  Random random_;
  BatchTable table_{kLimits};
  std::vector<SlowBatch> batches_;
  std::vector<Op> ops_;
  std::vector<Parked> parked_;
  std::set<uint64_t> were_parked_;
  std::map<uint64_t, unsigned> tries_;
  std::map<uint32_t, size_t> requests_of_;
  size_t waiting_slices_ = 0;
  uint64_t next_address_ = 1000;
  uint64_t now_ = 0;
  uint32_t generation_ = 0;
};

TEST_F(BatchTableOracle, AgreesWithASlowTableForAnySequence) {
  HICACHE_TRACE_SEED();
  for (int step = 0; step < 100'000 && !HasFailure(); ++step) {
    switch (random_.below(9)) {
      case 0:
        add();
        break;
      case 1:
        release();
        break;
      case 2:
        if (random_.one_in(4)) expire();
        break;
      case 3:
        unpark();
        break;
      case 4:
      case 5:
        end();
        break;
      default:
        begin();
    }
    compare();
  }
}

}  // namespace
}  // namespace hicache
