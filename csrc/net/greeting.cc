#include "net/greeting.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <sys/random.h>

#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "net/frame.h"
#include "net/wire.h"

namespace hicache {
namespace {

constexpr uint32_t kMagic = 0x4843484D;  // "MHCH"
constexpr uint16_t kVersion = 1;

// The codes of the greeting, apart from those of the core: they never change with a release.
constexpr uint16_t kGo = 0;
constexpr uint16_t kOtherVersion = 1;
constexpr uint16_t kOtherEpoch = 2;
constexpr uint16_t kUnknownPurpose = 3;

constexpr size_t kClientHelloSize = 48;
constexpr size_t kServerHelloSize = 40;  // Without the proof that follows it.
constexpr size_t kVerdictSize = 16;      // Likewise.
constexpr size_t kProofSize = sizeof(Proof);

constexpr std::string_view kServerLabel = "mooncake-hicache greeting 1, server";
constexpr std::string_view kClientLabel = "mooncake-hicache greeting 1, client";
constexpr std::string_view kVerdictLabel = "mooncake-hicache greeting 1, verdict";

/// Over everything that was said so far, under a label of who says it.
Proof prove(const Secret& secret, std::string_view label, std::span<const uint8_t> transcript) {
  std::vector<uint8_t> message(label.begin(), label.end());
  message.insert(message.end(), transcript.begin(), transcript.end());
  return hmac_sha256(secret, message);
}

bool same(const Proof& proof, std::span<const uint8_t> bytes) {
  assert(bytes.size() == proof.size());
  return CRYPTO_memcmp(proof.data(), bytes.data(), proof.size()) == 0;
}

void append(std::vector<uint8_t>& target, std::span<const uint8_t> bytes) {
  target.insert(target.end(), bytes.begin(), bytes.end());
}

Status unavailable(std::string message) {
  return Status(Code::kUnavailable, std::move(message));
}

Status of_other_version(uint16_t version) {
  return other_version(version, kVersion, "the greeting");
}

constexpr char kNotOurs[] =
    "what answers there is not a mooncake-hicache process; check host and port";

Status refusal(uint16_t code) {
  switch (code) {
    case kOtherEpoch:
      return unavailable("another process has taken the peer's place since; open it again");
    default:
      return unavailable("the peer refused the connection with code " + std::to_string(code));
  }
}

}  // namespace

Secret secret_from_text(const std::string& text) {
  const std::string labelled = "mooncake-hicache secret 1\n" + text;
  Secret secret;
  SHA256(reinterpret_cast<const uint8_t*>(labelled.data()), labelled.size(), secret.key.data());
  return secret;
}

Proof hmac_sha256(const Secret& secret, std::span<const uint8_t> message) {
  Proof proof;
  unsigned size = proof.size();
  const uint8_t* done = HMAC(EVP_sha256(), secret.key.data(), secret.key.size(), message.data(),
                             message.size(), proof.data(), &size);
  assert(done != nullptr && size == proof.size());
  (void)done;
  return proof;
}

Nonce random_nonce() {
  Nonce nonce;
  ssize_t got;
  while ((got = getrandom(nonce.data(), nonce.size(), 0)) < 0 && errno == EINTR) {
  }
  // Up to 256 bytes come whole or not at all, and without randomness nobody can be trusted.
  if (got != static_cast<ssize_t>(nonce.size())) std::abort();
  return nonce;
}

// ---- The client's side

ClientGreeting::ClientGreeting(const Secret& secret, const Greeting& greeting, const Nonce& nonce)
    : secret_(secret), wanted_(kServerHelloSize + kProofSize) {
  WireWriter writer(transcript_);
  writer.put(kMagic);
  writer.put(kVersion);
  writer.put(greeting.purpose);
  writer.put(greeting.epoch);
  writer.put(nonce);
  assert(transcript_.size() == kClientHelloSize);
}

Status ClientGreeting::take(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply) {
  assert(wanted_ != 0 && bytes.size() == wanted_);
  return wanted_ == kServerHelloSize + kProofSize ? take_hello(bytes, reply) : take_verdict(bytes);
}

Status ClientGreeting::take_hello(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply) {
  WireReader reader(bytes);
  const auto magic = reader.get<uint32_t>();
  const auto version = reader.get<uint16_t>();
  const auto code = reader.get<uint16_t>();
  if (magic != kMagic) return unavailable(kNotOurs);
  if (version != kVersion || code == kOtherVersion) return of_other_version(version);
  append(transcript_, bytes.first(kServerHelloSize));
  const std::span<const uint8_t> proof = bytes.subspan(kServerHelloSize);
  if (!same(prove(secret_, kServerLabel, transcript_), proof)) {
    return unavailable(
        "the peer does not know this process's secret; give both the same `secret` "
        "(option, or MOONCAKE_HICACHE_SECRET)");
  }
  append(transcript_, proof);
  const Proof own = prove(secret_, kClientLabel, transcript_);
  append(transcript_, own);
  append(reply, own);
  wanted_ = kVerdictSize + kProofSize;
  return Status();
}

Status ClientGreeting::take_verdict(std::span<const uint8_t> bytes) {
  append(transcript_, bytes.first(kVerdictSize));
  if (!same(prove(secret_, kVerdictLabel, transcript_), bytes.subspan(kVerdictSize))) {
    return unavailable(kNotOurs);
  }
  WireReader reader(bytes);
  const auto code = reader.get<uint16_t>();
  reader.get<uint16_t>();
  reader.get<uint32_t>();
  server_epoch_ = reader.get<uint64_t>();
  wanted_ = 0;
  return code == kGo ? Status() : refusal(code);
}

// ---- The server's side

ServerGreeting::ServerGreeting(const Secret& secret, uint64_t own_epoch, const Nonce& nonce)
    : secret_(secret), own_epoch_(own_epoch), nonce_(nonce), wanted_(kClientHelloSize) {}

Status ServerGreeting::take(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply) {
  assert(wanted_ != 0 && bytes.size() == wanted_);
  return wanted_ == kClientHelloSize ? take_hello(bytes, reply) : take_proof(bytes, reply);
}

Status ServerGreeting::take_hello(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply) {
  WireReader reader(bytes);
  const auto magic = reader.get<uint32_t>();
  const auto version = reader.get<uint16_t>();
  greeting_.purpose = reader.get<Purpose>();
  greeting_.epoch = reader.get<uint64_t>();
  if (magic != kMagic) {
    wanted_ = 0;
    return unavailable("a connection does not begin as those of mooncake-hicache do");
  }
  const bool is_ours = version == kVersion;
  append(transcript_, bytes);
  WireWriter writer(transcript_);
  writer.put(kMagic);
  writer.put(kVersion);
  writer.put(is_ours ? kGo : kOtherVersion);
  writer.put(nonce_);
  append(reply, std::span(transcript_).subspan(kClientHelloSize));
  const Proof own = is_ours ? prove(secret_, kServerLabel, transcript_) : Proof{};
  append(transcript_, own);
  append(reply, own);
  wanted_ = is_ours ? kProofSize : 0;
  return is_ours ? Status() : of_other_version(version);
}

Status ServerGreeting::take_proof(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply) {
  wanted_ = 0;
  if (!same(prove(secret_, kClientLabel, transcript_), bytes)) {
    return unavailable("a client does not know the secret");
  }
  append(transcript_, bytes);
  uint16_t code = kGo;
  // Any incarnation is good enough to ask who it is, and nothing else.
  const bool may_be_any = greeting_.epoch == 0 && greeting_.purpose == Purpose::kControl;
  if (!may_be_any && greeting_.epoch != own_epoch_) code = kOtherEpoch;
  if (greeting_.purpose < Purpose::kControl || greeting_.purpose > Purpose::kNode) {
    code = kUnknownPurpose;
  }
  const size_t verdict_at = transcript_.size();
  WireWriter writer(transcript_);
  writer.put(code);
  writer.put(uint16_t{0});
  writer.put(uint32_t{0});
  writer.put(own_epoch_);
  append(reply, std::span(transcript_).subspan(verdict_at));
  append(reply, prove(secret_, kVerdictLabel, transcript_));
  return code == kGo ? Status() : refusal(code);
}

}  // namespace hicache
