// The TCP transport between two ends: bytes right, ranges respected, everything bounded, everything
// completed once.
#include "transfer/tcp/tcp_transport.h"

#include <gtest/gtest.h>

#include <thread>

#include "tcp_rig.h"
#include "transfer/tcp/slice_checksum.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::kBusyMs;
using testing::kTcpBuffer;
using testing::kTcpReadOnly;
using testing::op_of;
using testing::Random;
using testing::TcpEnd;

struct Variant {
  std::string name;
  TcpEnd::Setup setup;
};

class TcpTransfers : public ::testing::TestWithParam<Variant> {};

/// Random reads and writes of disjoint ranges, against a copy that memcpy keeps.
TEST_P(TcpTransfers, RandomOpsMoveExactlyTheirBytes) {
  HICACHE_TRACE_SEED();
  Random random(500);
  constexpr uint64_t kSize = 24 * kMiB;
  std::vector<uint8_t> remote = bytes_of(1, kSize);
  std::vector<uint8_t> local = bytes_of(2, kSize);
  TcpEnd server(GetParam().setup);
  TcpEnd client(GetParam().setup);
  server.share(remote.data(), kSize);
  Path& path = client.open(server.descriptor());
  std::vector<uint8_t> remote_oracle = remote;
  std::vector<uint8_t> local_oracle = local;
  uint64_t token = 0;
  for (int round = 0; round < 12; ++round) {
    std::vector<Op> ops;
    for (uint64_t offset = random.below(100); offset < kSize && ops.size() < 300;) {
      const uint64_t size = std::min(random.size_up_to(4 * kMiB), kSize - offset);
      const bool is_read = random.one_in(2);
      ops.push_back(op_of(is_read ? Direction::kRead : Direction::kWrite, local.data() + offset,
                          remote.data() + offset, size, token++));
      if (random.one_in(2)) ops.back().priority = Priority::kBackground;
      auto& from = is_read ? remote_oracle : local_oracle;
      auto& to = is_read ? local_oracle : remote_oracle;
      std::copy_n(from.begin() + offset, size, to.begin() + offset);
      offset += size + random.below(50);
    }
    for (std::span<const Op> left = ops; !left.empty();) left = left.subspan(path.submit(left));
    ASSERT_TRUE(client.completions.wait_count(token));
    for (const Op& op : ops) {
      const Status status = client.completions.status(op.token);
      ASSERT_TRUE(status.ok()) << status.message();
    }
    ASSERT_TRUE(local == local_oracle) << "round " << round;
    ASSERT_TRUE(remote == remote_oracle) << "round " << round;
  }
  EXPECT_TRUE(client.completions.each_once());
  EXPECT_EQ(client.stat("hostile") + server.stat("hostile"), 0U);
  EXPECT_EQ(client.stat("lanes_cut"), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    All, TcpTransfers,
    ::testing::Values(Variant{"FourLanes", {}}, Variant{"OneLane", {.lanes = 1, .io_threads = 1}},
                      Variant{"SevenLanesThreeThreads", {.lanes = 7, .io_threads = 3}},
                      Variant{"NoChecksum", {.checksum = false}}, Variant{"IPv6", {.host = "::1"}}),
    [](const auto& variant) { return variant.param.name; });

struct Ends {
  explicit Ends(const TcpEnd::Setup& setup = {}, uint64_t size = 8 * kMiB)
      : remote(bytes_of(1, size)), local(bytes_of(2, size)), server(setup), client(setup) {
    server.share(remote.data(), size);
    path = &client.open(server.descriptor());
  }
  Status run(const Op& op) {
    const size_t before = client.completions.count();
    EXPECT_EQ(path->submit({&op, 1}), 1U);
    EXPECT_TRUE(client.completions.wait_count(before + 1));
    return client.completions.status(op.token);
  }

  // The memory outlives the ends, which may be serving it yet.
  std::vector<uint8_t> remote;
  std::vector<uint8_t> local;
  TcpEnd server;
  TcpEnd client;
  Path* path;
};

TEST(TcpTransport, AReadIsSummedAsItArrivesUnlessItIsCut) {
  for (const bool is_checked : {true, false}) {
    Ends ends({.checksum = is_checked});
    uint64_t token = 0;
    for (const uint64_t size :
         {uint64_t{1}, uint64_t{4096}, uint64_t{100'001}, kArrivalSizeMax, kArrivalSizeMax + 1}) {
      ArrivalSum sum;
      Op op = op_of(Direction::kRead, ends.local.data(), ends.remote.data() + 7, size, ++token);
      op.arrival = &sum;
      EXPECT_TRUE(ends.run(op).ok());
      EXPECT_EQ(sum.is_known, size <= kArrivalSizeMax) << size;
      if (sum.is_known) {
        EXPECT_EQ(sum.value, SliceChecksum::of(ends.remote.data() + 7, size));
      }
      EXPECT_TRUE(std::equal(ends.local.begin(), ends.local.begin() + static_cast<ptrdiff_t>(size),
                             ends.remote.begin() + 7));
    }
  }
}

TEST(TcpTransport, AReadThatFailedOrAWriteHasNoSum) {
  Ends ends;
  ArrivalSum sum;
  Op op =
      op_of(Direction::kRead, ends.local.data(), ends.remote.data() + ends.remote.size(), 4096, 1);
  op.arrival = &sum;
  EXPECT_EQ(ends.run(op).code(), Code::kInvalidArgument);
  EXPECT_FALSE(sum.is_known);
  op = op_of(Direction::kWrite, ends.local.data(), ends.remote.data(), 4096, 2);
  op.arrival = &sum;
  EXPECT_TRUE(ends.run(op).ok());
  EXPECT_FALSE(sum.is_known);
}

TEST(TcpTransport, OnlyRegisteredRangesAreTouched) {
  Ends ends;
  const auto begin = reinterpret_cast<uint64_t>(ends.remote.data());
  const uint64_t size = ends.remote.size();
  const std::vector<uint8_t> before = ends.remote;
  uint64_t token = 0;
  const auto expect_refused = [&](Op op) {
    for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
      op.direction = direction;
      op.token = token++;
      EXPECT_EQ(ends.run(op).code(), Code::kInvalidArgument) << op.remote_address - begin;
    }
  };
  const auto at = [&](uint64_t address, uint64_t bytes) {
    return op_of(Direction::kRead, ends.local.data(), address, bytes, 0);
  };
  expect_refused(at(begin - 1, 100));
  expect_refused(at(begin + size - 99, 100));
  expect_refused(at(begin + size, 1));
  expect_refused(at(0, 1));
  expect_refused(at(UINT64_MAX - 100, 100));
  expect_refused(at(begin - kMiB, 2 * kMiB));
  Op other = at(begin, 100);
  other.remote_buffer = kTcpBuffer + 100;
  expect_refused(other);
  EXPECT_TRUE(ends.remote == before);
  EXPECT_EQ(ends.client.stat("lanes_cut"), 0U) << "a refusal costs no lane";
  Op good = op_of(Direction::kRead, ends.local.data(), ends.remote.data(), size, token++);
  EXPECT_TRUE(ends.run(good).ok());
  EXPECT_TRUE(ends.local == ends.remote);
}

TEST(TcpTransport, ReadOnlyMemoryIsReadAndNeverWritten) {
  std::vector<uint8_t> fixed = bytes_of(3, kMiB);
  const std::vector<uint8_t> before = fixed;
  Ends ends;
  ends.server.share(fixed.data(), fixed.size(), kTcpReadOnly, false);
  Op op = op_of(Direction::kWrite, ends.local.data(), fixed.data(), fixed.size(), 0);
  op.remote_buffer = kTcpReadOnly;
  EXPECT_EQ(ends.run(op).code(), Code::kInvalidArgument);
  EXPECT_TRUE(fixed == before);
  op.direction = Direction::kRead;
  op.token = 1;
  EXPECT_TRUE(ends.run(op).ok());
  EXPECT_TRUE(std::equal(fixed.begin(), fixed.end(), ends.local.begin()));
}

TEST(TcpTransport, AfterUnregisteringNothingIsTouchedHoweverMuchIsUnderWay) {
  HICACHE_TRACE_SEED();
  Random random(501);
  for (int round = 0; round < 10; ++round) {
    Ends ends({}, 16 * kMiB);
    std::vector<Op> ops;
    for (uint64_t i = 0; i < 16; ++i) {
      ops.push_back(op_of(round % 2 == 0 ? Direction::kWrite : Direction::kRead,
                          ends.local.data() + i * kMiB, ends.remote.data() + i * kMiB, kMiB, i));
    }
    ASSERT_EQ(ends.path->submit(ops), ops.size());
    (void)ends.client.completions.wait_count(random.below(10));
    ends.server.transport->unregister_buffer(kTcpBuffer);
    const std::vector<uint8_t> then = ends.remote;
    ASSERT_TRUE(ends.client.completions.wait_count(ops.size()));
    EXPECT_TRUE(ends.remote == then);
    for (const Op& op : ops) {
      const Code code = ends.client.completions.status(op.token).code();
      EXPECT_TRUE(code == Code::kOk || code == Code::kInvalidArgument || code == Code::kUnavailable)
          << code_name(code);
    }
  }
}

TEST(TcpTransport, RegisteringAnIdTwiceIsRefused) {
  TcpEnd end;
  std::vector<uint8_t> memory(100);
  end.share(memory.data(), memory.size());
  const Buffer again{kTcpBuffer, reinterpret_cast<uint64_t>(memory.data()),
                     100,        MemoryKind::kHost,
                     "cpu:0",    true,
                     -1,         0};
  EXPECT_EQ(end.transport->register_buffer(again).status().code(), Code::kAlreadyExists);
}

TEST(TcpTransport, WhatIsBeyondTheBoundIsNotTakenUntilThereIsRoom) {
  Ends ends({.lanes = 1, .io_threads = 1});
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 5000; ++i) {
    ops.push_back(op_of(Direction::kRead, ends.local.data() + i * 1000,
                        ends.remote.data() + i * 1000, 1000, i));
  }
  size_t refused = 0;
  for (std::span<const Op> left = ops; !left.empty();) {
    const size_t count = ends.client.completions.count();
    const size_t taken = ends.path->submit(left);
    left = left.subspan(taken);
    if (left.empty()) break;
    ++refused;
    ASSERT_TRUE(ends.client.completions.wait_count(count + 1)) << "room is made by completions";
  }
  EXPECT_GT(refused, 0U);
  ASSERT_TRUE(ends.client.completions.wait_count(ops.size()));
  EXPECT_TRUE(ends.client.completions.each_once());
  EXPECT_TRUE(std::equal(ends.local.begin(), ends.local.begin() + 5'000'000, ends.remote.begin()));
}

TEST(TcpTransport, UrgentOpsOvertakeBackgroundOnes) {
  Ends ends({.lanes = 2, .io_threads = 1}, 64 * kMiB);
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 63; ++i) {
    ops.push_back(op_of(i % 2 == 0 ? Direction::kRead : Direction::kWrite,
                        ends.local.data() + i * kMiB, ends.remote.data() + i * kMiB, kMiB, i));
    ops.back().priority = Priority::kBackground;
  }
  ops.push_back(
      op_of(Direction::kRead, ends.local.data() + 63 * kMiB, ends.remote.data(), 4096, 63));
  ASSERT_EQ(ends.path->submit(ops), ops.size());
  ASSERT_TRUE(ends.client.completions.wait_count(ops.size()));
  const std::vector<uint64_t> order = ends.client.completions.order();
  const auto position = std::find(order.begin(), order.end(), 63U) - order.begin();
  EXPECT_LT(position, 40) << "of 64 ops, submitted last";
}

