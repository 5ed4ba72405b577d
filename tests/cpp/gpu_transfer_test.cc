// Transfers from and into memory of a GPU, over TCP and within a process, with a fake driver:
// memory of a device that anybody touches by hand is a crash.
#include <atomic>
#include <thread>

#include "fake_gpu.h"
#include "tcp_rig.h"
#include "transfer/device_staging.h"
#include "transfer/engine.h"

namespace hicache::testing {
namespace {

using Way = FakeGpu::Way;

constexpr uint64_t kSize = 4 * kMiB;
constexpr BufferId kHostBuffer = kTcpBuffer;
constexpr BufferId kDeviceBuffer = 9;

/// A GPU, and two ends of the TCP transport with memory of both kinds.
struct GpuRig {
  GpuRig() {
    server.share(host.data(), kSize, kHostBuffer);
    const Buffer buffer{kDeviceBuffer, device, kSize, MemoryKind::kCuda, "cuda:0", true, -1, 0};
    EXPECT_TRUE(server.transport->register_buffer(buffer).ok());
    gpu.put(device, bytes_of(1, kSize));
    gpu.put(local_device, bytes_of(2, kSize));
    path = &client.open(server.descriptor());
  }
  Op op(Direction direction, uint64_t local, uint64_t remote, uint64_t size, uint64_t token,
        uint64_t timeout_ms = 20'000) const {
    Op made = op_of(direction, reinterpret_cast<void*>(local), remote, size, token, timeout_ms);
    made.remote_buffer = remote - device < kSize ? kDeviceBuffer : kHostBuffer;
    return made;
  }
  Status run(const Op& op) {
    const size_t before = client.completions.count();
    EXPECT_EQ(path->submit({&op, 1}), 1U);
    EXPECT_TRUE(client.completions.wait_count(before + 1));
    return client.completions.status(op.token);
  }
  uint64_t host_address() const { return reinterpret_cast<uint64_t>(host.data()); }
  uint64_t local_address() const { return reinterpret_cast<uint64_t>(local_host.data()); }

