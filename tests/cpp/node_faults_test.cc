// What a node and its clients do when the other side lies, dawdles or dies.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/un.h>

#include <atomic>
#include <thread>

#include "child_process.h"
#include "node_bench.h"
#include "raw_client.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::duration_ms;
using testing::eventually;
using testing::frame_header;
using testing::kBusyMs;
using testing::key_of;
using testing::keys_of;
using testing::Random;
using testing::RawClient;
using testing::SimpleClient;
using testing::socket_name;
using testing::start_node;
using testing::stat_of;

constexpr uint64_t kCallTimeoutMs = 500;

/// Runs `attack` while a well-behaved client works, which must not notice.
void attack_beside_a_client(uint64_t bad_frames_min, const std::function<void(Node&)>& attack) {
  auto node = start_node(8 * kMiB);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> calls{0};
  std::thread neighbour([&] {
    SimpleClient client(node->socket_path());
    for (uint64_t i = 0; !done || i < 10; ++i) {
      const Key key = key_of(i % 20);
      const std::vector<uint8_t> bytes = bytes_of(i % 20, 50'000);
      const Code put = client.put(key, bytes);
      EXPECT_TRUE(put == Code::kOk || put == Code::kAlreadyExists) << code_name(put);
      std::vector<uint8_t> read;
      EXPECT_EQ(client.get(key, read), Code::kOk);
      EXPECT_TRUE(read == bytes);
      ++calls;
    }
    EXPECT_TRUE(client.client.is_connected());
  });
  attack(*node);
  const uint64_t before = calls;
  EXPECT_TRUE(eventually(20'000, [&] { return calls > before + 2; })) << "others still go on";
  done = true;
  neighbour.join();
  EXPECT_GE(stat_of(*node, "bad_frames"), bad_frames_min);
  EXPECT_EQ(stat_of(*node, "corrupt_pages"), 0U);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "clients") == 0; }));
}

TEST(NodeFaults, GarbageClosesThatConnectionOnly) {
  HICACHE_TRACE_SEED();
  attack_beside_a_client(30, [](Node& node) {
    Random random(90);
    for (int i = 0; i < 15; ++i) {
      RawClient stranger(node.socket_path());
      std::vector<uint8_t> garbage(random.between(kFrameHeaderSize, 5000));
      random.fill(garbage);
      stranger.send(garbage);
      EXPECT_TRUE(stranger.is_closed());
      auto known = RawClient::greeted(node.socket_path());
      ASSERT_TRUE(known);
      known->send(garbage);
      EXPECT_TRUE(known->is_closed());
    }
  });
}

TEST(NodeFaults, HostileFramesCloseThatConnectionOnly) {
  attack_beside_a_client(10, [](Node& node) {
    const auto is_closed_after = [&](const std::vector<uint8_t>& frame) {
      auto client = RawClient::greeted(node.socket_path());
      if (!client) return false;
      client->open_namespace(testing::kTestNamespace);
      client->send(frame);
      return client->is_closed();
    };
    std::vector<uint8_t> zeros(1000);
    EXPECT_TRUE(is_closed_after(frame_header(3, UINT32_MAX))) << "a payload that is too large";
    EXPECT_TRUE(is_closed_after(frame_header(0, 0))) << "an unknown op";
    EXPECT_TRUE(is_closed_after(frame_header(999, 0)));
    EXPECT_TRUE(is_closed_after(frame_header(0x8003, 0))) << "a reply";
    EXPECT_TRUE(is_closed_after(frame_header(3, 0))) << "an empty look-up";
    EXPECT_TRUE(is_closed_after(RawClient::frame_of(NodeOp::kHello, HelloRequest{"again"})));
    EXPECT_TRUE(is_closed_after(RawClient::keys_frame(NodeOp::kLookup, 77, 0, keys_of(0, 3))))
        << "a namespace that does not exist";
    EXPECT_TRUE(is_closed_after(RawClient::keys_frame(NodeOp::kSetPin, 0, 9, keys_of(0, 3))));
    std::vector<uint8_t> count_too_large =
        RawClient::keys_frame(NodeOp::kLease, 0, 0, keys_of(0, 3));
    count_too_large[kFrameHeaderSize + 5] = 200;
    EXPECT_TRUE(is_closed_after(count_too_large));
    std::vector<uint8_t> longer = frame_header(3, 1000);
    longer.insert(longer.end(), zeros.begin(), zeros.end());
    EXPECT_TRUE(is_closed_after(longer));
    RawClient no_hello(node.socket_path());
    no_hello.send(RawClient::keys_frame(NodeOp::kLookup, 0, 0, keys_of(0, 3)));
    EXPECT_TRUE(no_hello.is_closed()) << "a request before hello";
  });
}

