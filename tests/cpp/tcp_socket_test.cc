// TCP sockets: addresses as people write them, both families, ranges of ports, and every way in
// which connecting fails.
#include "io/tcp_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <thread>

#include "support.h"

namespace hicache {
namespace {

using testing::duration_ms;

Fd accept_one(const Fd& listener) {
  pollfd waited{listener.get(), POLLIN, 0};
  EXPECT_EQ(poll(&waited, 1, 5000), 1);
  Result<Fd> accepted = tcp_accept(listener);
  EXPECT_TRUE(accepted.ok()) << accepted.status().message();
  return accepted.ok() ? std::move(accepted.value()) : Fd();
}

/// Both ends of a connection to `host`, over a listener at `bind_host`.
void expect_talk(const std::string& bind_host, const std::string& host) {
  Result<Listening> listening = tcp_listen(bind_host, 0, 0);
  ASSERT_TRUE(listening.ok()) << listening.status().message();
  ASSERT_NE(listening.value().port, 0);
  Result<Fd> client = tcp_connect({host, listening.value().port}, Deadline::after_ms(5000));
  ASSERT_TRUE(client.ok()) << client.status().message();
  const Fd server = accept_one(listening.value().fd);
  ASSERT_TRUE(server.valid());
  EXPECT_TRUE(tune(client.value()).ok());
  EXPECT_TRUE(tune(server).ok());
  EXPECT_TRUE(is_same_machine(client.value()));
  EXPECT_TRUE(is_same_machine(server));
  EXPECT_TRUE(peer_name(client.value()).ends_with(":" + std::to_string(listening.value().port)));
  ASSERT_EQ(send(client.value().get(), "hello", 5, 0), 5);
  pollfd waited{server.get(), POLLIN, 0};
  ASSERT_EQ(poll(&waited, 1, 5000), 1);
  char received[8];
  EXPECT_EQ(recv(server.get(), received, sizeof(received), 0), 5);
}

bool has_ipv6() {
  return tcp_listen("::1", 0, 0).ok();
}

TEST(TcpSocket, AddressesAreParsedAsPeopleWriteThem) {
  const auto expect = [](const std::string& text, const HostPort& address) {
    Result<HostPort> parsed = parse_host_port(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    EXPECT_EQ(parsed.value(), address);
    EXPECT_EQ(to_string(parsed.value()), text);
  };
  expect("127.0.0.1:80", {"127.0.0.1", 80});
  expect("[::1]:15001", {"::1", 15001});
  expect("node-7.example.org:65535", {"node-7.example.org", 65535});
}

TEST(TcpSocket, TextsThatAreNoAddressAreRefusedWithTheReason) {
  for (const std::string text :
       {"", "host", "host:", "host:0", "host:65536", "host:-1", "host:80x", "host: 80", ":80",
        "::1", "::1:80", "[::1]", "[::1]80", "[::1:80", "[]:80", "a b:80", "a/b:80", "]:80"}) {
    Result<HostPort> parsed = parse_host_port(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("\"" + text + "\""), std::string::npos);
  }
}

TEST(TcpSocket, RandomTextsAreParsedOrRefusedAndWhatIsParsedIsWrittenTheSame) {
  HICACHE_TRACE_SEED();
  testing::Random random;
  const std::string letters = "a1:[]. \0-9";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (uint64_t n = random.below(12); n > 0; --n) text += letters[random.below(letters.size())];
    Result<HostPort> parsed = parse_host_port(text);
    if (!parsed.ok()) continue;
    Result<HostPort> again = parse_host_port(to_string(parsed.value()));
    ASSERT_TRUE(again.ok()) << text;
    EXPECT_EQ(again.value(), parsed.value());
  }
}

TEST(TcpSocket, BothEndsTalkOverIPv4) {
  expect_talk("127.0.0.1", "127.0.0.1");
}

TEST(TcpSocket, BothEndsTalkOverIPv6) {
  if (!has_ipv6()) GTEST_SKIP() << "no IPv6 on this machine";
  expect_talk("::1", "::1");
}

TEST(TcpSocket, NamesAreResolvedAndEachOfTheirAddressesIsTried) {
  // Whichever family the listener has, the name leads there.
  expect_talk("127.0.0.1", "localhost");
  expect_talk("localhost", "localhost");
}

TEST(TcpSocket, AnyAddressOfIPv6ServesIPv4AsWell) {
  if (!has_ipv6()) GTEST_SKIP() << "no IPv6 on this machine";
  expect_talk("::", "127.0.0.1");
  expect_talk("::", "::1");
}

TEST(TcpSocket, OfARangeTheFirstFreePortIsTaken) {
  // A port that the system picked, and its successor, stand for a range.
  for (int attempt = 0; attempt < 20; ++attempt) {
    Result<Listening> first = tcp_listen("127.0.0.1", 0, 0);
    ASSERT_TRUE(first.ok());
    const uint16_t port = first.value().port;
    if (port == 65535) continue;
    Result<Listening> second = tcp_listen("127.0.0.1", port, static_cast<uint16_t>(port + 1));
    if (!second.ok()) continue;  // Somebody has the successor.
    EXPECT_EQ(second.value().port, port + 1);
    Result<Listening> third = tcp_listen("127.0.0.1", port, static_cast<uint16_t>(port + 1));
    ASSERT_FALSE(third.ok());
    EXPECT_EQ(third.status().code(), Code::kUnavailable);
    EXPECT_NE(third.status().message().find(std::to_string(port)), std::string::npos);
    first.value().fd.reset();
    Result<Listening> fourth = tcp_listen("127.0.0.1", port, static_cast<uint16_t>(port + 1));
    ASSERT_TRUE(fourth.ok()) << fourth.status().message();
    EXPECT_EQ(fourth.value().port, port);
    return;
  }
  GTEST_SKIP() << "no two neighbouring ports were free";
}

TEST(TcpSocket, ListeningIsRefusedWhereItCannotBe) {
  EXPECT_EQ(tcp_listen("192.0.2.1", 0, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(tcp_listen("no-such-host.invalid", 0, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(tcp_listen("127.0.0.1", 9, 8).status().code(), Code::kInvalidArgument);
}

TEST(TcpSocket, NobodyListeningIsUnavailableAtOnce) {
  uint16_t port = 0;
  {
    Result<Listening> listening = tcp_listen("127.0.0.1", 0, 0);
    ASSERT_TRUE(listening.ok());
    port = listening.value().port;
  }
  Status status;
  EXPECT_LT(duration_ms([&] {
              status = tcp_connect({"127.0.0.1", port}, Deadline::after_ms(10'000)).status();
            }),
            5000u);
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:" + std::to_string(port)), std::string::npos);
}

TEST(TcpSocket, AnUnknownHostIsTheCallersMistake) {
  Result<Fd> socket = tcp_connect({"no-such-host.invalid", 80}, Deadline::after_ms(20'000));
  ASSERT_FALSE(socket.ok());
  // Without a name service the look-up may also take longer than anyone waits.
  EXPECT_TRUE(socket.status().code() == Code::kInvalidArgument ||
              socket.status().code() == Code::kTimeout);
  EXPECT_NE(socket.status().message().find("no-such-host.invalid"), std::string::npos);
}

TEST(TcpSocket, AHostThatDoesNotAnswerTimesOutAtTheDeadline) {
  // A listener whose queue is full drops what comes: a black hole on this machine.
  Result<Listening> listening = tcp_listen("127.0.0.1", 0, 0);
  ASSERT_TRUE(listening.ok());
  ASSERT_EQ(listen(listening.value().fd.get(), 0), 0);  // The queue holds one.
  const HostPort address{"127.0.0.1", listening.value().port};
  std::vector<Fd> waiting;
  Status status;
  uint64_t took_ms = 0;
  for (int i = 0; i < 8 && status.ok(); ++i) {
    took_ms = duration_ms([&] {
      Result<Fd> socket = tcp_connect(address, Deadline::after_ms(300));
      status = socket.status();
      if (socket.ok()) waiting.push_back(std::move(socket.value()));
    });
  }
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kTimeout);
  EXPECT_GE(took_ms, 299u);
  EXPECT_LT(took_ms, 5000u);
}

TEST(TcpSocket, AcceptingWhenNobodyWaitsGivesNothing) {
  Result<Listening> listening = tcp_listen("127.0.0.1", 0, 0);
  ASSERT_TRUE(listening.ok());
  Result<Fd> accepted = tcp_accept(listening.value().fd);
  ASSERT_TRUE(accepted.ok());
  EXPECT_FALSE(accepted.value().valid());
}

}  // namespace
}  // namespace hicache
