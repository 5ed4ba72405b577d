// The contract of transports (transfer/transport.h), over each of them: bytes, ranges, room,
// completions. What happens when peers stop, die or go is in transport_faults_test.cc.
#include "transport_contract.h"

#include <algorithm>
#include <ranges>
#include <thread>

namespace hicache::testing {
namespace {

class TransportContract : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    target_ = make_target(GetParam());
    segment_ = target_->describe();
    const Status opened = client_.open(segment_);
    ASSERT_TRUE(opened.ok()) << opened.message();
  }

  uint64_t address_of(BufferId id) const {
    return std::ranges::find(segment_.buffers, id, &BufferDescriptor::id)->address;
  }
  Path& path() { return client_.path(); }
  Recorder& recorder() { return client_.recorder(); }

  std::unique_ptr<Target> target_;
  SegmentDescriptor segment_;
  Client client_{GetParam().rig};
};

/// Local memory with bytes around it that nobody may touch.
class Guarded {
 public:
  static constexpr uint8_t kGuard = 0xC7;
  static constexpr uint64_t kMargin = 4096;

  Guarded(uint64_t size, uint64_t alignment) : bytes_(size + 3 * kMargin, kGuard), size_(size) {
    const auto start = reinterpret_cast<uintptr_t>(bytes_.data());
    offset_ = round_up(start + kMargin, 4096) + alignment - start;
  }
  uint8_t* at() { return bytes_.data() + offset_; }
  std::span<uint8_t> span() { return {at(), size_}; }
  bool is_intact_outside() const {
    const auto is_guard = [](uint8_t byte) { return byte == kGuard; };
    const auto begin = bytes_.begin() + static_cast<ptrdiff_t>(offset_);
    return std::all_of(bytes_.begin(), begin, is_guard) &&
           std::all_of(begin + static_cast<ptrdiff_t>(size_), bytes_.end(), is_guard);
  }

 private:
  std::vector<uint8_t> bytes_;
  const uint64_t size_;
  uint64_t offset_;
};

TEST_P(TransportContract, EachSizeAndAlignmentMovesExactlyItsBytes) {
  HICACHE_TRACE_SEED();
  Random random(900);
  std::vector<uint8_t> oracle = TargetMemory::large_bytes();
  for (const uint64_t size :
       {uint64_t{0}, uint64_t{1}, uint64_t{63}, 4 * kKiB, 4 * kKiB + 1, 128 * kKiB, 128 * kKiB + 7,
        kMiB, kMiB + 13, 3 * kMiB - 5, 64 * kMiB}) {
    for (const uint64_t local_alignment : {0, 1, 32, 4095}) {
      if (size > 3 * kMiB && local_alignment > 1) continue;
      const uint64_t offset = random.below(TargetMemory::kLargeSize - size + 1);
      SCOPED_TRACE(std::to_string(size) + " at " + std::to_string(offset) + " to " +
                   std::to_string(local_alignment));
      Guarded local(size, local_alignment);
      const uint64_t remote = address_of(kLarge) + offset;
      Status status = client_.run(client_.op(Direction::kRead, local.at(), remote, size));
      ASSERT_TRUE(status.ok()) << status.message();
      ASSERT_TRUE(std::equal(local.at(), local.at() + size, oracle.begin() + offset));
      ASSERT_TRUE(local.is_intact_outside());

      std::ranges::copy(bytes_of(random.bits(), size), local.at());
      status = client_.run(client_.op(Direction::kWrite, local.at(), remote, size));
      ASSERT_TRUE(status.ok()) << status.message();
      std::copy_n(local.at(), size, oracle.begin() + offset);
    }
  }
  std::vector<uint8_t> all(TargetMemory::kLargeSize);
  ASSERT_TRUE(
      client_.run(client_.op(Direction::kRead, all.data(), address_of(kLarge), all.size())).ok());
  EXPECT_TRUE(all == oracle);
}

