// Peers that know the secret and break the rules of frames: their lane is closed and counted, the
// others go on, and no memory is touched that was not offered.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <xxhash.h>

#include <thread>

#include "io/unix_socket.h"
#include "net/secure_channel.h"
#include "tcp_rig.h"
#include "transfer/tcp/client_lane.h"
#include "transfer/tcp/tcp_frame.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::kTcpBuffer;
using testing::op_of;
using testing::Random;
using testing::TcpEnd;

/// A lane whose frames the test writes.
class RawLane {
 public:
  explicit RawLane(const TcpEnd& server) : epoch_(server.epoch) {
    const Deadline deadline = Deadline::after_ms(5000);
    Result<Fd> socket = tcp_connect({"127.0.0.1", server.control->port()}, deadline);
    EXPECT_TRUE(socket.ok());
    socket_ = std::move(socket.value());
    EXPECT_TRUE(
        greet_server(socket_, testing::tcp_secret(), {Purpose::kTcpLane, epoch_}, deadline).ok());
  }
  void send(std::span<const uint8_t> bytes) {
    // A server that has closed already is what most of these tests want.
    (void)send_all(socket_, bytes, Deadline::after_ms(5000));
  }
  void send(const TcpFrame& frame) { send(encode_tcp_frame(frame, epoch_)); }
  bool is_closed() const { return wait_closed(socket_, 5000); }
  bool is_open() const { return !wait_closed(socket_, 0); }
  bool receive(std::span<uint8_t> bytes) {
    return receive_all(socket_, bytes, Deadline::after_ms(5000)).ok();
  }
  const Fd& socket() const { return socket_; }

 private:
  const uint64_t epoch_;
  Fd socket_;
};

