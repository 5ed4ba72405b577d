// The contract of transports when peers stop, die or take memory away, and when paths are closed:
// every op is completed once, in time, and nothing is touched afterwards.
#include <algorithm>
#include <array>
#include <cstring>
#include <ranges>
#include <thread>

#include "transport_contract.h"

namespace hicache::testing {
namespace {

constexpr uint8_t kMark = 0xA5;
constexpr uint64_t kPieceSize = kMiB;

/// By memcmp of the bytes with their neighbours: it is fast under the sanitizers too.
bool is_all(std::span<const uint8_t> bytes, uint8_t value) {
  return bytes[0] == value && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

size_t sum(const std::map<Code, size_t>& codes) {
  size_t count = 0;
  for (const auto& [code, times] : codes) count += times;
  return count;
}

/// Many large ops on one path, to be interrupted.
class Load {
 public:
  static constexpr size_t kOps = 150;
  static constexpr uint64_t kSize = TargetMemory::kLargeSize / kOps;

  Load(Client& client, uint64_t remote, uint64_t timeout_ms = 20'000)
      : client_(client), local_(kOps * kSize) {
    for (size_t i = 0; i < kOps; ++i) {
      const auto direction = i % 4 == 3 ? Direction::kWrite : Direction::kRead;
      ops_.push_back(client.op(direction, local_.data() + i * kSize, remote + i * kSize, kSize,
                               kLarge, timeout_ms));
    }
  }

  /// Returns how many were taken; waits until some of them are done.
  size_t begin(size_t done_count = 3) {
    taken_ = client_.path().submit(ops_);
    EXPECT_GT(taken_, 0U);
    EXPECT_TRUE(client_.recorder().wait_count(done_count, 20'000));
    return taken_;
  }
  size_t taken() const { return taken_; }
  bool wait_all(uint64_t timeout_ms) { return client_.recorder().wait_count(taken_, timeout_ms); }
  /// Whoever still writes to the memory of these ops is found out by is_untouched().
  void mark() { std::memset(local_.data(), kMark, local_.size()); }
  bool is_untouched() const { return is_all(local_, kMark); }

 private:
  Client& client_;
  std::vector<uint8_t> local_;
  std::vector<Op> ops_;
  size_t taken_ = 0;
};

class TransportFaults : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    target_ = make_target(GetParam());
    segment_ = target_->describe();
    const Status opened = client_.open(segment_);
    ASSERT_TRUE(opened.ok()) << opened.message();
    remote_ = std::ranges::find(segment_.buffers, kLarge, &BufferDescriptor::id)->address;
  }
  /// What another op of the same peer returns: all that was under way before has had its chance.
  Status run_one_more() {
    std::vector<uint8_t> local(kPieceSize);
    return client_.run(client_.op(Direction::kRead, local.data(), remote_, local.size()));
  }

  std::unique_ptr<Target> target_;
  SegmentDescriptor segment_;
  uint64_t remote_ = 0;
  Client client_{GetParam().rig};
};

TEST_P(TransportFaults, ClosingInMidFlightCompletesEverythingAndTouchesNothingAfterwards) {
  Load load(client_, remote_);
  load.begin();
  EXPECT_LT(duration_ms([&] { client_.path().close(); }), kDeadlineGraceMs + kBusyMs);
  EXPECT_EQ(client_.recorder().count(), load.taken());
  load.mark();
  const auto codes = client_.recorder().codes();
  for (const auto& [code, count] : codes) {
    EXPECT_TRUE(code == Code::kOk || code == Code::kCancelled) << code_name(code) << count;
  }
  EXPECT_EQ(sum(codes), load.taken());
  std::vector<uint8_t> local(100);
  const Op op = client_.op(Direction::kRead, local.data(), remote_, local.size());
  EXPECT_EQ(client_.path().submit({&op, 1}), 0U);
  ASSERT_TRUE(client_.open(segment_).ok());
  EXPECT_TRUE(run_one_more().ok());
  EXPECT_TRUE(load.is_untouched());
}

TEST_P(TransportFaults, ClosingWhileManyThreadsSubmitLosesNoCompletion) {
  for (int round = 0; round < 10; ++round) {
    const size_t before = client_.recorder().count();
    std::atomic<size_t> taken{0};
    std::atomic<bool> is_closed{false};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const uint64_t size = t % 2 == 0 ? 4 * kKiB : 256 * kKiB;
        std::array<uint64_t, 8> tokens{};  // Of the ops that have the parts of `local`.
        std::vector<uint8_t> local(tokens.size() * size);
        for (size_t i = 0; !is_closed; i = (i + 1) % tokens.size()) {
          if (tokens[i] != 0) (void)client_.recorder().wait_for(tokens[i]);
          const Op op = client_.op(Direction::kRead, local.data() + i * size, remote_, size);
          const size_t taken_now = client_.path().submit({&op, 1});
          tokens[i] = taken_now == 1 ? op.token : 0;
          taken += taken_now;
        }
      });
    }
    EXPECT_TRUE(client_.recorder().wait_count(before + 50, 20'000));
    client_.path().close();
    is_closed = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(client_.recorder().count() - before, taken);
    ASSERT_TRUE(client_.open(segment_).ok());
  }
  for (const auto& [code, count] : client_.recorder().codes()) {
    EXPECT_TRUE(code == Code::kOk || code == Code::kCancelled) << code_name(code) << count;
  }
}

TEST_P(TransportFaults, UnregisteringWhileOpsRunEndsAllTouching) {
  std::atomic<bool> is_over{false};
  std::atomic<size_t> failed{0};
  std::vector<uint8_t> local(4 * kPieceSize, 0x77);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t size = t % 2 == 0 ? 4 * kKiB : kPieceSize;
      uint64_t n = 0;
      while (!is_over) {
        const auto direction = t < 2 ? Direction::kWrite : Direction::kRead;
        const Op op = client_.op(direction, local.data() + t * kPieceSize,
                                 remote_ + (t * 16 + ++n % 16) * kPieceSize, size);
        const Code code = client_.run(op).code();
        if (code == Code::kOk) continue;
        // A connection that carries bytes for what has just gone may have to be given up.
        EXPECT_TRUE(code == Code::kInvalidArgument || code == Code::kUnavailable)
            << code_name(code);
        ++failed;
      }
    });
  }
  EXPECT_TRUE(client_.recorder().wait_count(100, 20'000));
  target_->unregister_large();
  EXPECT_TRUE(eventually(20'000, [&] { return failed > 50; }));
  is_over = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(target_->is_large_untouched());
}

INSTANTIATE_TEST_SUITE_P(All, TransportFaults, ::testing::ValuesIn(cases()), case_name);

// ---- Peers that can be stopped and killed

class TransportPeer : public ::testing::TestWithParam<Rig> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(child_.is_ready());
    segment_ = child_.describe();
    ASSERT_TRUE(client_.open(segment_).ok());
    remote_ = std::ranges::find(segment_.buffers, kLarge, &BufferDescriptor::id)->address;
  }

  ChildTarget child_{GetParam()};
  SegmentDescriptor segment_;
  uint64_t remote_ = 0;
  Client client_{GetParam()};
};

TEST_P(TransportPeer, APeerThatIsKilledInMidBatchEndsAllOpsWithinASecond) {
  Load load(client_, remote_);
  load.begin();
  child_.end();
  EXPECT_TRUE(load.wait_all(1000 + kDeadlineGraceMs)) << client_.recorder().count();
  load.mark();
  const auto codes = client_.recorder().codes();
  for (const auto& [code, count] : codes) {
    EXPECT_TRUE(code == Code::kOk || code == Code::kUnavailable) << code_name(code) << count;
  }
  EXPECT_EQ(sum(codes), load.taken());
  // What is offered from now on is taken and refused, or not taken; it does not hang.
  EXPECT_TRUE(eventually(20'000, [&] { return !client_.path().probe().ok(); }));
  std::vector<uint8_t> local(2 * kPieceSize);
  for (const uint64_t size : {uint64_t{100}, uint64_t{local.size()}}) {
    const Op op = client_.op(Direction::kRead, local.data(), remote_, size);
    EXPECT_EQ(client_.run(op).code(), Code::kUnavailable);
  }
  client_.drop_path();
  EXPECT_TRUE(load.is_untouched());
  EXPECT_FALSE(client_.open(segment_).ok());
}

TEST_P(TransportPeer, APeerThatDoesNotAnswerKeepsNoOpLongerThanItsDeadline) {
  Load load(client_, remote_, 500);
  child_.stop();
  const uint64_t took_ms = duration_ms([&] {
    load.begin(0);
    EXPECT_TRUE(load.wait_all(20'000));
  });
  EXPECT_LT(took_ms, 500 + kDeadlineGraceMs + kBusyMs);
  load.mark();
  for (const auto& [code, count] : client_.recorder().codes()) {
    // Memory can be reached whatever its owner does, unless it takes part.
    EXPECT_TRUE(code == Code::kTimeout || code == Code::kOk) << code_name(code) << count;
  }
  child_.resume();
  (void)client_.path().probe();
  client_.drop_path();
  ASSERT_TRUE(client_.open(segment_).ok());
  std::vector<uint8_t> local(kPieceSize);
  const Op op = client_.op(Direction::kRead, local.data(), remote_, local.size());
  const Status status = client_.run(op);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(load.is_untouched());
}

TEST_P(TransportPeer, AStoppedPeerIsOpenedUntilTheDeadlineAtMost) {
  child_.stop();
  Client other(GetParam());
  const uint64_t took_ms = duration_ms([&] { EXPECT_FALSE(other.open(segment_, 1000).ok()); });
  // One more attempt to connect may be under way at the deadline, for a second.
  EXPECT_LT(took_ms, 1000 + 1000 + kDeadlineGraceMs + kBusyMs);
  child_.resume();
  EXPECT_TRUE(other.open(segment_).ok());
}

TEST_P(TransportPeer, AnotherIncarnationIsAnotherPeer) {
  child_.end();
  ChildTarget next(GetParam());
  ASSERT_TRUE(next.is_ready());
  // The old descriptor at the new one's place: as if it had taken the old one's port.
  SegmentDescriptor mixed = next.describe();
  mixed.epoch = segment_.epoch;
  Client other(GetParam());
  EXPECT_EQ(other.open(mixed).code(), Code::kUnavailable);
  EXPECT_TRUE(other.open(next.describe()).ok());
}

std::vector<Rig> rigs_with_children() {
  std::vector<Rig> all = rigs();
  std::erase_if(all, [](const Rig& rig) { return !rig.reaches_children; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, TransportPeer, ::testing::ValuesIn(rigs_with_children()),
                         [](const auto& tested) { return tested.param.name; });

TEST(TransportOwnerEnds, OpsOfItsPeersEndAsOnesOfALostPeer) {
  for (const Rig& rig : rigs()) {
    SCOPED_TRACE(rig.name);
    std::vector<uint8_t> remote = bytes_of(1, TargetMemory::kLargeSize);
    auto end = rig.make_end(random_token(), Client::kSecret);
    const auto address = reinterpret_cast<uintptr_t>(remote.data());
    ASSERT_EQ(end->add(address, remote.size(), true), kLarge);
    Client client(rig);
    ASSERT_TRUE(client.open(end->describe()).ok());
    Load load(client, address);
    load.begin();
    end.reset();
    std::memset(remote.data(), kMark, remote.size());
    EXPECT_TRUE(load.wait_all(1000 + kDeadlineGraceMs));
    for (const auto& [code, count] : client.recorder().codes()) {
      EXPECT_TRUE(code == Code::kOk || code == Code::kUnavailable) << code_name(code) << count;
    }
    client.drop_path();
    EXPECT_TRUE(is_all(remote, kMark));
  }
}

}  // namespace
}  // namespace hicache::testing
