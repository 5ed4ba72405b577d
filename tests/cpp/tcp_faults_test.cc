// What the TCP transport does when the peer's process dies, stops or is cut off, and what it costs
// when nothing happens.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <csignal>
#include <thread>

#include "child_process.h"
#include "tcp_rig.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::duration_ms;
using testing::kBusyMs;
using testing::op_of;
using testing::TcpEnd;
using testing::TcpSharedFile;

std::string shared_name() {
  return "/dev/shm/hicache-test-" + std::to_string(random_token());
}

/// A client here, a peer in a process of its own.
class TcpFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(peer_.is_ready());
    SegmentDescriptor described{};
    described.epoch = file_.told().epoch;
    // A transport that is not served tells how endpoints are written.
    described.endpoints.push_back({TransportKind::kTcp, client_.transport->endpoint()});
    client_.transport->set_port(file_.told().port);
    described.endpoints[0].bytes = client_.transport->endpoint();
    path_ = &client_.open(described);
  }

  std::vector<Op> many(Direction direction, uint64_t timeout_ms) {
    std::vector<Op> ops;
    for (uint64_t i = 0; i < 32; ++i) {
      ops.push_back(op_of(direction, local_.data() + i * kMiB, file_.told().address + i * kMiB,
                          kMiB, next_token_++, timeout_ms));
    }
    return ops;
  }
  void submit(std::span<const Op> ops) {
    while (!ops.empty()) ops = ops.subspan(path_->submit(ops));
  }
  Status run(const Op& op) {
    submit({&op, 1});
    EXPECT_TRUE(testing::eventually(
        20'000, [&] { return client_.completions.status(op.token).code() != Code::kNotFound; }));
    return client_.completions.status(op.token);
  }

  TcpSharedFile file_{shared_name()};
  std::vector<uint8_t> local_ = bytes_of(9, TcpSharedFile::kSize);
  TcpEnd client_;
  ChildProcess peer_{"tcp_peer", {file_.path()}};
  Path* path_ = nullptr;
  uint64_t next_token_ = 0;
};

TEST_F(TcpFaults, BytesCrossProcesses) {
  std::copy_n(bytes_of(4, kMiB).begin(), kMiB, file_.bytes());
  EXPECT_TRUE(run(op_of(Direction::kRead, local_.data(), file_.told().address, kMiB, 1000)).ok());
  EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + kMiB, file_.bytes()));
  EXPECT_TRUE(
      run(op_of(Direction::kWrite, local_.data(), file_.told().address + kMiB, kMiB, 1001)).ok());
  EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + kMiB, file_.bytes() + kMiB))
      << "a write that is acknowledged has been applied";
}

