// Frames on a lane of the TCP transport: a header, then maybe payload, then maybe its checksum.
//
//    0        4      5       6      7      8        12       16          24         32       40
//   +--------+------+-------+------+------+--------+--------+-----------+----------+--------+
//   | magic  | kind | flags | code | zero | check  | buffer | sequence  | address  | size   |
//   | "MHT1" | u8   | u8    | u8   | u8   | u32    | u32    | u64       | u64      | u64    |
//   +--------+------+-------+------+------+--------+--------+-----------+----------+--------+
//   | payload: `size` bytes, of a write and of the answer to a read that went well ...      |
//   +---------------------------------------------------------------------------------------+
//   | XXH3-64 of the payload, if it has payload and flags & kFlagChecksum                   |
//   +---------------------------------------------------------------------------------------+
//
//   kind         buffer, address      size                flags       code  sequence
//   kRead        where to read        how much to read    any         0     the lane's next
//   kWrite       where to write       of the payload      any         0     the lane's next
//   kPing        0                    0                   0           0     the lane's next
//   kReadReply   0                    of the payload      checksum    any   the request's
//   kWriteReply  0                    0                   0           any   the request's
//   kPingReply   0                    0                   0           0     the request's
//
// `check` is the low half of XXH3-64 over the other 36 bytes, seeded with the epoch of the end that
// answers: a frame that belongs to another incarnation, a stream that lost its place and bytes
// that are no frame are recognised before anything in them is believed. Requests of a lane are
// numbered from 1 without a gap, so a repeated one is recognised as well. Answers come in any
// order. All values are little endian.
//
// Pure: no I/O, no clock.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/status.h"

namespace hicache {

inline constexpr size_t kTcpHeaderSize = 40;
inline constexpr size_t kTcpTrailerSize = 8;
/// Of the payload of a frame; more is no frame of ours.
inline constexpr uint64_t kTcpPayloadSizeMax = 4 * kMiB;
/// Requests of a lane that may be unanswered; who sends more is cut off.
inline constexpr uint64_t kTcpUnansweredMax = 128;

/// In wire order; never renumbered.
enum class FrameKind : uint8_t {
  kRead = 1,
  kWrite = 2,
  kPing = 3,
  kReadReply = 4,
  kWriteReply = 5,
  kPingReply = 6,
};

inline constexpr uint8_t kFlagChecksum = 1;
inline constexpr uint8_t kFlagUrgent = 2;  // To be answered before those that are not.

struct TcpFrame {
  FrameKind kind;
  uint8_t flags = 0;
  Code code = Code::kOk;
  uint32_t buffer = 0;
  uint64_t sequence = 0;
  uint64_t address = 0;
  uint64_t size = 0;

  bool operator==(const TcpFrame&) const = default;

  bool is_request() const { return kind <= FrameKind::kPing; }
  uint64_t payload_size() const {
    return kind == FrameKind::kWrite || kind == FrameKind::kReadReply ? size : 0;
  }
  bool has_checksum() const { return (flags & kFlagChecksum) != 0; }
  bool has_trailer() const { return payload_size() != 0 && has_checksum(); }
};

using TcpHeaderBytes = std::array<uint8_t, kTcpHeaderSize>;

/// Requires: a frame as the table above has them.
TcpHeaderBytes encode_tcp_frame(const TcpFrame& frame, uint64_t epoch);

/// kCorrupt for anything that encode_tcp_frame() would not have written with this epoch.
Result<TcpFrame> decode_tcp_frame(std::span<const uint8_t, kTcpHeaderSize> bytes, uint64_t epoch);

}  // namespace hicache
