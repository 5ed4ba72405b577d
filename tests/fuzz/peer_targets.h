// What the fuzzers call of the messages between nodes.
#pragma once

#include <cstdlib>
#include <span>
#include <vector>

#include "store/peer_messages.h"

namespace hicache::fuzz {

/// What decodes is within its bounds, and is written again as it was.
template <typename Message>
void decode_peer_message(std::span<const uint8_t> input) {
  Message message{};
  if (!decode(WireReader(input), message)) return;
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, message);
  if (!std::equal(bytes.begin(), bytes.end(), input.begin(), input.end())) std::abort();
}

/// The first byte chooses the message.
inline void peer_messages(std::span<const uint8_t> input) {
  if (input.empty()) return;
  const std::span<const uint8_t> payload = input.subspan(1);
  switch (input[0] % 6) {
    case 0:
      return decode_peer_message<PeerHello>(payload);
    case 1:
      return decode_peer_message<PeerHelloReply>(payload);
    case 2:
      return decode_peer_message<PeerKeysRequest>(payload);
    case 3:
      return decode_peer_message<PeerCopyRequest>(payload);
    case 4:
      return decode_peer_message<PeerListRequest>(payload);
    default:
      return decode_peer_message<ListReply>(payload);
  }
}

}  // namespace hicache::fuzz
