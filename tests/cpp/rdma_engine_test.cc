// Engines over RDMA rails of which not each can do everything: a fake fabric of two devices, and
// TCP behind it.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine_peer.h"
#include "fake_gpu.h"
#include "fake_verbs.h"
#include "transfer/engine_start.h"
#include "transfer/rdma/rdma_transport.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kSize = 8 * kMiB;

class RdmaEngine : public ::testing::Test {
 protected:
  ~RdmaEngine() override {
    client_.reset();
    server_.reset();
    EXPECT_EQ(fabric_.open_count(), 0U);
  }

  void start(const std::string& settings = "") {
    server_ = engine_of(settings);
    client_ = engine_of(settings);
    ASSERT_TRUE(server_ != nullptr && client_ != nullptr);
  }
  /// RDMA over the fabric, and TCP.
  std::unique_ptr<TransferEngine> engine_of(const std::string& settings) {
    const auto options = engine_options({TransportKind::kTcp});
    const uint64_t epoch = random_token();
    std::vector<std::string> notices;
    auto set = make_transports(options, epoch, notices);
    auto rdma = make_rdma_transport({epoch, "", settings}, fabric_, notices);
    EXPECT_TRUE(set.ok() && rdma.ok()) << rdma.status().message();
    EXPECT_TRUE(notices.empty());
    auto& transports = set.value().transports;
    transports.insert(transports.begin(), std::move(rdma.value()));
    auto engine = start_engine(options, epoch, std::move(set.value()));
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return engine.ok() ? std::move(engine.value()) : nullptr;
  }
  /// `lame_device`: that one refuses to register it.
  void add(TransferEngine& engine, std::vector<uint8_t>& memory, int lame_device = -1) {
    fabric_.faults.register_fails_on = lame_device;
    const Status status = engine.register_memory(address_of(memory), memory.size(), "*", true);
    fabric_.faults.register_fails_on = -1;
    ASSERT_TRUE(status.ok()) << status.message();
  }
  void open() {
    const auto opened =
        client_->open_segment("127.0.0.1:" + std::to_string(server_->port()), after_ms(10'000));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    segment_ = opened.value();
  }
  void expect_read(const std::vector<uint8_t>& remote) {
    std::ranges::fill(local_, 0);
    const TransferRequest request{Direction::kRead, address_of(local_), address_of(remote), kSize};
    const auto state =
        client_->transfer(segment_, {&request, 1}, Priority::kUrgent, after_ms(20'000));
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_TRUE(state.value().status.ok()) << state.value().status.message();
    EXPECT_EQ(local_, remote);
  }
  void expect_write(std::vector<uint8_t>& remote) {
    std::ranges::copy(bytes_of(random_token(), kSize), local_.begin());  // It stays in place.
    const TransferRequest request{Direction::kWrite, address_of(local_), address_of(remote), kSize};
    const auto state =
        client_->transfer(segment_, {&request, 1}, Priority::kUrgent, after_ms(20'000));
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_TRUE(state.value().status.ok()) << state.value().status.message();
    EXPECT_EQ(remote, local_);
  }
  /// How often that piece of text is in the client's figures.
  size_t figures(const std::string& text) const {
    const std::string stats = client_->stats();
    size_t count = 0;
    for (size_t at = stats.find(text); at != std::string::npos; at = stats.find(text, at + 1)) {
      ++count;
    }
    return count;
  }
  void expect_no_rail_blamed() const {
    EXPECT_EQ(figures(R"("is_healthy":0)"), 0U) << client_->stats();
    EXPECT_EQ(figures(R"("failures":)"), figures(R"("failures":0)")) << client_->stats();
  }
  static uint64_t address_of(const std::vector<uint8_t>& memory) {
    return reinterpret_cast<uintptr_t>(memory.data());
  }

  FakeVerbs fabric_{{"fake0", "fake1"}};
  std::vector<uint8_t> remote_ = bytes_of(1, kSize);
  std::vector<uint8_t> other_ = bytes_of(2, kSize);
  std::vector<uint8_t> local_ = std::vector<uint8_t>(kSize);
  std::unique_ptr<TransferEngine> server_;
  std::unique_ptr<TransferEngine> client_;
  SegmentId segment_ = 0;
};

TEST_F(RdmaEngine, APeersBufferThatOneRailLacksGoesOverTheOtherAndTheRailStaysInUse) {
  start();
  add(*server_, remote_, 0);
  add(*server_, other_);
  add(*client_, local_);
  open();
  for (int round = 0; round < 3; ++round) {
    expect_read(remote_);
    expect_write(remote_);
  }
  expect_no_rail_blamed();
  EXPECT_EQ(figures(R"("transport":"tcp")"), 0U) << "TCP was not needed";
  const uint64_t before = fabric_.moved_bytes(0);
  expect_read(other_);
  EXPECT_GT(fabric_.moved_bytes(0), before);
  expect_no_rail_blamed();
}

TEST_F(RdmaEngine, MemoryOfAGpuIsReadAndWrittenAsADmabufWhereAddressesAreRefused) {
  FakeGpu gpu;
  gpu.set_has_dmabuf(true);
  fabric_.faults.has_dmabuf = true;
  fabric_.faults.register_errno = EFAULT;  // As without nvidia-peermem.
  start();
  const uint64_t device = gpu.allocate(kSize + 100);
  fabric_.faults.register_fails_on = FakeVerbs::kEveryDevice;
  const Status status = server_->register_memory(device + 50, kSize, "*", true);
  fabric_.faults.register_fails_on = -1;
  ASSERT_TRUE(status.ok()) << status.message();
  add(*client_, local_);
  open();
  const auto transfer = [&](Direction direction) {
    const TransferRequest request{direction, address_of(local_), device + 50, kSize};
    const auto state =
        client_->transfer(segment_, {&request, 1}, Priority::kUrgent, after_ms(20'000));
    ASSERT_TRUE(state.ok() && state.value().status.ok());
  };
  gpu.put(device + 50, bytes_of(5, kSize));
  transfer(Direction::kRead);
  EXPECT_EQ(local_, bytes_of(5, kSize));
  std::ranges::copy(bytes_of(6, kSize), local_.begin());
  transfer(Direction::kWrite);
  EXPECT_EQ(gpu.bytes_at(device + 50, kSize), bytes_of(6, kSize));
  EXPECT_EQ(figures(R"("transport":"tcp")"), 0U) << "TCP was not needed";
  EXPECT_GT(fabric_.moved_bytes(0) + fabric_.moved_bytes(1), kSize);
  ASSERT_TRUE(server_->unregister_memory(device + 50).ok());
  gpu.free(device);
}

TEST_F(RdmaEngine, ALocalBufferThatOneRailLacksGoesOverTheOtherAndTheRailStaysInUse) {
  start();
  add(*server_, remote_);
  add(*client_, local_, 1);
  open();
  for (int round = 0; round < 3; ++round) {
    expect_read(remote_);
    expect_write(remote_);
  }
  expect_no_rail_blamed();
  EXPECT_EQ(fabric_.moved_bytes(1), 0U);
  EXPECT_EQ(figures(R"("transport":"tcp")"), 0U) << client_->stats();
}

TEST_F(RdmaEngine, BuffersWithoutAMatchingPairOfRailsUseAnotherPair) {
  start();
  add(*server_, remote_, 0);
  add(*client_, local_, 1);
  open();
  expect_read(remote_);
  expect_write(remote_);
  expect_no_rail_blamed();
  EXPECT_EQ(figures(R"("transport":"tcp")"), 0U) << client_->stats();
}

TEST_F(RdmaEngine, BuffersWithoutAnyPairOfRailsUseTcp) {
  start(R"({"all_pairs": false})");
  add(*server_, remote_, 0);
  add(*client_, local_, 1);
  add(*server_, other_, 1);
  open();
  expect_read(remote_);
  expect_write(remote_);
  EXPECT_EQ(fabric_.moved_bytes(0) + fabric_.moved_bytes(1), 0U);
  expect_no_rail_blamed();
  expect_read(other_);
  EXPECT_EQ(fabric_.moved_bytes(0), kSize) << "what a rail can reach still goes over it";
}

TEST_F(RdmaEngine, ARailThatCannotBePreparedDoesNotLoseTheOthers) {
  start();
  add(*server_, remote_);
  add(*client_, local_);
  fabric_.faults.create_queue_fails_on = 0;
  open();
  expect_read(remote_);
  expect_write(remote_);
  EXPECT_EQ(fabric_.moved_bytes(0), 0U);
  EXPECT_GE(fabric_.moved_bytes(1), 2 * kSize);
  EXPECT_EQ(figures(R"("name":"fake0 -> )"), 0U) << client_->stats();
  EXPECT_EQ(figures(R"("transport":"tcp")"), 0U) << client_->stats();
}

}  // namespace
}  // namespace hicache::testing
