#include "net/frame.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace hicache {
namespace {

constexpr uint32_t kMagic = 0x3143484D;  // "MHC1"

struct RawHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t op;
  uint32_t payload_size;
  uint32_t check;
  uint64_t request_id;
};
static_assert(sizeof(RawHeader) == kFrameHeaderSize);

uint32_t check_of(RawHeader header) {
  header.check = 0;
  return static_cast<uint32_t>(XXH3_64bits(&header, sizeof(header)));
}

}  // namespace

Status other_version(uint16_t version, uint16_t own_version, const char* what) {
  return Status(Code::kUnsupported, "the other end speaks version " + std::to_string(version) +
                                        " of " + what + ", this one version " +
                                        std::to_string(own_version) +
                                        ": install the same release of mooncake-hicache on both");
}

Result<FrameHeader> decode_frame_header(std::span<const uint8_t, kFrameHeaderSize> bytes) {
  RawHeader raw;
  std::memcpy(&raw, bytes.data(), sizeof(raw));
  if (raw.magic != kMagic || raw.check != check_of(raw)) {
    return Status(Code::kCorrupt, "a frame does not start as mooncake-hicache frames do");
  }
  if (raw.version != kProtocolVersion) {
    return other_version(raw.version, kProtocolVersion, "the protocol");
  }
  if (raw.payload_size > kPayloadSizeMax) {
    return Status(Code::kCorrupt,
                  "a frame announces " + std::to_string(raw.payload_size) + " bytes");
  }
  return FrameHeader{raw.op, raw.payload_size, raw.request_id};
}

void begin_frame(std::vector<uint8_t>& frame) {
  frame.assign(kFrameHeaderSize, 0);
}

void end_frame(std::vector<uint8_t>& frame, uint16_t op, uint64_t request_id) {
  RawHeader raw{kMagic, kProtocolVersion,
                op,     static_cast<uint32_t>(frame.size() - kFrameHeaderSize),
                0,      request_id};
  raw.check = check_of(raw);
  std::memcpy(frame.data(), &raw, sizeof(raw));
}

}  // namespace hicache
