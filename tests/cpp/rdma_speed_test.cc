// How fast real devices move bytes through the transport: figures, to be put beside perftest's.
//
// Runs in the guest kernel (tests/rdma), which names the devices.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "rdma_rig.h"

namespace hicache::testing {
namespace {

constexpr BufferId kLocal = 4711;
constexpr uint64_t kSize = kMiB;
constexpr uint64_t kDepth = 16;
constexpr uint64_t kMeasureMs = 3000;

/// MB/s with kDepth ops under way all the time.
double speed_mb_s(Client& client, Direction direction, const std::vector<uint8_t>& local,
                  uint64_t remote) {
  const auto next = [&](uint64_t i) {
    const uint64_t offset = i % kDepth * kSize;
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

TEST(RdmaSpeed, OneRail) {
  const char* devices = std::getenv("HICACHE_RDMA_DEVICES");
  if (devices == nullptr) GTEST_SKIP() << "HICACHE_RDMA_DEVICES names no device; make test-rdma";
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
  for (const auto& [direction, name] :
       {std::pair{Direction::kWrite, "WRITE"}, std::pair{Direction::kRead, "READ"}}) {
    std::printf("%s 1 MiB: %.1f MB/s\n", name,
                speed_mb_s(client, direction, local, large->address));
    client.recorder().on_complete = nullptr;
  }
  client.drop_path();
  client.transport().unregister_buffer(kLocal);
}

}  // namespace
}  // namespace hicache::testing
