// What the fuzzers call of the RDMA transport: endpoints, memory keys and the exchange of queue
// pairs, as a peer sends them. The first byte chooses the message.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <type_traits>
#include <variant>
#include <vector>

#include "transfer/rdma/peer_keys.h"
#include "transfer/rdma/rdma_wire.h"

namespace hicache::fuzz {

inline void rdma_same(std::span<const uint8_t> written, std::span<const uint8_t> read) {
  if (!std::ranges::equal(written, read)) std::abort();
}

/// A buffer's size and its key: whatever range of it is looked up has a key for each of its bytes.
inline void rdma_keys(std::span<const uint8_t> input) {
  uint64_t size;
  if (input.size() < sizeof(size)) return;
  std::memcpy(&size, input.data(), sizeof(size));
  input = input.subspan(sizeof(size));
  constexpr uint64_t kAddress = 4096;
  size = std::max<uint64_t>(1, size >> 1);  // Nothing wraps: a segment's decoder has seen to that.
  const auto rails = decode_keys(input, size);
  SegmentDescriptor segment{"peer", 1, 1, {}, {}};
  const std::vector<uint8_t> key(input.begin(), input.end());
  segment.buffers.push_back(
      {1, kAddress, size, MemoryKind::kHost, false, "*", {{TransportKind::kRdma, key}}});
  const PeerKeys keys(segment);
  for (size_t rail = 0; rail < kRailsMax; ++rail) {
    for (const uint64_t offset : {uint64_t{0}, size / 3, size - 1}) {
      const auto found = keys.find(1, rail, kAddress + offset, size - offset, false);
      if (!rails.ok() && found.ok()) std::abort();
      if (!found.ok()) continue;
      for (const uint64_t at : {kAddress + offset, kAddress + size - 1}) {
        (void)found.value().key_at(at);
        if ((at - kAddress) / found.value().piece_size >= found.value().keys->size()) std::abort();
        if (found.value().left_in_piece(at) == 0) std::abort();
      }
    }
    if (keys.find(1, rail, kAddress, size + 1, false).ok()) std::abort();
    if (keys.find(1, rail, kAddress, size, true).ok()) std::abort();
  }
  if (rails.ok()) rdma_same(encode_keys(rails.value()), input);
}

inline void rdma_wire(std::span<const uint8_t> input) {
  if (input.empty()) return;
  const std::span<const uint8_t> message = input.subspan(1);
  switch (input[0] % 4) {
    case 0:
      if (const auto rails = decode_rails(message); rails.ok()) {
        rdma_same(encode_rails(rails.value()), message);
      }
      return;
    case 1:
      return rdma_keys(message);
    case 2:
      if (const auto request = decode_request(message); request.ok()) {
        std::visit([&](const auto& one) { rdma_same(encode(one), message); }, request.value());
      }
      return;
    default:
      if (const auto reply = decode_connect_reply(message); reply.ok()) {
        rdma_same(encode(reply.value()), message);
      }
  }
}

}  // namespace hicache::fuzz
