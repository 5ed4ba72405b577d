// The transfer engine between two ends of one program, over the real transports.
#include "transfer/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
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
    ASSERT_TRUE(server_->register_memory(address_of(memory_), memory_.size(), "cpu:0", true).ok());
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

TEST_F(EngineTest, BogusIdsAreRefused) {
  HICACHE_TRACE_SEED();
  Random random;
  std::vector<uint8_t> local(64);
  const TransferRequest request{Direction::kRead, address_of(local), address_of(memory_), 64};
  for (int i = 0; i < 1000; ++i) {
    const uint64_t bogus = random.one_in(2) ? random.bits() : segment_ + random.between(1, 1000);
    EXPECT_EQ(client_->submit(bogus, {&request, 1}, Priority::kUrgent, soon()).status().code(),
              Code::kNotFound);
    EXPECT_EQ(client_->poll(bogus).status().code(), Code::kNotFound);
    EXPECT_EQ(client_->wait(bogus, soon()).status().code(), Code::kNotFound);
    EXPECT_EQ(client_->release(bogus).code(), Code::kNotFound);
    EXPECT_EQ(client_->probe(bogus, soon()).code(), Code::kNotFound);
    EXPECT_EQ(client_->describe(bogus, soon()).status().code(), Code::kNotFound);
    client_->close_segment(bogus);
  }
  const BatchId batch = client_->submit(segment_, {&request, 1}, Priority::kUrgent, soon()).value();
  EXPECT_TRUE(client_->wait(batch, soon()).value().is_done);
  EXPECT_TRUE(client_->release(batch).ok());
  EXPECT_EQ(client_->release(batch).code(), Code::kNotFound) << "released twice";
}

TEST_F(EngineTest, OnlyRegisteredRangesCanBeTouched) {
  std::vector<uint8_t> local(128);
  const Result<BatchState> beyond = transfer(Direction::kRead, local, memory_.size() - 127);
  EXPECT_EQ(beyond.status().code(), Code::kInvalidArgument) << beyond.status().message();
  std::vector<uint8_t> for_reading = bytes_of(3, 4096);
  ASSERT_TRUE(server_->register_memory(address_of(for_reading), 4096, "*", false).ok());
  TransferRequest request{Direction::kRead, address_of(local), address_of(for_reading), 128};
  // It has been registered since the segment was opened.
  const auto run = [&] {
    return client_->transfer(segment_, {&request, 1}, Priority::kUrgent, soon());
  };
  ASSERT_TRUE(run().ok());
  EXPECT_TRUE(std::equal(local.begin(), local.end(), for_reading.begin()));
  request.direction = Direction::kWrite;
  EXPECT_EQ(run().status().code(), Code::kInvalidArgument);
  request.direction = Direction::kRead;
  ASSERT_TRUE(server_->unregister_memory(address_of(for_reading)).ok());
  const Result<BatchState> gone = run();
  EXPECT_TRUE(!gone.ok() || gone.value().status.code() == Code::kInvalidArgument);
  ASSERT_TRUE(server_->register_memory(address_of(for_reading), 4096, "*", true).ok());
  const Result<BatchState> again = run();
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_TRUE(again.value().status.ok()) << "registered anew: " << again.value().status.message();
  EXPECT_TRUE(server_->unregister_memory(address_of(for_reading)).ok()) << "before it is freed";
}

TEST_F(EngineTest, RegistrationsDoNotOverlap) {
  const uint64_t address = address_of(memory_);
  EXPECT_EQ(server_->register_memory(address, 1, "*", true).code(), Code::kAlreadyExists);
  EXPECT_EQ(server_->register_memory(address - 1, 2, "*", true).code(), Code::kAlreadyExists);
  EXPECT_EQ(server_->register_memory(address + memory_.size() - 1, 2, "*", true).code(),
            Code::kAlreadyExists);
  EXPECT_EQ(server_->register_memory(address, 0, "*", true).code(), Code::kInvalidArgument);
  EXPECT_EQ(server_->register_memory(UINT64_MAX, 2, "*", true).code(), Code::kInvalidArgument);
  EXPECT_EQ(server_->unregister_memory(address + 1).code(), Code::kNotFound);
  EXPECT_TRUE(server_->unregister_memory(address).ok());
  EXPECT_EQ(server_->unregister_memory(address).code(), Code::kNotFound);
}

TEST_F(EngineTest, WhoDoesNotKnowTheSecretIsRefused) {
  const auto stranger = engine_of(options_of("open barley"));
  const Result<SegmentId> opened = stranger->open_segment(address_of(*server_), soon());
  EXPECT_EQ(opened.status().code(), Code::kUnavailable) << opened.status().message();
}

TEST_F(EngineTest, OpenedTwiceItIsOneSegmentThatIsClosedTwice) {
  EXPECT_EQ(client_->open_segment(address_of(*server_), soon()).value(), segment_);
  client_->close_segment(segment_);
  EXPECT_TRUE(client_->probe(segment_, soon()).ok());
  client_->close_segment(segment_);
  EXPECT_EQ(client_->probe(segment_, soon()).code(), Code::kNotFound);
  const SegmentId before = segment_;
  open();
  EXPECT_NE(segment_, before);
  EXPECT_TRUE(client_->probe(segment_, soon()).ok());
}

