// Who is at the other end: a secret that both ends know, proven without sending it; TLS if asked
// for.
//
// Every TCP connection between processes begins with this handshake. Both ends send a fresh nonce
// and prove by HMAC-SHA256 over both nonces, their role, the purpose and the epoch spoken to that
// they know the secret. Who does not is disconnected before anything it sends is looked at; what
// may be sent before has a fixed size. The proof binds the connection's purpose and the target's
// epoch, so it can be neither replayed nor reflected.
//
//   client -> server   magic "MHCH" u32 · version u16 · purpose u16 · epoch u64 · nonce 32
//   server -> client   magic · version · code u16 · epoch u64 · nonce 32 · proof 32
//   client -> server   proof 32
//   server -> client   code u16 (kOk: go on)
//
// The epoch the client names may be 0: any incarnation.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "io/fd.h"

namespace hicache {

enum class Purpose : uint16_t { kControl = 1, kTcpLane = 2 };

/// What both ends know. Never logged, never part of a message.
struct Secret {
  std::array<uint8_t, 32> key;
};

/// Derives the key from what a user wrote (SHA-256 over a label and the text).
Secret secret_from_text(const std::string& text);

std::array<uint8_t, 32> hmac_sha256(const Secret& secret, std::span<const uint8_t> message);

struct Greeting {
  Purpose purpose;
  uint64_t epoch;
};

/// The client's side. kUnavailable: the peer does not know the secret, is another incarnation, or
/// speaks another version; the message says which and what to do. Returns the server's epoch.
Result<uint64_t> greet_server(const Fd& socket, const Secret& secret, const Greeting& greeting,
                              Deadline deadline);

/// The server's side, blocking; for a thread of its own with a short deadline.
Result<Greeting> greet_client(const Fd& socket, const Secret& secret, uint64_t own_epoch,
                              Deadline deadline);

}  // namespace hicache
