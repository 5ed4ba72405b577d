// The greeting: who knows the secret gets through; nobody else does, whatever they send.
#include "net/greeting.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

const Secret kSecret = secret_from_text("open sesame");

/// One message of the exchange as it passes from one end to the other; may be tampered with.
using Wire = std::function<void(size_t step, std::vector<uint8_t>& bytes)>;

struct Outcome {
  Status client;
  Status server;
  bool is_over = false;  // Both ends came to the end.
  Greeting greeting{};
  uint64_t epoch = 0;
  std::vector<std::vector<uint8_t>> messages;
};

Outcome greet(const Secret& of_client, const Secret& of_server, Greeting greeting, uint64_t epoch,
              const Wire& wire = {}) {
  ClientGreeting client(of_client, greeting, random_nonce());
  ServerGreeting server(of_server, epoch, random_nonce());
  Outcome outcome;
  std::vector<uint8_t> bytes(client.opening().begin(), client.opening().end());
  bool to_server = true;
  while (outcome.client.ok() && outcome.server.ok() && !bytes.empty()) {
    if (wire) wire(outcome.messages.size(), bytes);
    outcome.messages.push_back(bytes);
    std::vector<uint8_t> reply;
    if (bytes.size() != (to_server ? server.wanted() : client.wanted())) break;
    (to_server ? outcome.server : outcome.client) =
        to_server ? server.take(bytes, reply) : client.take(bytes, reply);
    // What the server refuses it still explains.
    if (to_server && !outcome.server.ok() && !reply.empty() && client.wanted() == reply.size()) {
      std::vector<uint8_t> none;
      outcome.client = client.take(reply, none);
    }
    bytes = std::move(reply);
    to_server = !to_server;
  }
  outcome.is_over =
      client.wanted() == 0 && server.wanted() == 0 && outcome.client.ok() && outcome.server.ok();
  outcome.greeting = server.greeting();
  outcome.epoch = client.server_epoch();
  return outcome;
}

TEST(Greeting, BothWhoKnowTheSecretLearnWhatTheyNeed) {
  for (const uint64_t wanted : {uint64_t{0}, uint64_t{77}}) {
    const Outcome outcome = greet(kSecret, kSecret, {Purpose::kControl, wanted}, 77);
    EXPECT_TRUE(outcome.is_over);
    EXPECT_EQ(outcome.greeting.purpose, Purpose::kControl);
    EXPECT_EQ(outcome.greeting.epoch, wanted);
    EXPECT_EQ(outcome.epoch, 77U);
  }
}

TEST(Greeting, AnotherSecretIsRefusedWithTheRemedy) {
  const Outcome outcome =
      greet(secret_from_text("open sesam"), kSecret, {Purpose::kControl, 0}, 77);
  EXPECT_EQ(outcome.client.code(), Code::kUnavailable);
  EXPECT_NE(outcome.client.message().find("secret"), std::string::npos);
  EXPECT_FALSE(outcome.is_over);
}

TEST(Greeting, AClientThatIgnoresTheServersProofIsRefusedToo) {
  // The client's own check would end the exchange: here only the server's decides.
  const Secret wrong = secret_from_text("wrong");
  ServerGreeting server(kSecret, 77, random_nonce());
  ClientGreeting client(wrong, {Purpose::kControl, 0}, random_nonce());
  std::vector<uint8_t> reply;
  ASSERT_TRUE(server.take(client.opening(), reply).ok());
  std::vector<uint8_t> transcript(client.opening().begin(), client.opening().end());
  transcript.insert(transcript.end(), reply.begin(), reply.end());
  const std::string label = "mooncake-hicache greeting 1, client";
  transcript.insert(transcript.begin(), label.begin(), label.end());
  const Proof forged = hmac_sha256(wrong, transcript);
  std::vector<uint8_t> verdict;
  EXPECT_EQ(server.take(forged, verdict).code(), Code::kUnavailable);
  EXPECT_TRUE(verdict.empty()) << "a stranger is told nothing";
  EXPECT_EQ(server.wanted(), 0U);
}

TEST(Greeting, AnotherIncarnationIsRefused) {
  const Outcome outcome = greet(kSecret, kSecret, {Purpose::kControl, 78}, 77);
  EXPECT_EQ(outcome.server.code(), Code::kUnavailable);
  EXPECT_EQ(outcome.client.code(), Code::kUnavailable);
  EXPECT_NE(outcome.client.message().find("open it again"), std::string::npos);
}

