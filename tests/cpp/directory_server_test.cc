// The directory over real sockets: nodes and clients, loss, strangers, garbage, slow readers, TLS,
// other leaders.
#include "directory/directory_server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <thread>

#include "directory_net_rig.h"
#include "io/unix_socket.h"
#include "tls_files.h"
#include "transfer/control.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rig's words.

class DirectoryServerTest : public ::testing::Test {
 protected:
  void SetUp() override { signal(SIGPIPE, SIG_IGN); }  // As Python does.

  void serve(const DirectoryServer::Options& options = server_options()) {
    server_ = start_server(options);
    port_ = server_->port();
  }
  std::unique_ptr<DirectoryClient> client() { return connected_client(client_options({port_})); }
  NetNode live_node(const std::string& name, std::vector<PageChange> changes) {
    NetNode node(port_, member_of(name), client_options({port_}));
    EXPECT_TRUE(node.join().must_announce);
    node.announce(std::move(changes));
    return node;
  }
  static Result<LocateReply> locate(DirectoryClient& client, std::vector<Key> keys) {
    return client.call<LocateReply>(LocateRequest{0, kSpaceA, true, 4, std::move(keys)}, soon());
  }
  static void expect_found(DirectoryClient& client, uint64_t first, uint64_t count) {
    const Result<LocateReply> reply = locate(client, keys_of(first, count));
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    EXPECT_EQ(reply.value().counts.size(), count);
  }
  NodeState state_of(NodeIndex node) { return server_->members().at(node).state; }

  std::unique_ptr<DirectoryServer> server_;
  uint16_t port_ = 0;
};

TEST_F(DirectoryServerTest, WhatANodeAnnouncesEveryClientFinds) {
  serve();
  NetNode a = live_node("a", changes_of(0, 10));
  auto someone = client();
  const Result<LocateReply> reply = locate(*someone, keys_of(0, 12));
  ASSERT_TRUE(reply.ok()) << reply.status().message();
  EXPECT_EQ(reply.value().head.epoch, kEpochOne);
  EXPECT_EQ(reply.value().counts, std::vector<uint8_t>(10, 1));
  EXPECT_EQ(reply.value().replicas[3], (Replica{1, a.index(), kInDram, kRankGood}));
  const auto members = someone->call<MembersReply>(MembersRequest{}, soon());
  ASSERT_TRUE(members.ok());
  EXPECT_EQ(members.value().members,
            (std::vector<MemberView>{{a.index(), NodeState::kLive, 10, member_of("a")}}));
  EXPECT_EQ(someone->epoch(), kEpochOne);
  const auto left =
      a.life().call<PlainReply>(LeaveRequest{0, a.index(), member_of("a").incarnation}, soon());
  EXPECT_TRUE(left.ok());
  EXPECT_TRUE(locate(*someone, keys_of(0, 12)).value().counts.empty());
}

