// The engine over rails that break, hang and come back: real control connections, paths of the
// test's own.
#include <gtest/gtest.h>

#include <thread>

#include "fake_transport.h"
#include "support.h"
#include "transfer/engine_start.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::duration_ms;
using testing::eventually;
using testing::FakeMode;
using testing::FakeRail;
using testing::FakeTransport;
using testing::kBusyMs;

constexpr uint64_t kSecond = 1'000'000'000;

uint64_t after_s(uint64_t seconds) {
  return monotonic_ns() + seconds * kSecond;
}

TransferEngine::Options options_of() {
  TransferEngine::Options options{};
  options.bind_host = "127.0.0.1";
  options.public_host = "127.0.0.1";
  options.secret = secret_from_text("open sesame");
  options.tries_max = 4;
  options.batches_max = 64;
  options.requests_max = 4096;
  options.slices_max = 256;
  return options;
}

class EngineRailsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = engine_of(TransportKind::kTcp, {});
    first_ = std::make_shared<FakeRail>("first");
    second_ = std::make_shared<FakeRail>("second");
    worse_ = std::make_shared<FakeRail>("worse");
    TransportSet set;
    set.transports.push_back(std::make_unique<FakeTransport>(
        TransportKind::kRdma, std::vector<std::shared_ptr<FakeRail>>{first_, second_}));
    set.transports.push_back(std::make_unique<FakeTransport>(
        TransportKind::kTcp, std::vector<std::shared_ptr<FakeRail>>{worse_}));
    client_ = std::move(start_engine(options_of(), random_token(), std::move(set)).value());
    remote_ = bytes_of(1, 16 * kMiB);
    local_.resize(remote_.size());
    ASSERT_TRUE(
        server_
            ->register_memory(reinterpret_cast<uint64_t>(remote_.data()), remote_.size(), "*", true)
            .ok());
    const Result<SegmentId> opened =
        client_->open_segment("127.0.0.1:" + std::to_string(server_->port()), after_s(10));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    segment_ = opened.value();
  }
  void TearDown() override {
    client_.reset();
    server_.reset();
  }
  static std::unique_ptr<TransferEngine> engine_of(TransportKind kind,
                                                   std::vector<std::shared_ptr<FakeRail>> rails) {
    TransportSet set;
    set.transports.push_back(std::make_unique<FakeTransport>(kind, std::move(rails)));
    Result<std::unique_ptr<TransferEngine>> engine =
        start_engine(options_of(), random_token(), std::move(set));
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return std::move(engine.value());
  }
  TransferRequest request(uint64_t size) const {
    return {Direction::kRead, reinterpret_cast<uint64_t>(local_.data()),
            reinterpret_cast<uint64_t>(remote_.data()), size};
  }
  Result<BatchState> read(uint64_t size, uint64_t deadline_ns = after_s(10)) {
    const TransferRequest one = request(size);
    return client_->transfer(segment_, {&one, 1}, Priority::kUrgent, deadline_ns);
  }
  void expect_read(uint64_t size) {
    std::ranges::fill(local_, 0);
    const Result<BatchState> state = read(size);
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_TRUE(state.value().status.ok()) << state.value().status.message();
    EXPECT_EQ(state.value().bytes_done, size);
    EXPECT_TRUE(
        std::equal(local_.begin(), local_.begin() + static_cast<ptrdiff_t>(size), remote_.begin()));
  }

  std::unique_ptr<TransferEngine> server_;
  std::shared_ptr<FakeRail> first_, second_, worse_;
  std::unique_ptr<TransferEngine> client_;
  SegmentId segment_ = 0;
  std::vector<uint8_t> remote_;
  std::vector<uint8_t> local_;
};

