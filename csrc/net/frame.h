// The envelope of every message between processes.
//
//    0        4       6      8            12           16                 24
//   +--------+-------+------+------------+------------+------------------+----------------+
//   | magic  | vers. |  op  | size bytes | check      | request id       | payload ...    |
//   | "MHC1" | u16   | u16  | u32        | u32        | u64              | size bytes     |
//   +--------+-------+------+------------+------------+------------------+----------------+
//
// `check` is the low half of XXH3-64 over the other 20 bytes: a stream that lost its place, or is
// not ours, is recognised before `size bytes` is believed. All values are little endian.
//
// The header, its check, and the seal of directory/frame_pipe.h are the same in every version, so
// that ends of different versions can tell each other so: who is sent a frame of another version
// answers with one that says nothing but its own, and closes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace hicache {

inline constexpr uint16_t kProtocolVersion = 5;
inline constexpr size_t kFrameHeaderSize = 24;
inline constexpr uint32_t kPayloadSizeMax = 16 * kMiB;

struct FrameHeader {
  uint16_t op = 0;
  uint32_t payload_size = 0;
  uint64_t request_id = 0;
};

/// Of a frame that only tells its sender's version.
inline constexpr uint16_t kVersionOp = 0;

/// What each end says of the other's version: both numbers, and the remedy. `what`: of which
/// protocol.
Status other_version(uint16_t version, uint16_t own_version, const char* what);

/// Reads a header. kUnsupported: of another version, with both named. kCorrupt for anything else
/// that this version would not have sent.
Result<FrameHeader> decode_frame_header(std::span<const uint8_t, kFrameHeaderSize> bytes);

/// Starts a frame: room for the header is left at the front of the (emptied) buffer.
void begin_frame(std::vector<uint8_t>& frame);

/// Completes a frame whose payload was appended after begin_frame().
void end_frame(std::vector<uint8_t>& frame, uint16_t op, uint64_t request_id);

}  // namespace hicache
