// The RDMA transport over a fabric that fails in the ways that real devices do not on demand.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <thread>

#include "fake_verbs.h"
#include "rdma_rig.h"
#include "transfer/rdma/rdma_transport.h"
#include "transfer/rdma/rdma_wire.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kMs = 1'000'000;

uint64_t stat(const Transport& transport, const std::string& name) {
  for (const auto& [key, value] : transport.stats()) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no figure named " << name;
  return 0;
}

Result<std::unique_ptr<Transport>> transport_over(const FakeVerbs& fabric,
                                                  std::vector<std::string>& notices,
                                                  const std::string& devices = "",
                                                  const std::string& settings = "") {
  return make_rdma_transport({1, devices, settings}, fabric, notices);
}

TEST(RdmaDevices, WithoutAnyTheMessageSaysSo) {
  const FakeVerbs fabric({});
  std::vector<std::string> notices;
  const auto made = transport_over(fabric, notices);
  EXPECT_EQ(made.status().code(), Code::kUnsupported);
  EXPECT_NE(made.status().message().find("ibv_devices"), std::string::npos);
}

TEST(RdmaDevices, OneThatCannotBeOpenedIsNamedWithItsReason) {
  const FakeVerbs fabric({"fake0"});
  fabric.faults.open_errno = EACCES;
  std::vector<std::string> notices;
  const auto made = transport_over(fabric, notices);
  EXPECT_EQ(made.status().code(), Code::kUnsupported);
  for (const char* part : {"fake0", "ibv_open_device", "Permission denied", "/dev/infiniband"}) {
    EXPECT_NE(made.status().message().find(part), std::string::npos) << made.status().message();
  }
  EXPECT_EQ(fabric.open_count(), 0U);
}

TEST(RdmaDevices, OnlyThoseThatAreNamedAreUsedAndUnknownNamesAreTold) {
  const FakeVerbs fabric({"fake0", "fake1"});
  std::vector<std::string> notices;
  {
    const auto made = transport_over(fabric, notices, "fake1,fake7");
    ASSERT_TRUE(made.ok()) << made.status().message();
    EXPECT_EQ(stat(*made.value(), "rails"), 1U);
    ASSERT_EQ(notices.size(), 1U);
    EXPECT_NE(notices[0].find("fake7"), std::string::npos);
    EXPECT_NE(notices[0].find("fake0, fake1"), std::string::npos);
  }
  EXPECT_EQ(fabric.open_count(), 0U);
}

TEST(RdmaDevices, AGidIndexThatIsNotThereIsToldWithThoseThatAre) {
  const FakeVerbs fabric({"fake0"});
  std::vector<std::string> notices;
  const auto made = transport_over(fabric, notices, "", R"({"gid_index": 5})");
  ASSERT_FALSE(made.ok());
  for (const char* part : {"fake0", "gid_index 5", "0 ::ffff:10.0.0.1"}) {
    EXPECT_NE(made.status().message().find(part), std::string::npos) << made.status().message();
  }
}

TEST(RdmaRegistration, ADeviceThatRefusesDoesNotLoseTheOthers) {
  const FakeVerbs fabric({"fake0", "fake1"});
  std::vector<std::string> notices;
  const auto made = transport_over(fabric, notices);
  ASSERT_TRUE(made.ok());
  std::vector<uint8_t> bytes(kMiB);
  const Buffer buffer{
      1, reinterpret_cast<uintptr_t>(bytes.data()), bytes.size(), MemoryKind::kHost, "*", true, -1,
      0};
  fabric.faults.register_fails_on = 0;
  const auto key = made.value()->register_buffer(buffer);
  ASSERT_TRUE(key.ok()) << key.status().message();
  const auto rails = decode_keys(key.value(), bytes.size());
  ASSERT_EQ(rails.value().size(), 1U);
  EXPECT_EQ(rails.value()[0].rail, 1);
  EXPECT_EQ(stat(*made.value(), "registrations_refused"), 1U);
  made.value()->unregister_buffer(1);

  const auto alone = transport_over(fabric, notices, "fake0");
  const auto refused = alone.value()->register_buffer(buffer);
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  for (const char* part : {"fake0", "ibv_reg_mr", "Cannot allocate memory", "ulimit -l"}) {
    EXPECT_NE(refused.status().message().find(part), std::string::npos)
        << refused.status().message();
  }
}