TEST(Greeting, WhatMovesPayloadNamesTheIncarnationThatItIsFor) {
  for (const Purpose purpose : {Purpose::kTcpLane, Purpose::kLocal}) {
    EXPECT_TRUE(greet(kSecret, kSecret, {purpose, 77}, 77).is_over);
    const Outcome outcome = greet(kSecret, kSecret, {purpose, 0}, 77);
    EXPECT_EQ(outcome.server.code(), Code::kUnavailable);
    EXPECT_EQ(outcome.client.code(), Code::kUnavailable);
    EXPECT_FALSE(outcome.is_over);
  }
}

TEST(Greeting, AnUnknownPurposeIsRefused) {
  const Outcome outcome = greet(kSecret, kSecret, {static_cast<Purpose>(9), 0}, 77);
  EXPECT_EQ(outcome.server.code(), Code::kUnavailable);
  EXPECT_FALSE(outcome.client.ok());
}

TEST(Greeting, EveryFlippedBitEndsIt) {
  const Outcome whole = greet(kSecret, kSecret, {Purpose::kControl, 77}, 77);
  ASSERT_EQ(whole.messages.size(), 4U);
  for (size_t step = 0; step < whole.messages.size(); ++step) {
    for (size_t bit = 0; bit < whole.messages[step].size() * 8; ++bit) {
      const Outcome outcome = greet(kSecret, kSecret, {Purpose::kControl, 77}, 77,
                                    [&](size_t at, std::vector<uint8_t>& bytes) {
                                      if (at == step)
                                        bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
                                    });
      ASSERT_FALSE(outcome.is_over) << "message " << step << ", bit " << bit;
    }
  }
}

TEST(Greeting, WhatWasOverheardServesNobody) {
  // Both directions: a recorded client before a new server, a recorded server before a new client.
  const Outcome overheard = greet(kSecret, kSecret, {Purpose::kControl, 0}, 77);
  ServerGreeting server(kSecret, 77, random_nonce());
  std::vector<uint8_t> reply;
  ASSERT_TRUE(server.take(overheard.messages[0], reply).ok());
  EXPECT_EQ(server.take(overheard.messages[2], reply).code(), Code::kUnavailable);

  ClientGreeting client(kSecret, {Purpose::kControl, 0}, random_nonce());
  EXPECT_EQ(client.take(overheard.messages[1], reply).code(), Code::kUnavailable);
}

TEST(Greeting, AProofIsNotReflected) {
  // A man in the middle answers the client with the client's own words.
  ClientGreeting client(kSecret, {Purpose::kControl, 0}, random_nonce());
  std::vector<uint8_t> hello(client.wanted());
  std::copy(client.opening().begin(), client.opening().begin() + 6, hello.begin());
  std::vector<uint8_t> reply;
  EXPECT_EQ(client.take(hello, reply).code(), Code::kUnavailable);
  EXPECT_TRUE(reply.empty());
}

TEST(Greeting, GarbageIsRefused) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int i = 0; i < 2000; ++i) {
    ServerGreeting server(kSecret, 77, random_nonce());
    std::vector<uint8_t> bytes(server.wanted());
    random.fill(bytes);
    if (random.one_in(2)) std::copy_n("MHCH", 4, bytes.begin());
    std::vector<uint8_t> reply;
    if (!server.take(bytes, reply).ok()) continue;
    bytes.resize(server.wanted());
    random.fill(bytes);
    ASSERT_EQ(server.take(bytes, reply).code(), Code::kUnavailable);
  }
}

TEST(Greeting, HmacIsTheOneOfTheStandard) {
  // RFC 4231, test case 1, its key of 20 bytes padded with zeros to 32, which HMAC does as well.
  Secret secret{};
  std::fill_n(secret.key.begin(), 20, uint8_t{0x0b});
  const std::string text = "Hi There";
  const Proof proof =
      hmac_sha256(secret, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  const Proof expected = {0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53, 0x5c, 0xa8, 0xaf,
                          0xce, 0xaf, 0x0b, 0xf1, 0x2b, 0x88, 0x1d, 0xc2, 0x00, 0xc9, 0x83,
                          0x3d, 0xa7, 0x26, 0xe9, 0x37, 0x6c, 0x2e, 0x32, 0xcf, 0xf7};
  EXPECT_EQ(proof, expected);
}

}  // namespace
}  // namespace hicache