TEST(NodeFaults, FramesCutAnywhereHarmNobody) {
  attack_beside_a_client(0, [](Node& node) {
    const std::vector<uint8_t> frame = RawClient::keys_frame(NodeOp::kLookup, 0, 0, keys_of(0, 2));
    for (size_t size = 0; size < frame.size(); size += 3) {
      auto client = RawClient::greeted(node.socket_path());
      ASSERT_TRUE(client);
      client->open_namespace(testing::kTestNamespace);
      client->send(std::span(frame).first(size));
    }
  });
}

TEST(NodeFaults, FramesMayComeByteByByte) {
  auto node = start_node(4 * kMiB);
  auto client = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = client->open_namespace(testing::kTestNamespace);
  std::vector<uint8_t> frames;
  for (int i = 0; i < 5; ++i) {
    const auto frame = RawClient::keys_frame(NodeOp::kLookup, index, 0, keys_of(0, 3));
    frames.insert(frames.end(), frame.begin(), frame.end());
  }
  for (const uint8_t byte : frames) ASSERT_TRUE(client->send({&byte, 1}));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(client->receive()->size(), 4U + 3U);
}

TEST(NodeFaults, ReservationsThatWrapAreRefused) {
  attack_beside_a_client(0, [](Node& node) {
    auto client = RawClient::greeted(node.socket_path());
    ASSERT_TRUE(client);
    const NamespaceIndex index = client->open_namespace(key_of(55));
    for (const uint64_t size : {UINT64_MAX, UINT64_MAX - kSlotSize + 1, UINT64_MAX / 2 + 1}) {
      const Places places = client->reserve(index, keys_of(0, 4), size);
      for (const Place& place : places.places) EXPECT_EQ(place.code, Code::kNoSpace);
    }
    EXPECT_LE(stat_of(node, "pool_reserved_bytes"), kMiB) << "no more than the neighbour's";
  });
}

TEST(NodeFaults, AClientThatDoesNotReadIsCutOff) {
  attack_beside_a_client(0, [](Node& node) {
    auto client = RawClient::greeted(node.socket_path());
    ASSERT_TRUE(client);
    const NamespaceIndex index = client->open_namespace(testing::kTestNamespace);
    const auto frame =
        RawClient::keys_frame(NodeOp::kLookup, index, 0, std::vector<Key>(kBatchCountMax));
    // 64 KiB of answers each, never read: the node gives up at some bound, the sender blocks or
    // fails.
    bool is_cut = false;
    for (int i = 0; i < 4000 && !is_cut; ++i) is_cut = !client->send(frame);
    EXPECT_TRUE(is_cut);
  });
}

