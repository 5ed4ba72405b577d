// What an engine does about processes of its machine that are stopped in the middle of a copy.
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "engine_peer.h"
#include "io/unix_socket.h"
#include "net/secure_channel.h"
#include "transfer/local/local_wire.h"
#include "transfer/local/mapped_window.h"
#include "transfer/local/use_table.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::duration_ms;
using testing::engine_options;
using testing::eventually;
using testing::kBusyMs;
using testing::start_engine_of;

class EngineStoppedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    engine_ = start_engine_of(engine_options({TransportKind::kLocal, TransportKind::kTcp}));
    ASSERT_TRUE(engine_->register_memory(address(), memory_.size(), "*", true).ok());
    connect();
  }
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_.data()); }
  /// As a requester that then stops.
  void connect() {
    const Deadline deadline = Deadline::after_ms(20'000);
    socket_ = std::move(unix_connect(local_socket_name(engine_->epoch())).value());
    const Secret secret = engine_options({}).secret;
    ASSERT_TRUE(greet_server(socket_, secret, {Purpose::kLocal, engine_->epoch()}, deadline).ok());
    ASSERT_TRUE(send_all(socket_, encode_local(LocalRequest{LocalOp::kHello}), deadline).ok());
    std::array<uint8_t, kLocalAnswerSize> bytes;
    std::array<Fd, 2> passed;
    ASSERT_TRUE(receive_all(socket_, bytes, deadline, passed).ok());
    window_ = std::move(
        MappedWindow::map(passed[1], 0, kUseSlotsSize, MappedWindow::Access::kWrite).value());
  }
  /// Which buffer it is in the middle of; the engine counts buffers from 1.
  void touch(BufferId buffer) { reinterpret_cast<UseSlot*>(window_.address())[7].buffer = buffer; }

  std::vector<uint8_t> memory_ = bytes_of(3, 64 * kKiB);
  std::unique_ptr<TransferEngine> engine_;
  Fd socket_;
  MappedWindow window_;
};

TEST_F(EngineStoppedTest, MemoryThatMayBeTouchedStaysRegisteredUntilItMayNot) {
  touch(1);
  Status status;
  const uint64_t took_ms = duration_ms([&] { status = engine_->unregister_memory(address()); });
  EXPECT_EQ(status.code(), Code::kTimeout) << status.message();
  EXPECT_NE(status.message().find("keep the memory"), std::string::npos) << status.message();
  EXPECT_LT(took_ms, 2000 + kBusyMs);
  EXPECT_EQ(engine_->register_memory(address() + 1, 10, "*", true).code(), Code::kAlreadyExists);
  EXPECT_EQ(engine_->unregister_memory(address()).code(), Code::kTimeout);
  touch(kNoBuffer);
  status = engine_->unregister_memory(address());
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(engine_->unregister_memory(address()).code(), Code::kNotFound);
  EXPECT_TRUE(engine_->register_memory(address(), memory_.size(), "*", true).ok());
}

TEST_F(EngineStoppedTest, AllocatedMemoryThatMayBeTouchedStaysMapped) {
  const uint64_t allocated = engine_->allocate_memory(kMiB).value();
  touch(2);
  EXPECT_EQ(engine_->free_memory(allocated).code(), Code::kTimeout);
  std::memset(reinterpret_cast<void*>(allocated), 7, kMiB);  // A signal, were it not.
  touch(kNoBuffer);
  EXPECT_TRUE(engine_->free_memory(allocated).ok());
}

TEST_F(EngineStoppedTest, StoppingEndsInTimeAndSaysWhoMayStillTouchWhat) {
  const uint64_t allocated = engine_->allocate_memory(kMiB).value();
  touch(2);
  Status status;
  uint64_t took_ms = duration_ms([&] { status = engine_->stop(); });
  EXPECT_EQ(status.code(), Code::kTimeout) << status.message();
  EXPECT_LT(took_ms, 3000 + kBusyMs);
  EXPECT_EQ(engine_->stop().code(), Code::kTimeout);
  took_ms = duration_ms([&] { engine_.reset(); });
  EXPECT_LT(took_ms, 3000 + kBusyMs);
  // The engine is gone, and a late byte still finds the memory that it was meant for.
  std::memset(reinterpret_cast<void*>(allocated), 7, kMiB);
}

TEST_F(EngineStoppedTest, OnceItGoesOnStoppingIsComplete) {
  touch(1);
  EXPECT_EQ(engine_->stop().code(), Code::kTimeout);
  touch(kNoBuffer);
  const Status status = engine_->stop();
  EXPECT_TRUE(status.ok()) << status.message();
}

}  // namespace
}  // namespace hicache
