// What a node answers other nodes, and whom it does not answer.
#include <gtest/gtest.h>

#include "cluster_rig.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ClusterNode;
using testing::eventually;
using testing::key_of;
using testing::keys_of;
using testing::Random;
using testing::soon;
using testing::stat_of;
using testing::TestCluster;

constexpr uint64_t kPageSize = 64 * kKiB;
constexpr uint64_t kSoonMs = 20'000;

template <typename Message>
std::vector<uint8_t> frame_of(NodeOp op, const Message& message, uint64_t id = 1) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  WireWriter writer(frame);
  encode(writer, message);
  seal_frame(frame, static_cast<uint16_t>(op), id);
  return frame;
}

/// A peer that knows the secret and says whatever a test wants.
class RawPeer {
 public:
  explicit RawPeer(Node& node, bool says_hello = true) {
    const HostPort address = parse_host_port(node.peer_addresses()[0]).value();
    Result<Fd> socket = tcp_connect(address, soon());
    EXPECT_TRUE(socket.ok());
    const auto greeted = greet_server(socket.value(), testing::kClusterSecret,
                                      {Purpose::kNode, node.peer_incarnation()}, soon());
    EXPECT_TRUE(greeted.ok()) << greeted.status().message();
    stream_ = Stream(std::move(socket.value()), Stream::End::kClient, nullptr);
    if (!says_hello) return;
    const auto reply = ask(frame_of(NodeOp::kHello, PeerHello{"raw"}));
    EXPECT_TRUE(reply && decode(WireReader(*reply), hello));
  }

  bool send(std::span<const uint8_t> bytes) { return stream_.write_all(bytes, soon()).ok(); }
  /// The payload of the next reply; nothing: the node has closed the connection.
  std::optional<std::vector<uint8_t>> receive() {
    std::vector<uint8_t> bytes(kFrameHeaderSize);
    if (!stream_.read_all(bytes, soon()).ok()) return std::nullopt;
    const auto header = decode_frame_header(std::span(bytes).first<kFrameHeaderSize>());
    if (!header.ok()) return std::nullopt;
    bytes.resize(header.value().payload_size);
    if (!stream_.read_all(bytes, soon()).ok()) return std::nullopt;
    bytes.resize(bytes.size() - 8);  // The seal.
    return bytes;
  }
  std::optional<std::vector<uint8_t>> ask(std::span<const uint8_t> frame) {
    return send(frame) ? receive() : std::nullopt;
  }
  Places lease(const std::vector<Key>& keys) {
    Places places;
    const auto reply =
        ask(frame_of(NodeOp::kLease, PeerKeysRequest{testing::kTestNamespace, 0, keys}));
    EXPECT_TRUE(reply && decode(WireReader(*reply), places, {hello.pool_size_bytes, 0}));
    return places;
  }

  PeerHelloReply hello;

 private:
  Stream stream_;
};

TEST(PeerService, LeasesEndWithTheirConnection) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 5, kPageSize);
  {
    RawPeer peer(*a->node);
    EXPECT_EQ(peer.hello.incarnation, a->node->peer_incarnation());
    const Places places = peer.lease(keys_of(0, 6));
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(places.places[i].code, i < 5 ? Code::kOk : Code::kNotFound);
    }
    EXPECT_EQ(stat_of(*a->node, "leases"), 5U);
    EXPECT_EQ(stat_of(*a->node, "peers"), 1U);
  }
  EXPECT_TRUE(eventually(kSoonMs, [&] { return stat_of(*a->node, "leases") == 0; }));
  EXPECT_EQ(stat_of(*a->node, "peers"), 0U);
}

TEST(PeerService, ANamespaceThatNobodyHasIsNotMade) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 1, kPageSize);
  const uint64_t before = stat_of(*a->node, "namespaces");
  RawPeer peer(*a->node);
  for (const NodeOp op : {NodeOp::kLookup, NodeOp::kLease}) {
    ASSERT_TRUE(peer.ask(frame_of(op, PeerKeysRequest{key_of(99), 0, keys_of(0, 3)})));
  }
  EXPECT_EQ(stat_of(*a->node, "namespaces"), before);
}

TEST(PeerService, ListsItsOwnPagesWithTheirFirstBytes) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 3, kPageSize);
  a->put(3, 1, 100);
  RawPeer peer(*a->node);
  ListReply reply;
  const auto answer =
      peer.ask(frame_of(NodeOp::kList, PeerListRequest{testing::kTestNamespace, 0}));
  ASSERT_TRUE(answer && decode(WireReader(*answer), reply));
  EXPECT_EQ(reply.cursor, kListEnd) << "of no other node";
  ASSERT_EQ(reply.keys.size(), 4U);
  ASSERT_EQ(reply.head_sizes.size(), 4U);
  size_t at = 0;
  for (size_t i = 0; i < 4; ++i) {
    const size_t size = reply.head_sizes[i];
    const std::span<const uint8_t> head = std::span(reply.heads).subspan(at, size);
    at += size;
    for (uint64_t n = 0; n < 4; ++n) {
      if (reply.keys[i] != key_of(n)) continue;
      const std::vector<uint8_t> page = bytes_of(n, n == 3 ? 100 : kPageSize);
      EXPECT_EQ(size, std::min(page.size(), kListHeadSizeMax));
      EXPECT_TRUE(std::equal(head.begin(), head.end(), page.begin()));
    }
  }
  const auto strange = peer.ask(frame_of(NodeOp::kList, PeerListRequest{key_of(99), 0}));
  ASSERT_TRUE(strange && decode(WireReader(*strange), reply));
  EXPECT_TRUE(reply.keys.empty());
  EXPECT_EQ(reply.cursor, kListEnd);
  for (const uint64_t beyond : {uint64_t{1} << 31, uint64_t{1} << 32, kListMembers - 1}) {
    const auto none =
        peer.ask(frame_of(NodeOp::kList, PeerListRequest{testing::kTestNamespace, beyond}));
    ASSERT_TRUE(none && decode(WireReader(*none), reply)) << beyond;
    EXPECT_TRUE(reply.keys.empty());
    EXPECT_EQ(reply.cursor, kListEnd);
  }
  // It asks nobody on behalf of others.
  EXPECT_FALSE(
      peer.ask(frame_of(NodeOp::kList, PeerListRequest{testing::kTestNamespace, kListMembers})));
}