TEST(NodeFaults, ASlowReaderGetsEverythingInOrder) {
  auto node = start_node(4 * kMiB);
  auto client = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = client->open_namespace(testing::kTestNamespace);
  constexpr int kRequests = 300;
  std::thread sender([&] {
    for (uint64_t i = 1; i <= kRequests; ++i) {
      ASSERT_TRUE(
          client->send(RawClient::keys_frame(NodeOp::kLookup, index, 0, keys_of(0, i * 10))));
    }
  });
  for (uint64_t i = 1; i <= kRequests; ++i) {
    if (i % 10 == 0) usleep(1000);
    const auto reply = client->receive(10'000);
    ASSERT_TRUE(reply);
    ASSERT_EQ(reply->size(), 4 + i * 10);
  }
  sender.join();
}

TEST(NodeFaults, ASilentConnectionIsClosed) {
  auto node = start_node(4 * kMiB);
  RawClient silent(node->socket_path());
  RawClient half(node->socket_path());
  const auto hello = RawClient::frame_of(NodeOp::kHello, HelloRequest{"x"});
  half.send(std::span(hello).first(10));
  SimpleClient client(node->socket_path());
  EXPECT_FALSE(silent.is_closed(1000));
  EXPECT_TRUE(silent.is_closed(8000));
  EXPECT_TRUE(half.is_closed(8000));
  EXPECT_EQ(client.lookup(key_of(1)), Code::kNotFound);
}

TEST(NodeFaults, RunningOutOfDescriptorsDoesNotSpinOrKill) {
  auto node = start_node(4 * kMiB);
  SimpleClient client(node->socket_path());
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  // Sockets first, then the limit: connecting needs none any more, accepting does.
  std::vector<Fd> waiting;
  for (int i = 0; i < 10; ++i) {
    waiting.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  }
  Fd probe(dup(0));
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(probe.get());
  probe.reset();
  setrlimit(RLIMIT_NOFILE, &low);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = node->socket_path();
  std::memcpy(address.sun_path + 1, path.data() + 1, path.size() - 1);
  for (const Fd& fd : waiting) {
    connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
            static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size()));
  }
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "rejected_clients") == 10; }));
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(client.lookup(key_of(1)), Code::kNotFound);
  SimpleClient later(node->socket_path());
  EXPECT_EQ(later.lookup(key_of(1)), Code::kNotFound);
}

TEST(NodeFaults, AClientKilledWhileItPutsLeavesNothing) {
  auto node = start_node(8 * kMiB);
  ChildProcess writer("reserve", {node->socket_path(), "4", "1048576"});
  ASSERT_TRUE(writer.is_ready());
  EXPECT_EQ(stat_of(*node, "pool_reserved_bytes"), 4 * kMiB);
  SimpleClient client(node->socket_path());
  EXPECT_EQ(client.lookup(key_of(0)), Code::kNotFound);
  writer.end();
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "pool_reserved_bytes") == 0; }));
  EXPECT_EQ(stat_of(*node, "pool_used_bytes"), 0U);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(client.lookup(key_of(i)), Code::kNotFound);
  EXPECT_EQ(client.put(key_of(0), bytes_of(0, 8 * kMiB)), Code::kOk) << "all room is back";
}

TEST(NodeFaults, AClientKilledWhileItGetsLosesItsLeases) {
  auto node = start_node(8 * kMiB);
  SimpleClient client(node->socket_path());
  for (uint64_t i = 0; i < 8; ++i) ASSERT_EQ(client.put(key_of(i), bytes_of(i, kMiB)), Code::kOk);
  ChildProcess reader("lease", {node->socket_path(), "8"});
  ASSERT_TRUE(reader.is_ready());
  EXPECT_EQ(stat_of(*node, "leases"), 8U);
  EXPECT_EQ(client.put(key_of(50), bytes_of(50, kMiB)), Code::kNoSpace);
  reader.end();
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "leases") == 0; }));
  EXPECT_EQ(client.put(key_of(50), bytes_of(50, kMiB)), Code::kOk);
}

