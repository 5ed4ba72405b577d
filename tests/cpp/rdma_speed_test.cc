// How fast real devices move bytes: through the transport, to be put beside perftest's figures, and
// through an engine with one rail and with two.
//
// Runs in the guest kernel (tests/rdma), which names the devices.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "rdma_peer.h"
#include "rdma_rig.h"

namespace hicache::testing {
namespace {

constexpr BufferId kLocal = 4711;
constexpr uint64_t kSize = kMiB;
constexpr uint64_t kDepth = 16;
constexpr uint64_t kMeasureMs = 2000;

/// MB/s with kDepth ops under way all the time, all of the same MiB, as perftest does it, or each
/// of another: that tells how large the caches are.
double speed_mb_s(Client& client, Direction direction, const std::vector<uint8_t>& local,
                  uint64_t remote, bool is_same) {
  const auto next = [&](uint64_t i) {
    const uint64_t offset = is_same ? 0 : i % kDepth * kSize;
    Op op = client.op(direction, local.data() + offset, remote + offset, kSize);
    op.local_buffer = kLocal;
    return op;
  };
  const uint64_t begin_ns = monotonic_ns();
  const uint64_t end_ns = begin_ns + kMeasureMs * 1'000'000;
  std::atomic<uint64_t> begun{kDepth};
  std::atomic<uint64_t> done{0};
  std::atomic<uint64_t> last_ns{0};
  client.recorder().on_complete = [&](uint64_t, const Status& status) {
    EXPECT_TRUE(status.ok()) << status.message();
    last_ns = monotonic_ns();
    if (last_ns < end_ns) {
      const Op op = next(begun++);
      EXPECT_EQ(client.path().submit({&op, 1}), 1U);
    }
    ++done;
  };
  std::vector<Op> first;
  for (uint64_t i = 0; i < kDepth; ++i) first.push_back(next(i));
  EXPECT_EQ(client.path().submit(first), kDepth);
  EXPECT_TRUE(eventually(30'000, [&] { return last_ns >= end_ns && done == begun; }));
  return static_cast<double>(done * kSize) * 1000 / static_cast<double>(last_ns - begin_ns);
}

void measure_one_path(Direction direction, const char* name) {
  const std::vector<Rig> rigs = rdma_rigs();
  const Rig& rig = *std::ranges::find(rigs, "Rdma", &Rig::name);
  const auto target = make_target({rig, Where::kChild});
  const SegmentDescriptor segment = target->describe();
  Client client(rig);
  const Status opened = client.open(segment);
  ASSERT_TRUE(opened.ok()) << opened.message();
  std::vector<uint8_t> local(kDepth * kSize);
  const Buffer buffer{kLocal,       reinterpret_cast<uintptr_t>(local.data()),
                      local.size(), MemoryKind::kHost,
                      "*",          false,
                      -1,           0};
  ASSERT_TRUE(client.transport().register_buffer(buffer).ok());
  const auto large = std::ranges::find(segment.buffers, kLarge, &BufferDescriptor::id);
  for (const auto& [what, is_same] : {std::pair{"1 MiB", true}, {"1 MiB of 16 MiB", false}}) {
    const double mb_s = speed_mb_s(client, direction, local, large->address, is_same);
    std::printf("%s %s: %.1f MB/s\n", name, what, mb_s);
    client.recorder().on_complete = nullptr;
  }
  client.drop_path();
  client.transport().unregister_buffer(kLocal);
}

class RdmaSpeed : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("HICACHE_RDMA_DEVICES") == nullptr) {
      GTEST_SKIP() << "HICACHE_RDMA_DEVICES names no device; python -m tests.rdma.speed";
    }
  }
};

TEST_F(RdmaSpeed, Write) {
  measure_one_path(Direction::kWrite, "WRITE");
}

TEST_F(RdmaSpeed, Read) {
  measure_one_path(Direction::kRead, "READ");
}

/// MB/s of an engine that reads all of the peer's memory again and again.
double engine_mb_s(const std::string& devices, const RdmaEnginePeer& peer,
                   const MappedMemory& local) {
  const auto engine = start_engine_of(rdma_engine_options(devices));
  const auto address = reinterpret_cast<uintptr_t>(local.address());
  EXPECT_TRUE(engine->register_memory(address, kRdmaMemorySize, "*", true).ok());
  const auto segment = engine->open_segment(peer.address, after_ms(10'000));
  EXPECT_TRUE(segment.ok()) << segment.status().message();
  if (!segment.ok()) return 0;
  const TransferRequest all{Direction::kRead, address, peer.memory, kRdmaMemorySize};
  uint64_t bytes = 0;
  const uint64_t begin_ns = monotonic_ns();
  while (monotonic_ns() < begin_ns + kMeasureMs * 1'000'000) {
    const auto state =
        engine->transfer(segment.value(), {&all, 1}, Priority::kUrgent, after_ms(60'000));
    EXPECT_TRUE(state.ok() && state.value().status.ok());
    bytes += kRdmaMemorySize;
  }
  return static_cast<double>(bytes) * 1000 / static_cast<double>(monotonic_ns() - begin_ns);
}

/// Wants four devices, as rdma_guest_test.cc.
TEST_F(RdmaSpeed, TwoRails) {
  const RdmaEnginePeer peer("rxe2,rxe3");
  const MappedMemory local = MappedMemory::make(kRdmaMemorySize);
  ASSERT_TRUE(local.valid());
  for (const char* devices : {"rxe0", "rxe1", "rxe0,rxe1"}) {
    std::printf("engine over %s: %.1f MB/s\n", devices, engine_mb_s(devices, peer, local));
  }
}

}  // namespace
}  // namespace hicache::testing
