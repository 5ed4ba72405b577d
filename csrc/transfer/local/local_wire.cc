#include "transfer/local/local_wire.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "net/wire.h"

namespace hicache {
namespace {

constexpr uint8_t kEndpointVersion = 1;
constexpr uint16_t kAnswerBit = 0x8000;

enum RangeFlag : uint8_t { kIsThere = 1, kIsMappable = 2, kRemoteWrite = 4, kIsOnDevice = 8 };
constexpr uint8_t kRangeFlags = kIsThere | kIsMappable | kRemoteWrite | kIsOnDevice;

std::vector<uint8_t> framed(uint16_t op, size_t size, const auto& put) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  WireWriter writer(frame);
  put(writer);
  frame.resize(size);
  end_frame(frame, op, 0);
  return frame;
}

Status malformed() {
  return Status(Code::kCorrupt, "what came over the local socket is not of this protocol");
}

/// The fields of a frame with that op; what is left after them must be 0.
template <typename Get>
Status unframed(std::span<const uint8_t> bytes, uint16_t op, size_t size, Get get) {
  if (bytes.size() != size) return malformed();
  const Result<FrameHeader> header = decode_frame_header(bytes.first<kFrameHeaderSize>());
  if (!header.ok()) return header.status();
  if (header.value().op != op || header.value().payload_size != size - kFrameHeaderSize ||
      header.value().request_id != 0) {
    return malformed();
  }
  WireReader reader(bytes.subspan(kFrameHeaderSize));
  if (!get(reader) || !reader.ok()) return malformed();
  while (!reader.finished()) {
    if (reader.get<uint8_t>() != 0) return malformed();
  }
  return Status();
}

}  // namespace

std::vector<uint8_t> encode_local(const LocalRequest& request) {
  return framed(static_cast<uint16_t>(request.op), kLocalRequestSize,
                [&](WireWriter& writer) { writer.put(request.buffer); });
}

std::vector<uint8_t> encode_local(const LocalWelcome& welcome) {
  const auto op = static_cast<uint16_t>(LocalOp::kHello) | kAnswerBit;
  return framed(static_cast<uint16_t>(op), kLocalAnswerSize, [&](WireWriter& writer) {
    writer.put(welcome.nonce_address);
    writer.put(welcome.nonce);
    writer.put(welcome.live_address);
    writer.put(welcome.slots_address);
  });
}

std::vector<uint8_t> encode_local(const LocalRange& range) {
  const auto op = static_cast<uint16_t>(LocalOp::kWant) | kAnswerBit;
  const int flags = (range.is_there ? kIsThere : 0) | (range.is_mappable ? kIsMappable : 0) |
                    (range.remote_write ? kRemoteWrite : 0) |
                    (range.is_on_device ? kIsOnDevice : 0);
  return framed(static_cast<uint16_t>(op), kLocalAnswerSize, [&](WireWriter& writer) {
    writer.put(range.buffer);
    writer.put(range.place);
    writer.put(range.address);
    writer.put(range.size);
    writer.put(range.offset);
    writer.put(static_cast<uint8_t>(flags));
  });
}

Result<LocalRequest> decode_local_request(std::span<const uint8_t> bytes) {
  // The header tells which op it is; either has the same fields.
  LocalRequest request{LocalOp::kWant};
  const auto get = [&](WireReader& reader) {
    request.buffer = reader.get<BufferId>();
    return (request.op == LocalOp::kWant) == (request.buffer != kNoBuffer);
  };
  if (unframed(bytes, static_cast<uint16_t>(LocalOp::kWant), kLocalRequestSize, get).ok()) {
    return request;
  }
  request.op = LocalOp::kHello;
  HICACHE_RETURN_IF_ERROR(
      unframed(bytes, static_cast<uint16_t>(LocalOp::kHello), kLocalRequestSize, get));
  return request;
}

Result<LocalWelcome> decode_local_welcome(std::span<const uint8_t> bytes) {
  LocalWelcome welcome{};
  const auto op = static_cast<uint16_t>(LocalOp::kHello) | kAnswerBit;
  HICACHE_RETURN_IF_ERROR(
      unframed(bytes, static_cast<uint16_t>(op), kLocalAnswerSize, [&](WireReader& reader) {
        welcome.nonce_address = reader.get<uint64_t>();
        welcome.nonce = reader.get<Nonce>();
        welcome.live_address = reader.get<uint64_t>();
        welcome.slots_address = reader.get<uint64_t>();
        return true;
      }));
  return welcome;
}

Result<LocalRange> decode_local_range(std::span<const uint8_t> bytes) {
  LocalRange range{};
  const auto op = static_cast<uint16_t>(LocalOp::kWant) | kAnswerBit;
  const auto get = [&](WireReader& reader) {
    range.buffer = reader.get<BufferId>();
    range.place = reader.get<uint32_t>();
    range.address = reader.get<uint64_t>();
    range.size = reader.get<uint64_t>();
    range.offset = reader.get<uint64_t>();
    const auto flags = reader.get<uint8_t>();
    range.is_there = (flags & kIsThere) != 0;
    range.is_mappable = (flags & kIsMappable) != 0;
    range.remote_write = (flags & kRemoteWrite) != 0;
    range.is_on_device = (flags & kIsOnDevice) != 0;
    if (range.buffer == kNoBuffer || (flags & ~kRangeFlags) != 0) return false;
    if (!range.is_there) {
      return flags == 0 && (range.place | range.address | range.size | range.offset) == 0;
    }
    return range.place < kBuffersMax && range.size != 0 &&
           range.address + range.size > range.address && range.offset + range.size > range.offset &&
           (range.is_mappable || range.offset == 0) && !(range.is_mappable && range.is_on_device);
  };
  HICACHE_RETURN_IF_ERROR(unframed(bytes, static_cast<uint16_t>(op), kLocalAnswerSize, get));
  return range;
}

std::string local_socket_name(uint64_t epoch) {
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(epoch));
  return std::string("@mooncake-hicache/transfer/") + hex;
}

std::vector<uint8_t> encode_local_endpoint(uint64_t epoch) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kEndpointVersion);
  writer.put_string(local_socket_name(epoch));
  return bytes;
}

bool is_local_endpoint(std::span<const uint8_t> bytes, uint64_t epoch) {
  return std::ranges::equal(bytes, encode_local_endpoint(epoch));
}

std::vector<uint8_t> encode_local_key(bool is_mappable) {
  return {static_cast<uint8_t>(is_mappable ? 1 : 0)};
}

bool is_mappable_key(std::span<const uint8_t> key) {
  return key.size() == 1 && key[0] == 1;
}

}  // namespace hicache