TEST(TcpTransport, ClosingCompletesEverythingOnceAndTakesNothingMore) {
  Ends ends({}, 64 * kMiB);
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 64; ++i) {
    ops.push_back(op_of(i % 2 == 0 ? Direction::kRead : Direction::kWrite,
                        ends.local.data() + i * kMiB, ends.remote.data() + i * kMiB, kMiB, i));
  }
  ASSERT_EQ(ends.path->submit(ops), ops.size());
  EXPECT_LT(testing::duration_ms([&] { ends.path->close(); }), kBusyMs);
  ASSERT_EQ(ends.client.completions.count(), ops.size()) << "all were told before close() returned";
  for (const Op& op : ops) {
    const Code code = ends.client.completions.status(op.token).code();
    EXPECT_TRUE(code == Code::kOk || code == Code::kCancelled) << code_name(code);
  }
  const std::vector<uint8_t> then = ends.local;
  EXPECT_EQ(ends.path->submit(ops), 0U);
  EXPECT_EQ(ends.path->probe().code(), Code::kClosed);
  EXPECT_TRUE(ends.local == then);
  EXPECT_TRUE(ends.client.completions.each_once());
}

TEST(TcpTransport, CompletionsMaySubmit) {
  class Chain : public CompletionSink {
   public:
    void complete(uint64_t token, Status status) override {
      EXPECT_TRUE(status.ok()) << status.message();
      if (token + 1 < 500) {
        Op next = op;
        next.token = token + 1;
        EXPECT_EQ(path->submit({&next, 1}), 1U);
        return;
      }
      const std::lock_guard lock(mutex);
      is_done = true;
      done.notify_all();
    }
    Path* path = nullptr;
    Op op{};
    std::mutex mutex;
    std::condition_variable done;
    bool is_done = false;
  } chain;
  Ends ends;
  auto opened = ends.client.transport->open(ends.server.descriptor(), ends.client.calls, chain,
                                            monotonic_ns() + 5'000'000'000);
  ASSERT_TRUE(opened.ok());
  chain.path = opened.value().at(0).get();
  chain.op = op_of(Direction::kWrite, ends.local.data(), ends.remote.data(), 5000, 0);
  ASSERT_EQ(chain.path->submit({&chain.op, 1}), 1U);
  std::unique_lock lock(chain.mutex);
  EXPECT_TRUE(chain.done.wait_for(lock, std::chrono::seconds(20), [&] { return chain.is_done; }));
}

TEST(TcpTransport, ManyThreadsShareAPath) {
  Ends ends({}, 16 * kMiB);
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kOps = 400;
  constexpr uint64_t kSize = 9000;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kOps; ++i) {
        const uint64_t n = t * kOps + i;
        const Op op =
            op_of(t % 2 == 0 ? Direction::kRead : Direction::kWrite, ends.local.data() + n * kSize,
                  ends.remote.data() + n * kSize, kSize, n);
        while (ends.path->submit({&op, 1}) == 0) {
          ends.client.completions.wait_count(ends.client.completions.count() + 1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(ends.client.completions.wait_count(kThreads * kOps));
  EXPECT_TRUE(ends.client.completions.each_once());
  EXPECT_TRUE(std::equal(ends.local.begin(), ends.local.begin() + kThreads * kOps * kSize,
                         ends.remote.begin()));
}

TEST(TcpTransport, EmptyAndImpossibleOpsEndAtOnce) {
  Ends ends;
  EXPECT_TRUE(ends.run(op_of(Direction::kRead, ends.local.data(), ends.remote.data(), 0, 1)).ok());
  Op op = op_of(Direction::kRead, ends.local.data(), UINT64_MAX - 5, 100, 2);
  EXPECT_EQ(ends.run(op).code(), Code::kInvalidArgument);
  op = op_of(Direction::kRead, ends.local.data(), ends.remote.data(), 100, 3);
  op.remote_buffer = kNoBuffer;
  EXPECT_EQ(ends.run(op).code(), Code::kInvalidArgument);
}

TEST(TcpTransport, AnotherIncarnationAndAnotherSecretAreNotReached) {
  TcpEnd server;
  TcpEnd client;
  SegmentDescriptor dead = server.descriptor();
  dead.epoch += 1;
  EXPECT_EQ(client.try_open(dead).status().code(), Code::kUnavailable);
  TcpEnd stranger({.secret = secret_from_text("another secret")});
  auto refused = stranger.try_open(server.descriptor());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  EXPECT_EQ(server.stat("lanes_in"), 0U);
}

TEST(TcpTransport, PeersWithoutOrWithABadEndpointGiveNoPath) {
  TcpEnd client;
  SegmentDescriptor peer{};
  peer.epoch = 5;
  auto opened = client.try_open(peer);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(opened.value().empty());
  HICACHE_TRACE_SEED();
  Random random(502);
  for (int i = 0; i < 200; ++i) {
    std::vector<uint8_t> bytes(random.between(1, 6));
    random.fill(bytes);
    peer.endpoints = {{TransportKind::kTcp, bytes}};
    EXPECT_FALSE(client.try_open(peer).ok());
  }
}

TEST(TcpTransport, LanesBeyondTheBoundAreClosedAndCounted) {
  std::vector<uint8_t> remote = bytes_of(1, 4096);
  std::vector<uint8_t> local(4096);
  TcpEnd server({.lanes_in_max = 2});
  TcpEnd client({.lanes = 1});
  server.share(remote.data(), remote.size());
  client.open(server.descriptor());
  Path& second = client.open(server.descriptor());
  auto third = client.try_open(server.descriptor());
  EXPECT_TRUE(testing::eventually(20'000, [&] { return server.stat("lanes_refused") == 1; }));
  EXPECT_TRUE(second.probe().ok());
  if (!third.ok()) {
    EXPECT_EQ(third.status().code(), Code::kUnavailable);
    return;
  }
  const Op op = op_of(Direction::kRead, local.data(), remote.data(), 4096, 1);
  ASSERT_EQ(third.value().at(0)->submit({&op, 1}), 1U);
  ASSERT_TRUE(client.completions.wait_count(1));
  EXPECT_EQ(client.completions.status(1).code(), Code::kUnavailable);
}

}  // namespace
}  // namespace hicache
