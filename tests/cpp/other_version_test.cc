// Two releases that do not understand each other: both ends say so, name both versions, and what to
// do about it.
#include <gtest/gtest.h>

#include <future>

#include "cluster_rig.h"
#include "other_version.h"
#include "raw_client.h"
#include "store/node_link.h"
#include "transfer/control.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rigs' words.

constexpr uint64_t kPatienceMs = 20'000;

std::vector<uint8_t> frame_from(const Fd& socket, size_t size) {
  std::vector<uint8_t> bytes(size);
  EXPECT_TRUE(receive_all(socket, bytes, soon()).ok());
  return bytes;
}

bool is_closed(const Fd& socket) {
  uint8_t byte = 0;
  return receive_all(socket, {&byte, 1}, soon()).code() == Code::kUnavailable;
}

TEST(OtherVersion, AMasterTellsItsOwnAndWhoWasRefused) {
  auto server = start_server(server_options());
  for (int i = 0; i < 2; ++i) {
    const Fd socket = raw_connection(server->port());
    ASSERT_TRUE(
        send_all(socket, of_other_version(request_frame(MembersRequest{}, 7)), soon()).ok());
    EXPECT_EQ(frame_from(socket, version_frame().size()), version_frame());
    EXPECT_TRUE(is_closed(socket));
  }
  uint64_t known = 0;
  const std::vector<std::string> notices = server->notices_since(known);
  ASSERT_EQ(notices.size(), 1U) << "each is told once, not each time that it comes again";
  EXPECT_TRUE(names_both(notices[0]));
  EXPECT_NE(notices[0].find("127.0.0.1"), std::string::npos);
  EXPECT_TRUE(server->notices_since(known).empty());
}

TEST(OtherVersion, WhoAsksAMasterOfAnotherIsToldBoth) {
  const OtherVersion master(kClusterSecret, 0);
  auto client = connected_client(client_options({master.port()}));
  const auto reply = client->call<MembersReply>(MembersRequest{}, soon());
  EXPECT_EQ(reply.status().code(), Code::kUnsupported);
  EXPECT_TRUE(names_both(reply.status().message()));
}

TEST(OtherVersion, ANodeSaysWhyItIsNoMember) {
  const OtherVersion master(kClusterSecret, 0);
  Node::Options options = node_options(socket_name(), 64 * kMiB);
  options.cluster = cluster_options(master.port(), "a");
  auto node = Node::start(options);
  ASSERT_TRUE(node.ok()) << node.status().message();
  std::string json;
  EXPECT_TRUE(eventually(kPatienceMs, [&] {
    json = node.value()->stats_json().value();
    const size_t at = json.find("\"trouble\"");
    return at != std::string::npos && names_both(json.substr(at));
  })) << json;
  uint64_t known = 0;
  const std::vector<std::string> notices = node.value()->notices_since(known);
  EXPECT_TRUE(std::ranges::any_of(notices, [](const auto& one) { return names_both(one); }));
}

TEST(OtherVersion, ANodeTellsAPeerItsOwnAndWhoWasRefused) {
  TestCluster cluster;
  auto a = cluster.add("a");
  const HostPort address = parse_host_port(a->node->peer_addresses()[0]).value();
  const Fd socket = std::move(tcp_connect(address, soon()).value());
  ASSERT_TRUE(
      greet_server(socket, kClusterSecret, {Purpose::kNode, a->node->peer_incarnation()}, soon())
          .ok());
  ASSERT_TRUE(send_all(socket, of_other_version(version_frame()), soon()).ok());
  EXPECT_EQ(frame_from(socket, version_frame().size()), version_frame());
  EXPECT_TRUE(is_closed(socket));
  uint64_t known = 0;
  const std::vector<std::string> notices = a->node->notices_since(known);
  EXPECT_TRUE(std::ranges::any_of(notices, [](const auto& one) { return names_both(one); }));
}

TEST(OtherVersion, ALinkToANodeOfAnotherSaysSo) {
  const OtherVersion peer(kClusterSecret, 5);
  std::promise<std::string> said;
  auto link = NodeLink::start({.own_name = "a",
                               .address = {"127.0.0.1", peer.port()},
                               .incarnation = 5,
                               .secret = kClusterSecret,
                               .tls = nullptr,
                               .connect_timeout_ms = 2000,
                               .call_timeout_ms = 2000,
                               .back_off_min_ms = 60'000,
                               .back_off_max_ms = 60'000,
                               .calls_max = 10,
                               .on_other_version = [&](const auto& why) { said.set_value(why); }});
  ASSERT_TRUE(link.ok());
  std::promise<Status> answered;
  std::vector<uint8_t> message;
  begin_frame(message);
  link.value()->ask(NodeOp::kList, std::move(message),
                    [&](const auto& answer) { answered.set_value(answer.status()); });
  const Status status = answered.get_future().get();
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_TRUE(names_both(status.message()));
  EXPECT_TRUE(names_both(said.get_future().get()));
}

