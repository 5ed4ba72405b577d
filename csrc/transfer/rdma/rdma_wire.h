// What RDMA transports tell each other: their rails, memory keys, and queue pairs to connect.
//
//   endpoint   format u16 · count u8 · rails                        in the segment's descriptor
//     rail     name · address · speed u32 (Mbit/s) · up u8
//     address  GID 16 · LID u16 · link layer u8 · MTU u16 · reads u8
//   key        count u8 · (rail u8 · piece size u64 · keys u32[])    of a buffer: piece i begins at
//                                                                   address + i * piece size
//   connect    format u16 · 1 u8 · epoch u64 · connection u64 · rail u8 · address · pairs
//     reply    address · pairs
//     pairs    count u8 · (number u32 · first PSN u32)
//   disconnect format u16 · 2 u8 · epoch u64 · connection u64       reply: nothing
//
// Everything that comes from a peer is hostile: decoding checks each value against what it may be.
// Threads: any.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "transfer/rdma/gid_choice.h"

namespace hicache {

inline constexpr size_t kRailsMax = 16;
inline constexpr size_t kPairsMax = 16;
inline constexpr size_t kRailNameMax = 80;
/// Of one buffer over all rails, so that a key fits kTransportBytesMax.
inline constexpr size_t kMemoryKeysMax = 900;

enum class LinkLayer : uint8_t { kInfiniband = 1, kEthernet = 2 };

struct RailAddress {
  Gid gid;
  uint16_t lid;
  LinkLayer link_layer;
  uint16_t mtu;   // Bytes.
  uint8_t reads;  // READs that it answers at once on one queue pair.

  bool operator==(const RailAddress&) const = default;
};

struct RailDescriptor {
  std::string name;
  RailAddress address;
  uint32_t speed_mbps;
  bool is_up;
};

struct PairAddress {
  uint32_t number;
  uint32_t psn;
};

/// Keys of one buffer on one rail.
struct RailKeys {
  uint8_t rail;
  uint64_t piece_size;
  std::vector<uint32_t> keys;
};

struct ConnectRequest {
  uint64_t epoch;       // Of the engine that is asked.
  uint64_t connection;  // Drawn at random by the one who asks.
  uint8_t rail;         // Of the one who is asked.
  RailAddress from;
  std::vector<PairAddress> pairs;
};

struct ConnectReply {
  RailAddress to;
  std::vector<PairAddress> pairs;
};

struct DisconnectRequest {
  uint64_t epoch;
  uint64_t connection;
};

std::vector<uint8_t> encode_rails(std::span<const RailDescriptor> rails);
Result<std::vector<RailDescriptor>> decode_rails(std::span<const uint8_t> bytes);

std::vector<uint8_t> encode_keys(std::span<const RailKeys> rails);
/// `size`: of the buffer, which the pieces must cover.
Result<std::vector<RailKeys>> decode_keys(std::span<const uint8_t> bytes, uint64_t size);

std::vector<uint8_t> encode(const ConnectRequest& request);
std::vector<uint8_t> encode(const DisconnectRequest& request);
Result<std::variant<ConnectRequest, DisconnectRequest>> decode_request(
    std::span<const uint8_t> bytes);

std::vector<uint8_t> encode(const ConnectReply& reply);
Result<ConnectReply> decode_connect_reply(std::span<const uint8_t> bytes);

}  // namespace hicache