  FakeGpu gpu;
  std::vector<uint8_t> host = bytes_of(3, kSize);        // The server's.
  std::vector<uint8_t> local_host = bytes_of(4, kSize);  // The client's.
  const uint64_t device = gpu.allocate(kSize, 0);
  const uint64_t local_device = gpu.allocate(kSize, 1);
  TcpEnd server;
  TcpEnd client;
  Path* path = nullptr;
};

/// What everything should be: plain copies, one after the other.
struct Oracle {
  explicit Oracle(const GpuRig& rig)
      : memory{{rig.device, rig.gpu.bytes_at(rig.device, kSize)},
               {rig.local_device, rig.gpu.bytes_at(rig.local_device, kSize)},
               {rig.host_address(), rig.host},
               {rig.local_address(), rig.local_host}} {}
  void copy(uint64_t to, uint64_t to_offset, uint64_t from, uint64_t from_offset, uint64_t size) {
    const auto& source = memory.at(from);
    std::copy_n(source.begin() + static_cast<ptrdiff_t>(from_offset), size,
                memory.at(to).begin() + static_cast<ptrdiff_t>(to_offset));
  }
  void compare(const GpuRig& rig) const {
    for (const auto& [address, bytes] : memory) {
      EXPECT_TRUE(rig.gpu.bytes_at(address, kSize) == bytes) << "memory at " << address;
    }
  }
  std::map<uint64_t, std::vector<uint8_t>> memory;
};

TEST(GpuOverTcp, EachByteArrivesWhereverEitherEndIs) {
  HICACHE_TRACE_SEED();
  Random random;
  GpuRig rig;
  Oracle oracle(rig);
  uint64_t token = 0;
  for (int round = 0; round < 12; ++round) {
    // Each op has an eighth of each memory to itself: they run at the same time.
    constexpr uint64_t kShare = kSize / 8;
    std::vector<Op> ops;
    for (uint64_t i = 0; i < 8; ++i) {
      const uint64_t local = random.one_in(2) ? rig.local_device : rig.local_address();
      const uint64_t remote = random.one_in(2) ? rig.device : rig.host_address();
      const uint64_t size = random.one_in(8) ? kShare : random.size_up_to(kShare);
      const uint64_t here = i * kShare + random.below(kShare - size + 1);
      const uint64_t there = i * kShare + random.below(kShare - size + 1);
      const bool is_read = random.one_in(2);
      ops.push_back(rig.op(is_read ? Direction::kRead : Direction::kWrite, local + here,
                           remote + there, size, ++token));
      ops.back().priority = random.one_in(2) ? Priority::kUrgent : Priority::kBackground;
      if (is_read) {
        oracle.copy(local, here, remote, there, size);
      } else {
        oracle.copy(remote, there, local, here, size);
      }
    }
    ASSERT_EQ(rig.path->submit(ops), ops.size());
    ASSERT_TRUE(rig.client.completions.wait_count(token));
  }
  for (uint64_t i = 1; i <= token; ++i) {
    EXPECT_TRUE(rig.client.completions.status(i).ok())
        << rig.client.completions.status(i).message();
  }
  EXPECT_TRUE(rig.client.completions.each_once());
  oracle.compare(rig);
  EXPECT_EQ(rig.gpu.pageable_copies(), 0U);
}

TEST(GpuOverTcp, LargeOpsGoThroughFewSlots) {
  GpuRig rig;
  TcpEnd others[2];
  uint64_t token = 0;
  // More than all slots of the server hold, from several peers, in both directions.
  std::vector<Path*> paths = {rig.path};
  for (TcpEnd& other : others) paths.push_back(&other.open(rig.server.descriptor()));
  std::vector<std::vector<uint8_t>> written;
  for (uint64_t i = 0; i < paths.size(); ++i) written.push_back(bytes_of(100, kSize));
  for (uint64_t i = 0; i < paths.size(); ++i) {
    const auto local = reinterpret_cast<uint64_t>(written[i].data());
    for (int n = 0; n < 6; ++n) {
      const Op op = rig.op(Direction::kWrite, local, rig.device, kSize, ++token);
      ASSERT_EQ(paths[i]->submit({&op, 1}), 1U);
    }
  }
  ASSERT_TRUE(rig.client.completions.wait_count(6));
  for (TcpEnd& other : others) ASSERT_TRUE(other.completions.wait_count(6));
  EXPECT_TRUE(rig.gpu.bytes_at(rig.device, kSize) == bytes_of(100, kSize));
  EXPECT_LE(rig.server.stat("gpu_pinned_bytes"),
            DeviceStaging::kSlotsMax * DeviceStaging::kSlotSize);
  EXPECT_GE(rig.server.stat("gpu_copied_bytes"), 18 * kSize);
}

TEST(GpuOverTcp, AWriteIsAcknowledgedWhenItIsInTheGpu) {
  GpuRig rig;
  rig.gpu.hold(Way::kToDevice);
  const Op op = rig.op(Direction::kWrite, rig.local_address(), rig.device + 5, 1000, 1);
  ASSERT_EQ(rig.path->submit({&op, 1}), 1U);
  ASSERT_TRUE(rig.gpu.wait_held(Way::kToDevice, 1));
  // Whatever is sent later is answered before it.
  EXPECT_TRUE(
      rig.run(rig.op(Direction::kRead, rig.local_address() + 8192, rig.host_address(), 4096, 2))
          .ok());
  EXPECT_EQ(rig.client.completions.count(), 1U);
  rig.gpu.let_go();
  ASSERT_TRUE(rig.client.completions.wait_count(2));
  EXPECT_TRUE(rig.client.completions.status(1).ok());
  EXPECT_EQ(rig.gpu.bytes_at(rig.device + 5, 1000),
            std::vector<uint8_t>(rig.local_host.begin(), rig.local_host.begin() + 1000));
}

TEST(GpuOverTcp, ADeadlineEndsAnOpThatThePeersGpuHoldsUp) {
  GpuRig rig;
  rig.gpu.hold(Way::kFromDevice);
  rig.gpu.hold(Way::kToDevice);
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    const uint64_t token = direction == Direction::kRead ? 1 : 2;
    const Op op = rig.op(direction, rig.local_address(), rig.device, kMiB, token, 300);
    const uint64_t took_ms = duration_ms([&] { EXPECT_EQ(rig.run(op).code(), Code::kTimeout); });
    EXPECT_LT(took_ms, 300 + kDeadlineGraceMs + kBusyMs);
  }
  rig.gpu.let_go();
  EXPECT_TRUE(rig.path->probe().ok());
  EXPECT_TRUE(rig.run(rig.op(Direction::kRead, rig.local_address(), rig.device, kMiB, 3)).ok());
}

TEST(GpuOverTcp, AnOpIsCompleteOnlyWhenItsOwnCopyHasEnded) {
  GpuRig rig;
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    const bool is_read = direction == Direction::kRead;
    const Way way = is_read ? Way::kToDevice : Way::kFromDevice;
    const uint64_t token = is_read ? 1 : 2;
    const size_t before = rig.client.completions.count();
    rig.gpu.hold(way);
    const Op op = rig.op(direction, rig.local_device, rig.host_address(), 1000, token, 200);
    ASSERT_EQ(rig.path->submit({&op, 1}), 1U);
    ASSERT_TRUE(rig.gpu.wait_held(way, 1));
    // A copy cannot be taken back, so the deadline passes: its memory is not given up before.
    (void)eventually(20'000, [&] { return monotonic_ns() > op.deadline_ns + 50'000'000; });
    EXPECT_EQ(rig.client.completions.count(), before);
    rig.gpu.let_go();
    ASSERT_TRUE(rig.client.completions.wait_count(before + 1));
    const Code code = rig.client.completions.status(token).code();
    // It was held up past its deadline: it is late, has lost its lane, or was done all the same.
    EXPECT_TRUE(code == Code::kTimeout || code == Code::kUnavailable || code == Code::kOk)
        << code_name(code);
  }
}

TEST(GpuOverTcp, OpsThatWaitForASlotEndAtTheirDeadline) {
  GpuRig rig;
  rig.gpu.hold(Way::kToDevice);
  // All slots of the path are on the wire, to a GPU that is stuck; the last op gets none.
  std::vector<Op> ops;
  for (uint64_t i = 0; i < 16; ++i) {
    ops.push_back(rig.op(Direction::kWrite, rig.local_device, rig.device, 100, i));
  }
  ops.push_back(rig.op(Direction::kWrite, rig.local_device, rig.device, 100, 99, 200));
  ASSERT_EQ(rig.path->submit(ops), ops.size());
  ASSERT_TRUE(rig.client.completions.wait_count(1));
  EXPECT_EQ(rig.client.completions.order(), std::vector<uint64_t>{99});
  EXPECT_EQ(rig.client.completions.status(99).code(), Code::kTimeout);
  rig.gpu.let_go();
  ASSERT_TRUE(rig.client.completions.wait_count(17));
  for (uint64_t i = 0; i < 16; ++i) EXPECT_TRUE(rig.client.completions.status(i).ok());
}

TEST(GpuOverTcp, UnregisteringWaitsForCopiesAndNothingIsTouchedAfterwards) {
  GpuRig rig;
  for (const Way way : {Way::kFromDevice, Way::kToDevice}) {
    const uint64_t memory = rig.gpu.allocate(kMiB);
    const BufferId id = way == Way::kFromDevice ? 20 : 21;
    const Buffer buffer{id, memory, kMiB, MemoryKind::kCuda, "cuda:0", true, -1, 0};
    ASSERT_TRUE(rig.server.transport->register_buffer(buffer).ok());
    rig.gpu.hold(way);
    std::vector<Op> ops;
    const size_t before = rig.client.completions.count();
    for (uint64_t i = 0; i < 10; ++i) {
      const Direction direction = way == Way::kFromDevice ? Direction::kRead : Direction::kWrite;
      ops.push_back(rig.op(direction, rig.local_address(), memory, kMiB, before + i));
      ops.back().remote_buffer = id;
    }
    ASSERT_EQ(rig.path->submit(ops), ops.size());
    ASSERT_TRUE(rig.gpu.wait_held(way, 1));
    std::atomic<bool> is_gone{false};
    std::thread remover([&] {
      rig.server.transport->unregister_buffer(id);
      is_gone = true;
    });
    // Requests that come meanwhile are denied, those in copies hold the buffer.
    TcpEnd other;
    Path& path = other.open(rig.server.descriptor());
    uint64_t tries = 0;
    EXPECT_TRUE(eventually(20'000, [&] {
      Op op = rig.op(way == Way::kFromDevice ? Direction::kWrite : Direction::kRead,
                     rig.local_address() + 2 * kMiB, memory, 10, ++tries);
      op.remote_buffer = id;
      // One that comes before the removal may wait for the copies that are held.
      op.deadline_ns = monotonic_ns() + 200'000'000;
      EXPECT_EQ(path.submit({&op, 1}), 1U);
      EXPECT_TRUE(other.completions.wait_count(tries));
      return other.completions.status(tries).code() == Code::kInvalidArgument;
    }));
    EXPECT_FALSE(is_gone);
    rig.gpu.let_go();
    remover.join();
    rig.gpu.free(memory);  // What touches it from here on crashes.
    ASSERT_TRUE(rig.client.completions.wait_count(before + 10));
  }
  EXPECT_TRUE(rig.client.completions.each_once());
}

