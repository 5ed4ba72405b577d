// Nodes of a cluster for tests: real nodes, a real directory, loopback.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "directory_net_rig.h"
#include "node_bench.h"

namespace hicache::testing {

inline ClusterOptions cluster_options(uint16_t master_port, std::string name) {
  return {.masters = {{"127.0.0.1", master_port}},
          .name = std::move(name),
          .bind_host = "127.0.0.1",
          .public_host = "127.0.0.1",
          .port_min = 0,
          .port_max = 0,
          .failure_domain = "",
          .secret = kClusterSecret,
          .tls = {},
          .connect_timeout_ms = 2000,
          .back_off_min_ms = 5,
          .back_off_max_ms = 50,
          .call_timeout_ms = 2000,
          .peers = {.transports = {TransportKind::kTcp},
                    .tcp_lanes = 2,
                    .tcp_io_threads = 1,
                    .tcp_checksum = true,
                    .local_copy_threads = 1,
                    .rdma_devices = "",
                    .peers_max = 16,
                    .lookup_timeout_ms = 5000,
                    .stall_timeout_ms = 5000,
                    .fetch_timeout_ms = 5000,
                    .call_timeout_ms = 2000,
                    .staging_share = 0.5}};
}

/// Says of a node that it has what it has not, as a member of another name.
class Liar {
 public:
  Liar(uint16_t master_port, std::string name, uint64_t incarnation,
       std::vector<std::string> addresses)
      : incarnation_(incarnation), client_(connected_client(client_options({master_port}))) {
    Member member{.name = std::move(name),
                  .incarnation = incarnation,
                  .addresses = std::move(addresses),
                  .failure_domain = "",
                  .capacity_bytes = 1000,
                  .free_bytes = 500,
                  .load_permille = 0};
    const auto reply = client_->call<JoinReply>(JoinRequest{0, std::move(member)}, soon());
    EXPECT_TRUE(reply.ok() && reply.value().head.code == Code::kOk);
    if (reply.ok()) index_ = reply.value().node;
    send(BatchKind::kBegin, {});
    send(BatchKind::kEnd, {});
  }

  void has(const std::vector<Key>& keys) {
    std::vector<PageChange> changes;
    for (const Key& key : keys) changes.push_back({key, 1, kInDram});
    send(BatchKind::kChanges, std::move(changes));
  }

 private:
  void send(BatchKind kind, std::vector<PageChange> changes) {
    const auto reply =
        client_->call<BatchReply>(BatchRequest{0, index_, incarnation_, ++sequence_, 0, kind,
                                               kTestNamespace, std::move(changes)},
                                  soon());
    EXPECT_TRUE(reply.ok() && reply.value().head.code == Code::kOk);
  }