class TcpHostile : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.share(memory_.data(), memory_.size());
    path_ = &client_.open(server_.descriptor());
  }
  /// The server lives, serves, and has not changed what it was not asked to.
  void expect_sound(uint64_t hostile) {
    EXPECT_TRUE(testing::eventually(20'000, [&] { return server_.stat("hostile") == hostile; }))
        << server_.stat("hostile");
    EXPECT_TRUE(memory_ == before_);
    const Op op = op_of(Direction::kRead, local_.data(), memory_.data(), memory_.size(), token_++);
    ASSERT_EQ(path_->submit({&op, 1}), 1U);
    ASSERT_TRUE(client_.completions.wait_count(token_));
    EXPECT_TRUE(client_.completions.status(op.token).ok());
    EXPECT_TRUE(local_ == before_);
  }
  TcpFrame frame(FrameKind kind, uint64_t sequence, uint64_t size) const {
    return {.kind = kind,
            .buffer = kTcpBuffer,
            .sequence = sequence,
            .address = reinterpret_cast<uint64_t>(memory_.data()),
            .size = size};
  }

  // The memory outlives the ends, which may be serving it yet.
  std::vector<uint8_t> memory_ = bytes_of(1, kMiB);
  const std::vector<uint8_t> before_ = memory_;
  std::vector<uint8_t> local_ = std::vector<uint8_t>(kMiB);
  TcpEnd server_;
  TcpEnd client_;
  Path* path_ = nullptr;
  uint64_t token_ = 0;
};

TEST_F(TcpHostile, GarbageClosesTheLane) {
  HICACHE_TRACE_SEED();
  Random random(510);
  for (uint64_t i = 1; i <= 20; ++i) {
    RawLane lane(server_);
    std::vector<uint8_t> garbage(random.between(kTcpHeaderSize, 5000));
    random.fill(garbage);
    lane.send(garbage);
    EXPECT_TRUE(lane.is_closed());
    expect_sound(i);
  }
}

TEST_F(TcpHostile, RepeatedAndSkippedRequestsCloseTheLane) {
  const std::vector<std::vector<uint64_t>> sequences = {{2}, {1, 1}, {1, 3}, {1, 2, 1}};
  uint64_t count = 0;
  for (const std::vector<uint64_t>& numbers : sequences) {
    RawLane lane(server_);
    for (const uint64_t number : numbers) lane.send(frame(FrameKind::kRead, number, 100));
    EXPECT_TRUE(lane.is_closed());
    expect_sound(++count);
  }
}

TEST_F(TcpHostile, FramesOfAnotherIncarnationCloseTheLane) {
  RawLane lane(server_);
  lane.send(encode_tcp_frame(frame(FrameKind::kWrite, 1, 100), server_.epoch + 1));
  EXPECT_TRUE(lane.is_closed());
  expect_sound(1);
}

TEST_F(TcpHostile, AnswersToNothingCloseTheLane) {
  RawLane lane(server_);
  lane.send({.kind = FrameKind::kReadReply, .sequence = 1, .size = 100});
  EXPECT_TRUE(lane.is_closed());
  expect_sound(1);
}

TEST_F(TcpHostile, OversizedFramesCloseTheLaneThoughTheirCheckIsRight) {
  RawLane lane(server_);
  TcpHeaderBytes bytes = encode_tcp_frame(frame(FrameKind::kWrite, 1, 100), server_.epoch);
  const uint64_t size = kTcpPayloadSizeMax + 1;
  std::memcpy(bytes.data() + 32, &size, sizeof(size));
  std::memset(bytes.data() + 8, 0, 4);
  const auto check =
      static_cast<uint32_t>(XXH3_64bits_withSeed(bytes.data(), bytes.size(), server_.epoch));
  std::memcpy(bytes.data() + 8, &check, sizeof(check));
  lane.send(bytes);
  EXPECT_TRUE(lane.is_closed());
  expect_sound(1);
}

TEST_F(TcpHostile, MoreUnansweredRequestsThanAllowedCloseTheLane) {
  RawLane lane(server_);
  // Their answers do not fit into any socket buffer, and nobody reads them.
  for (uint64_t i = 1; i <= 2 * kTcpUnansweredMax && lane.is_open(); ++i) {
    lane.send(frame(FrameKind::kRead, i, kMiB));
  }
  EXPECT_TRUE(lane.is_closed());
  expect_sound(1);
}

TEST_F(TcpHostile, AWriteThatBreaksOffLeavesTheLaneAndNothingElse) {
  std::vector<uint8_t> payload = before_;  // What is written is what is there.
  {
    RawLane lane(server_);
    lane.send(frame(FrameKind::kWrite, 1, kMiB));
    lane.send(std::span(payload).first(kMiB / 2));
    EXPECT_TRUE(
        testing::eventually(5000, [&] { return server_.stat("served_written_bytes") != 0; }));
  }
  EXPECT_TRUE(testing::eventually(20'000, [&] { return server_.stat("lanes_in") == 4; }));
  expect_sound(0);
}

TEST_F(TcpHostile, AWriteWithAWrongChecksumIsAnsweredCorrupt) {
  RawLane lane(server_);
  TcpFrame write = frame(FrameKind::kWrite, 1, 1000);
  write.flags = kFlagChecksum;
  lane.send(write);
  std::vector<uint8_t> payload(before_.begin(), before_.begin() + 1000 + kTcpTrailerSize);
  lane.send(payload);
  TcpHeaderBytes reply;
  ASSERT_TRUE(lane.receive(reply));
  const Result<TcpFrame> decoded = decode_tcp_frame(reply, server_.epoch);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded.value().code, Code::kCorrupt);
  EXPECT_EQ(server_.stat("corrupt"), 1U);
  EXPECT_TRUE(lane.is_open());
  expect_sound(0);
}

TEST_F(TcpHostile, RefusedWritesAreDroppedAsTheyCome) {
  RawLane lane(server_);
  TcpFrame write = frame(FrameKind::kWrite, 1, kTcpPayloadSizeMax);
  write.address -= 1;
  lane.send(write);
  lane.send(std::vector<uint8_t>(kTcpPayloadSizeMax, 0xEE));
  lane.send(frame(FrameKind::kRead, 2, 8));
  TcpHeaderBytes reply;
  ASSERT_TRUE(lane.receive(reply));
  EXPECT_EQ(decode_tcp_frame(reply, server_.epoch).value().code, Code::kInvalidArgument);
  ASSERT_TRUE(lane.receive(reply));
  EXPECT_EQ(decode_tcp_frame(reply, server_.epoch).value().code, Code::kOk);
  expect_sound(0);
}

TEST_F(TcpHostile, MutatedStreamsNeverDoHarm) {
  HICACHE_TRACE_SEED();
  Random random(511);
  for (int round = 0; round < 60; ++round) {
    RawLane lane(server_);
    std::vector<uint8_t> stream;
    for (uint64_t i = 1; i <= 6; ++i) {
      const bool is_write = random.one_in(2);
      const uint64_t size = random.size_up_to(3000);
      const TcpHeaderBytes header = encode_tcp_frame(
          frame(is_write ? FrameKind::kWrite : FrameKind::kRead, i, size), server_.epoch);
      stream.insert(stream.end(), header.begin(), header.end());
      if (is_write) stream.insert(stream.end(), before_.begin(), before_.begin() + size);
    }
    // Only in a header: payload is the peer's own affair.
    stream[random.below(kTcpHeaderSize)] ^= static_cast<uint8_t>(random.between(1, 255));
    if (random.one_in(4)) stream.resize(random.below(stream.size()) + 1);
    lane.send(stream);
    shutdown(lane.socket().get(), SHUT_WR);
    EXPECT_TRUE(lane.is_closed());
  }
  EXPECT_TRUE(memory_ == before_);
  expect_sound(server_.stat("hostile"));
}

/// A server that answers what the test makes up.
class RawServer {
 public:
  using Answer = std::function<void(const Fd& lane, const TcpFrame& request, uint64_t epoch)>;

  explicit RawServer(Answer answer) : epoch_(random_token()), answer_(std::move(answer)) {
    Result<Listening> listening = tcp_listen("127.0.0.1", 0, 0);
    EXPECT_TRUE(listening.ok());
    listening_ = std::move(listening.value());
    thread_ = std::thread([this] { serve(); });
  }
  ~RawServer() { thread_.join(); }
  uint64_t epoch() const { return epoch_; }
  uint16_t port() const { return listening_.port; }

 private:
  void serve() {
    pollfd waited{listening_.fd.get(), POLLIN, 0};
    if (poll(&waited, 1, 5000) != 1) return;
    Result<Fd> lane = tcp_accept(listening_.fd);
    const Deadline deadline = Deadline::after_ms(5000);
    if (!lane.ok() || !greet_client(lane.value(), testing::tcp_secret(), epoch_, deadline).ok()) {
      return;
    }
    TcpHeaderBytes header;
    if (!receive_all(lane.value(), header, deadline).ok()) return;
    const Result<TcpFrame> request = decode_tcp_frame(header, epoch_);
    ASSERT_TRUE(request.ok());
    answer_(lane.value(), request.value(), epoch_);
    EXPECT_TRUE(wait_closed(lane.value(), 5000)) << "the client hangs up";
  }

  const uint64_t epoch_;
  const Answer answer_;
  Listening listening_;
  std::thread thread_;
};

void reply(const Fd& lane, const TcpFrame& frame, uint64_t epoch) {
  (void)send_all(lane, encode_tcp_frame(frame, epoch), Deadline::after_ms(5000));
}

/// The status of one op against such a server.
Status status_against(RawServer::Answer answer, Direction direction, uint64_t size,
                      uint64_t hostile) {
  RawServer server(std::move(answer));
  TcpEnd client({.lanes = 1});
  client.transport->set_port(server.port());
  SegmentDescriptor peer{};
  peer.epoch = server.epoch();
  peer.endpoints.push_back({TransportKind::kTcp, client.transport->endpoint()});
  Path& path = client.open(peer);
  std::vector<uint8_t> local = bytes_of(1, size);
  const Op op = op_of(direction, local.data(), uint64_t{0x10000}, size, 1);
  EXPECT_EQ(path.submit({&op, 1}), 1U);
  EXPECT_TRUE(client.completions.wait_count(1));
  EXPECT_EQ(client.stat("hostile"), hostile);
  path.close();
  return client.completions.status(1);
}

TEST(TcpHostileServer, AnswersThatWereNotAskedForEndTheLane) {
  const std::vector<std::function<TcpFrame(const TcpFrame&)>> lies = {
      [](const TcpFrame& f) {
        return TcpFrame{.kind = FrameKind::kReadReply, .sequence = f.sequence + 1, .size = f.size};
      },
      [](const TcpFrame& f) {
        return TcpFrame{.kind = FrameKind::kReadReply,
                        .flags = kFlagChecksum,
                        .sequence = f.sequence,
                        .size = f.size + 1};
      },
      [](const TcpFrame& f) {  // Without the checksum that was asked for.
        return TcpFrame{.kind = FrameKind::kReadReply, .sequence = f.sequence, .size = f.size};
      },
      [](const TcpFrame& f) {
        return TcpFrame{.kind = FrameKind::kWriteReply, .sequence = f.sequence};
      },
      [](const TcpFrame& f) {
        return TcpFrame{.kind = FrameKind::kPingReply, .sequence = f.sequence};
      },
      [](const TcpFrame& f) { return f; },
  };
  for (const auto& lie : lies) {
    const Status status = status_against([&](const Fd& lane, const TcpFrame& request,
                                             uint64_t epoch) { reply(lane, lie(request), epoch); },
                                         Direction::kRead, 5000, 1);
    EXPECT_EQ(status.code(), Code::kUnavailable) << status.message();
  }
}

TEST(TcpHostileServer, AWriteIsNotOverBeforeItsBytesHaveLeft) {
  constexpr uint64_t kEpoch = 5;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  Fd near(ends[0]);
  const Fd far(ends[1]);
  const int size = 4096;
  ASSERT_EQ(setsockopt(near.get(), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
  auto loop = IoLoop::start("test-loop");
  ASSERT_TRUE(loop.ok());
  testing::Completions completions;
  TcpCounters counters;
  auto path = std::make_shared<PathState>(4, kMiB, completions, counters);
  auto lane =
      std::make_shared<ClientLane>(std::move(near), *loop.value(), path, kEpoch, true, kMiB);
  std::vector<uint8_t> local = bytes_of(1, kMiB);
  {
    const std::lock_guard lock(path->mutex);
    ASSERT_TRUE(lane->start().ok());
    path->lanes.push_back(lane);
    ASSERT_TRUE(path->ops.add(op_of(Direction::kWrite, local.data(), uint64_t{1}, kMiB, 1)));
    lane->give(path->ops.take(Priority::kUrgent));
  }
  lane->pump(kMiB);
  reply(far, {.kind = FrameKind::kWriteReply, .sequence = 1}, kEpoch);
  ASSERT_TRUE(completions.wait_count(1));
  EXPECT_EQ(completions.status(1).code(), Code::kUnavailable);
  EXPECT_EQ(counters.hostile, 1U);
}

TEST(TcpHostileServer, AReadWithAWrongChecksumIsCorrupt) {
  const Status status = status_against(
      [&](const Fd& lane, const TcpFrame& request, uint64_t epoch) {
        reply(lane,
              {.kind = FrameKind::kReadReply,
               .flags = kFlagChecksum,
               .sequence = request.sequence,
               .size = request.size},
              epoch);
        (void)send_all(lane, std::vector<uint8_t>(request.size + kTcpTrailerSize, 3),
                       Deadline::after_ms(5000));
      },
      Direction::kRead, 100'000, 0);
  EXPECT_EQ(status.code(), Code::kCorrupt) << status.message();
}

}  // namespace
}  // namespace hicache
