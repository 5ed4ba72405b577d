#include "transfer/segment.h"

#include <algorithm>

#include "net/wire.h"

namespace hicache {
namespace {

constexpr uint16_t kFormat = 1;

Status corrupt(const std::string& what) {
  return Status(Code::kCorrupt, "the peer's segment descriptor " + what +
                                    ": it runs another version, or is no transfer engine");
}

void put_transport_bytes(WireWriter& writer, const std::vector<TransportBytes>& values) {
  writer.put(static_cast<uint8_t>(values.size()));
  for (const TransportBytes& value : values) {
    writer.put(value.kind);
    writer.put_array(std::span<const uint8_t>(value.bytes));
  }
}

bool is_transport(TransportKind kind) {
  return kind == TransportKind::kLocal || kind == TransportKind::kTcp ||
         kind == TransportKind::kRdma;
}

/// False unless each kind appears once at most.
bool get_transport_bytes(WireReader& reader, std::vector<TransportBytes>& values) {
  const auto count = reader.get<uint8_t>();
  for (unsigned i = 0; i < count && reader.ok(); ++i) {
    TransportBytes value{reader.get<TransportKind>(), {}};
    reader.get_array(value.bytes, kTransportBytesMax);
    const bool is_double = std::ranges::any_of(
        values, [&](const TransportBytes& other) { return other.kind == value.kind; });
    if (!reader.ok() || !is_transport(value.kind) || is_double) return false;
    values.push_back(std::move(value));
  }
  return reader.ok();
}

bool get_buffer(WireReader& reader, BufferDescriptor& buffer) {
  buffer.id = reader.get<BufferId>();
  buffer.address = reader.get<uint64_t>();
  buffer.size = reader.get<uint64_t>();
  buffer.kind = reader.get<MemoryKind>();
  const auto remote_write = reader.get<uint8_t>();
  buffer.remote_write = remote_write != 0;
  buffer.location = reader.get_string(kSegmentTextMax);
  return get_transport_bytes(reader, buffer.keys) && buffer.id != kNoBuffer && buffer.size != 0 &&
         buffer.address + buffer.size > buffer.address && remote_write <= 1 &&
         (buffer.kind == MemoryKind::kHost || buffer.kind == MemoryKind::kCuda);
}

}  // namespace

std::string_view transport_name(TransportKind kind) {
  switch (kind) {
    case TransportKind::kLocal:
      return "local";
    case TransportKind::kTcp:
      return "tcp";
    case TransportKind::kRdma:
      return "rdma";
  }
  return "unknown";
}

const BufferDescriptor* SegmentDescriptor::find(uint64_t address, uint64_t size) const {
  const auto after = std::ranges::upper_bound(buffers, address, {}, &BufferDescriptor::address);
  if (after == buffers.begin()) return nullptr;
  const BufferDescriptor& buffer = *std::prev(after);
  const uint64_t offset = address - buffer.address;
  const bool is_inside = offset <= buffer.size && size <= buffer.size - offset;
  return is_inside ? &buffer : nullptr;
}

std::span<const uint8_t> SegmentDescriptor::endpoint(TransportKind kind) const {
  for (const TransportBytes& endpoint : endpoints) {
    if (endpoint.kind == kind) return endpoint.bytes;
  }
  return {};
}

size_t encoded_size(const BufferDescriptor& buffer) {
  size_t size = sizeof(buffer.id) + sizeof(buffer.address) + sizeof(buffer.size) +
                2 * sizeof(uint8_t) + sizeof(uint32_t) + buffer.location.size() + sizeof(uint8_t);
  for (const TransportBytes& key : buffer.keys) {
    size += sizeof(uint8_t) + sizeof(uint32_t) + key.bytes.size();
  }
  return size;
}

std::vector<uint8_t> encode_segment(const SegmentDescriptor& segment) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kFormat);
  writer.put_string(segment.name);
  writer.put(segment.epoch);
  writer.put(segment.version);
  put_transport_bytes(writer, segment.endpoints);
  writer.put(static_cast<uint32_t>(segment.buffers.size()));
  for (const BufferDescriptor& buffer : segment.buffers) {
    writer.put(buffer.id);
    writer.put(buffer.address);
    writer.put(buffer.size);
    writer.put(buffer.kind);
    writer.put(static_cast<uint8_t>(buffer.remote_write));
    writer.put_string(buffer.location);
    put_transport_bytes(writer, buffer.keys);
  }
  return bytes;
}

Result<SegmentDescriptor> decode_segment(std::span<const uint8_t> bytes) {
  WireReader reader(bytes);
  SegmentDescriptor segment;
  const auto format = reader.get<uint16_t>();
  if (reader.ok() && format != kFormat) {
    return corrupt("has format " + std::to_string(format) + " and not " + std::to_string(kFormat));
  }
  segment.name = reader.get_string(kSegmentTextMax);
  segment.epoch = reader.get<uint64_t>();
  segment.version = reader.get<uint64_t>();
  if (!get_transport_bytes(reader, segment.endpoints)) return corrupt("has malformed endpoints");
  const auto count = reader.get<uint32_t>();
  if (!reader.ok() || count > kBuffersMax)
    return corrupt("is cut short, or lists too many buffers");
  uint64_t end = 0;
  for (uint32_t i = 0; i < count; ++i) {
    // Grows with what was really there: a count alone allocates nothing.
    BufferDescriptor buffer{};
    if (!get_buffer(reader, buffer)) return corrupt("has a malformed buffer");
    if (buffer.address < end) return corrupt("has buffers that overlap or are out of order");
    end = buffer.address + buffer.size;
    segment.buffers.push_back(std::move(buffer));
  }
  if (!reader.finished()) return corrupt("has bytes left over");
  return segment;
}

}  // namespace hicache
