// How a client looks at pages without reading them: which there are, how large, how they begin.
#include <algorithm>
#include <cstring>

#include "store/client.h"
#include "store/client_call.h"

namespace hicache {
namespace {

// Of one request: places of scattered pages are large.
constexpr size_t kLookCountMax = 4096;

}  // namespace

Status Client::list(size_t name_space, uint64_t* cursor, ListReply& listed) {
  const Deadline until = deadline();
  auto begun = begin(name_space, until);
  if (!begun.ok()) return begun.status();
  auto& [connection, index] = begun.value();
  const auto patience_ms = static_cast<uint32_t>(std::max(1, until.remaining_ms() / 2));
  HICACHE_RETURN_IF_ERROR(connection->ask(
      NodeOp::kList, until,
      [&](WireWriter& writer) { encode(writer, ListRequest{index, *cursor, patience_ms}); },
      // It must come to an end, whoever answers.
      [&](WireReader reader) {
        return decode(reader, listed) && (listed.code != Code::kOk || listed.cursor > *cursor);
      }));
  if (listed.code != Code::kOk) {
    return Status(listed.code,
                  "a node of the cluster, or its master, did not answer in time, so that what it "
                  "has is not known; list again once `mooncake-hicache status --cluster` says that "
                  "all nodes live");
  }
  *cursor = listed.cursor;
  return Status();
}

void Client::look_at(size_t name_space, std::span<const Key> keys, const Look& look,
                     std::vector<Code>& codes) {
  const RunningCall running(*this);
  const Deadline until = deadline();
  auto begun = begin(name_space, until);
  if (!begun.ok()) return fail(begun.status(), codes, keys.size());
  auto& [connection, index] = begun.value();
  codes.assign(keys.size(), Code::kUnavailable);
  for (size_t first = 0; first < keys.size(); first += kLookCountMax) {
    const std::span<const Key> part =
        keys.subspan(first, std::min(kLookCountMax, keys.size() - first));
    Places places;
    const Status status = connection->ask(
        NodeOp::kLease, until,
        [&](WireWriter& writer) { encode_keys(writer, index, kLeaseReadNow, part); },
        [&](WireReader reader) {
          return decode(reader, places, connection->place_bounds()) &&
                 places.places.size() == part.size();
        });
    if (!status.ok()) return fail_from(first, status, codes);
    RefsRequest leased;
    for (size_t i = 0; i < part.size(); ++i) {
      Code& code = codes[first + i];
      const Place& place = places.places[i];
      code = place.code;
      if (code != Code::kOk) continue;
      leased.refs.push_back(place.ref);
      code = look(*connection, first + i, place, places.extents_of(place));
    }
    notify_refs(*connection, NodeOp::kRelease, leased, until);
  }
}

void Client::sizes(size_t name_space, std::span<const Key> keys, std::vector<uint64_t>& sizes,
                   std::vector<Code>& codes) {
  sizes.assign(keys.size(), 0);
  look_at(
      name_space, keys,
      [&](ClientConnection&, size_t index, const Place& place, std::span<const Extent>) {
        sizes[index] = place.size;
        return Code::kOk;
      },
      codes);
}

void Client::heads(size_t name_space, std::span<const Key> keys, HeadsOptions options,
                   std::vector<std::vector<uint8_t>>& heads, std::vector<Code>& codes) {
  heads.assign(keys.size(), {});
  std::vector<size_t> read_whole;
  const auto copy = [&](ClientConnection& connection, size_t index, const Place& place,
                        std::span<const Extent> extents) {
    if (place.device != 0) {
      read_whole.push_back(index);
      return Code::kOk;
    }
    std::vector<uint8_t>& head = heads[index];
    for (const Extent& extent : extents) {
      const uint64_t size = std::min(extent.size, options.size_max - head.size());
      if (size == 0) break;
      if (!connection.back(extent.offset, size, SharedMemory::Access::kRead)) {
        return Code::kUnavailable;
      }
      const uint8_t* begin = connection.pool() + extent.offset;
      head.insert(head.end(), begin, begin + size);
    }
    return Code::kOk;
  };
  look_at(name_space, keys, copy, codes);
  for (size_t i = 0; options.are_elsewhere && i < keys.size(); ++i) {
    if (codes[i] == Code::kNotFound) read_whole.push_back(i);
  }
  for (const size_t index : read_whole) {
    std::vector<Code> code;
    std::vector<uint8_t>& head = heads[index];
    get(
        name_space, keys.subspan(index, 1),
        [&](size_t, uint64_t size, std::vector<MemorySegment>& segments) {
          head.resize(size);
          segments.push_back({head.data(), size});
          return true;
        },
        code);
    codes[index] = code.front();
    const bool is_there = codes[index] == Code::kOk;
    head.resize(is_there ? std::min<uint64_t>(head.size(), options.size_max) : 0);
    head.shrink_to_fit();
    if (codes[index] != Code::kNotFound || !options.are_elsewhere) continue;
    // Who did not get it in time is to know that it is there.
    lookup(name_space, keys.subspan(index, 1), {false, false}, code);
    if (code.front() != Code::kNotFound) codes[index] = Code::kBusy;
  }
}

}  // namespace hicache