TEST_F(DirectoryServerTest, ManyQuestionsOfManyThreadsAreUnderWayAtOnce) {
  serve();
  const NetNode a = live_node("a", changes_of(0, 50));
  auto someone = client();
  std::atomic<int> answered{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 500; ++i) {
        const uint64_t known = (t * 500 + i) % 50;
        someone->ask<LocateReply>(LocateRequest{0, kSpaceA, true, 1, keys_of(50 - known, 50)},
                                  soon(), [&answered, known](Result<LocateReply> reply) {
                                    ASSERT_TRUE(reply.ok()) << reply.status().message();
                                    EXPECT_EQ(reply.value().counts.size(), known)
                                        << "another question's answer";
                                    ++answered;
                                  });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(eventually(20'000, [&] { return answered == 2000; }));
}

TEST_F(DirectoryServerTest, TheLargestRequestsAreTaken) {
  serve();
  NetNode a = live_node("a", changes_of(0, kChangesMax));
  expect_found(a.bulk(), 0, kLocateKeysMax);
}

// ---- loss

TEST_F(DirectoryServerTest, AKilledNodeIsNoticedAtOnceAndGoneWhenItsProbeFails) {
  serve();
  // What a probe greets: the control server of a process of this incarnation.
  auto control = ControlServer::start(
      {"127.0.0.1", 0, 0, kClusterSecret, 1, nullptr, 8},
      {[](ControlOp, std::span<const uint8_t>) { return std::vector<uint8_t>(); }, nullptr});
  ASSERT_TRUE(control.ok());
  Member member = member_of("a");
  member.addresses = {"127.0.0.1:" + std::to_string(control.value()->port())};
  NetNode a(port_, member, client_options({port_}));
  a.join();
  a.announce(changes_of(0, 10));
  auto someone = client();

  a.die();
  EXPECT_LT(
      duration_ms([&] {
        EXPECT_TRUE(eventually(20'000, [&] { return state_of(a.index()) == NodeState::kSuspect; }));
      }),
      1000U);
  // Its process answers: its pages can still be read.
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*server_, "probes") >= 3; }));
  EXPECT_EQ(state_of(a.index()), NodeState::kSuspect);
  expect_found(*someone, 0, 10);
  EXPECT_EQ(locate(*someone, {key_of(0)}).value().replicas.at(0).rank, kRankSuspect);
  control.value()->stop();
  EXPECT_TRUE(eventually(20'000, [&] { return state_of(a.index()) == NodeState::kGone; }));
  EXPECT_TRUE(locate(*someone, keys_of(0, 10)).value().counts.empty());
}

TEST_F(DirectoryServerTest, ANodeWhoseConnectionBreaksComesBackWithItsPages) {
  DirectoryServer::Options options = server_options();
  options.directory.probe_timeout_ms = 60'000;  // Nothing listens at its address.
  serve(options);
  auto deaf = tcp_listen("127.0.0.1", 0, 0);  // Takes probes, and does not answer.
  ASSERT_TRUE(deaf.ok());
  Member member = member_of("a");
  member.addresses = {"127.0.0.1:" + std::to_string(deaf.value().port)};
  NetNode a(port_, member, client_options({port_}));
  a.join();
  a.announce(changes_of(0, 10));
  const uint64_t first = a.life().connection_number();
  // One malformed request: the server closes the connection.
  DrainRequest too_long{0, true, std::string(kNodeTextSizeMax + 1, 'x')};
  EXPECT_EQ(a.life().call<PlainReply>(too_long, soon()).status().code(), Code::kUnavailable);
  EXPECT_TRUE(eventually(20'000, [&] { return a.life().connection_number() > first; }));
  EXPECT_EQ(a.heartbeat().head.code, Code::kCancelled) << "not joined over this connection";
  EXPECT_FALSE(a.join().must_announce);
  EXPECT_EQ(state_of(a.index()), NodeState::kLive);
  expect_found(a.bulk(), 0, 10);
  deaf.value().fd.reset();
}

TEST_F(DirectoryServerTest, HeartbeatsDoNotWaitBehindAnnouncements) {
  serve();
  NetNode a = live_node("a", {});
  constexpr int kBatches = 100;
  constexpr int kAtOnce = 10;
  std::atomic<int> ended{0};
  int overtaken = 0;
  const std::vector<PageChange> changes = changes_of(0, kChangesMax);
  for (int asked = 1; asked <= kBatches; ++asked) {
    a.bulk().ask<BatchReply>(a.batch(BatchKind::kChanges, changes), soon(),
                             [&](const Result<BatchReply>& reply) {
                               // As many as the client takes; the others are refused at once.
                               EXPECT_TRUE(reply.ok() || reply.status().code() == Code::kBusy);
                               ++ended;
                             });
    if (asked % kAtOnce != 0) continue;
    EXPECT_EQ(a.heartbeat().head.code, Code::kOk);
    if (ended < asked) ++overtaken;
  }
  EXPECT_TRUE(eventually(20'000, [&] { return ended == kBatches; }));
  EXPECT_GT(overtaken, 0);
  EXPECT_EQ(stat_of(*server_, "suspicions"), 0U);
}

TEST_F(DirectoryServerTest, ClientsOfNobodyFailAtOnceAndComeBackByThemselves) {
  serve();
  auto someone = client();
  server_->stop();
  EXPECT_TRUE(eventually(20'000, [&] { return someone->connection_number() == 0; }));
  const Status status = locate(*someone, keys_of(0, 1)).status();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:" + std::to_string(port_)), std::string::npos)
      << status.message();
  DirectoryServer::Options options = server_options();
  options.port_min = options.port_max = port_;
  serve(options);
  EXPECT_TRUE(someone->wait_connected(soon()).ok());
  EXPECT_TRUE(locate(*someone, keys_of(0, 1)).ok());
}

TEST_F(DirectoryServerTest, QuestionsUnderWayEndWhenTheServerDoes) {
  serve();
  auto someone = client();
  std::atomic<int> ended{0};
  for (int i = 0; i < 1000; ++i) {
    someone->ask<LocateReply>(LocateRequest{0, kSpaceA, false, 1, keys_of(0, 10)}, soon(),
                              [&](const Result<LocateReply>&) { ++ended; });
  }
  server_->stop();
  EXPECT_TRUE(eventually(20'000, [&] { return ended == 1000; }));
}

/// Accepts and greets one client, and reads nothing that it sends.
class SilentServer {
 public:
  SilentServer() {
    Result<Listening> listening = tcp_listen("127.0.0.1", 0, 0);
    EXPECT_TRUE(listening.ok());
    listening_ = std::move(listening.value());
    thread_ = std::thread([this] {
      Fd socket;
      while (!socket.valid()) {
        pollfd waited{listening_.fd.get(), POLLIN, 0};
        poll(&waited, 1, 20'000);
        Result<Fd> accepted = tcp_accept(listening_.fd);
        if (accepted.ok()) socket = std::move(accepted.value());
      }
      EXPECT_TRUE(greet_client(socket, kClusterSecret, 0, soon()).ok());
      over_.get_future().wait();
    });
  }
  ~SilentServer() {
    over_.set_value();
    thread_.join();
  }
  uint16_t port() const { return listening_.port; }

 private:
  Listening listening_;
  std::promise<void> over_;
  std::thread thread_;
};

TEST_F(DirectoryServerTest, ASilentServerCostsTheDeadlineAndNoMore) {
  const SilentServer silent;
  auto someone = connected_client(client_options({silent.port()}));
  EXPECT_EQ(someone->call<MembersReply>(MembersRequest{}, Deadline::after_ms(50)).status().code(),
            Code::kTimeout);
}

TEST_F(DirectoryServerTest, AQuestionBehindAFullSocketEndsByItsOwnDeadline) {
  const SilentServer silent;
  auto someone = connected_client(client_options({silent.port()}));
  const auto ask_patiently = [&](uint64_t key_count) {
    someone->ask<LocateReply>(LocateRequest{0, kSpaceA, true, 1, keys_of(0, key_count)},
                              Deadline::after_ms(600'000), [](const Result<LocateReply>&) {});
  };
  // More than a socket takes (4 MiB), and less than the client lets wait for it (8 MiB), however
  // late its thread comes: one question more would be kBusy, and not late.
  for (int i = 0; i < 14; ++i) ask_patiently(kLocateKeysMax);
  for (int i = 0; i < 3; ++i) {
    ask_patiently(1);
    auto code = std::make_shared<std::atomic<Code>>(Code::kOk);
    someone->ask<MembersReply>(
        MembersRequest{}, Deadline::after_ms(50),
        [code](const Result<MembersReply>& reply) { *code = reply.status().code(); });
    ASSERT_TRUE(eventually(20'000, [&] { return *code != Code::kOk; })) << i;
    EXPECT_EQ(*code, Code::kTimeout);
  }
}

TEST_F(DirectoryServerTest, LargeAnswersEndTheTurnOfWhoAskedForThem) {
  constexpr uint64_t kAsked = 200;  // Far from what frames, or bytes received, allow for.
  serve();
  std::vector<NetNode> nodes;
  for (uint64_t n = 1; n <= 16; ++n) {
    Member member = member_of("node " + std::to_string(n), n);
    member.addresses.assign(kNodeAddressesMax, "127.0.0.1:" + std::string(200, '1'));
    nodes.emplace_back(port_, std::move(member), client_options({port_}));
    nodes.back().join();
  }
  const Fd greedy = raw_connection(port_);
  std::vector<uint8_t> questions;
  for (uint64_t id = 1; id <= kAsked; ++id) {
    const std::vector<uint8_t> frame = request_frame(MembersRequest{}, id);
    questions.insert(questions.end(), frame.begin(), frame.end());
  }
  // How much goes into the socket at once is the kernel's to say.
  const auto is_cut = [&] {
    EXPECT_TRUE(send_all(greedy, questions, soon()).ok());
    for (uint64_t n = 0; n < kAsked; ++n) {
      std::vector<uint8_t> bytes(kFrameHeaderSize);
      if (!receive_all(greedy, bytes, soon()).ok()) return true;
      const auto header = decode_frame_header(std::span(bytes).first<kFrameHeaderSize>());
      EXPECT_TRUE(header.ok());
      bytes.resize(header.value().payload_size);
      EXPECT_GT(bytes.size(), 20'000U);
      if (!receive_all(greedy, bytes, soon()).ok()) return true;
    }
    return stat_of(*server_, "cut_turns") > 0;  // Which is told between two turns.
  };
  EXPECT_TRUE(eventually(20'000, is_cut));
  EXPECT_GT(stat_of(*server_, "cut_turns"), 0U);
}

// ---- strangers

TEST_F(DirectoryServerTest, AStrangerIsToldNothingAndWhatToDo) {
  serve();
  DirectoryClient::Options options = client_options({port_});
  options.secret = secret_from_text("guess");
  auto stranger = make_client(options);
  const Status status = stranger->wait_connected(Deadline::after_ms(200));
  EXPECT_EQ(status.code(), Code::kTimeout);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*server_, "refused") > 0; }));
  EXPECT_NE(locate(*stranger, keys_of(0, 1)).status().message().find("secret"), std::string::npos);
  EXPECT_EQ(stat_of(*server_, "requests"), 0U);
  // Nor is who comes for something else.
  const Fd other = raw_connection(port_, Purpose::kControl);
  EXPECT_TRUE(wait_closed(other, 20'000));
}

TEST_F(DirectoryServerTest, GarbageClosesItsConnectionAndDisturbsNobody) {
  HICACHE_TRACE_SEED();
  serve();
  NetNode a = live_node("a", changes_of(0, 10));
  Random random(500);
  for (int i = 0; i < 100; ++i) {
    const Fd socket = raw_connection(port_);
    // Nothing, or a request that was changed on its way, or one that means nothing; then garbage.
    std::vector<uint8_t> sent;
    const uint64_t kind = random.below(3);
    if (kind == 1) {
      sent = request_frame(a.batch(BatchKind::kChanges, changes_of(0, 3)), 1);
      sent[random.below(sent.size())] ^= static_cast<uint8_t>(random.between(1, 255));
    } else if (kind == 2) {
      sent = request_frame(DrainRequest{0, true, std::string(kNodeTextSizeMax + 1, 'x')}, 1);
    }
    const size_t garbage_at = sent.size();
    sent.resize(garbage_at + 100 + random.size_up_to(100'000));
    random.fill(std::span(sent).subspan(garbage_at));
    (void)send_all(socket, sent, soon());
    EXPECT_TRUE(wait_closed(socket, 20'000));
  }
  expect_found(a.bulk(), 0, 10);
  EXPECT_EQ(a.heartbeat().must_announce, false) << "none of it was taken";
  EXPECT_EQ(stat_of(*server_, "malformed"), 100U);
  EXPECT_EQ(stat_of(*server_, "connections"), 2U);
}

TEST_F(DirectoryServerTest, AnAnnouncedGiantIsNotWaitedFor) {
  serve();
  const Fd socket = raw_connection(port_);
  std::vector<uint8_t> frame;
  begin_frame(frame);
  frame.resize(kFrameHeaderSize + kDirectoryRequestSizeMax + 16);
  end_frame(frame, static_cast<uint16_t>(DirectoryOp::kLocate), 1);
  frame.resize(kFrameHeaderSize);
  ASSERT_TRUE(send_all(socket, frame, soon()).ok());
  EXPECT_TRUE(wait_closed(socket, 20'000));
}

TEST_F(DirectoryServerTest, WhoDoesNotReadIsNotReadFromAndClosedInTheEnd) {
  DirectoryServer::Options options = server_options();
  options.stall_timeout_ms = 500;
  serve(options);
  NetNode a = live_node("a", changes_of(0, 1000));
  const Fd deaf = raw_connection(port_);
  const std::vector<uint8_t> frame =
      request_frame(LocateRequest{0, kSpaceA, false, 8, keys_of(0, 1000)}, 1);
  // Each is answered with 9 KB: what was taken is at most what buffers hold.
  std::atomic<uint64_t> taken_size{0};
  std::jthread asking([&] {
    while (taken_size < 512 * kMiB && send_all(deaf, frame, soon()).ok()) {
      taken_size += frame.size();
    }
  });
  EXPECT_TRUE(eventually(20'000, [&] {
    expect_found(a.bulk(), 0, 10);
    return stat_of(*server_, "stalled") == 1;
  }));
  asking.join();
  EXPECT_LT(taken_size, 128 * kMiB);
  EXPECT_EQ(stat_of(*server_, "connections"), 2U);
}

TEST_F(DirectoryServerTest, ASlowReaderGetsEveryReplyInOrder) {
  serve();
  const NetNode a = live_node("a", changes_of(0, 1000));
  const Fd slow = raw_connection(port_);
  const LocateRequest request{0, kSpaceA, false, 1, keys_of(0, 1000)};
  constexpr uint64_t kCount = 2000;  // 18 MB of replies: more than anybody keeps.
  std::vector<uint8_t> requests;
  for (uint64_t id = 1; id <= kCount; ++id) {
    const std::vector<uint8_t> frame = request_frame(request, id);
    requests.insert(requests.end(), frame.begin(), frame.end());
  }
  std::jthread asking([&] { EXPECT_TRUE(send_all(slow, requests, soon()).ok()); });
  // Reads nothing until the server has stopped reading, which is when it answers no more.
  uint64_t before = 0;
  EXPECT_TRUE(eventually(20'000, [&] {
    const uint64_t requests = stat_of(*server_, "requests");
    return requests > 10 && std::exchange(before, requests) == requests;
  }));
  for (uint64_t id = 1; id <= kCount; ++id) {
    std::vector<uint8_t> frame(kFrameHeaderSize);
    ASSERT_TRUE(receive_all(slow, frame, soon()).ok()) << id;
    const auto header = decode_frame_header(std::span(frame).first<kFrameHeaderSize>());
    ASSERT_TRUE(header.ok());
    ASSERT_EQ(header.value().request_id, id);
    frame.resize(header.value().payload_size);
    ASSERT_TRUE(receive_all(slow, frame, soon()).ok());
    LocateReply reply;
    ASSERT_TRUE(decode(WireReader(std::span(frame).first(frame.size() - sizeof(uint64_t))), reply));
    ASSERT_EQ(reply.replicas.size(), 1000U);
  }
}

TEST_F(DirectoryServerTest, ConnectionsAreBounded) {
  DirectoryServer::Options options = server_options();
  options.connections_max = 2;
  serve(options);
  auto first = client();
  auto second = client();
  auto third = make_client(client_options({port_}));
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*server_, "refused") > 0; }));
  EXPECT_EQ(third->connection_number(), 0U);
  first.reset();
  EXPECT_TRUE(third->wait_connected(soon()).ok());
  EXPECT_TRUE(locate(*third, keys_of(0, 1)).ok());
}

TEST_F(DirectoryServerTest, SpeaksTlsWithMembersOfTheSameAuthorityOnly) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() /
                                       ("hicache-directory-" + std::to_string(random_token()));
  std::filesystem::create_directory(folder);
  const Authority ours(folder, "ours");
  auto of_server = TlsContext::load(ours.member("server"));
  auto of_client = TlsContext::load(ours.member("client"));
  ASSERT_TRUE(of_server.ok() && of_client.ok());
  DirectoryServer::Options options = server_options();
  options.tls = of_server.value();
  serve(options);
  DirectoryClient::Options with_tls = client_options({port_});
  with_tls.tls = of_client.value();
  auto member = connected_client(with_tls);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(locate(*member, keys_of(0, kLocateKeysMax)).ok());
  }
  const Fd clear = raw_connection(port_);
  EXPECT_TRUE(wait_closed(clear, 20'000));
  EXPECT_EQ(stat_of(*server_, "connections"), 1U);
  std::filesystem::remove_all(folder);
}

// ---- orders and leaders

TEST_F(DirectoryServerTest, OrdersArriveUnasked) {
  serve();
  std::promise<Order> ordered;
  DirectoryClient::Options options = client_options({port_});
  options.on_orders = [&](const HeartbeatReply& reply) { ordered.set_value(reply.orders.at(0)); };
  NetNode a(port_, member_of("a"), options);
  a.join();
  a.announce(changes_of(0, 5));
  auto someone = client();
  const auto cleared =
      someone->call<ClearSpaceReply>(ClearSpaceRequest{.epoch = 0, .digest = kSpaceA}, soon());
  ASSERT_TRUE(cleared.ok());
  EXPECT_EQ(cleared.value().replica_count, 5U);
  std::future<Order> order = ordered.get_future();
  ASSERT_EQ(order.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(order.get(), (Order{1, OrderKind::kClearSpace, kSpaceA}));
  EXPECT_TRUE(locate(*someone, keys_of(0, 5)).value().counts.empty());
}

TEST_F(DirectoryServerTest, ClientsGoToWhoLeads) {
  serve();
  auto standby = start_server(server_options(), 0);
  auto someone = make_client(client_options({standby->port(), port_}));
  EXPECT_TRUE(eventually(20'000, [&] { return locate(*someone, keys_of(0, 1)).ok(); }));
  EXPECT_EQ(someone->epoch(), kEpochOne);
  // The other takes over; this one has not noticed, and hears of it from a client.
  standby->lead(kEpochOne + 1);
  auto informed = connected_client(client_options({standby->port()}));
  EXPECT_TRUE(locate(*informed, keys_of(0, 1)).ok());
  NetNode a(port_, member_of("a"), client_options({port_}));
  EXPECT_EQ(a.join().head.epoch, kEpochOne);
  const Fd raw = raw_connection(port_);
  ASSERT_TRUE(send_all(raw, request_frame(MembersRequest{kEpochOne + 1}, 1), soon()).ok());
  EXPECT_TRUE(eventually(20'000, [&] { return server_->newest_epoch_heard() == kEpochOne + 1; }));
  server_->lead(0);
  EXPECT_TRUE(eventually(20'000, [&] {
    const auto reply = locate(*someone, keys_of(0, 1));
    return reply.ok() && reply.value().head.epoch == kEpochOne + 1;
  }));
}

TEST_F(DirectoryServerTest, RepliesOfAnOlderLeaderAreNotBelieved) {
  serve();
  auto newer = start_server(server_options(), kEpochOne + 1);
  auto someone = connected_client(client_options({newer->port(), port_}));
  EXPECT_TRUE(locate(*someone, keys_of(0, 1)).ok());
  newer->stop();
  // Only the old one is left, which refuses when it hears what this client knows.
  EXPECT_TRUE(eventually(20'000, [&] {
    const Result<LocateReply> reply = locate(*someone, keys_of(0, 1));
    EXPECT_FALSE(reply.ok());
    return reply.status().code() == Code::kNotLeader;
  }));
  // It answers before it notes what it heard.
  EXPECT_TRUE(eventually(20'000, [&] { return server_->newest_epoch_heard() == kEpochOne + 1; }));
}

}  // namespace
}  // namespace hicache
