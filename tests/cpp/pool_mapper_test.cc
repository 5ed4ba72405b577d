// What is in a pool is mapped into a client that connects, and nothing else comes to be there.
#include "store/pool_mapper.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>

#include "node_bench.h"

namespace hicache {
namespace {

using testing::eventually;
using testing::key_of;
using testing::Random;
using testing::SimpleClient;
using testing::start_node;
using testing::stat_of;

constexpr uint64_t kOsPage = 4 * kKiB;
constexpr SharedMemory::Access kWrite = SharedMemory::Access::kWrite;

/// Bytes of a range that are mapped into this process, as the kernel tells.
uint64_t mapped_bytes(const uint8_t* address, uint64_t size) {
  const Fd file(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::vector<uint64_t> entries(size / kOsPage);
  const auto first = reinterpret_cast<uintptr_t>(address) / kOsPage * sizeof(uint64_t);
  const size_t wanted = entries.size() * sizeof(uint64_t);
  EXPECT_EQ(pread(file.get(), entries.data(), wanted, static_cast<off_t>(first)),
            static_cast<ssize_t>(wanted));
  const auto is_there = [](uint64_t entry) { return entry >> 63 != 0; };
  return static_cast<uint64_t>(std::count_if(entries.begin(), entries.end(), is_there)) * kOsPage;
}

struct TwoProcesses {
  explicit TwoProcesses(uint64_t size_bytes) {
    std::vector<std::string> notices;
    owner = std::move(SharedMemory::create({size_bytes, HugePages::kNever, -1}, notices).value());
    other = std::move(SharedMemory::map(Fd(dup(owner->fd().get())), size_bytes).value());
  }
  std::unique_ptr<SharedMemory> owner;
  std::unique_ptr<SharedMemory> other;
};

TEST(PoolMapper, MapsWhatIsThereAndBacksNothing) {
  HICACHE_TRACE_SEED();
  Random random(70);
  constexpr uint64_t kPages = 64 * kMiB / kOsPage;
  for (int round = 0; round < 4; ++round) {
    TwoProcesses pool(kPages * kOsPage);
    std::vector<bool> is_there(kPages);
    const uint64_t ranges = random.below(6);
    for (uint64_t i = 0; i < ranges; ++i) {
      const uint64_t first = random.below(kPages);
      const uint64_t count = random.between(1, std::min<uint64_t>(kPages - first, 5000));
      ASSERT_TRUE(pool.owner->populate(first * kOsPage, count * kOsPage, kWrite).ok());
      for (uint64_t page = first; page < first + count; ++page) is_there[page] = true;
    }
    const uint64_t backed_bytes = pool.owner->backed_bytes();
    ASSERT_EQ(mapped_bytes(pool.other->address(), pool.other->size_bytes()), 0U);

    std::vector<bool> said(kPages);
    PoolMapper mapper(*pool.other, [&](uint64_t offset, uint64_t size) {
      for (uint64_t page = 0; page < size / kOsPage; ++page) said[offset / kOsPage + page] = true;
    });
    ASSERT_TRUE(eventually(20'000, [&] { return mapper.is_finished(); }));
    EXPECT_EQ(said, is_there);
    EXPECT_EQ(mapped_bytes(pool.other->address(), pool.other->size_bytes()), backed_bytes);
    EXPECT_EQ(pool.owner->backed_bytes(), backed_bytes);
  }
}

TEST(PoolMapper, EndsInTheMiddle) {
  TwoProcesses pool(128 * kMiB);
  ASSERT_TRUE(pool.owner->populate(0, 128 * kMiB, kWrite).ok());
  uint64_t mapped = 0;
  std::atomic<bool> has_begun{false};
  {
    PoolMapper mapper(*pool.other, [&](uint64_t, uint64_t size) {
      mapped += size;
      has_begun = true;
      // There are sixteen steps: seconds in which the end begins meanwhile.
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
    });
    ASSERT_TRUE(eventually(20'000, [&] { return has_begun.load(); }));
  }
  EXPECT_LT(mapped, 128 * kMiB);
}

TEST(PoolMapper, AClientThatConnectsReadsWithoutAFault) {
  auto node = start_node(64 * kMiB);
  SimpleClient writer(node->socket_path());
  for (uint64_t i = 0; i < 8; ++i) {
    ASSERT_EQ(writer.put(key_of(i), std::vector<uint8_t>(kMiB, static_cast<uint8_t>(i))),
              Code::kOk);
  }
  auto opened =
      ClientConnection::open(node->socket_path(), HelloRequest{"test"}, Deadline::after_ms(20'000));
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const std::shared_ptr<ClientConnection> connection = opened.value();
  ASSERT_TRUE(eventually(20'000, [&] { return connection->is_mapped_ahead(); }));
  EXPECT_GE(mapped_bytes(connection->pool(), 64 * kMiB), 8 * kMiB);
  EXPECT_LE(mapped_bytes(connection->pool(), 64 * kMiB), stat_of(*node, "pool_backed_bytes"));
  // And what is not there yet is backed as ever.
  EXPECT_TRUE(connection->back(40 * kMiB, 3 * kMiB, kWrite));
  EXPECT_GE(mapped_bytes(connection->pool() + 40 * kMiB, 3 * kMiB), 3 * kMiB);
}

}  // namespace
}  // namespace hicache
