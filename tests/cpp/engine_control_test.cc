// An engine's control connections to peers that stop, die and come back: real processes.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "engine_peer.h"

namespace hicache {
namespace {

using testing::after_ms;
using testing::duration_ms;
using testing::engine_options;
using testing::EnginePeer;
using testing::eventually;
using testing::kBusyMs;
using testing::start_engine_of;

class EngineControlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    client_ = start_engine_of(engine_options({TransportKind::kTcp}));
    ASSERT_NE(client_, nullptr);
    open();
  }
  void open() {
    const Result<SegmentId> opened = client_->open_segment(peer_.address(), after_ms(20'000));
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    segment_ = opened.value();
  }
  Code probe(uint64_t timeout_ms) const {
    return client_->probe(segment_, after_ms(timeout_ms)).code();
  }

  EnginePeer peer_{"tcp"};
  std::unique_ptr<TransferEngine> client_;
  SegmentId segment_ = 0;
};

TEST_F(EngineControlTest, EachQuestionKeepsItsOwnDeadlineWhateverOthersWaitFor) {
  peer_.stop();
  // Its reply never comes: the next one has to connect anew, and waits for that.
  ASSERT_EQ(probe(100), Code::kTimeout);
  Code patient = Code::kInternal;
  std::jthread waiting([&] { patient = probe(20'000); });
  // Until the patient one has its turn, somebody else's deadline is the impatient one's own.
  for (int i = 0; i < 5; ++i) {
    uint64_t took_ms = duration_ms([&] { EXPECT_EQ(probe(200), Code::kTimeout); });
    EXPECT_GE(took_ms, 199U);
    EXPECT_LT(took_ms, kBusyMs);
    took_ms = duration_ms([&] {
      EXPECT_EQ(client_->describe(segment_, after_ms(100)).status().code(), Code::kTimeout);
    });
    EXPECT_LT(took_ms, kBusyMs);
  }
  peer_.go_on();
  waiting.join();
  EXPECT_EQ(patient, Code::kOk);
}

TEST_F(EngineControlTest, ATimeOutOfOneQuestionFailsNoneOfThoseThatWaitBehindIt) {
  peer_.stop();
  Code impatient = Code::kOk;
  std::vector<Code> patient(8, Code::kInternal);
  std::jthread first([&] { impatient = probe(3000); });
  // It has the turn: who cannot wait at all is told so.
  ASSERT_TRUE(eventually(2900, [&] {
    return client_->probe(segment_, after_ms(0)).message().find("earlier questions") !=
           std::string::npos;
  }));
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < patient.size(); ++i) {
    threads.emplace_back([&, i] {
      patient[i] =
          i % 2 == 0 ? client_->notify(segment_, "n", "m", after_ms(20'000)).code() : probe(20'000);
    });
  }
  first.join();
  EXPECT_EQ(impatient, Code::kTimeout);
  peer_.go_on();
  for (std::jthread& thread : threads) thread.join();
  EXPECT_EQ(std::ranges::count(patient, Code::kOk), 8);
  EXPECT_FALSE(client_->is_lost(segment_));
}

TEST_F(EngineControlTest, APeerThatDiesWhileItIsConnectedToAnewIsLost) {
  peer_.stop();
  ASSERT_EQ(probe(100), Code::kTimeout);
  Code connecting = Code::kOk;
  std::jthread waiting([&] { connecting = probe(20'000); });
  EXPECT_EQ(probe(300), Code::kTimeout) << "behind the other one, which connects";
  peer_.end();
  uint64_t took_ms = duration_ms([&] { waiting.join(); });
  EXPECT_LT(took_ms, kBusyMs);
  EXPECT_EQ(connecting, Code::kUnavailable);
  EXPECT_TRUE(eventually(20'000, [&] { return client_->is_lost(segment_); }));
  // Who listens there now is somebody else: opened again, it is another segment, and works.
  const EnginePeer next("tcp", peer_.port);
  const SegmentId before = segment_;
  open();
  EXPECT_NE(segment_, before);
  EXPECT_EQ(probe(20'000), Code::kOk);
}

TEST_F(EngineControlTest, ClosingEndsQuestionsThatWait) {
  peer_.stop();
  Code asked = Code::kOk;
  Code queued = Code::kOk;
  std::jthread asking([&] { asked = probe(60'000); });
  std::jthread waiting([&] { queued = probe(60'000); });
  ASSERT_TRUE(eventually(20'000, [&] {
    return client_->probe(segment_, after_ms(0)).message().find("earlier questions") !=
           std::string::npos;
  }));
  const uint64_t took_ms = duration_ms([&] {
    client_->close_segment(segment_);
    asking.join();
    waiting.join();
  });
  EXPECT_LT(took_ms, kBusyMs);
  EXPECT_NE(asked, Code::kOk);
  EXPECT_NE(queued, Code::kOk);
}

}  // namespace
}  // namespace hicache