// ---- connecting

/// Asks a transport of this process.
class DirectControl : public ControlCalls {
 public:
  explicit DirectControl(Transport& peer) : peer_(peer) {}
  Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t> request,
                                    uint64_t) override {
    return peer_.answer(request);
  }

 private:
  Transport& peer_;
};

/// A peer that does not answer until it is told to give up.
class SilentControl : public ControlCalls {
 public:
  Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t>,
                                    uint64_t deadline_ns) override {
    ++waiting;
    (void)eventually(60'000, [&] { return is_over || monotonic_ns() >= deadline_ns; });
    --waiting;
    return Status(Code::kUnavailable, "no answer");
  }
  std::atomic<size_t> waiting{0};
  std::atomic<bool> is_over{false};
};

TEST(RdmaConnect, PeersThatDoNotAnswerHoldUpNoOther) {
  const FakeVerbs fabric({"fake0"});
  std::vector<std::string> notices;
  const auto server = transport_over(fabric, notices);
  const auto client = transport_over(fabric, notices);
  ASSERT_TRUE(server.ok() && client.ok());
  const SegmentDescriptor peer{
      "peer", 1, 1, {{TransportKind::kRdma, server.value()->endpoint()}}, {}};
  Recorder recorder;
  const auto open = [&](ControlCalls& control) {
    return client.value()->open(peer, control, recorder, monotonic_ns() + 30'000 * kMs).status();
  };
  std::vector<SilentControl> silent(8);
  std::vector<std::thread> opening;
  for (SilentControl& one : silent) {
    opening.emplace_back([&] { EXPECT_EQ(open(one).code(), Code::kUnavailable); });
  }
  const auto waiting = [&] {
    return std::ranges::count_if(silent, [](const auto& one) { return one.waiting != 0; });
  };
  EXPECT_TRUE(eventually(10'000, [&] { return waiting() == 8; }));
  DirectControl direct(*server.value());
  const Status opened = open(direct);
  EXPECT_TRUE(opened.ok()) << opened.message();
  EXPECT_EQ(waiting(), 8) << "they were still being waited for";
  for (SilentControl& one : silent) one.is_over = true;
  for (std::thread& thread : opening) thread.join();
}

// ---- with a path

class RdmaFaults : public ::testing::Test {
 protected:
  explicit RdmaFaults(std::vector<std::string> devices = {"fake0"}) : fabric_(std::move(devices)) {}
  ~RdmaFaults() override {
    fabric_.resume();
    client_.reset();
    target_.reset();
    EXPECT_EQ(fabric_.open_count(), 0U);
  }

  void start(const std::string& settings = "") {
    rig_ = Rig{"fake",
               [this, settings](uint64_t epoch, const std::string& secret) {
                 return make_rdma_end({&fabric_, "", settings}, epoch, secret);
               },
               false, false,
               [](const SegmentDescriptor&) -> ControlCalls* {
                 static NoCalls none;
                 return &none;
               }};
    target_ = make_target({*rig_, Where::kHere});
    client_ = std::make_unique<Client>(*rig_);
    segment_ = target_->describe();
    const Status opened = client_->open(segment_);
    ASSERT_TRUE(opened.ok()) << opened.message();
  }
  Op read(uint64_t offset, uint64_t size, uint64_t timeout_ms = 20'000) {
    const auto large = std::ranges::find(segment_.buffers, kLarge, &BufferDescriptor::id);
    return client_->op(Direction::kRead, local_.data() + offset, large->address + offset, size,
                       kLarge, timeout_ms);
  }
  Op write(uint64_t offset, uint64_t size) {
    Op op = read(offset, size);
    op.direction = Direction::kWrite;
    return op;
  }
  bool is_local_untouched() const {
    return std::ranges::all_of(local_, [](uint8_t byte) { return byte == kUntouched; });
  }
  void expect_works() {
    const Status probed = client_->path().probe();
    ASSERT_TRUE(probed.ok()) << probed.message();
    const Status status = client_->run(read(0, kMiB));
    ASSERT_TRUE(status.ok()) << status.message();
    const std::vector<uint8_t> oracle = TargetMemory::large_bytes();
    EXPECT_TRUE(std::equal(local_.begin(), local_.begin() + kMiB, oracle.begin()));
  }

  struct NoCalls : ControlCalls {
    Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t>, uint64_t) override {
      return Status(Code::kUnsupported, "the rig has its own");
    }
  };
  static constexpr uint8_t kUntouched = 0xA5;

  FakeVerbs fabric_;
  std::optional<Rig> rig_;
  std::unique_ptr<Target> target_;
  std::unique_ptr<Client> client_;
  SegmentDescriptor segment_;
  std::vector<uint8_t> local_ = std::vector<uint8_t>(8 * kMiB, kUntouched);
};

TEST_F(RdmaFaults, EachWayOfFailingHasItsCodeAndThePathWorksAgainAfterAProbe) {
  start();
  for (const auto& [status, code] :
       std::map<ibv_wc_status, Code>{{IBV_WC_RETRY_EXC_ERR, Code::kUnavailable},
                                     {IBV_WC_RNR_RETRY_EXC_ERR, Code::kUnavailable},
                                     {IBV_WC_FATAL_ERR, Code::kUnavailable},
                                     {IBV_WC_GENERAL_ERR, Code::kUnavailable},
                                     {IBV_WC_WR_FLUSH_ERR, Code::kUnavailable},
                                     {IBV_WC_REM_ACCESS_ERR, Code::kInvalidArgument},
                                     {IBV_WC_REM_INV_REQ_ERR, Code::kInvalidArgument},
                                     {IBV_WC_LOC_PROT_ERR, Code::kIo}}) {
    fabric_.faults.next_status = status;
    const Status got = client_->run(read(0, 4096));
    EXPECT_EQ(got.code(), code) << status << ": " << got.message();
    EXPECT_NE(got.message().find("fake0 -> fake0"), std::string::npos) << got.message();
    expect_works();
  }
}

TEST_F(RdmaFaults, AnOpThatThePeerRefusesDoesNotHarmItsNeighbours) {
  start();
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 200; ++i) ops.push_back(read(i * 4096, 4096));
  fabric_.faults.next_status = IBV_WC_REM_ACCESS_ERR;
  ASSERT_TRUE(client_->submit_all(ops));
  ASSERT_TRUE(client_->recorder().wait_count(ops.size(), 10'000));
  EXPECT_EQ(client_->recorder().codes(),
            (std::map<Code, size_t>{{Code::kOk, 199}, {Code::kInvalidArgument, 1}}));
}

TEST_F(RdmaFaults, OpsThatAreRefusedWhileTheirPathConnectsHarmNoOthers) {
  start();
  constexpr uint64_t kRefused = 4097;
  fabric_.faults.refused_size = kRefused;
  for (int round = 0; round < 50; ++round) {
    std::vector<Op> ops;
    for (uint64_t i = 0; i < 64; ++i) ops.push_back(read(i * 8192, i % 4 == 0 ? kRefused : 4096));
    const size_t before = client_->recorder().count();
    ASSERT_TRUE(client_->submit_all(ops));
    ASSERT_TRUE(client_->recorder().wait_count(before + ops.size(), 20'000));
  }
  EXPECT_EQ(client_->recorder().codes(),
            (std::map<Code, size_t>{{Code::kOk, 50 * 48}, {Code::kInvalidArgument, 50 * 16}}));
}

TEST_F(RdmaFaults, AnOpEndsAtItsDeadlineAndItsMemoryIsLeftAloneAfterwards) {
  start();
  fabric_.faults.is_silent = true;
  const uint64_t took_ms =
      duration_ms([&] { EXPECT_EQ(client_->run(read(0, 4 * kMiB, 200)).code(), Code::kTimeout); });
  EXPECT_GE(took_ms, 200U);
  EXPECT_LE(took_ms, 200 + kDeadlineGraceMs + kBusyMs);
  fabric_.faults.is_silent = false;
  fabric_.resume();
  EXPECT_TRUE(client_->path().probe().ok()) << "so that what was left would have been carried out";
  EXPECT_TRUE(is_local_untouched());
  expect_works();
}

TEST_F(RdmaFaults, AnOpThatTimesOutDoesNotHarmThoseWithMoreTime) {
  start();
  fabric_.faults.is_silent = true;
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 64; ++i) ops.push_back(read(i * 4096, 4096, i == 10 ? 200 : 20'000));
  ASSERT_TRUE(client_->submit_all(ops));
  EXPECT_EQ(client_->recorder().wait_for(ops[10].token).code(), Code::kTimeout);
  fabric_.faults.is_silent = false;
  fabric_.resume();
  ASSERT_TRUE(client_->recorder().wait_count(ops.size(), 10'000));
  EXPECT_EQ(client_->recorder().codes(),
            (std::map<Code, size_t>{{Code::kOk, 63}, {Code::kTimeout, 1}}));
}

TEST_F(RdmaFaults, AQueuePairThatDoesNotEvenFlushIsDestroyedBeforeItsOpsAreCompleted) {
  start();
  fabric_.faults.is_stuck = true;
  const uint64_t took_ms =
      duration_ms([&] { EXPECT_EQ(client_->run(read(0, 2 * kMiB, 200)).code(), Code::kTimeout); });
  EXPECT_LE(took_ms, 200 + kDeadlineGraceMs + kBusyMs);
  EXPECT_GE(stat(client_->transport(), "flushes_overdue"), 1U);
  fabric_.faults.is_stuck = false;
  fabric_.resume();
  EXPECT_TRUE(client_->path().probe().ok());
  EXPECT_TRUE(is_local_untouched());
  expect_works();
}

TEST_F(RdmaFaults, ClosingAStuckPathCompletesEachOpOnceAndInTime) {
  start();
  fabric_.faults.is_stuck = true;
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 100; ++i) ops.push_back(read(i * 4096, 4096));
  ASSERT_EQ(client_->path().submit(ops), ops.size());
  EXPECT_LE(duration_ms([&] { client_->path().close(); }), kDeadlineGraceMs + kBusyMs);
  EXPECT_EQ(client_->recorder().codes(), (std::map<Code, size_t>{{Code::kCancelled, 100}}));
  EXPECT_EQ(client_->path().submit(ops), 0U);
  fabric_.faults.is_stuck = false;
  fabric_.resume();
  EXPECT_TRUE(is_local_untouched());
}

TEST_F(RdmaFaults, WhenOnlyAPartOfAListIsPostedEachOpIsStillCompletedOnce) {
  start();
  fabric_.faults.post_max = 3;
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 50; ++i) ops.push_back(read(i * 4096, 4096));
  ASSERT_TRUE(client_->submit_all(ops));
  ASSERT_TRUE(client_->recorder().wait_count(ops.size(), 10'000));
  EXPECT_EQ(client_->recorder().codes(), (std::map<Code, size_t>{{Code::kUnavailable, 50}}));
  fabric_.faults.post_max = UINT64_MAX;
  expect_works();
}

TEST_F(RdmaFaults, APortThatGoesDownEndsAllOpsAtOnceAndComesBackWithAProbe) {
  start();
  fabric_.faults.is_silent = true;
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 100; ++i) ops.push_back(read(i * 4096, 4096));
  ASSERT_TRUE(client_->submit_all(ops));
  fabric_.set_port("fake0", false);
  ASSERT_TRUE(client_->recorder().wait_count(ops.size(), 20'000));
  EXPECT_EQ(client_->recorder().codes(), (std::map<Code, size_t>{{Code::kUnavailable, 100}}));
  const Status probed = client_->path().probe();
  EXPECT_EQ(probed.code(), Code::kUnavailable);
  EXPECT_NE(probed.message().find("port 1 is down"), std::string::npos) << probed.message();
  EXPECT_EQ(client_->run(read(0, 4096)).code(), Code::kUnavailable) << "until a probe succeeds";
  fabric_.faults.is_silent = false;
  fabric_.set_port("fake0", true);
  expect_works();
}

TEST_F(RdmaFaults, QueuePairsThatCannotBeMadeAreToldWithTheLimit) {
  start();
  fabric_.faults.next_status = IBV_WC_RETRY_EXC_ERR;
  EXPECT_EQ(client_->run(read(0, 4096)).code(), Code::kUnavailable);
  fabric_.faults.create_pair_errno = ENOMEM;
  const Status probed = client_->path().probe();
  for (const char* part : {"ibv_create_qp", "Cannot allocate memory", "max_qp", "queue_depth"}) {
    EXPECT_NE(probed.message().find(part), std::string::npos) << probed.message();
  }
  fabric_.faults.create_pair_errno = 0;
  expect_works();
}

TEST_F(RdmaFaults, ARailThatCannotBePreparedIsToldWithItsReason) {
  start();
  Client other(*rig_);
  fabric_.faults.create_queue_fails_on = 0;
  const Status opened = other.open(segment_);
  EXPECT_EQ(opened.code(), Code::kNoSpace);
  for (const char* part : {"fake0", "ibv_create_cq", "Cannot allocate memory", "ulimit -l"}) {
    EXPECT_NE(opened.message().find(part), std::string::npos) << opened.message();
  }
  fabric_.faults.create_queue_fails_on = -1;
  EXPECT_TRUE(other.open(segment_).ok());
}

TEST_F(RdmaFaults, BuffersThatAreLongerThanTheDeviceTakesAreCut) {
  fabric_.faults.region_size_max = 5 * kMiB + 4096;
  start();
  std::vector<uint8_t> oracle = TargetMemory::large_bytes();
  const Status status = client_->run(read(0, local_.size()));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(std::equal(local_.begin(), local_.end(), oracle.begin()));
}

TEST_F(RdmaFaults, SmallWritesGoInlineAndOnlyTheLastOfAListAsksForACompletion) {
  start();
  const uint64_t posted = fabric_.posted_count();
  const uint64_t signalled = fabric_.signalled_count();
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 64; ++i) ops.push_back(write(i * 100, 100));
  ASSERT_EQ(client_->path().submit(ops), ops.size());
  ASSERT_TRUE(client_->recorder().wait_count(ops.size(), 10'000));
  EXPECT_EQ(fabric_.posted_count() - posted, 64U);
  EXPECT_LE(fabric_.signalled_count() - signalled, 8U);
  EXPECT_EQ(fabric_.inlined_count(), 64U);
  EXPECT_EQ(client_->recorder().codes(), (std::map<Code, size_t>{{Code::kOk, 64}}));
}

TEST_F(RdmaFaults, ADeviceWithoutInlineIsUsedWithout) {
  fabric_.faults.inline_max = 0;
  start();
  EXPECT_TRUE(client_->run(write(0, 64)).ok());
  EXPECT_EQ(fabric_.inlined_count(), 0U);
}

TEST_F(RdmaFaults, WithTooManyConnectionsTheIdleOneGoesAndComesBackWhenUsed) {
  start(R"({"connections_max": 1, "queue_pairs": 1})");
  Client other(*rig_);
  const auto large = std::ranges::find(segment_.buffers, kLarge, &BufferDescriptor::id);
  const auto read_other = [&] {
    return other.run(other.op(Direction::kRead, local_.data(), large->address, 4096));
  };
  ASSERT_TRUE(other.open(segment_).ok());
  for (int round = 0; round < 3; ++round) {
    // The target answers one connection only: whoever has lost it connects anew.
    while (!read_other().ok()) ASSERT_TRUE(other.path().probe().ok());
    while (!client_->run(read(0, 4096)).ok()) ASSERT_TRUE(client_->path().probe().ok());
  }
  EXPECT_EQ(stat(client_->transport(), "connections_active"), 1U);
  EXPECT_GE(stat(client_->transport(), "connects"), 3U);
}

TEST_F(RdmaFaults, GarbageFromAPeerIsRefused) {
  HICACHE_TRACE_SEED();
  start();
  Random random(720);
  for (int i = 0; i < 500; ++i) {
    std::vector<uint8_t> bytes(random.below(80));
    random.fill(bytes);
    EXPECT_FALSE(client_->transport().answer(bytes).ok());
  }
  expect_works();
}

class RdmaTwoRails : public RdmaFaults {
 protected:
  RdmaTwoRails() : RdmaFaults({"fake0", "fake1"}) {}
};

TEST_F(RdmaTwoRails, AnActiveConnectionThatIsIdleGivesWayToAnother) {
  std::vector<std::string> notices;
  start(R"({"connections_max": 1})");
  // The rig's path is the first of four; all of them are paths of one transport.
  EXPECT_LE(stat(client_->transport(), "connections_active"), 1U);
  EXPECT_TRUE(client_->path().probe().ok());
  EXPECT_LE(stat(client_->transport(), "connections_active"), 1U);
}

TEST_F(RdmaTwoRails, ARemoteRailThatIsDownIsNoticedByItsPathsOnly) {
  start();
  fabric_.set_port("fake1", false);
  expect_works();
}

}  // namespace
}  // namespace hicache::testing