TEST(GpuOverTcp, AFailedCopyFailsItsOpAloneAndLosesNoSlot) {
  HICACHE_TRACE_SEED();
  Random random;
  GpuRig rig;
  uint64_t token = 0;
  for (int round = 0; round < 40; ++round) {
    const bool is_read = random.one_in(2);
    rig.gpu.fail_copy(random.one_in(2) ? Way::kToDevice : Way::kFromDevice,
                      static_cast<int>(random.below(3)));
    const Status status = rig.run(rig.op(is_read ? Direction::kRead : Direction::kWrite,
                                         rig.local_device, rig.device, 2 * kMiB, ++token));
    if (!status.ok()) {
      EXPECT_TRUE(status.code() == Code::kIo || status.code() == Code::kUnavailable)
          << status.message();
    }
  }
  rig.gpu.fail_copy(Way::kToDevice, -1);
  rig.gpu.fail_copy(Way::kFromDevice, -1);
  Oracle oracle(rig);
  for (const Direction direction : {Direction::kWrite, Direction::kRead}) {
    for (int i = 0; i < 5; ++i) {
      ASSERT_TRUE(rig.run(rig.op(direction, rig.local_device, rig.device, kSize, ++token)).ok());
    }
  }
  oracle.copy(rig.device, 0, rig.local_device, 0, kSize);
  oracle.compare(rig);
  EXPECT_TRUE(rig.client.completions.each_once());
}

