#include "transfer/tcp/tcp_frame.h"

#include <xxhash.h>

#include <bit>
#include <cassert>
#include <cstring>
#include <string>

namespace hicache {
namespace {

constexpr uint32_t kMagic = 0x3154484D;  // "MHT1"

struct RawHeader {
  uint32_t magic;
  uint8_t kind;
  uint8_t flags;
  uint8_t code;
  uint8_t zero;
  uint32_t check;
  uint32_t buffer;
  uint64_t sequence;
  uint64_t address;
  uint64_t size;
};
static_assert(sizeof(RawHeader) == kTcpHeaderSize);
static_assert(std::endian::native == std::endian::little, "the wire is little endian");

uint32_t check_of(RawHeader header, uint64_t epoch) {
  header.check = 0;
  return static_cast<uint32_t>(XXH3_64bits_withSeed(&header, sizeof(header), epoch));
}

bool is_plausible(const TcpFrame& frame) {
  if (frame.sequence == 0 || frame.size > kTcpPayloadSizeMax) return false;
  const bool names_place = frame.buffer != 0 || frame.address != 0;
  switch (frame.kind) {
    case FrameKind::kRead:
    case FrameKind::kWrite:
      return (frame.flags & ~(kFlagChecksum | kFlagUrgent)) == 0 && frame.code == Code::kOk &&
             frame.buffer != 0 && frame.size != 0 && frame.address <= UINT64_MAX - frame.size;
    case FrameKind::kReadReply:
      return !names_place && (frame.flags & ~kFlagChecksum) == 0 &&
             (frame.code == Code::kOk) == (frame.size != 0);
    case FrameKind::kWriteReply:
      return !names_place && frame.flags == 0 && frame.size == 0;
    case FrameKind::kPing:
    case FrameKind::kPingReply:
      return !names_place && frame.flags == 0 && frame.size == 0 && frame.code == Code::kOk;
  }
  return false;
}

}  // namespace

TcpHeaderBytes encode_tcp_frame(const TcpFrame& frame, uint64_t epoch) {
  assert(is_plausible(frame));
  RawHeader raw{kMagic,
                static_cast<uint8_t>(frame.kind),
                frame.flags,
                static_cast<uint8_t>(frame.code),
                0,
                0,
                frame.buffer,
                frame.sequence,
                frame.address,
                frame.size};
  raw.check = check_of(raw, epoch);
  TcpHeaderBytes bytes;
  std::memcpy(bytes.data(), &raw, sizeof(raw));
  return bytes;
}

Result<TcpFrame> decode_tcp_frame(std::span<const uint8_t, kTcpHeaderSize> bytes, uint64_t epoch) {
  RawHeader raw;
  std::memcpy(&raw, bytes.data(), sizeof(raw));
  if (raw.magic != kMagic || raw.check != check_of(raw, epoch)) {
    return Status(Code::kCorrupt, "what came over a TCP lane is no frame of this incarnation");
  }
  const TcpFrame frame{.kind = static_cast<FrameKind>(raw.kind),
                       .flags = raw.flags,
                       .code = static_cast<Code>(raw.code),
                       .buffer = raw.buffer,
                       .sequence = raw.sequence,
                       .address = raw.address,
                       .size = raw.size};
  if (raw.zero != 0 || raw.code >= kCodeCount || !is_plausible(frame)) {
    return Status(Code::kCorrupt, "a frame of kind " + std::to_string(raw.kind) +
                                      " came over a TCP lane with fields that make no sense");
  }
  return frame;
}

}  // namespace hicache