TEST_F(EngineTest, NoticesArriveInOrder) {
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(client_->notify(segment_, "count", std::to_string(i), soon()).ok());
  }
  const std::vector<Notice> notices = server_->take_notices();
  ASSERT_EQ(notices.size(), 10u);
  EXPECT_EQ(notices[7].message, "7");
  EXPECT_EQ(notices[7].from, client_->name());
  EXPECT_TRUE(server_->take_notices().empty());
}

TEST_F(EngineTest, AnEngineReachesItself) {
  const Result<SegmentId> own = server_->open_segment(address_of(*server_), soon());
  ASSERT_TRUE(own.ok()) << own.status().message();
  std::vector<uint8_t> local(1000);
  const TransferRequest request{Direction::kRead, address_of(local), address_of(memory_), 1000};
  ASSERT_TRUE(
      server_->transfer(own.value(), {&request, 1}, Priority::kUrgent, soon()).value().status.ok());
  EXPECT_TRUE(std::equal(local.begin(), local.end(), memory_.begin()));
}

TEST_F(EngineTest, APeerThatComesBackIsAnotherPeer) {
  const SegmentId before = segment_;
  auto options = options_of();
  options.port_min = options.port_max = server_->port();
  server_.reset();
  EXPECT_TRUE(eventually(
      1000, [&] { return client_->probe(before, soon()).code() == Code::kUnavailable; }));
  server_ = engine_of(options);
  ASSERT_TRUE(server_->register_memory(address_of(memory_), memory_.size(), "*", true).ok());
  std::vector<uint8_t> local(1000);
  EXPECT_EQ(transfer(Direction::kRead, local).status().code(), Code::kUnavailable);
  open();
  EXPECT_NE(segment_, before);
  EXPECT_TRUE(transfer(Direction::kRead, local).value().status.ok());
}

TEST_F(EngineTest, ManyThreadsGetTheirOwnBytes) {
  HICACHE_TRACE_SEED();
  constexpr size_t kThreads = 8;
  std::vector<std::thread> threads;
  std::atomic<unsigned> wrong{0};
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      std::vector<uint8_t> local(64 * kKiB);
      for (int i = 0; i < 200; ++i) {
        std::vector<TransferRequest> requests;
        uint64_t from[8];
        for (uint64_t j = 0; j < 8; ++j) {
          from[j] = random.below(memory_.size() - 8 * kKiB);
          requests.push_back({Direction::kRead, address_of(local) + j * 8 * kKiB,
                              address_of(memory_) + from[j], random.size_up_to(8 * kKiB)});
        }
        const Result<BatchId> batch =
            client_->submit(segment_, requests, Priority::kUrgent, soon());
        if (!batch.ok() || !client_->wait(batch.value(), soon()).value().status.ok()) ++wrong;
        for (uint64_t j = 0; j < 8; ++j) {
          if (std::memcmp(local.data() + j * 8 * kKiB, memory_.data() + from[j],
                          requests[j].size) != 0) {
            ++wrong;
          }
        }
        if (!batch.ok() || !client_->release(batch.value()).ok()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_F(EngineTest, StoppingInTheMiddleOfManyTransfersCompletesThemAll) {
  std::vector<std::thread> threads;
  std::atomic<unsigned> begun{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      std::vector<uint8_t> local(memory_.size());
      for (;;) {
        const Result<BatchState> state = transfer(Direction::kRead, local);
        ++begun;
        if (!state.ok() || !state.value().status.ok()) return;
      }
    });
  }
  ASSERT_TRUE(eventually(20'000, [&] { return begun >= 20; }));
  EXPECT_TRUE(client_->stop().ok());
  for (std::thread& thread : threads) thread.join();
}

TEST(Engine, TlsWithoutASecretIsRefused) {
  auto options = options_of("");
  options.tls = {"/no/such/certificate.pem", "/no/such/key.pem", "/no/such/authority.pem"};
  std::vector<std::string> notices;
  Status status = TransferEngine::start(options, notices).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("set the option secret"), std::string::npos) << status.message();
  options.secret = secret_from_text("one");
  status = TransferEngine::start(options, notices).status();
  EXPECT_NE(status.message().find("certificate.pem"), std::string::npos) << status.message();
  EXPECT_TRUE(TransferEngine::start(options_of(""), notices).ok()) << "without TLS it is a choice";
}

/// What a peer has registered anew since it was last asked, under the same addresses.
class RegisteredAnewTest : public ::testing::TestWithParam<TransportKind> {
 protected:
  void SetUp() override {
    auto options = options_of();
    options.transports = {GetParam()};
    options.slice_size_bytes = 64 * kKiB;
    server_ = engine_of(options);
    client_ = engine_of(options);
    add(0, memory_.size(), true);
    segment_ = client_->open_segment(address_of(*server_), soon()).value();
    ASSERT_TRUE(read().ok());
  }
  void add(uint64_t offset, uint64_t size, bool remote_write) const {
    ASSERT_TRUE(
        server_->register_memory(address_of(memory_) + offset, size, "*", remote_write).ok());
  }
  void drop(uint64_t offset) const {
    ASSERT_TRUE(server_->unregister_memory(address_of(memory_) + offset).ok());
  }
  Status transfer(Direction direction, uint64_t size, uint64_t timeout_ms = 20'000) const {
    const TransferRequest request{direction, address_of(local_), address_of(memory_), size};
    const Result<BatchState> state = client_->transfer(segment_, {&request, 1}, Priority::kUrgent,
                                                       monotonic_ns() + timeout_ms * 1'000'000);
    return state.ok() ? state.value().status : state.status();
  }
  Status read() {
    std::ranges::fill(local_, 0);
    const Status status = transfer(Direction::kRead, local_.size());
    if (status.ok()) EXPECT_EQ(local_, memory_);
    return status;
  }

  std::vector<uint8_t> memory_ = bytes_of(1, 2 * kMiB);
  std::vector<uint8_t> local_ = std::vector<uint8_t>(memory_.size());
  std::unique_ptr<TransferEngine> server_;
  std::unique_ptr<TransferEngine> client_;
  SegmentId segment_ = 0;
};

TEST_P(RegisteredAnewTest, TheFirstTransferFindsIt) {
  for (int i = 0; i < 20; ++i) {
    drop(0);
    add(0, memory_.size(), true);
    const Status status = read();
    ASSERT_TRUE(status.ok()) << status.message();
  }
}

TEST_P(RegisteredAnewTest, WhatIsGoneForGoodIsRefusedAndSaysWhy) {
  drop(0);
  add(0, kMiB, true);
  Status status = read();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("no memory that it has registered"), std::string::npos)
      << status.message();
  EXPECT_TRUE(transfer(Direction::kRead, kMiB).ok());
  drop(0);
  add(0, kMiB, false);
  status = transfer(Direction::kWrite, kMiB);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("for reading only"), std::string::npos) << status.message();
}