TEST(NodeFaults, ANodeKilledInTheMiddleOfAGetIsAMissWithinTheDeadline) {
  const std::string path = socket_name();
  ChildProcess process("node", {path, std::to_string(64 * kMiB)});
  ASSERT_TRUE(process.is_ready());
  SimpleClient client(path, kCallTimeoutMs);
  const std::vector<uint8_t> bytes = bytes_of(1, 9437184);
  ASSERT_EQ(client.put(key_of(1), bytes), Code::kOk);
  std::vector<uint8_t> read;
  const uint64_t took = duration_ms([&] {
    const Code code = client.get(key_of(1), read, [&] { process.end(); });
    // The pool is still mapped, so what was leased may be read to its end, and proves itself.
    EXPECT_TRUE(code == Code::kOk ? read == bytes : code == Code::kUnavailable) << code_name(code);
  });
  EXPECT_LE(took, kCallTimeoutMs + kBusyMs);
  EXPECT_TRUE(client.client.wait_disconnected(20'000));
  EXPECT_LE(duration_ms([&] {
              EXPECT_EQ(client.get(key_of(1), read), Code::kUnavailable);
              EXPECT_EQ(client.lookup(key_of(1)), Code::kUnavailable);
              EXPECT_EQ(client.put(key_of(2), bytes), Code::kUnavailable);
            }),
            kBusyMs)
      << "the circuit breaker answers at once";
  ChildProcess next("node", {path, std::to_string(64 * kMiB)});
  ASSERT_TRUE(next.is_ready());
  ASSERT_TRUE(client.client.connect(path, 20'000).ok());
  EXPECT_EQ(client.get(key_of(1), read), Code::kNotFound);
  EXPECT_EQ(client.put(key_of(1), bytes), Code::kOk);
}

TEST(NodeFaults, ANodeThatHangsCostsOneDeadline) {
  const std::string path = socket_name();
  ChildProcess process("node", {path, std::to_string(16 * kMiB)});
  ASSERT_TRUE(process.is_ready());
  SimpleClient client(path, kCallTimeoutMs);
  const std::vector<uint8_t> bytes = bytes_of(1, kMiB);
  ASSERT_EQ(client.put(key_of(1), bytes), Code::kOk);
  std::vector<uint8_t> read;
  // Stopped after it granted the lease: the copy and its end do not need the node.
  EXPECT_LE(duration_ms([&] {
              EXPECT_EQ(client.get(key_of(1), read, [&] { process.signal(SIGSTOP); }), Code::kOk);
            }),
            kCallTimeoutMs + kBusyMs);
  const uint64_t took =
      duration_ms([&] { EXPECT_EQ(client.get(key_of(1), read), Code::kTimeout); });
  EXPECT_GE(took, kCallTimeoutMs - 1);
  EXPECT_LE(took, kCallTimeoutMs + kBusyMs);
  EXPECT_LE(duration_ms([&] {
              for (int i = 0; i < 20; ++i) {
                EXPECT_EQ(client.get(key_of(1), read), Code::kUnavailable);
              }
            }),
            kBusyMs);
  EXPECT_TRUE(client.client.wait_disconnected(20'000));
  EXPECT_EQ(client.client.connect(path, 200).code(), Code::kTimeout) << "still half-dead";
  process.signal(SIGCONT);
  ASSERT_TRUE(client.client.connect(path, 20'000).ok());
  EXPECT_EQ(client.get(key_of(1), read), Code::kOk) << "a late answer never meets a later request";
  EXPECT_TRUE(read == bytes);
}

TEST(NodeFaults, ManyCallersOfAHangingNodeAllReturnInTime) {
  const std::string path = socket_name();
  ChildProcess process("node", {path, std::to_string(16 * kMiB)});
  ASSERT_TRUE(process.is_ready());
  SimpleClient client(path, kCallTimeoutMs);
  ASSERT_EQ(client.lookup(key_of(1)), Code::kNotFound);
  process.signal(SIGSTOP);
  std::vector<std::thread> callers;
  const uint64_t took = duration_ms([&] {
    for (int i = 0; i < 24; ++i) {
      callers.emplace_back([&] {
        const Code code = client.lookup(key_of(1));
        EXPECT_TRUE(code == Code::kTimeout || code == Code::kUnavailable) << code_name(code);
      });
    }
    for (std::thread& caller : callers) caller.join();
  });
  EXPECT_LE(took, kCallTimeoutMs + kBusyMs) << "not one deadline after the other";
}

TEST(NodeFaults, AListenerThatNeverAnswersCostsTheConnectTimeOnly) {
  const std::string path = socket_name();
  Result<Fd> listener = unix_listen(path, 4);
  ASSERT_TRUE(listener.ok());
  Client client({1, 500, true, "test"});
  const uint64_t took =
      duration_ms([&] { EXPECT_EQ(client.connect(path, 150).code(), Code::kTimeout); });
  EXPECT_LE(took, 150 + kBusyMs);
  EXPECT_FALSE(client.is_connected());
  EXPECT_EQ(client.connect(socket_name(), 150).code(), Code::kUnavailable);
}

}  // namespace
}  // namespace hicache
