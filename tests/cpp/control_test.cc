// The control connection over real sockets: questions and answers, loss, strangers, garbage, TLS.
#include "transfer/control.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <future>
#include <optional>
#include <thread>

#include "io/unix_socket.h"
#include "net/secure_channel.h"
#include "net/wire.h"
#include "support.h"
#include "tls_files.h"

namespace hicache {
namespace {

using testing::Authority;
using testing::Random;

const Secret kSecret = secret_from_text("open sesame");
constexpr uint64_t kEpoch = 77;

Deadline soon() {
  return Deadline::after_ms(20'000);
}

std::vector<uint8_t> bytes_of_text(const std::string& text) {
  return {text.begin(), text.end()};
}

class ControlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);  // As Python does.
    folder_ = std::filesystem::temp_directory_path() /
              ("mooncake-hicache-tls-" + std::to_string(random_token()));
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  void serve(std::shared_ptr<TlsContext> tls = nullptr, size_t connections_max = 64,
             const std::string& host = "127.0.0.1") {
    ControlServer::Answers answers;
    answers.call = [this](ControlOp op,
                          std::span<const uint8_t> request) -> Result<std::vector<uint8_t>> {
      ++calls_;
      if (op == ControlOp::kNotify) return Status(Code::kBusy, "come back later");
      return std::vector<uint8_t>(request.rbegin(), request.rend());
    };
    answers.lane = [this](Fd lane) { lane_.set_value(std::move(lane)); };
    Result<std::unique_ptr<ControlServer>> server = ControlServer::start(
        {host, 0, 0, kSecret, kEpoch, std::move(tls), connections_max}, std::move(answers));
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(server.value());
    address_ = {host, server_->port()};
  }

  Result<std::unique_ptr<ControlClient>> connect(std::shared_ptr<TlsContext> tls = nullptr,
                                                 uint64_t epoch = 0,
                                                 const Secret& secret = kSecret) const {
    return ControlClient::connect(address_, secret, std::move(tls), epoch, soon());
  }

  Fd connect_raw() const {
    Result<Fd> socket = tcp_connect(address_, soon());
    EXPECT_TRUE(socket.ok()) << socket.status().message();
    return std::move(socket.value());
  }

  uint64_t stat(const std::string& name) const {
    for (const auto& [key, value] : server_->stats()) {
      if (key == name) return value;
    }
    ADD_FAILURE() << "no such figure: " << name;
    return 0;
  }

  void expect_answer(ControlClient& client, const std::vector<uint8_t>& request) const {
    Result<std::vector<uint8_t>> reply = client.call(ControlOp::kDescribe, request, soon());
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    EXPECT_EQ(reply.value(), std::vector<uint8_t>(request.rbegin(), request.rend()));
  }

  std::filesystem::path folder_;
  std::unique_ptr<ControlServer> server_;
  HostPort address_;
  std::atomic<int> calls_{0};
  std::promise<Fd> lane_;
};

TEST_F(ControlTest, QuestionsAreAnswered) {
  HICACHE_TRACE_SEED();
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok()) << client.status().message();
  EXPECT_EQ(client.value()->peer_epoch(), kEpoch);
  Random random;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, kControlRequestSizeMax}) {
    std::vector<uint8_t> request(size);
    random.fill(request);
    expect_answer(*client.value(), request);
  }
}

TEST_F(ControlTest, WorksOverIpv6) {
  serve(nullptr, 64, "::1");
  auto client = connect();
  ASSERT_TRUE(client.ok()) << client.status().message();
  expect_answer(*client.value(), {1, 2, 3});
}

TEST_F(ControlTest, AnAnswersFailureComesBackAsItIs) {
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  Result<std::vector<uint8_t>> reply = client.value()->call(ControlOp::kNotify, {}, soon());
  EXPECT_EQ(reply.status().code(), Code::kBusy);
  EXPECT_NE(reply.status().message().find("come back later"), std::string::npos);
  expect_answer(*client.value(), {1});
}

TEST_F(ControlTest, ARequestThatIsTooLargeIsRefusedBeforeItIsSent) {
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  const std::vector<uint8_t> large(kControlRequestSizeMax + 1);
  EXPECT_EQ(client.value()->call(ControlOp::kDescribe, large, soon()).status().code(),
            Code::kInvalidArgument);
}

TEST_F(ControlTest, ManyThreadsShareAConnection) {
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  std::vector<std::thread> threads;
  for (uint8_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint8_t i = 0; i < 100; ++i) expect_answer(*client.value(), {t, i});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(calls_, 400);
}