TEST(PeerService, NothingIsTakenFromPeers) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 2, kPageSize);
  ReserveRequest reserve;
  reserve.keys = {key_of(7)};
  reserve.sizes = {kPageSize};
  std::vector<uint8_t> pin;
  begin_frame(pin);
  WireWriter writer(pin);
  encode_keys(writer, 0, static_cast<uint8_t>(Pin::kHard), keys_of(0, 2));
  seal_frame(pin, static_cast<uint16_t>(NodeOp::kSetPin), 1);
  for (const std::vector<uint8_t>& frame :
       {frame_of(NodeOp::kReserve, reserve), pin, frame_of(NodeOp::kCommit, CommitRequest{}),
        frame_of(NodeOp::kStop, RefsRequest{}), frame_of(NodeOp::kClear, RefsRequest{}),
        frame_of(NodeOp::kOpenNamespace, OpenNamespaceRequest{key_of(5), "foreign"}),
        frame_of(NodeOp::kStats, RefsRequest{}), frame_of(NodeOp::kHello, PeerHello{"again"})}) {
    RawPeer peer(*a->node);
    EXPECT_FALSE(peer.ask(frame).has_value());
  }
  EXPECT_EQ(stat_of(*a->node, "pages"), 2U);
  EXPECT_EQ(stat_of(*a->node, "rejected_peers"), 8U);
  EXPECT_EQ(a->client.lookup(key_of(0)), Code::kOk);
}

TEST(PeerService, BeforeItsHelloAPeerIsToldNothing) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 1, kPageSize);
  RawPeer peer(*a->node, false);
  EXPECT_FALSE(
      peer.ask(frame_of(NodeOp::kLease, PeerKeysRequest{testing::kTestNamespace, 0, {key_of(0)}})));
  EXPECT_EQ(stat_of(*a->node, "leases"), 0U);
}

TEST(PeerService, MalformedFramesCloseTheConnectionAndNothingElse) {
  HICACHE_TRACE_SEED();
  Random random(7700);
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 1, kPageSize);
  RawPeer good(*a->node);
  for (int round = 0; round < 40; ++round) {
    RawPeer peer(*a->node);
    std::vector<uint8_t> frame =
        frame_of(NodeOp::kLease, PeerKeysRequest{testing::kTestNamespace, 0, {key_of(0)}});
    // Any byte of it but the request's id, which is the peer's own affair.
    const uint64_t at = random.below(frame.size());
    frame[at] ^= static_cast<uint8_t>(random.between(1, 255));
    EXPECT_FALSE(peer.ask(frame).has_value()) << at;
  }
  EXPECT_EQ(good.lease({key_of(0)}).places[0].code, Code::kOk);
}

TEST(PeerService, MoreThanSoManyPeersAreTurnedAway) {
  TestCluster cluster;
  ClusterOptions options = cluster.options("a");
  options.peers.peers_max = 2;
  auto a = cluster.add(options, 64 * kMiB);
  RawPeer first(*a->node);
  auto second = std::make_unique<RawPeer>(*a->node);
  const HostPort address = parse_host_port(a->node->peer_addresses()[0]).value();
  const auto is_let_in = [&] {
    Result<Fd> socket = tcp_connect(address, soon());
    return socket.ok() && greet_server(socket.value(), testing::kClusterSecret,
                                       {Purpose::kNode, a->node->peer_incarnation()}, soon())
                              .ok();
  };
  EXPECT_FALSE(is_let_in());
  second.reset();
  EXPECT_TRUE(eventually(kSoonMs, is_let_in));
}

TEST(PeerService, WhoDoesNotReadItsRepliesIsNotReadFrom) {
  TestCluster cluster;
  auto a = cluster.add("a");
  a->put(0, 1, kPageSize);
  const HostPort address = parse_host_port(a->node->peer_addresses()[0]).value();
  Result<Fd> socket = tcp_connect(address, soon());
  ASSERT_TRUE(socket.ok());
  ASSERT_TRUE(greet_server(socket.value(), testing::kClusterSecret,
                           {Purpose::kNode, a->node->peer_incarnation()}, soon())
                  .ok());
  Stream stream(std::move(socket.value()), Stream::End::kClient, nullptr);
  ASSERT_TRUE(stream.write_all(frame_of(NodeOp::kHello, PeerHello{"deaf"}), soon()).ok());
  const std::vector<Key> keys(8192, key_of(0));
  const auto frame = frame_of(NodeOp::kLease, PeerKeysRequest{testing::kTestNamespace, 0, keys});
  // Until nobody takes any more: far less than this.
  constexpr size_t kSentMax = 256 * kMiB;
  size_t sent = 0;
  bool is_blocked = false;
  while (sent < kSentMax && !is_blocked) {
    const Status status = stream.write_all(frame, Deadline::after_ms(1500));
    is_blocked = !status.ok();
    sent += frame.size();
  }
  EXPECT_TRUE(is_blocked);
  // Others are served meanwhile.
  RawPeer peer(*a->node);
  EXPECT_EQ(peer.lease({key_of(0)}).places[0].code, Code::kOk);
}

}  // namespace
}  // namespace hicache