TEST_F(TcpFaults, APeerThatDiesEndsEverythingAtOnce) {
  const std::vector<Op> ops = many(Direction::kRead, 20'000);
  peer_.signal(SIGSTOP);  // So that ops are under way when it dies.
  submit(ops);
  EXPECT_LT(duration_ms([&] {
              peer_.end();
              EXPECT_TRUE(client_.completions.wait_count(ops.size(), 10'000));
            }),
            kBusyMs);
  EXPECT_TRUE(client_.completions.each_once());
  EXPECT_EQ(client_.completions.status(ops.back().token).code(), Code::kUnavailable);
  const std::vector<uint8_t> then = local_;
  // What is given to it now ends at once, too.
  const Op late = op_of(Direction::kRead, local_.data(), file_.told().address, 4096, 2000);
  EXPECT_EQ(run(late).code(), Code::kUnavailable);
  EXPECT_LT(duration_ms([&] { EXPECT_EQ(path_->probe().code(), Code::kUnavailable); }),
            1000 + kBusyMs);
  EXPECT_TRUE(local_ == then);
}

TEST_F(TcpFaults, ReadsOfAStoppedPeerEndAtTheirDeadlineAndTouchNothingAfterwards) {
  std::memset(file_.bytes(), 0x5A, TcpSharedFile::kSize);
  std::vector<Op> ops = many(Direction::kRead, 400);
  std::vector<ArrivalSum> sums(ops.size());
  for (size_t i = 0; i < ops.size(); i += 2) {
    ops[i].size = kArrivalSizeMax;
    ops[i].arrival = &sums[i];
  }
  peer_.signal(SIGSTOP);
  const uint64_t took_ms = duration_ms([&] {
    submit(ops);
    EXPECT_TRUE(client_.completions.wait_count(ops.size(), 10'000));
  });
  EXPECT_GE(took_ms, 300U);
  EXPECT_LT(took_ms, 400 + kDeadlineGraceMs + kBusyMs);
  for (const Op& op : ops) {
    EXPECT_EQ(client_.completions.status(op.token).code(), Code::kTimeout);
  }
  const std::vector<uint8_t> then = local_;
  peer_.signal(SIGCONT);
  // What it answers now is drained, and the path works again without being opened again.
  std::vector<uint8_t> fresh(kMiB);
  EXPECT_TRUE(run(op_of(Direction::kRead, fresh.data(), file_.told().address, kMiB, 1000)).ok());
  EXPECT_TRUE(path_->probe().ok());
  EXPECT_EQ(fresh, std::vector<uint8_t>(kMiB, 0x5A));
  EXPECT_TRUE(local_ == then);
  EXPECT_TRUE(std::ranges::none_of(sums, &ArrivalSum::is_known));
  EXPECT_EQ(client_.stat("lanes_cut"), 0U);
}

TEST_F(TcpFaults, WritesToAStoppedPeerEndAtTheirDeadlineAndAreNotAppliedLater) {
  std::memset(file_.bytes(), 0x5A, TcpSharedFile::kSize);
  const std::vector<Op> ops = many(Direction::kWrite, 400);
  peer_.signal(SIGSTOP);
  const uint64_t took_ms = duration_ms([&] {
    submit(ops);
    EXPECT_TRUE(client_.completions.wait_count(ops.size(), 10'000));
  });
  EXPECT_LT(took_ms, 400 + kDeadlineGraceMs + kBusyMs);
  EXPECT_EQ(client_.completions.status(ops.front().token).code(), Code::kTimeout);
  peer_.signal(SIGCONT);
  EXPECT_TRUE(testing::eventually(20'000, [&] { return path_->probe().ok(); }));
  EXPECT_EQ(std::vector<uint8_t>(file_.bytes(), file_.bytes() + TcpSharedFile::kSize),
            std::vector<uint8_t>(TcpSharedFile::kSize, 0x5A));
  EXPECT_TRUE(run(op_of(Direction::kWrite, local_.data(), file_.told().address, kMiB, 1000)).ok());
  EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + kMiB, file_.bytes()));
}

TEST_F(TcpFaults, AStoppedPeerIsFoundByAProbeWithinASecondAndComesBack) {
  peer_.signal(SIGSTOP);
  EXPECT_LT(duration_ms([&] { EXPECT_EQ(path_->probe().code(), Code::kUnavailable); }),
            1000 + kBusyMs);
  peer_.signal(SIGCONT);
  // One lane that answers is enough for a path; each probe opens those that are missing.
  EXPECT_TRUE(testing::eventually(
      20'000, [&] { return path_->probe().ok() && client_.stat("lanes_out") == 4U; }));
  EXPECT_TRUE(run(op_of(Direction::kRead, local_.data(), file_.told().address, kMiB, 1000)).ok());
}

TEST_F(TcpFaults, ClosingWhileThePeerIsStoppedDoesNotWaitForIt) {
  std::vector<Op> ops = many(Direction::kWrite, 20'000);
  const std::vector<Op> reads = many(Direction::kRead, 20'000);
  ops.insert(ops.end(), reads.begin(), reads.end());
  peer_.signal(SIGSTOP);
  submit(ops);
  EXPECT_LT(duration_ms([&] { path_->close(); }), kBusyMs);
  EXPECT_EQ(client_.completions.count(), ops.size());
  EXPECT_TRUE(client_.completions.each_once());
}

TEST_F(TcpFaults, DeadlinesOfQueuedOpsHoldToo) {
  peer_.signal(SIGSTOP);
  std::vector<Op> ops;
  for (int i = 0; i < 20; ++i) {
    const std::vector<Op> more =
        many(i % 2 == 0 ? Direction::kRead : Direction::kWrite, i % 4 < 2 ? 300 : 600);
    ops.insert(ops.end(), more.begin(), more.end());
  }
  ASSERT_EQ(path_->submit(ops), ops.size());
  EXPECT_LT(duration_ms([&] { EXPECT_TRUE(client_.completions.wait_count(ops.size(), 10'000)); }),
            600 + kDeadlineGraceMs + kBusyMs);
  for (const Op& op : ops) {
    const Code code = client_.completions.status(op.token).code();
    EXPECT_TRUE(code == Code::kTimeout || code == Code::kUnavailable) << code_name(code);
  }
  EXPECT_TRUE(client_.completions.each_once());
}

uint64_t cpu_us() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<uint64_t>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1'000'000 +
         static_cast<uint64_t>(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

TEST(TcpIdle, AHundredOpenPathsCostNothing) {
  TcpEnd server({.lanes_in_max = 1000});
  TcpEnd client({.lanes = 1});
  for (int i = 0; i < 100; ++i) client.open(server.descriptor());
  ASSERT_TRUE(testing::eventually(20'000, [&] { return server.stat("lanes_in") == 100; }));
  const uint64_t before_us = cpu_us();
  EXPECT_FALSE(testing::eventually(1000, [&] { return server.stat("hostile") != 0; }));
  // Of a second of both ends; looking 500 times at a figure is most of it.
  EXPECT_LT(cpu_us() - before_us, 250'000U);
}

/// Accepts lanes and never reads nor answers: a peer behind a cut cable, as far as bytes go.
TEST(TcpBlackhole, ALaneThatSwallowsEverythingTimesOut) {
  TcpEnd client({.lanes = 2});
  const uint64_t epoch = random_token();
  std::mutex mutex;
  std::vector<Fd> lanes;
  auto control = ControlServer::start(
      {.host = "127.0.0.1",
       .port_min = 0,
       .port_max = 0,
       .secret = testing::tcp_secret(),
       .epoch = epoch,
       .tls = nullptr,
       .connections_max = 10},
      {.call = [](ControlOp, std::span<const uint8_t>) -> Result<std::vector<uint8_t>> {
         return std::vector<uint8_t>();
       },
       .lane =
           [&](Fd lane) {
             const std::lock_guard lock(mutex);
             lanes.push_back(std::move(lane));
           }});
  ASSERT_TRUE(control.ok());
  client.transport->set_port(control.value()->port());
  SegmentDescriptor peer{};
  peer.epoch = epoch;
  peer.endpoints.push_back({TransportKind::kTcp, client.transport->endpoint()});
  Path& path = client.open(peer);
  std::vector<uint8_t> local = bytes_of(1, 64 * kMiB);
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 64; ++i) {
    ops.push_back(op_of(i % 2 == 0 ? Direction::kWrite : Direction::kRead, local.data() + i * kMiB,
                        uint64_t{0x1000000}, kMiB, i, 300));
  }
  ASSERT_EQ(path.submit(ops), ops.size());
  EXPECT_LT(duration_ms([&] { ASSERT_TRUE(client.completions.wait_count(ops.size(), 10'000)); }),
            300 + kDeadlineGraceMs + kBusyMs);
  control.value()->stop();
}

}  // namespace
}  // namespace hicache