TEST(OtherVersion, ANodeTellsAClientOfThisMachine) {
  const std::string path = socket_name();
  auto node = Node::start(node_options(path, 64 * kMiB));
  ASSERT_TRUE(node.ok());
  const RawClient client(path);
  std::vector<uint8_t> hello = RawClient::frame_of(NodeOp::kHello, HelloRequest{"raw"});
  ASSERT_TRUE(send_all(client.socket, of_other_version(std::move(hello)), soon()).ok());
  std::vector<uint8_t> expected;
  begin_frame(expected);
  end_frame(expected, kVersionOp, 0);
  EXPECT_EQ(frame_from(client.socket, kFrameHeaderSize), expected);
  EXPECT_TRUE(is_closed(client.socket));
}

TEST(OtherVersion, AClientOfThisMachineIsToldBoth) {
  const std::string path = socket_name();
  const Fd listener = std::move(unix_listen(path, 4).value());
  std::thread node([&] {
    pollfd waited{listener.get(), POLLIN, 0};
    ASSERT_EQ(poll(&waited, 1, 20'000), 1);
    const Fd socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    (void)frame_from(socket, kFrameHeaderSize);
    std::vector<uint8_t> frame;
    begin_frame(frame);
    end_frame(frame, kVersionOp, 0);
    (void)send_all(socket, of_other_version(std::move(frame)), soon());
  });
  Client client({.copy_threads = 1,
                 .call_timeout_ms = 5000,
                 .verify = true,
                 .name = "test",
                 .pool_contribution_bytes = 0});
  const Status status = client.connect(path, 5000);
  node.join();
  EXPECT_TRUE(names_both(status.message())) << status.message();
}

TEST(OtherVersion, ATransferEngineIsToldBoth) {
  const OtherVersion engine(kClusterSecret, 9);
  auto client =
      ControlClient::connect({"127.0.0.1", engine.port()}, kClusterSecret, nullptr, 9, soon());
  ASSERT_TRUE(client.ok()) << client.status().message();
  const auto reply = client.value()->call(ControlOp::kDescribe, {}, soon());
  EXPECT_TRUE(names_both(reply.status().message())) << reply.status().message();
}

TEST(OtherVersion, ATransferEngineTellsItsOwn) {
  auto server = ControlServer::start(
      {"127.0.0.1", 0, 0, kClusterSecret, 9, nullptr, 4},
      {.call = [](ControlOp, std::span<const uint8_t>) -> Result<std::vector<uint8_t>> {
         return Status(Code::kInternal, "not asked");
       },
       .lane = nullptr});
  ASSERT_TRUE(server.ok());
  const Fd socket = std::move(tcp_connect({"127.0.0.1", server.value()->port()}, soon()).value());
  ASSERT_TRUE(greet_server(socket, kClusterSecret, {Purpose::kControl, 9}, soon()).ok());
  std::vector<uint8_t> frame;
  begin_frame(frame);
  end_frame(frame, kVersionOp, 0);
  ASSERT_TRUE(send_all(socket, of_other_version(frame), soon()).ok());
  EXPECT_EQ(frame_from(socket, kFrameHeaderSize), frame);
  EXPECT_TRUE(is_closed(socket));
}

TEST(OtherVersion, AStrangersGreetingIsNotedOnceAMinute) {
  auto server = start_server(server_options());
  for (uint16_t version = 2; version < 50; ++version) {
    const Fd socket = std::move(tcp_connect({"127.0.0.1", server->port()}, soon()).value());
    ClientGreeting greeting(kClusterSecret, {Purpose::kDirectory, 0}, random_nonce());
    std::vector<uint8_t> hello(greeting.opening().begin(), greeting.opening().end());
    std::memcpy(hello.data() + sizeof(uint32_t), &version, sizeof(version));
    ASSERT_TRUE(send_all(socket, hello, soon()).ok());
    std::vector<uint8_t> reply;
    const Status status = greeting.take(frame_from(socket, greeting.wanted()), reply);
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_TRUE(is_closed(socket));
  }
  uint64_t known = 0;
  const std::vector<std::string> notices = server->notices_since(known);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("version 2 of the greeting, this one version 1"), std::string::npos);
}

}  // namespace
}  // namespace hicache
