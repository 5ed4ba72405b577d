// The greeting that begins every connection between machines: both ends prove that they know the
// secret, without sending it.
//
//   client -> server   magic "MHCH" · version u16 · purpose u16 · epoch u64 · nonce 32       48
//   bytes server -> client   magic "MHCH" · version u16 · code u16 · nonce 32 · proof 32 72 client
//   -> server   proof 32                                                              32 server ->
//   client   code u16 · zero u16 · zero u32 · epoch u64 · proof 32                 48
//
// A proof is HMAC-SHA256 with the secret over a label of its direction and everything that was sent
// before it, both nonces included: it can be neither replayed, nor reflected, nor used for another
// purpose or incarnation. A client that does not know the secret learns the version and nothing
// else; a server that does not know it is left before it is told anything. What either may send
// before the proof has a fixed size. The bytes that follow the greeting are not protected by it:
// against someone who can change packets, use TLS (stream.h).
//
// HMAC: RFC 2104. Pure but for the nonces, which come in as arguments.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace hicache {

/// What the connection is for. In wire order; never renumbered.
enum class Purpose : uint16_t {
  kControl = 1,
  kTcpLane = 2,
  kLocal = 3,
  kDirectory = 4,
  kNode = 5,
};

using Proof = std::array<uint8_t, 32>;
using Nonce = std::array<uint8_t, 32>;

/// What both ends know. Never logged, never part of a message.
struct Secret {
  std::array<uint8_t, 32> key;
};

/// Derives the key from what a user wrote: SHA-256 over a label and the text.
Secret secret_from_text(const std::string& text);

Proof hmac_sha256(const Secret& secret, std::span<const uint8_t> message);

/// Unpredictable bytes from the kernel.
Nonce random_nonce();

struct Greeting {
  Purpose purpose;
  /// The incarnation that the client wants to speak to; 0, for kControl alone: any.
  uint64_t epoch;
};

/// One end's part of the exchange, fed with what arrives. After each step wanted() says how many
/// bytes take() must be given next; 0: the greeting is over.
class ClientGreeting {
 public:
  ClientGreeting(const Secret& secret, const Greeting& greeting, const Nonce& nonce);

  /// What to send first.
  std::span<const uint8_t> opening() const { return transcript_; }
  size_t wanted() const { return wanted_; }
  /// Appends what to send to `reply`. kUnavailable: no such peer, kUnsupported: of another version
  /// of the greeting; with the reason and the remedy.
  Status take(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply);
  /// The server's, once the greeting is over.
  uint64_t server_epoch() const { return server_epoch_; }

 private:
  Status take_hello(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply);
  Status take_verdict(std::span<const uint8_t> bytes);

  Secret secret_;
  std::vector<uint8_t> transcript_;
  size_t wanted_;
  uint64_t server_epoch_ = 0;
};

class ServerGreeting {
 public:
  ServerGreeting(const Secret& secret, uint64_t own_epoch, const Nonce& nonce);

  size_t wanted() const { return wanted_; }
  /// Appends what to send to `reply`, which must be sent even when the client is refused: it tells
  /// why. An error: close the connection after that. kUnsupported: the client's version is another.
  Status take(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply);
  /// What the client asked for, once the greeting is over.
  const Greeting& greeting() const { return greeting_; }

 private:
  Status take_hello(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply);
  Status take_proof(std::span<const uint8_t> bytes, std::vector<uint8_t>& reply);

  Secret secret_;
  uint64_t own_epoch_;
  Nonce nonce_;
  std::vector<uint8_t> transcript_;
  Greeting greeting_{};
  size_t wanted_;
};

}  // namespace hicache