  uint64_t incarnation_;
  std::unique_ptr<DirectoryClient> client_;
  NodeIndex index_ = kNoNode;
  uint64_t sequence_ = 0;
};

/// Null without files.
inline std::shared_ptr<TlsContext> tls_context(const TlsContext::Files& files) {
  if (files.certificate.empty()) return nullptr;
  Result<std::shared_ptr<TlsContext>> loaded = TlsContext::load(files);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.ok() ? std::move(loaded.value()) : nullptr;
}

/// A node, a client of it, and what the directory knows of it.
struct ClusterNode {
  ClusterNode(uint16_t master_port, const std::string& name, const Node::Options& options)
      : node(started(options)),
        client(node->socket_path(), 10'000),
        directory(connected_client(directory_options_of(master_port, options.cluster->tls))),
        port(master_port),
        lying_name(name + ", it is said") {
    // It is connected once it is heard of.
    const Key key = key_of(random_token());
    EXPECT_EQ(client.put(key, {1}), Code::kOk);
    await_known({key});
    std::vector<Code> codes;
    client.client.remove(client.space, {&key, 1}, codes);
  }

  static DirectoryClient::Options directory_options_of(uint16_t port,
                                                       const TlsContext::Files& files) {
    DirectoryClient::Options options = client_options({port});
    options.tls = tls_context(files);
    return options;
  }
  static std::unique_ptr<Node> started(const Node::Options& options) {
    auto node = Node::start(options);
    EXPECT_TRUE(node.ok()) << node.status().message();
    return node.ok() ? std::move(node.value()) : nullptr;
  }
  /// Puts pages of bytes_of(n, size) for n = first …, and waits until they are announced.
  void put(uint64_t first, uint64_t count, uint64_t size) {
    for (uint64_t n = first; n < first + count; ++n) {
      ASSERT_EQ(client.put(key_of(n), bytes_of(n, size)), Code::kOk);
    }
    await_known(keys_of(first, count));
  }
  void await_known(const std::vector<Key>& keys) {
    EXPECT_TRUE(eventually(60'000, [&] { return is_known(keys); }));
  }
  /// Whether the directory says that this node has all of them.
  bool is_known(const std::vector<Key>& keys) {
    const auto members = directory->call<MembersReply>(MembersRequest{}, soon());
    const auto located = directory->call<LocateReply>(
        LocateRequest{0, kTestNamespace, false, kReplicasMax, keys}, soon());
    if (!members.ok() || !located.ok()) return false;
    size_t count = 0;
    for (const MemberView& view : members.value().members) {
      if (view.member.incarnation != node->peer_incarnation()) continue;
      for (const Replica& replica : located.value().replicas) count += replica.node == view.index;
    }
    return count == keys.size();
  }
  /// Has the directory believe that this node has them.
  void lie(const std::vector<Key>& keys) {
    if (!liar) {
      liar = std::make_unique<Liar>(port, lying_name, node->peer_incarnation(),
                                    node->peer_addresses());
    }
    liar->has(keys);
  }

  std::unique_ptr<Node> node;
  SimpleClient client;
  std::unique_ptr<DirectoryClient> directory;
  uint16_t port;
  std::string lying_name;
  std::unique_ptr<Liar> liar;
};

/// The role "cluster_node": one whose pages are bytes_of(0, size) and so on, announced.
/// Arguments: port of the master · name · count · size.
inline int run_cluster_node(const std::vector<std::string>& arguments) {
  const auto port = static_cast<uint16_t>(std::stoul(arguments.at(0)));
  Node::Options options = node_options(socket_name(), 256 * kMiB);
  options.cluster = cluster_options(port, arguments.at(1));
  ClusterNode node(port, arguments.at(1), options);
  node.put(0, std::stoull(arguments.at(2)), std::stoull(arguments.at(3)));
  if (write(STDOUT_FILENO, "r", 1) != 1) return 1;
  for (;;) pause();
}

class TestCluster {
 public:
  explicit TestCluster(const TlsContext::Files& tls = {})
      : server_(start_server(options_with(tls))) {}
  /// With a directory that has room for so many pages.
  explicit TestCluster(uint64_t pages_max) : server_(start_server(options_with({}, pages_max))) {}

  ClusterOptions options(const std::string& name) const {
    return cluster_options(server_->port(), name);
  }
  std::unique_ptr<ClusterNode> add(const std::string& name, uint64_t pool_size_bytes = 64 * kMiB) {
    return add(options(name), pool_size_bytes);
  }
  std::unique_ptr<ClusterNode> add(ClusterOptions cluster, uint64_t pool_size_bytes) {
    Node::Options options = node_options(socket_name(), pool_size_bytes);
    options.cluster = std::move(cluster);
    return add(std::move(options));
  }
  std::unique_ptr<ClusterNode> add(const Node::Options& options) {
    return std::make_unique<ClusterNode>(server_->port(), options.cluster->name, options);
  }
  DirectoryServer& server() { return *server_; }
  uint16_t port() const { return server_->port(); }
  void stop_master() { server_->stop(); }

 private:
  static DirectoryServer::Options options_with(const TlsContext::Files& tls,
                                               uint64_t pages_max = directory_options().pages_max) {
    DirectoryServer::Options options = server_options();
    options.directory.pages_max = pages_max;
    options.tls = tls_context(tls);
    return options;
  }

  std::unique_ptr<DirectoryServer> server_;
};

}  // namespace hicache::testing