TEST_P(TransportContract, RandomBatchesOfManyThreadsLeaveWhatMemcpyWouldHaveLeft) {
  HICACHE_TRACE_SEED();
  constexpr uint64_t kThreads = 6;
  constexpr uint64_t kShare = 4 * kMiB;
  constexpr int kRounds = 12;
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> failed{0};
  const std::vector<uint8_t> before = TargetMemory::large_bytes();
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(910 + t);
      std::vector<uint8_t> remote(before.begin() + t * kShare, before.begin() + (t + 1) * kShare);
      std::vector<uint8_t> local = bytes_of(t, kShare);
      std::vector<uint8_t> local_oracle = local;
      for (int round = 0; round < kRounds; ++round) {
        std::vector<Op> ops;
        for (uint64_t at = random.below(64); at < kShare;) {
          const uint64_t size = std::min(random.size_up_to(kMiB), kShare - at);
          const bool is_read = random.one_in(2);
          ops.push_back(client_.op(is_read ? Direction::kRead : Direction::kWrite,
                                   local.data() + at, address_of(kLarge) + t * kShare + at, size));
          if (random.one_in(3)) ops.back().priority = Priority::kBackground;
          auto& from = is_read ? remote : local_oracle;
          auto& to = is_read ? local_oracle : remote;
          std::copy_n(from.begin() + at, size, to.begin() + at);
          at += size + random.below(64);
        }
        failed += client_.submit_all(ops) ? 0 : 1;
        for (const Op& op : ops) failed += recorder().wait_for(op.token).ok() ? 0 : 1;
        wrong += local == local_oracle ? 0 : 1;
      }
      std::vector<uint8_t> now(kShare);
      const Op op =
          client_.op(Direction::kRead, now.data(), address_of(kLarge) + t * kShare, kShare);
      failed += client_.run(op).ok() ? 0 : 1;
      wrong += now == remote ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(failed, 0U);
  EXPECT_EQ(recorder().codes().size(), 1U);
}