TEST(GpuOverTcp, WithoutPinnedMemoryOpsFailAndPlainOnesWork) {
  GpuRig rig;
  rig.gpu.set_no_pinned_memory(true);
  EXPECT_FALSE(rig.run(rig.op(Direction::kRead, rig.local_device, rig.host_address(), 10, 1)).ok());
  EXPECT_FALSE(rig.run(rig.op(Direction::kWrite, rig.local_address(), rig.device, 1000, 2)).ok());
  EXPECT_FALSE(rig.run(rig.op(Direction::kRead, rig.local_address(), rig.device, 10, 3)).ok());
  EXPECT_TRUE(
      rig.run(rig.op(Direction::kRead, rig.local_address(), rig.host_address(), 1000, 4)).ok());
}

TEST(GpuOverTcp, ClosingAPathEndsAllOpsOnceHoweverFarTheyAre) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int round = 0; round < 10; ++round) {
    GpuRig rig;
    std::vector<Op> ops;
    for (uint64_t i = 0; i < 30; ++i) {
      ops.push_back(rig.op(random.one_in(2) ? Direction::kRead : Direction::kWrite,
                           rig.local_device, random.one_in(2) ? rig.device : rig.host_address(),
                           random.size_up_to(kSize), i));
    }
    const size_t taken = rig.path->submit(ops);
    const size_t wanted = random.below(taken);
    ASSERT_TRUE(rig.client.completions.wait_count(wanted));
    rig.path->close();
    EXPECT_EQ(rig.client.completions.count(), taken);
    EXPECT_TRUE(rig.client.completions.each_once());
    rig.gpu.free(rig.local_device);  // What touches it from here on crashes.
    EXPECT_EQ(rig.path->submit(ops), 0U);
  }
}

// ---- Engines

