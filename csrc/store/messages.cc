#include "store/messages.h"

#include <algorithm>

namespace hicache {
namespace {

struct RawCommitItem {  // No padding on the wire.
  PageIndex page;
  uint32_t generation;
  uint64_t checksum;
  uint64_t outcome;
};
static_assert(sizeof(RawCommitItem) == 24);

bool is_code(uint8_t value) {
  return value < kCodeCount;
}

}  // namespace

std::string_view op_name(NodeOp op) {
  switch (op) {
    case NodeOp::kHello:
      return "hello";
    case NodeOp::kOpenNamespace:
      return "open_namespace";
    case NodeOp::kLookup:
      return "lookup";
    case NodeOp::kLease:
      return "lease";
    case NodeOp::kRelease:
      return "release";
    case NodeOp::kReserve:
      return "reserve";
    case NodeOp::kCommit:
      return "commit";
    case NodeOp::kRemove:
      return "remove";
    case NodeOp::kClear:
      return "clear";
    case NodeOp::kSetPin:
      return "set_pin";
    case NodeOp::kReportCorrupt:
      return "report_corrupt";
    case NodeOp::kStats:
      return "stats";
    case NodeOp::kStop:
      return "stop";
    case NodeOp::kList:
      return "list";
    case NodeOp::kCopy:
      return "copy";
  }
  return "";
}

void encode(WireWriter& writer, const HelloRequest& message) {
  writer.put_string(message.client_name);
  writer.put(message.pool_contribution_bytes);
}

bool decode(WireReader reader, HelloRequest& message) {
  message.client_name = reader.get_string(kClientNameSizeMax);
  message.pool_contribution_bytes = reader.get<uint64_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const HelloReply& message) {
  writer.put(message.incarnation);
  writer.put(message.pool_size_bytes);
  writer.put(message.file_count);
}

bool decode(WireReader reader, HelloReply& message) {
  message.incarnation = reader.get<uint64_t>();
  message.pool_size_bytes = reader.get<uint64_t>();
  message.file_count = reader.get<uint8_t>();
  return reader.finished() && message.file_count <= kSsdFilesMax;
}

void encode(WireWriter& writer, const OpenNamespaceRequest& message) {
  writer.put(message.digest);
  writer.put_string(message.description);
}

bool decode(WireReader reader, OpenNamespaceRequest& message) {
  message.digest = reader.get<NamespaceDigest>();
  message.description = reader.get_string(kDescriptionSizeMax);
  return reader.finished();
}

void encode(WireWriter& writer, const OpenNamespaceReply& message) {
  writer.put(message.code);
  writer.put(message.index);
  writer.put_string(message.message);
}

bool decode(WireReader reader, OpenNamespaceReply& message) {
  const auto code = reader.get<uint8_t>();
  message.code = static_cast<Code>(code);
  message.index = reader.get<NamespaceIndex>();
  message.message = reader.get_string(kDescriptionSizeMax);
  return reader.finished() && is_code(code);
}

void encode_keys(WireWriter& writer, NamespaceIndex index, uint8_t flags, std::span<const Key> keys,
                 uint32_t patience_ms) {
  writer.put(index);
  writer.put(flags);
  writer.put_array(keys);
  writer.put(patience_ms);
}

bool decode(WireReader reader, KeysRequest& message) {
  message.index = reader.get<NamespaceIndex>();
  message.flags = reader.get<uint8_t>();
  reader.get_array(message.keys, kBatchCountMax);
  message.patience_ms = reader.get<uint32_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const RefsRequest& message) {
  writer.put_array(std::span(message.refs));
}

bool decode(WireReader reader, RefsRequest& message) {
  reader.get_array(message.refs, kBatchCountMax);
  return reader.finished();
}

void encode(WireWriter& writer, const ReserveRequest& message) {
  writer.put(message.index);
  writer.put(message.flags);
  writer.put(message.pin);
  writer.put(message.space);
  writer.put(message.parent);
  writer.put_array(std::span(message.keys));
  writer.put_array(std::span(message.sizes));
}

bool decode(WireReader reader, ReserveRequest& message) {
  message.index = reader.get<NamespaceIndex>();
  message.flags = reader.get<uint8_t>();
  const auto pin = reader.get<uint8_t>();
  message.pin = static_cast<Pin>(pin);
  message.space = reader.get<SpaceIndex>();
  message.parent = reader.get<Key>();
  reader.get_array(message.keys, kBatchCountMax);
  reader.get_array(message.sizes, kBatchCountMax);
  return reader.finished() && pin < kPinCount && message.keys.size() == message.sizes.size() &&
         std::none_of(
             message.sizes.begin(), message.sizes.end(), [](uint64_t size) { return size == 0; });
}

void encode(WireWriter& writer, const CommitRequest& message) {
  writer.put(message.ttl_ms);
  writer.put(message.replace);
  writer.put(message.replica_count);
  writer.put(message.patience_ms);
  writer.put(static_cast<uint32_t>(message.items.size()));
  for (const CommitItem& item : message.items) {
    writer.put(RawCommitItem{item.ref.page, item.ref.generation, item.checksum,
                             static_cast<uint64_t>(item.outcome)});
  }
}

bool decode(WireReader reader, CommitRequest& message) {
  message.ttl_ms = reader.get<uint64_t>();
  message.replace = reader.get<uint8_t>();
  message.replica_count = reader.get<uint8_t>();
  if (message.replica_count == 0 || message.replica_count > kReplicaCountMax) return false;
  message.patience_ms = reader.get<uint32_t>();
  std::vector<RawCommitItem> items;
  reader.get_array(items, kBatchCountMax);
  message.items.clear();
  for (const RawCommitItem& item : items) {
    if (item.outcome >= kWriteOutcomeCount) return false;
    message.items.push_back(
        {{item.page, item.generation}, item.checksum, static_cast<WriteOutcome>(item.outcome)});
  }
  return reader.finished();
}

void encode(WireWriter& writer, const ClearReply& message) {
  writer.put(message.code);
  writer.put(message.page_count);
}

bool decode(WireReader reader, ClearReply& message) {
  const auto code = reader.get<uint8_t>();
  message.code = static_cast<Code>(code);
  message.page_count = reader.get<uint64_t>();
  return reader.finished() && is_code(code);
}

void encode(WireWriter& writer, const ListRequest& message) {
  writer.put(message.index);
  writer.put(message.cursor);
  writer.put(message.patience_ms);
}

bool decode(WireReader reader, ListRequest& message) {
  message.index = reader.get<NamespaceIndex>();
  message.cursor = reader.get<uint64_t>();
  message.patience_ms = reader.get<uint32_t>();
  return reader.finished();
}

void encode(WireWriter& writer, const ListReply& message) {
  writer.put(message.code);
  writer.put(message.cursor);
  writer.put_array(std::span(message.keys));
  writer.put_array(std::span(message.head_sizes));
  writer.put_array(std::span(message.heads));
}

bool decode(WireReader reader, ListReply& message) {
  const auto code = reader.get<uint8_t>();
  message.code = static_cast<Code>(code);
  message.cursor = reader.get<uint64_t>();
  reader.get_array(message.keys, kBatchCountMax);
  reader.get_array(message.head_sizes, kListHeadsMax);
  reader.get_array(message.heads, kListHeadsMax * kListHeadSizeMax);
  if (!reader.finished() || !is_code(code)) return false;
  if (!message.head_sizes.empty() && message.head_sizes.size() != message.keys.size()) return false;
  size_t size = 0;
  for (const uint16_t head_size : message.head_sizes) {
    if (head_size > kListHeadSizeMax) return false;
    size += head_size;
  }
  return size == message.heads.size();
}

namespace {

void encode_place(WireWriter& writer, Code code, PageRef ref, uint64_t size, uint64_t checksum,
                  uint8_t device, std::span<const Extent> extents) {
  writer.put(code);
  if (code != Code::kOk) return;
  writer.put(ref);
  writer.put(size);
  writer.put(checksum);
  writer.put(device);
  writer.put_array(extents);
}

uint64_t size_of(std::span<const Extent> extents) {
  uint64_t size = 0;
  for (const Extent& extent : extents) size += extent.size;
  return size;
}

bool is_in_pool(std::span<const Extent> extents, uint64_t size, uint64_t pool_size_bytes) {
  const bool inside = std::all_of(extents.begin(), extents.end(), [&](const Extent& extent) {
    return extent.size <= pool_size_bytes && extent.offset <= pool_size_bytes - extent.size;
  });
  return inside && size != 0 && size_of(extents) == size;
}

bool is_in_file(std::span<const Extent> extents, uint64_t size) {
  return extents.size() == 1 && size != 0 && size <= kFilePageSizeMax && extents[0].size == size &&
         extents[0].offset % kSectorSize == 0 && extents[0].offset <= kFileSizeMax - size;
}

}  // namespace

void encode_locations(WireWriter& writer, std::span<const PageStore::Location> locations) {
  writer.put(kAnySpace);
  writer.put(static_cast<uint32_t>(locations.size()));
  for (const PageStore::Location& location : locations) {
    encode_place(writer, location.code, location.ref, location.size, location.checksum,
                 location.device, location.extents);
  }
}

void encode_placements(WireWriter& writer, SpaceIndex space,
                       std::span<const PageStore::Placement> placements) {
  writer.put(space);
  writer.put(static_cast<uint32_t>(placements.size()));
  for (const PageStore::Placement& placement : placements) {
    encode_place(writer, placement.code, placement.ref, size_of(placement.extents), 0, 0,
                 placement.extents);
  }
}

bool decode(WireReader reader, Places& message, const PlaceBounds& bounds) {
  message.places.clear();
  message.extents.clear();
  message.space = reader.get<SpaceIndex>();
  const auto count = reader.get<uint32_t>();
  if (count > kBatchCountMax) return false;
  std::vector<Extent> extents;
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    Place place;
    const auto code = reader.get<uint8_t>();
    if (!is_code(code)) return false;
    place.code = static_cast<Code>(code);
    if (place.code == Code::kOk) {
      place.ref = reader.get<PageRef>();
      place.size = reader.get<uint64_t>();
      place.checksum = reader.get<uint64_t>();
      place.device = reader.get<uint8_t>();
      reader.get_array(extents, kExtentCountMax);
      const bool is_sound =
          place.device == 0 ? is_in_pool(extents, place.size, bounds.pool_size_bytes)
                            : place.device <= bounds.file_count && is_in_file(extents, place.size);
      if (!is_sound) return false;
      place.extents_begin = static_cast<uint32_t>(message.extents.size());
      place.extents_count = static_cast<uint32_t>(extents.size());
      message.extents.insert(message.extents.end(), extents.begin(), extents.end());
    }
    message.places.push_back(place);
  }
  return reader.finished();
}

bool decode_codes(WireReader reader, std::vector<Code>& codes) {
  reader.get_array(codes, kBatchCountMax);
  return reader.finished() && std::all_of(codes.begin(), codes.end(), [](Code code) {
           return is_code(static_cast<uint8_t>(code));
         });
}

}  // namespace hicache