TEST_P(TransportContract, MoreOpsThanFitAreTakenInTurnsAndEachIsCompletedOnce) {
  constexpr size_t kOps = 20'000;
  constexpr uint64_t kSize = 4 * kKiB;
  std::vector<uint8_t> local(kOps * kSize);
  std::vector<Op> ops;
  for (size_t i = 0; i < kOps; ++i) {
    ops.push_back(client_.op(Direction::kRead, local.data() + i * kSize,
                             address_of(kLarge) + i % 512 * kSize, kSize));
  }
  const size_t first = path().submit(ops);
  EXPECT_GT(first, 0U);
  EXPECT_LT(first, kOps) << "a bound of this size is none";
  ASSERT_TRUE(client_.submit_all(std::span(ops).subspan(first)));
  ASSERT_TRUE(recorder().wait_count(kOps, 30'000));
  EXPECT_EQ(recorder().codes(), (std::map<Code, size_t>{{Code::kOk, kOps}}));
}

TEST_P(TransportContract, RangesThatThePeerDidNotRegisterAreRefusedAndThePathGoesOn) {
  std::vector<uint8_t> local(kMiB, 0x11);
  const uint64_t begin = address_of(kLarge);
  const uint64_t end = begin + TargetMemory::kLargeSize;
  struct Wrong {
    uint64_t address;
    uint64_t size;
    BufferId buffer;
  };
  for (const Wrong& wrong : std::vector<Wrong>{{begin - 1, 100, kLarge},
                                               {end - 99, 100, kLarge},
                                               {end + kMiB, 1, kLarge},
                                               {0, 1, kLarge},
                                               {UINT64_MAX - 50, 40, kLarge},
                                               {begin - kMiB / 2, kMiB, kLarge},
                                               {begin, 1, 4711},
                                               {begin, 1, kNoBuffer},
                                               {begin, 1, kReadOnly}}) {
    for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
      const Op op = client_.op(direction, local.data(), wrong.address, wrong.size, wrong.buffer);
      const Status status = client_.run(op);
      EXPECT_EQ(status.code(), Code::kInvalidArgument)
          << wrong.address - begin << " + " << wrong.size << " of " << wrong.buffer << ": "
          << status.message();
      EXPECT_FALSE(status.message().empty());
    }
  }
  const Op op = client_.op(Direction::kRead, local.data(), begin, local.size());
  EXPECT_TRUE(client_.run(op).ok());
  EXPECT_TRUE(std::ranges::equal(
      local, bytes_of(1, TargetMemory::kLargeSize) | std::views::take(local.size())));
}

TEST_P(TransportContract, WhatIsReadOnlyCanBeReadAndNotWritten) {
  const std::vector<uint8_t> oracle = TargetMemory::read_only_bytes();
  std::vector<uint8_t> local(oracle.size(), 0x22);
  for (const uint64_t size : {uint64_t{1}, uint64_t{oracle.size()}}) {
    const Op op =
        client_.op(Direction::kWrite, local.data(), address_of(kReadOnly), size, kReadOnly);
    EXPECT_EQ(client_.run(op).code(), Code::kInvalidArgument);
  }
  const Op op =
      client_.op(Direction::kRead, local.data(), address_of(kReadOnly), oracle.size(), kReadOnly);
  EXPECT_TRUE(client_.run(op).ok());
  EXPECT_TRUE(local == oracle);
}

TEST_P(TransportContract, CompletionsMaySubmitHoweverOften) {
  // As deep as the stack would be if each completion were inside the one before.
  for (const uint64_t size : {4 * kKiB, 256 * kKiB}) {
    const size_t rounds = size > 64 * kKiB ? 500 : 50'000;
    std::vector<uint8_t> local(size);
    const size_t before = recorder().count();
    std::atomic<size_t> left{rounds};
    std::atomic<size_t> refused{0};
    recorder().on_complete = [&](uint64_t, const Status&) {
      if (left.fetch_sub(1) <= 1) return;
      const Op next = client_.op(Direction::kRead, local.data(), address_of(kLarge), size);
      refused += path().submit({&next, 1}) == 1 ? 0 : 1;
    };
    const Op first = client_.op(Direction::kRead, local.data(), address_of(kLarge), size);
    ASSERT_EQ(path().submit({&first, 1}), 1U);
    ASSERT_TRUE(recorder().wait_count(before + rounds, 60'000)) << recorder().count();
    client_.drop_path();  // The last completion has returned.
    recorder().on_complete = nullptr;
    EXPECT_EQ(refused, 0U);
    EXPECT_EQ(recorder().codes().size(), 1U);
    ASSERT_TRUE(client_.open(segment_).ok());
  }
}

TEST_P(TransportContract, AnUrgentOpPassesABacklog) {
  constexpr size_t kBacklog = 200;
  std::vector<uint8_t> local(kBacklog * kMiB / 4);
  std::vector<uint8_t> urgent(kMiB);
  std::atomic<size_t> done_before{kBacklog};
  // In turn it would come last, always; whoever has the processor may hold it up now and then.
  size_t submitted = 0;
  for (int round = 0; round < 10 && done_before >= kBacklog * 3 / 4; ++round) {
    std::vector<Op> ops;
    for (size_t i = 0; i < kBacklog; ++i) {
      ops.push_back(
          client_.op(Direction::kRead, local.data() + i * kMiB / 4, address_of(kLarge), kMiB / 4));
      ops.back().priority = Priority::kBackground;
    }
    const Op op = client_.op(Direction::kRead, urgent.data(), address_of(kLarge), urgent.size());
    std::atomic<size_t> done{0};
    recorder().on_complete = [&](uint64_t token, const Status&) {
      if (token == op.token) done_before = done.load();
      ++done;
    };
    ASSERT_TRUE(client_.submit_all(ops));
    ASSERT_TRUE(client_.submit_all({&op, 1}));
    submitted += kBacklog + 1;
    ASSERT_TRUE(recorder().wait_count(submitted, 30'000));
    ASSERT_TRUE(eventually(30'000, [&] { return done == kBacklog + 1; }));
    recorder().on_complete = nullptr;
  }
  client_.drop_path();
  EXPECT_LT(done_before, kBacklog * 3 / 4);
  EXPECT_EQ(recorder().codes(), (std::map<Code, size_t>{{Code::kOk, submitted}}));
}

TEST_P(TransportContract, ADeadlineThatHasPassedEndsAnOpAtOnce) {
  std::vector<uint8_t> local(8 * kMiB, 0x33);
  for (const uint64_t size : {4 * kKiB, 8 * kMiB}) {
    Op op = client_.op(Direction::kRead, local.data(), address_of(kLarge), size);
    op.deadline_ns = monotonic_ns() - 1;
    EXPECT_LT(duration_ms([&] { EXPECT_EQ(client_.run(op).code(), Code::kTimeout); }), kBusyMs);
  }
}

TEST_P(TransportContract, AnotherSecretOrEpochOpensNoPath) {
  Client stranger(GetParam().rig, "another secret");
  const Status refused = stranger.open(segment_);
  EXPECT_EQ(refused.code(), Code::kUnavailable) << refused.message();
  SegmentDescriptor later = segment_;
  later.epoch += 1;
  Client other(GetParam().rig);
  EXPECT_FALSE(other.open(later).ok());
  EXPECT_TRUE(other.open(segment_).ok());
}

TEST_P(TransportContract, AWorkingPathProbesWell) {
  uint64_t took_ms = duration_ms([&] { EXPECT_TRUE(path().probe().ok()); });
  EXPECT_LT(took_ms, kBusyMs);
}

INSTANTIATE_TEST_SUITE_P(All, TransportContract, ::testing::ValuesIn(cases()), case_name);

// ---- Within one process, where the owner's side can be driven as well

class TransportOwner : public ::testing::TestWithParam<Rig> {};

TEST_P(TransportOwner, WhatIsRegisteredAfterOpeningCanBeUsedOnceThePathKnows) {
  const auto end = GetParam().make_end(random_token(), Client::kSecret);
  Client client(GetParam());
  ASSERT_TRUE(client.open(end->describe()).ok());
  for (uint64_t n = 0; n < 20; ++n) {
    std::vector<uint8_t> remote = bytes_of(n, 300 * kKiB);
    const auto address = reinterpret_cast<uintptr_t>(remote.data());
    const BufferId id = end->add(address, remote.size(), true);
    client.transport().update(client.path(), end->describe());
    std::vector<uint8_t> local(remote.size());
    for (const uint64_t size : {uint64_t{100}, uint64_t{remote.size()}}) {
      const Op op = client.op(Direction::kRead, local.data(), address, size, id);
      const Status status = client.run(op);
      ASSERT_TRUE(status.ok()) << status.message();
    }
    EXPECT_TRUE(local == remote);
    end->remove(id);
    remote.assign(remote.size(), 0);
    const Op late = client.op(Direction::kWrite, local.data(), address, local.size(), id);
    EXPECT_EQ(client.run(late).code(), Code::kInvalidArgument);
    EXPECT_TRUE(std::ranges::all_of(remote, [](uint8_t byte) { return byte == 0; }));
  }
}

TEST_P(TransportOwner, MemoryThatIsSaidToBeAGpusIsNeverTouchedByHand) {
  const auto end = GetParam().make_end(random_token(), Client::kSecret);
  if (end->transport().kind() == TransportKind::kRdma) {
    GTEST_SKIP() << "a device may reach it by itself, and the fake one copies with the CPU";
  }
  Client client(GetParam());
  const MappedMemory nowhere = MappedMemory::make(kMiB);
  ASSERT_EQ(mprotect(nowhere.address(), kMiB, PROT_NONE), 0);  // Whoever touches it crashes.
  const auto address = reinterpret_cast<uint64_t>(nowhere.address());
  const Buffer buffer{7, address, kMiB, MemoryKind::kCuda, "cuda:0", true, -1, 0};
  const auto key = end->transport().register_buffer(buffer);
  SegmentDescriptor peer = end->describe();
  if (key.ok()) {
    peer.buffers.push_back({7, address, kMiB, MemoryKind::kCuda, true, "cuda:0", {}});
    peer.buffers.back().keys.push_back({end->transport().kind(), key.value()});
  }
  ASSERT_TRUE(client.open(peer).ok());
  std::vector<uint8_t> local(kMiB);
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    for (const uint64_t size : {uint64_t{100}, kMiB}) {
      EXPECT_FALSE(client.run(client.op(direction, local.data(), address, size, 7)).ok());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TransportOwner, ::testing::ValuesIn(rigs()),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace hicache::testing
