// Engines in processes that fork: the child keeps nothing of its parent's alive, and is told to
// start an engine of its own.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "engine_peer.h"
#include "io/fork_guard.h"
#include "io/tcp_socket.h"

namespace hicache {
namespace {

using testing::after_ms;
using testing::engine_options;
using testing::EnginePeer;
using testing::eventually;
using testing::start_engine_of;

class EngineForkTest : public ::testing::TestWithParam<TransportKind> {
 protected:
  std::string transport() const { return std::string(transport_name(GetParam())); }
  Status read(TransferEngine& engine, SegmentId segment, uint64_t address) {
    const TransferRequest request{Direction::kRead, reinterpret_cast<uint64_t>(local_.data()),
                                  address, local_.size()};
    const Result<BatchState> state =
        engine.transfer(segment, {&request, 1}, Priority::kUrgent, after_ms(20'000));
    return state.ok() ? state.value().status : state.status();
  }

  std::vector<uint8_t> local_ = std::vector<uint8_t>(64 * kKiB);
};

TEST_P(EngineForkTest, ADeadProcessIsLostAtOnceThoughAChildOfItLives) {
  auto peer = std::make_unique<EnginePeer>(transport(), uint16_t{0}, true);
  const auto client = start_engine_of(engine_options({GetParam()}));
  const SegmentId segment = client->open_segment(peer->address(), after_ms(20'000)).value();
  ASSERT_TRUE(read(*client, segment, peer->memory).ok());
  peer->end();
  EXPECT_TRUE(eventually(20'000, [&] { return client->is_lost(segment); }));
  EXPECT_EQ(read(*client, segment, peer->memory).code(), Code::kUnavailable);
  EXPECT_EQ(client->open_segment(peer->address(), after_ms(5000)).status().code(),
            Code::kUnavailable)
      << "nobody listens there";
  const EnginePeer next(transport(), peer->port);
  EXPECT_EQ(next.port, peer->port) << "which is free again";
}

TEST_P(EngineForkTest, AChildIsRefusedEverythingAndItsParentGoesOn) {
  const EnginePeer peer(transport());
  auto client = start_engine_of(engine_options({GetParam()}));
  const SegmentId segment = client->open_segment(peer.address(), after_ms(20'000)).value();
  const pid_t child = fork();
  if (child == 0) {
    // Without gtest, which is the parent's.
    bool is_good = client->probe(segment, after_ms(1000)).code() == Code::kClosed;
    is_good = is_good && read(*client, segment, peer.memory).code() == Code::kClosed;
    is_good = is_good &&
              client->open_segment(peer.address(), after_ms(1000)).status().code() == Code::kClosed;
    is_good = is_good && client->register_memory(4096, 4096, "*", true).code() == Code::kClosed;
    is_good = is_good && client->stop().code() == Code::kClosed && client->is_lost(segment);
    client.reset();
    _exit(is_good ? 7 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
  EXPECT_TRUE(read(*client, segment, peer.memory).ok());
  EXPECT_TRUE(client->probe(segment, after_ms(20'000)).ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, EngineForkTest,
                         ::testing::Values(TransportKind::kTcp, TransportKind::kLocal),
                         [](const auto& tested) {
                           return std::string(transport_name(tested.param));
                         });

TEST(ForkGuard, OnlyWhatIsKeptIsReplacedAndItsNumberStaysTaken) {
  Result<Listening> kept = tcp_listen("127.0.0.1", 0, 0);
  ASSERT_TRUE(kept.ok());
  Fd gone(dup(kept.value().fd.get()));  // Its number is known, and is another file's by then.
  keep_from_children(gone);
  const int number = gone.get();
  gone.reset();
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const Fd one(ends[0]);
  const Fd other(ends[1]);
  ASSERT_TRUE(one.get() == number || other.get() == number);
  const uint32_t forks = fork_count();
  const pid_t child = fork();
  if (child == 0) {
    int listens = 0;
    socklen_t size = sizeof(listens);
    const int listener = kept.value().fd.get();
    const bool is_replaced =
        getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 && errno == ENOTSOCK;
    const bool is_told = fork_count() == forks + 1;
    _exit(is_replaced && is_told && write(one.get(), "x", 1) == 1 ? 7 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
  char byte = 0;
  EXPECT_EQ(read(other.get(), &byte, 1), 1) << "this one was nobody's to replace";
  EXPECT_TRUE(tcp_connect({"127.0.0.1", kept.value().port}, Deadline::after_ms(5000)).ok());
  EXPECT_EQ(fork_count(), forks);
}

}  // namespace
}  // namespace hicache