struct EnginePair {
  explicit EnginePair(std::vector<TransportKind> transports) {
    TransferEngine::Options options{};
    options.bind_host = options.public_host = "127.0.0.1";
    options.secret = tcp_secret();
    options.transports = std::move(transports);
    options.tries_max = 3;
    options.batches_max = 100;
    options.requests_max = 1000;
    options.slices_max = 1000;
    options.tcp_lanes = 2;
    options.tcp_io_threads = 1;
    options.tcp_checksum = true;
    options.local_copy_threads = 2;
    options.name = "gpu test";
    std::vector<std::string> notices;
    for (auto* engine : {&server, &client}) {
      Result<std::unique_ptr<TransferEngine>> started = TransferEngine::start(options, notices);
      EXPECT_TRUE(started.ok()) << started.status().message();
      *engine = std::move(started.value());
    }
    const auto opened = client->open_segment("127.0.0.1:" + std::to_string(server->port()), soon());
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    segment = opened.value();
  }
  static uint64_t soon() { return monotonic_ns() + 20'000'000'000; }
  Status transfer(Direction direction, uint64_t local, uint64_t remote, uint64_t size) {
    const TransferRequest request{direction, local, remote, size};
    const Result<BatchState> done =
        client->transfer(segment, {&request, 1}, Priority::kUrgent, soon());
    return done.ok() ? done.value().status : done.status();
  }

  std::unique_ptr<TransferEngine> server;
  std::unique_ptr<TransferEngine> client;
  SegmentId segment = 0;
};

class GpuEngines : public ::testing::TestWithParam<TransportKind> {};

TEST_P(GpuEngines, MoveBetweenAllKindsOfMemoryThatTheyFindOutThemselves) {
  HICACHE_TRACE_SEED();
  Random random;
  FakeGpu gpu;
  EnginePair engines({GetParam()});
  constexpr uint64_t kLarge = 9 * kMiB;
  std::vector<uint8_t> hosts[3] = {bytes_of(1, kLarge), bytes_of(2, kLarge), bytes_of(3, kLarge)};
  gpu.pin(hosts[2].data(), kLarge);
  const uint64_t remotes[2] = {gpu.allocate(kLarge, 0),
                               reinterpret_cast<uint64_t>(hosts[0].data())};
  const uint64_t locals[3] = {gpu.allocate(kLarge, 1), reinterpret_cast<uint64_t>(hosts[1].data()),
                              reinterpret_cast<uint64_t>(hosts[2].data())};
  gpu.put(remotes[0], bytes_of(4, kLarge));
  gpu.put(locals[0], bytes_of(5, kLarge));
  for (const uint64_t remote : remotes) {
    ASSERT_TRUE(engines.server->register_memory(remote, kLarge, "*", true).ok());
  }
  for (int round = 0; round < 30; ++round) {
    const uint64_t local = locals[random.below(3)];
    const uint64_t remote = remotes[random.below(2)];
    const bool is_read = random.one_in(2);
    const uint64_t size = random.one_in(4) ? kLarge : random.size_up_to(kLarge);
    const uint64_t here = random.below(kLarge - size + 1);
    const uint64_t there = random.below(kLarge - size + 1);
    const uint64_t target = is_read ? local : remote;
    std::vector<uint8_t> expected = gpu.bytes_at(target, kLarge);
    const auto moved = gpu.bytes_at(is_read ? remote + there : local + here, size);
    std::copy(moved.begin(), moved.end(),
              expected.begin() + static_cast<ptrdiff_t>(is_read ? here : there));
    const Status status = engines.transfer(is_read ? Direction::kRead : Direction::kWrite,
                                           local + here, remote + there, size);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_TRUE(gpu.bytes_at(target, kLarge) == expected) << size;
  }
  EXPECT_EQ(gpu.pageable_copies(), 0U);
  EXPECT_TRUE(engines.server->unregister_memory(remotes[0]).ok());
  gpu.free(remotes[0]);
  EXPECT_FALSE(engines.transfer(Direction::kRead, locals[1], remotes[0], 10).ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, GpuEngines,
                         ::testing::Values(TransportKind::kLocal, TransportKind::kTcp),
                         [](const auto& tested) {
                           return std::string(transport_name(tested.param));
                         });

TEST(GpuLocal, UnregisteringWaitsForTheCopyThatRuns) {
  FakeGpu gpu;
  EnginePair engines({TransportKind::kLocal});
  const uint64_t device = gpu.allocate(kMiB);
  std::vector<uint8_t> host(kMiB);
  ASSERT_TRUE(engines.server->register_memory(device, kMiB, "cuda:0", true).ok());
  gpu.hold(Way::kFromDevice);
  std::thread reader([&] {
    (void)engines.transfer(Direction::kRead, reinterpret_cast<uint64_t>(host.data()), device, kMiB);
  });
  ASSERT_TRUE(gpu.wait_held(Way::kFromDevice, 1));
  std::atomic<bool> is_gone{false};
  std::thread remover([&] {
    EXPECT_TRUE(engines.server->unregister_memory(device).ok());
    is_gone = true;
  });
  // Once the buffer is not described any more, unregistering is under way.
  EXPECT_TRUE(eventually(20'000, [&] {
    return engines.client->describe(engines.segment, EnginePair::soon()).value().buffers.empty();
  }));
  EXPECT_FALSE(is_gone);
  gpu.let_go();
  remover.join();
  gpu.free(device);  // What touches it from here on crashes.
  reader.join();
}

}  // namespace
}  // namespace hicache::testing
