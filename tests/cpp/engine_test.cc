// The transfer engine between two ends: real control connections and real TCP.
#include "transfer/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "support.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::eventually;
using testing::Random;

constexpr uint64_t kSecond = 1'000'000'000;

uint64_t soon() {
  return monotonic_ns() + 20 * kSecond;
}

TransferEngine::Options options_of(const std::string& secret = "open sesame") {
  TransferEngine::Options options{};
  options.bind_host = "127.0.0.1";
  options.public_host = "127.0.0.1";
  options.secret = secret_from_text(secret);
  options.transports = {TransportKind::kTcp};
  options.tries_max = 4;
  options.batches_max = 64;
  options.requests_max = 4096;
  options.slices_max = 256;
  options.tcp_lanes = 2;
  options.tcp_io_threads = 1;
  options.tcp_checksum = true;
  options.local_copy_threads = 2;
  return options;
}

std::unique_ptr<TransferEngine> engine_of(const TransferEngine::Options& options) {
  std::vector<std::string> notices;
  Result<std::unique_ptr<TransferEngine>> engine = TransferEngine::start(options, notices);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return std::move(engine.value());
}

std::string address_of(const TransferEngine& engine) {
  return "127.0.0.1:" + std::to_string(engine.port());
}

uint64_t address_of(const std::vector<uint8_t>& bytes) {
  return reinterpret_cast<uint64_t>(bytes.data());
}

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = engine_of(options_of());
    client_ = engine_of(options_of());
    memory_ = bytes_of(1, 4 * kMiB);
    ASSERT_TRUE(
        server_->register_memory(address_of(memory_), memory_.size(), "cpu:0", true).ok());
    open();
  }
  void open() {
    const Result<SegmentId> opened = client_->open_segment(address_of(*server_), soon());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    segment_ = opened.value();
  }
  Result<BatchState> transfer(Direction direction, const std::vector<uint8_t>& local,
                              uint64_t offset = 0) {
    const TransferRequest request{direction, address_of(local), address_of(memory_) + offset,
                                  local.size()};
    return client_->transfer(segment_, {&request, 1}, Priority::kUrgent, soon());
  }

  std::vector<uint8_t> memory_;
  std::unique_ptr<TransferEngine> server_;
  std::unique_ptr<TransferEngine> client_;
  SegmentId segment_ = 0;
};

TEST_F(EngineTest, ReadsAndWritesRegisteredMemory) {
  std::vector<uint8_t> local(1 * kMiB);
  Result<BatchState> read = transfer(Direction::kRead, local, 12345);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_TRUE(read.value().status.ok()) << read.value().status.message();
  EXPECT_EQ(read.value().bytes_done, local.size());
  EXPECT_TRUE(std::equal(local.begin(), local.end(), memory_.begin() + 12345));

  local = bytes_of(2, 3 * kMiB);
  Result<BatchState> written = transfer(Direction::kWrite, local, 777);
  ASSERT_TRUE(written.ok());
  EXPECT_TRUE(written.value().status.ok()) << written.value().status.message();
  EXPECT_TRUE(std::equal(local.begin(), local.end(), memory_.begin() + 777));
}

}  // namespace
}  // namespace hicache
