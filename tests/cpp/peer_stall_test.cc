// Peers that say nothing, or do not read, by a clock of the test's own.
#include <gtest/gtest.h>
#include <sys/epoll.h>

#include <future>

#include "directory_net_rig.h"
#include "net/frame.h"
#include "store/peer_service.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::soon;

constexpr uint64_t kStallMs = 10'000;
constexpr uint64_t kCheckMs = 250;  // From one look at who stalls to the next.
constexpr uint64_t kIncarnation = 7;

/// A node whose lists are large.
class LargeLists : public PeerPages {
 public:
  SessionIndex open_peer() override { return 1; }
  void close_peer(SessionIndex) override {}
  void lookup_for_peer(SessionIndex, const PeerKeysRequest&, std::vector<Code>&) override {}
  void lease_for_peer(SessionIndex, const PeerKeysRequest&, WireWriter&) override {}
  void remove_for_peer(const PeerKeysRequest&, std::vector<Code>&) override {}
  void copy_for_peer(const PeerCopyRequest&, std::vector<Code>&) override {}
  void list_for_peer(const PeerListRequest&, ListReply& reply) override {
    reply.keys.assign(kListHeadsMax, key_of(1));
    reply.head_sizes.assign(kListHeadsMax, kListHeadSizeMax);
    reply.heads.resize(kListHeadsMax * kListHeadSizeMax);
  }
  void release(SessionIndex, std::span<const PageRef>, uint64_t) override {}
  void report_corrupt(std::span<const PageRef>) override {}
};

class PeerStall : public ::testing::Test {
 protected:
  PeerStall()
      : epoll_(epoll_create1(EPOLL_CLOEXEC)),
        service_({.secret = testing::kClusterSecret,
                  .tls = nullptr,
                  .peers_max = 4,
                  .stall_timeout_ms = kStallMs,
                  .hello = {kIncarnation, 0, 0, "127.0.0.1:1"}},
                 std::move(tcp_listen("127.0.0.1", 0, 0).value()), epoll_.get(), pages_) {
    EXPECT_TRUE(service_.start().ok());
  }

  /// Lets the service do what its sockets allow; false: nothing.
  bool turn(int patience_ms) {
    epoll_event events[16];
    const int count = epoll_wait(epoll_.get(), events, 16, patience_ms);
    for (int i = 0; i < count; ++i) {
      if (service_.owns(events[i].data.fd)) service_.advance(events[i].data.fd, now_ms_);
    }
    service_.advance(now_ms_);
    return count > 0;
  }
  /// A peer that was let in, and what it sends.
  Stream peer(const std::vector<uint8_t>& sent) {
    auto arrived = std::async(std::launch::async, [&] {
      Result<Fd> socket = tcp_connect({"127.0.0.1", service_.port()}, soon());
      EXPECT_TRUE(socket.ok());
      EXPECT_TRUE(greet_server(socket.value(), testing::kClusterSecret,
                               {Purpose::kNode, kIncarnation}, soon())
                      .ok());
      Stream stream(std::move(socket.value()), Stream::End::kClient, nullptr);
      EXPECT_TRUE(stream.write_all(sent, soon()).ok());
      return stream;
    });
    while (arrived.wait_for(std::chrono::seconds(0)) != std::future_status::ready) turn(5);
    while (turn(100)) {
    }
    return arrived.get();
  }
  template <typename Message>
  static void add_frame(std::vector<uint8_t>& frames, NodeOp op, const Message& message) {
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode(writer, message);
    seal_frame(frame, static_cast<uint16_t>(op), 1);
    frames.insert(frames.end(), frame.begin(), frame.end());
  }
  size_t peers_at(uint64_t now_ms) {
    now_ms_ = now_ms;
    service_.advance(now_ms);
    return service_.peer_count();
  }

  Fd epoll_;
  LargeLists pages_;
  PeerService service_;
  uint64_t now_ms_ = 1000;
};

TEST_F(PeerStall, WhoSaysNoHelloIsClosedAfterAWhile) {
  const Stream silent = peer({});
  const uint64_t since_ms = now_ms_;
  EXPECT_EQ(peers_at(since_ms + kStallMs - 1), 1U);
  EXPECT_EQ(peers_at(since_ms + kStallMs + kCheckMs), 0U);
  EXPECT_EQ(service_.refused_count(), 1U);
}

TEST_F(PeerStall, WhoAsksForNothingMayStay) {
  std::vector<uint8_t> hello;
  add_frame(hello, NodeOp::kHello, PeerHello{"quiet"});
  const Stream quiet = peer(hello);
  EXPECT_EQ(peers_at(now_ms_ + 100 * kStallMs), 1U);
}

TEST_F(PeerStall, WhoDoesNotReadIsClosedAfterAWhile) {
  std::vector<uint8_t> frames;
  add_frame(frames, NodeOp::kHello, PeerHello{"deaf"});
  for (int i = 0; i < 16; ++i) add_frame(frames, NodeOp::kList, PeerListRequest{key_of(2), 0});
  Stream deaf = peer(frames);
  const uint64_t since_ms = now_ms_;
  EXPECT_EQ(peers_at(since_ms + kStallMs - 1), 1U);
  // It reads a little: its time begins anew.
  std::vector<uint8_t> some(4 * kMiB);
  auto reading = std::async(std::launch::async, [&] { return deaf.read_all(some, soon()).ok(); });
  while (reading.wait_for(std::chrono::seconds(0)) != std::future_status::ready) turn(5);
  EXPECT_TRUE(reading.get());
  while (turn(100)) {
  }
  const uint64_t read_ms = now_ms_;
  EXPECT_EQ(peers_at(since_ms + kStallMs + kCheckMs), 1U);
  EXPECT_EQ(peers_at(read_ms + kStallMs - 1), 1U);
  EXPECT_EQ(peers_at(read_ms + kStallMs + kCheckMs), 0U);
}

}  // namespace
}  // namespace hicache
