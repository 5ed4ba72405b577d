// Engines over real RDMA devices: links that go down and come back, peers that are killed.
//
// Runs in the guest kernel (tests/rdma), whose network it may change: devices rxe0 and rxe1 are
// ours, rxe2 and rxe3 the peer's; rxe<i> sends over eth<i>, whose other end is sw<i>.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/json_reader.h"
#include "rdma_peer.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kRounds = 16;  // How often a batch reads all of the peer's memory.

/// Sets a link up or down. Not system(): forking would copy what is registered.
void set_link(const std::string& name, const char* to) {
  std::vector<std::string> words{"ip", "link", "set", name, to};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  ASSERT_EQ(posix_spawnp(&pid, "ip", nullptr, nullptr, argv.data(), environ), 0);
  int status = 1;
  waitpid(pid, &status, 0);
  ASSERT_EQ(status, 0) << "ip link set " << name << " " << to;
}

class RdmaGuest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("HICACHE_GUEST") == nullptr) {
      GTEST_SKIP() << "changes the network of a guest kernel; make test-rdma";
    }
    peer_ = std::make_unique<RdmaEnginePeer>("rxe2,rxe3");
    engine_ = start_engine_of(rdma_engine_options("rxe0,rxe1"));
    ASSERT_NE(engine_, nullptr);
    local_ = MappedMemory::make(kRounds * kRdmaMemorySize);
    ASSERT_TRUE(local_.valid());
    const Status added =
        engine_->register_memory(address_of(0), kRounds * kRdmaMemorySize, "*", true);
    ASSERT_TRUE(added.ok()) << added.message();
    const auto opened = engine_->open_segment(peer_->address, after_ms(10'000));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    segment_ = opened.value();
  }
  uint64_t address_of(uint64_t round) const {
    return reinterpret_cast<uintptr_t>(local_.address()) + round * kRdmaMemorySize;
  }
  /// Reads all of the peer's memory, kRounds times, into one place after the other.
  BatchId read_all(uint64_t timeout_ms) {
    std::vector<TransferRequest> requests;
    for (uint64_t round = 0; round < kRounds; ++round) {
      requests.push_back({Direction::kRead, address_of(round), peer_->memory, kRdmaMemorySize});
    }
    const auto batch = engine_->submit(segment_, requests, Priority::kUrgent, after_ms(timeout_ms));
    EXPECT_TRUE(batch.ok()) << batch.status().message();
    return batch.ok() ? batch.value() : 0;
  }
  void expect_all_right() const {
    const std::vector<uint8_t> oracle = bytes_of(1, kRdmaMemorySize);
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint8_t* bytes = local_.address() + round * kRdmaMemorySize;
      if (std::memcmp(bytes, oracle.data(), kRdmaMemorySize) == 0) continue;
      uint64_t wrong = 0;
      uint64_t zero = 0;
      uint64_t first = kRdmaMemorySize;
      uint64_t last = 0;
      for (uint64_t i = 0; i < kRdmaMemorySize; ++i) {
        if (bytes[i] == oracle[i]) continue;
        ++wrong;
        zero += bytes[i] == 0 ? 1 : 0;
        first = std::min(first, i);
        last = i;
      }
      ADD_FAILURE() << "round " << round << ": " << wrong << " wrong bytes, " << zero
                    << " of them 0, from " << first << " to " << last << "; " << engine_->stats();
    }
  }
  void forget() const { std::memset(local_.address(), 0, kRounds * kRdmaMemorySize); }

  struct Watched {
    BatchState state;
    uint64_t stall_ms;  // The longest time without a byte more.
  };
  /// Waits for the batch, looking all the time how far it is; calls `at_quarter` when a quarter is
  /// done.
  template <typename Call>
  Watched watch(BatchId batch, Call at_quarter) {
    constexpr uint64_t kQuarter = kRounds * kRdmaMemorySize / 4;
    Watched watched{{false, 0, Status()}, 0};
    std::thread acting;
    uint64_t since_ms = monotonic_ms();
    while (!watched.state.is_done) {
      const auto state = engine_->wait(batch, after_ms(5));
      if (!state.ok()) break;
      const uint64_t now_ms = monotonic_ms();
      if (state.value().bytes_done != watched.state.bytes_done || state.value().is_done) {
        watched.stall_ms = std::max(watched.stall_ms, now_ms - since_ms);
        since_ms = now_ms;
      }
      watched.state = state.value();
      if (!acting.joinable() && watched.state.bytes_done >= kQuarter) {
        acting = std::thread(at_quarter);
      }
    }
    if (acting.joinable()) acting.join();
    EXPECT_TRUE(engine_->release(batch).ok());
    return watched;
  }
  /// Of the paths whose name begins so: how many are healthy, and the bytes that all have moved.
  struct Paths {
    size_t healthy = 0;
    uint64_t done_bytes = 0;
  };
  Paths paths(const std::string& prefix) const {
    Paths found;
    const auto stats = parse_json(engine_->stats());
    for (const JsonValue& path : stats.value().find("peers")->elements[0].find("paths")->elements) {
      if (!path.find("name")->string.starts_with(prefix)) continue;
      found.healthy += path.find("is_healthy")->number != 0 ? 1 : 0;
      found.done_bytes += static_cast<uint64_t>(path.find("done_bytes")->number);
    }
    return found;
  }

  /// A link goes down while a batch runs, and up after it: see the test's name.
  void expect_survives(const std::string& link, const std::string& rail) {
    const Watched calm = watch(read_all(120'000), [] {});
    ASSERT_TRUE(calm.state.status.ok()) << calm.state.status.message();
    expect_all_right();
    ASSERT_GT(paths(rail).done_bytes, 0U) << "it was in use";
    forget();
    const Watched hit = watch(read_all(120'000), [&] { set_link(link, "down"); });
    EXPECT_TRUE(hit.state.status.ok()) << hit.state.status.message();
    EXPECT_EQ(hit.state.bytes_done, kRounds * kRdmaMemorySize);
    expect_all_right();
    std::printf("%s down: longest stall %llu ms, without that %llu ms\n", link.c_str(),
                static_cast<unsigned long long>(hit.stall_ms),
                static_cast<unsigned long long>(calm.stall_ms));
    // A machine that is busy with other things holds everything up: what it does to a batch that
    // nothing happens to is not the engine's.
    EXPECT_LT(hit.stall_ms, 1000 + 4 * calm.stall_ms);
    const uint64_t before = paths(rail).done_bytes;
    set_link(link, "up");
    const uint64_t up_ms = monotonic_ms();
    ASSERT_TRUE(eventually(20'000, [&] { return paths(rail).healthy > 0; })) << engine_->stats();
    const uint64_t back_ms = monotonic_ms() - up_ms;
    std::printf("%s up: its rail was back after %llu ms\n", link.c_str(),
                static_cast<unsigned long long>(back_ms));
    EXPECT_LT(back_ms, 5000 + 4 * calm.stall_ms);
    forget();
    const Watched after = watch(read_all(120'000), [] {});
    EXPECT_TRUE(after.state.status.ok()) << after.state.status.message();
    expect_all_right();
    EXPECT_GT(paths(rail).done_bytes, before) << "it is in use again";
  }

  std::unique_ptr<RdmaEnginePeer> peer_;
  MappedMemory local_;  // Outlives the engine.
  std::unique_ptr<TransferEngine> engine_;
  SegmentId segment_ = 0;
};

TEST_F(RdmaGuest, ALinkOfOursThatGoesDownInMidBatchCostsNoByteAndLittleTime) {
  expect_survives("eth1", "rxe1 -> rxe3");
}

TEST_F(RdmaGuest, ALinkOfThePeersThatGoesDownInMidBatchCostsNoByteAndLittleTime) {
  expect_survives("sw3", "rxe1 -> rxe3");
}

TEST_F(RdmaGuest, APeerThatIsKilledInMidBatchEndsAllOpsAndMemoryIsLeftAloneAfterwards) {
  constexpr uint64_t kTimeoutMs = 30'000;
  std::vector<BatchId> batches;
  for (int i = 0; i < 4; ++i) batches.push_back(read_all(kTimeoutMs));
  ASSERT_TRUE(eventually(kTimeoutMs, [&] {
    const auto state = engine_->poll(batches[0]);
    return !state.ok() || state.value().bytes_done > kRdmaMemorySize / 8;
  }));
  peer_->end();
  const uint64_t begin_ms = monotonic_ms();
  for (const BatchId batch : batches) {
    const auto state = engine_->wait(batch, after_ms(kTimeoutMs));
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_TRUE(state.value().is_done);
    EXPECT_EQ(state.value().status.code(), Code::kUnavailable) << state.value().status.message();
  }
  const uint64_t took_ms = monotonic_ms() - begin_ms;
  std::printf("the peer was killed: all ops ended after %llu ms\n",
              static_cast<unsigned long long>(took_ms));
  EXPECT_LT(took_ms, kTimeoutMs / 2) << "its connection broke: that is noticed at once";
  constexpr uint8_t kUntouched = 0xA5;
  std::memset(local_.address(), kUntouched, kRounds * kRdmaMemorySize);
  const auto is_touched = [&] {
    return local_.address()[0] != kUntouched ||
           std::memcmp(local_.address(), local_.address() + 1, kRounds * kRdmaMemorySize - 1) != 0;
  };
  // For longer than a device asks a peer again.
  EXPECT_FALSE(eventually(1500, is_touched));
  for (const BatchId batch : batches) EXPECT_TRUE(engine_->release(batch).ok());
  const Status removed = engine_->unregister_memory(address_of(0));
  EXPECT_TRUE(removed.ok()) << removed.message();
  EXPECT_FALSE(is_touched());
}

}  // namespace
}  // namespace hicache::testing
