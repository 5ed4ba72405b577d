// A directory's server and its clients over real sockets, for tests.
#pragma once

#include <gtest/gtest.h>

#include <csignal>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "directory/directory_client.h"
#include "directory/directory_server.h"
#include "directory_rig.h"
#include "net/secure_channel.h"
#include "support.h"

namespace hicache::testing {

inline const Secret kClusterSecret = secret_from_text("of the cluster");

inline Deadline soon() {
  return Deadline::after_ms(20'000);
}

/// Nodes of tests have no clock that sends heartbeats: silence is no reason to lose them.
inline DirectoryServer::Options server_options() {
  Directory::Options directory = directory_options();
  directory.silence_max_ms = 600'000;
  return {.host = "127.0.0.1",
          .port_min = 0,
          .port_max = 0,
          .secret = kClusterSecret,
          .tls = nullptr,
          .connections_max = 64,
          .stall_timeout_ms = 60'000,
          .directory = directory};
}

inline std::unique_ptr<DirectoryServer> start_server(DirectoryServer::Options options,
                                                     uint64_t epoch = kEpochOne) {
  auto server = DirectoryServer::start(options);
  EXPECT_TRUE(server.ok()) << server.status().message();
  if (!server.ok()) return nullptr;
  server.value()->lead(epoch);
  return std::move(server.value());
}

inline DirectoryClient::Options client_options(const std::vector<uint16_t>& ports) {
  DirectoryClient::Options options{.addresses = {},
                                   .secret = kClusterSecret,
                                   .tls = nullptr,
                                   .connect_timeout_ms = 2000,
                                   .back_off_min_ms = 5,
                                   .back_off_max_ms = 50,
                                   .calls_max = 100'000,
                                   .on_orders = nullptr};
  for (const uint16_t port : ports) options.addresses.push_back({"127.0.0.1", port});
  return options;
}

/// Not connected yet, perhaps never.
inline std::unique_ptr<DirectoryClient> make_client(DirectoryClient::Options options) {
  auto client = DirectoryClient::start(std::move(options));
  EXPECT_TRUE(client.ok()) << client.status().message();
  return client.ok() ? std::move(client.value()) : nullptr;
}

inline std::unique_ptr<DirectoryClient> connected_client(DirectoryClient::Options options) {
  auto client = make_client(std::move(options));
  const Status status = client->wait_connected(soon());
  EXPECT_TRUE(status.ok()) << status.message();
  return client;
}

inline uint64_t stat_of(DirectoryServer& server, const std::string& name) {
  for (const auto& [key, value] : server.stats()) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no such figure: " << name;
  return 0;
}

/// Greeted, and then whatever the test wants to do with it.
inline Fd raw_connection(uint16_t port, Purpose purpose = Purpose::kDirectory) {
  Result<Fd> socket = tcp_connect({"127.0.0.1", port}, soon());
  EXPECT_TRUE(socket.ok()) << socket.status().message();
  const auto greeted = greet_server(socket.value(), kClusterSecret, {purpose, 0}, soon());
  EXPECT_TRUE(greeted.ok()) << greeted.status().message();
  return std::move(socket.value());
}

template <typename Request>
std::vector<uint8_t> request_frame(const Request& request, uint64_t id) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  WireWriter writer(frame);
  encode(writer, request);
  seal_frame(frame, static_cast<uint16_t>(op_of(request)), id);
  return frame;
}

/// A node that talks over two clients, as real ones do.
class NetNode {
 public:
  NetNode(uint16_t port, Member member, DirectoryClient::Options options)
      : member_(std::move(member)),
        life_(connected_client(options)),
        bulk_(connected_client(client_options({port}))) {}

  JoinReply join() {
    Result<JoinReply> reply = life_->call<JoinReply>(JoinRequest{0, member_}, soon());
    EXPECT_TRUE(reply.ok()) << reply.status().message();
    if (reply.ok()) index_ = reply.value().node;
    return reply.ok() ? reply.value() : JoinReply{};
  }
  HeartbeatReply heartbeat() {
    const auto reply = life_->call<HeartbeatReply>(
        HeartbeatRequest{0, index_, member_.incarnation, 1000, 400, 7, {}}, soon());
    EXPECT_TRUE(reply.ok()) << reply.status().message();
    return reply.ok() ? reply.value() : HeartbeatReply{};
  }
  BatchRequest batch(BatchKind kind, std::vector<PageChange> changes = {}) {
    return {0, index_, member_.incarnation, ++sequence_, 0, kind, kSpaceA, std::move(changes)};
  }
  BatchReply send(BatchKind kind, std::vector<PageChange> changes = {}) {
    const auto reply = bulk_->call<BatchReply>(batch(kind, std::move(changes)), soon());
    EXPECT_TRUE(reply.ok()) << reply.status().message();
    return reply.ok() ? reply.value() : BatchReply{};
  }
  void announce(std::vector<PageChange> changes) {
    send(BatchKind::kBegin);
    send(BatchKind::kChanges, std::move(changes));
    EXPECT_FALSE(send(BatchKind::kEnd).must_announce);
  }

  NodeIndex index() const { return index_; }
  DirectoryClient& bulk() { return *bulk_; }
  DirectoryClient& life() { return *life_; }
  /// As SIGKILL does: no word of farewell.
  void die() {
    life_->stop();
    bulk_->stop();
  }

 private:
  Member member_;
  std::unique_ptr<DirectoryClient> life_;
  std::unique_ptr<DirectoryClient> bulk_;
  NodeIndex index_ = kNoNode;
  uint64_t sequence_ = 0;
};

}  // namespace hicache::testing