TEST_P(RegisteredAnewTest, ManyThreadsThatReadMeanwhileSeeItComeBack) {
  std::atomic<bool> is_over{false};
  std::atomic<uint64_t> good{0};
  std::atomic<uint64_t> refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      std::vector<uint8_t> own(256 * kKiB);
      while (!is_over) {
        const TransferRequest request{Direction::kRead, address_of(own), address_of(memory_),
                                      own.size()};
        const Result<BatchState> state =
            client_->transfer(segment_, {&request, 1}, Priority::kUrgent, soon());
        const Status status = state.ok() ? state.value().status : state.status();
        if (status.ok()) {
          EXPECT_EQ(std::memcmp(own.data(), memory_.data(), own.size()), 0);
          ++good;
        } else {
          EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.message();
          ++refused;
        }
      }
    });
  }
  for (int i = 0; i < 50; ++i) {
    drop(0);
    add(0, memory_.size(), true);
    // Nobody who begins after that is refused.
    const Status status = read();
    EXPECT_TRUE(status.ok()) << status.message();
  }
  is_over = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(good, 0U);
}

INSTANTIATE_TEST_SUITE_P(Transports, RegisteredAnewTest,
                         ::testing::Values(TransportKind::kTcp, TransportKind::kLocal),
                         [](const auto& tested) {
                           return std::string(transport_name(tested.param));
                         });

/// The same over memory that is shared: the fastest transport that this machine has.
TEST(Engine, EnginesOfOneMachineShareMemoryWithoutBeingTold) {
  auto options = options_of();
  options.transports = {TransportKind::kTcp, TransportKind::kLocal};
  const auto server = engine_of(options);
  const auto client = engine_of(options);
  const Result<uint64_t> address = server->allocate_memory(2 * kMiB);
  ASSERT_TRUE(address.ok()) << address.status().message();
  const std::vector<uint8_t> expected = bytes_of(5, 2 * kMiB);
  std::memcpy(reinterpret_cast<void*>(address.value()), expected.data(), expected.size());
  const Result<SegmentId> segment = client->open_segment(address_of(*server), soon());
  ASSERT_TRUE(segment.ok()) << segment.status().message();
  std::vector<uint8_t> local(2 * kMiB);
  const TransferRequest request{Direction::kRead, address_of(local), address.value(), local.size()};
  const Result<BatchState> state =
      client->transfer(segment.value(), {&request, 1}, Priority::kUrgent, soon());
  ASSERT_TRUE(state.ok()) << state.status().message();
  ASSERT_TRUE(state.value().status.ok()) << state.value().status.message();
  EXPECT_EQ(local, expected);
  EXPECT_NE(client->stats().find("\"transport\":\"local\""), std::string::npos);
  EXPECT_EQ(client->stats().find("\"transport\":\"tcp\""), std::string::npos) << client->stats();
  EXPECT_TRUE(server->free_memory(address.value()).ok());
}

}  // namespace
}  // namespace hicache