TEST_F(ControlTest, AnotherSecretAnotherEpochAndNobodyAreTold) {
  serve();
  auto stranger = connect(nullptr, 0, secret_from_text("guess"));
  EXPECT_EQ(stranger.status().code(), Code::kUnavailable);
  EXPECT_NE(stranger.status().message().find("secret"), std::string::npos);
  EXPECT_NE(stranger.status().message().find(to_string(address_)), std::string::npos);
  EXPECT_EQ(connect(nullptr, kEpoch + 1).status().code(), Code::kUnavailable);
  EXPECT_TRUE(connect(nullptr, kEpoch).ok());
  server_->stop();
  EXPECT_EQ(connect().status().code(), Code::kUnavailable);
  EXPECT_EQ(calls_, 0);
}

TEST_F(ControlTest, ALostPeerIsNoticed) {
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  EXPECT_FALSE(client.value()->is_broken());
  server_.reset();
  EXPECT_TRUE(wait_closed(Fd(dup(client.value()->fd())), 20'000));
  EXPECT_TRUE(client.value()->is_broken());
  EXPECT_EQ(client.value()->call(ControlOp::kProbe, {}, soon()).status().code(),
            Code::kUnavailable);
}

TEST_F(ControlTest, ASilentPeerCostsTheDeadlineAndNoMore) {
  // Listens, but never accepts.
  Result<Listening> deaf = tcp_listen("127.0.0.1", 0, 0);
  ASSERT_TRUE(deaf.ok());
  auto client = ControlClient::connect({"127.0.0.1", deaf.value().port}, kSecret, nullptr, 0,
                                       Deadline::after_ms(50));
  EXPECT_EQ(client.status().code(), Code::kTimeout);
}

TEST_F(ControlTest, LanesAreHandedOverWithNothingLost) {
  serve();
  const Fd socket = connect_raw();
  Result<uint64_t> epoch = greet_server(socket, kSecret, {Purpose::kTcpLane, kEpoch}, soon());
  ASSERT_TRUE(epoch.ok()) << epoch.status().message();
  EXPECT_EQ(epoch.value(), kEpoch);
  const std::vector<uint8_t> sent = {1, 2, 3};
  ASSERT_TRUE(send_all(socket, sent, soon()).ok());
  const Fd lane = lane_.get_future().get();
  std::vector<uint8_t> received(sent.size());
  ASSERT_TRUE(receive_all(lane, received, soon()).ok());
  EXPECT_EQ(received, sent);
}

TEST_F(ControlTest, GarbageClosesItsConnectionAndDisturbsNobody) {
  HICACHE_TRACE_SEED();
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  Random random;
  for (int i = 0; i < 100; ++i) {
    const Fd socket = connect_raw();
    const bool greets = random.one_in(2);
    if (greets) {
      ASSERT_TRUE(greet_server(socket, kSecret, {Purpose::kControl, 0}, soon()).ok());
    }
    std::vector<uint8_t> garbage(std::max<uint64_t>(random.size_up_to(100'000), 100));
    random.fill(garbage);
    (void)send_all(socket, garbage, soon());
    EXPECT_TRUE(wait_closed(socket, 20'000));
    expect_answer(*client.value(), {1, 2});
  }
  EXPECT_GT(stat("malformed"), 0U);
  EXPECT_GT(stat("refused"), 0U);
  EXPECT_EQ(stat("connections"), 1U);
}

TEST_F(ControlTest, AnAnnouncedGiantIsNotWaitedFor) {
  serve();
  const Fd socket = connect_raw();
  ASSERT_TRUE(greet_server(socket, kSecret, {Purpose::kControl, 0}, soon()).ok());
  std::vector<uint8_t> frame;
  begin_frame(frame);
  frame.resize(kFrameHeaderSize + kControlRequestSizeMax + 1);
  end_frame(frame, 1, 1);
  frame.resize(kFrameHeaderSize);
  ASSERT_TRUE(send_all(socket, frame, soon()).ok());
  EXPECT_TRUE(wait_closed(socket, 20'000));
}

TEST_F(ControlTest, StrangersCannotCrowdOutPeers) {
  serve();
  std::vector<Fd> silent;
  for (int i = 0; i < 300; ++i) silent.push_back(connect_raw());
  auto client = connect();
  ASSERT_TRUE(client.ok()) << client.status().message();
  expect_answer(*client.value(), {1});
  EXPECT_GT(stat("refused"), 0U);
}

TEST_F(ControlTest, ConnectionsAreBounded) {
  serve(nullptr, 2);
  auto first = connect();
  auto second = connect();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_FALSE(connect().ok());
  first.value().reset();
  // The server hears of the end in its own time.
  Result<std::unique_ptr<ControlClient>> third = connect();
  for (const Deadline deadline = soon(); !third.ok() && !deadline.expired();) third = connect();
  EXPECT_TRUE(third.ok()) << third.status().message();
}

TEST_F(ControlTest, WithoutDescriptorsItWaitsForSomeAndDoesNotSpin) {
  serve();
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto cpu_ms = [] {
    timespec used{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return static_cast<uint64_t>(used.tv_sec) * 1000 +
           static_cast<uint64_t>(used.tv_nsec) / 1'000'000;
  };
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit before = limit;
  std::vector<Fd> held;
  held.emplace_back(dup(socket.get()));
  limit.rlim_cur = static_cast<rlim_t>(held.back().get()) + 20;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  while (held.back().valid()) held.emplace_back(dup(socket.get()));
  sockaddr_in target{};
  target.sin_family = AF_INET;
  target.sin_port = htons(address_.port);
  target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const uint64_t start_ms = cpu_ms();
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&target), sizeof(target)), 0);
  // It waits in the backlog, and nothing else happens.
  EXPECT_FALSE(wait_closed(socket, 1000));
  const uint64_t used_ms = cpu_ms() - start_ms;
  held.clear();
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_LT(used_ms, 50U);
  EXPECT_TRUE(greet_server(socket, kSecret, {Purpose::kControl, kEpoch}, soon()).ok());
}

TEST_F(ControlTest, StoppingWhilePeersAskEndsInTime) {
  serve();
  auto client = connect();
  ASSERT_TRUE(client.ok());
  std::thread asking([&] {
    while (client.value()->call(ControlOp::kDescribe, bytes_of_text("x"), soon()).ok()) {
    }
  });
  while (calls_ < 100) std::this_thread::yield();
  server_->stop();
  asking.join();
}

TEST_F(ControlTest, SpeaksTlsWithMembersOfTheSameAuthority) {
  const Authority authority(folder_, "ours");
  auto of_server = TlsContext::load(authority.member("server"));
  auto of_client = TlsContext::load(authority.member("client"));
  ASSERT_TRUE(of_server.ok() && of_client.ok()) << of_server.status().message();
  serve(of_server.value());
  auto client = connect(of_client.value(), kEpoch);
  ASSERT_TRUE(client.ok()) << client.status().message();
  const std::vector<uint8_t> large(kControlRequestSizeMax, 7);
  for (int i = 0; i < 20; ++i) expect_answer(*client.value(), large);

  // A lane comes in the clear: it carries payload, and proves itself by the secret.
  const Fd socket = connect_raw();
  EXPECT_TRUE(greet_server(socket, kSecret, {Purpose::kTcpLane, kEpoch}, soon()).ok());
}

TEST_F(ControlTest, WithTlsTheClearAndForeignCertificatesAreRefused) {
  const Authority ours(folder_, "ours");
  const Authority theirs(folder_, "theirs");
  auto of_server = TlsContext::load(ours.member("server"));
  auto foreign = TlsContext::load(theirs.member("stranger"));
  ASSERT_TRUE(of_server.ok() && foreign.ok());
  serve(of_server.value());
  auto clear = connect();
  if (clear.ok()) {  // The greeting succeeds, and then nothing is answered.
    EXPECT_FALSE(clear.value()->call(ControlOp::kDescribe, {}, soon()).ok());
  }
  EXPECT_EQ(connect(foreign.value()).status().code(), Code::kUnavailable);
  EXPECT_EQ(calls_, 0);
}

TEST_F(ControlTest, AClientThatWantsTlsTalksToNobodyWithout) {
  const Authority authority(folder_, "ours");
  auto tls = TlsContext::load(authority.member("client"));
  ASSERT_TRUE(tls.ok());
  serve();
  EXPECT_FALSE(connect(tls.value()).ok());
}

TEST_F(ControlTest, BadTlsFilesAreNamed) {
  const Authority authority(folder_, "ours");
  TlsContext::Files files = authority.member("server");
  const TlsContext::Files other = authority.member("other");
  files.key = other.key;
  EXPECT_EQ(TlsContext::load(files).status().code(), Code::kInvalidArgument);
  files = authority.member("server");
  files.certificate = folder_ / "absent.pem";
  const Status absent = TlsContext::load(files).status();
  EXPECT_EQ(absent.code(), Code::kInvalidArgument);
  EXPECT_NE(absent.message().find("absent.pem"), std::string::npos);
}

}  // namespace
}  // namespace hicache