TEST_F(EngineRailsTest, ARailThatBreaksInTheMiddleCostsNothingButItself) {
  first_->set(FakeMode::kHolds);
  const TransferRequest one = request(remote_.size());
  const Result<BatchId> batch =
      client_->submit(segment_, {&one, 1}, Priority::kUrgent, after_s(10));
  ASSERT_TRUE(batch.ok()) << batch.status().message();
  ASSERT_TRUE(eventually(20'000, [&] { return first_->held_count() > 0; }));
  first_->set(FakeMode::kBroken);
  first_->end_held(Code::kUnavailable);
  const Result<BatchState> state = client_->wait(batch.value(), after_s(5));
  ASSERT_TRUE(state.ok());
  EXPECT_TRUE(state.value().is_done && state.value().status.ok()) << state.value().status.message();
  EXPECT_EQ(local_, remote_);
  EXPECT_TRUE(client_->release(batch.value()).ok());
  EXPECT_EQ(worse_->count_of(&FakeRail::op_count), 0u) << "the other rail of that kind was there";
}

TEST_F(EngineRailsTest, ARailThatWorksAgainGetsWorkAgain) {
  first_->set(FakeMode::kBroken);
  expect_read(kMiB);
  const size_t before = first_->count_of(&FakeRail::op_count);
  expect_read(remote_.size());
  EXPECT_EQ(first_->count_of(&FakeRail::op_count), before) << "it had failed";
  ASSERT_TRUE(eventually(20'000, [&] { return first_->count_of(&FakeRail::probe_count) >= 3; }));
  first_->set(FakeMode::kWorks);
  second_->set(FakeMode::kBroken);  // Or it could go on being the better choice.
  EXPECT_TRUE(eventually(20'000, [&] {
    expect_read(remote_.size());
    return first_->count_of(&FakeRail::op_count) > before;
  }));
}

TEST_F(EngineRailsTest, WithoutARailOfTheBestKindTheNextKindIsOpened) {
  first_->set(FakeMode::kBroken);
  second_->set(FakeMode::kBroken);
  expect_read(remote_.size());
  EXPECT_GT(worse_->count_of(&FakeRail::op_count), 0u);
  second_->set(FakeMode::kWorks);
  EXPECT_TRUE(eventually(20'000, [&] {
    const size_t before = worse_->count_of(&FakeRail::op_count);
    expect_read(kMiB);
    return worse_->count_of(&FakeRail::op_count) == before;
  })) << "the better kind is used again once it works";
}

TEST_F(EngineRailsTest, WhatAPathCannotDoGoesToAWorseKindAndThePathStaysInUse) {
  first_->broken_code = second_->broken_code = Code::kUnsupported;
  first_->set(FakeMode::kBroken);
  second_->set(FakeMode::kBroken);
  expect_read(64 * kKiB);
  EXPECT_EQ(worse_->count_of(&FakeRail::op_count), 1u);
  EXPECT_EQ(first_->count_of(&FakeRail::probe_count), 0u);
  worse_->broken_code = Code::kUnsupported;
  worse_->set(FakeMode::kBroken);
  const Result<BatchState> state = read(64 * kKiB);
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state.value().status.code(), Code::kUnavailable) << "nobody can do it";
}

TEST_F(EngineRailsTest, WithoutAnyRailABatchEndsAtItsDeadlineAndSaysWhy) {
  for (const auto& rail : {first_, second_, worse_}) rail->set(FakeMode::kRefuses);
  Result<BatchState> state = Status();
  const uint64_t took_ms = duration_ms([&] { state = read(kMiB, monotonic_ns() + 300'000'000); });
  ASSERT_TRUE(state.ok()) << state.status().message();
  EXPECT_EQ(state.value().status.code(), Code::kTimeout);
  EXPECT_NE(state.value().status.message().find("takes nothing"), std::string::npos)
      << state.value().status.message();
  EXPECT_GE(took_ms, 299u);
  EXPECT_LT(took_ms, kBusyMs);
}

TEST_F(EngineRailsTest, BackPressureOnlyMakesItSlower) {
  first_->take_max = 1;
  second_->set(FakeMode::kBroken);
  worse_->set(FakeMode::kBroken);
  expect_read(remote_.size());
}

TEST_F(EngineRailsTest, ABatchThatIsReleasedWaitsForWhatIsInFlight) {
  first_->set(FakeMode::kHolds);
  second_->set(FakeMode::kHolds);
  const TransferRequest one = request(kMiB);
  const BatchId batch =
      client_->submit(segment_, {&one, 1}, Priority::kUrgent, after_s(10)).value();
  const size_t held = first_->held_count() + second_->held_count();
  ASSERT_GT(held, 0u);
  std::atomic<bool> is_released{false};
  std::thread releasing([&] {
    EXPECT_TRUE(client_->release(batch).ok());
    is_released = true;
  });
  ASSERT_TRUE(eventually(20'000, [&] {
    const Result<BatchState> state = client_->poll(batch);
    return state.ok() && state.value().status.code() == Code::kCancelled;
  }));
  EXPECT_FALSE(is_released);
  first_->end_held(Code::kOk);
  second_->end_held(Code::kOk);
  releasing.join();
  EXPECT_EQ(client_->poll(batch).status().code(), Code::kNotFound);
  EXPECT_EQ(first_->held_count() + second_->held_count(), 0u);
}

TEST_F(EngineRailsTest, APeerThatStopsEndsEverythingWithinASecond) {
  first_->set(FakeMode::kHolds);
  second_->set(FakeMode::kHolds);
  const TransferRequest one = request(remote_.size());
  const BatchId batch =
      client_->submit(segment_, {&one, 1}, Priority::kUrgent, after_s(60)).value();
  Result<BatchState> state = Status();
  std::thread waiting([&] { state = client_->wait(batch, after_s(60)); });
  const uint64_t took_ms = duration_ms([&] {
    EXPECT_TRUE(server_->stop().ok());
    waiting.join();
  });
  EXPECT_LT(took_ms, kBusyMs);
  ASSERT_TRUE(state.ok());
  EXPECT_TRUE(state.value().is_done);
  EXPECT_EQ(state.value().status.code(), Code::kUnavailable) << state.value().status.message();
  EXPECT_TRUE(first_->is_closed && second_->is_closed);
  EXPECT_EQ(read(1).status().code(), Code::kUnavailable);
}

TEST_F(EngineRailsTest, StoppingCompletesWhatIsInFlight) {
  first_->set(FakeMode::kHolds);
  second_->set(FakeMode::kHolds);
  const TransferRequest one = request(remote_.size());
  const BatchId batch =
      client_->submit(segment_, {&one, 1}, Priority::kUrgent, after_s(60)).value();
  EXPECT_TRUE(client_->stop().ok());
  EXPECT_EQ(first_->held_count(), 0u);
  const Result<BatchState> state = client_->poll(batch);
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state.value().status.code(), Code::kCancelled);
  EXPECT_TRUE(client_->stop().ok());
  EXPECT_EQ(client_->open_segment("127.0.0.1:1", after_s(1)).status().code(), Code::kClosed);
}

}  // namespace
}  // namespace hicache
