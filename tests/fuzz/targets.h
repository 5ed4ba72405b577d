// What the fuzzers call: everything that parses bytes which another process sent, or a disk. Each
// target may read what it is given or refuse it; it must not crash, and not allocate for what is
// not there.
#pragma once

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "directory_targets.h"
#include "net/frame.h"
#include "peer_targets.h"
#include "rdma_targets.h"
#include "store/messages.h"
#include "store/page_store.h"
#include "tcp_targets.h"
#include "tier/ssd_format.h"
#include "transfer/segment.h"

namespace hicache::fuzz {

using Input = std::span<const uint8_t>;

inline void require(bool condition) {
  if (!condition) std::abort();
}

inline void frame_header(Input input) {
  if (input.size() < kFrameHeaderSize) return;
  const auto header = decode_frame_header(input.first<kFrameHeaderSize>());
  if (header.ok()) require(header.value().payload_size <= kPayloadSizeMax);
}

/// What an engine reads of a peer's memory.
inline void segment(Input input) {
  const Result<SegmentDescriptor> read = decode_segment(input);
  if (!read.ok()) return;
  const std::vector<uint8_t> bytes = encode_segment(read.value());
  require(std::equal(bytes.begin(), bytes.end(), input.begin(), input.end()));
  for (const BufferDescriptor& buffer : read.value().buffers) {
    require(read.value().find(buffer.address, buffer.size) == &buffer);
  }
}

template <typename Message>
void decode_again(Input input) {
  Message message{};
  if (!decode(WireReader(input), message)) return;
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, message);
  Message again{};
  require(bytes.size() == input.size() && decode(WireReader(bytes), again));
}

/// What a node reads. The first byte chooses the message.
inline void requests(Input input) {
  if (input.empty()) return;
  const Input payload = input.subspan(1);
  switch (input[0] % 6) {
    case 0:
      return decode_again<HelloRequest>(payload);
    case 1:
      return decode_again<OpenNamespaceRequest>(payload);
    case 2:
      return decode_again<RefsRequest>(payload);
    case 3:
      return decode_again<ReserveRequest>(payload);
    case 4:
      return decode_again<CommitRequest>(payload);
    default:
      break;
  }
  KeysRequest keys;
  if (decode(WireReader(payload), keys)) require(keys.keys.size() <= kBatchCountMax);
}

/// What a client reads.
inline void replies(Input input) {
  if (input.empty()) return;
  const Input payload = input.subspan(1);
  switch (input[0] % 3) {
    case 0:
      return decode_again<HelloReply>(payload);
    case 1:
      return decode_again<OpenNamespaceReply>(payload);
    default:
      break;
  }
  std::vector<Code> codes;
  if (!decode_codes(WireReader(payload), codes)) return;
  for (const Code code : codes) require(static_cast<uint8_t>(code) < kCodeCount);
}

/// Places: what a client will read from and write to.
inline void places(Input input) {
  constexpr uint64_t kPool = 64 * kMiB;
  constexpr uint8_t kFiles = 2;
  Places places;
  if (!decode(WireReader(input), places, {kPool, kFiles})) return;
  for (const Place& place : places.places) {
    uint64_t size = 0;
    require(place.device <= kFiles && (place.device == 0 || place.extents_count == 1));
    const uint64_t end = place.device == 0 ? kPool : kFileSizeMax;
    for (const Extent& extent : places.extents_of(place)) {
      require(extent.offset <= end && extent.size <= end - extent.offset);
      require(place.device == 0 || extent.offset % kSectorSize == 0);
      size += extent.size;
    }
    require(place.code != Code::kOk || (size == place.size && size != 0));
  }
}

/// A page store driven by requests that decoded: what hostile but well-formed clients can do to it.
class StoreDriver {
 public:
  StoreDriver()
      : store_({.capacity_bytes = kPool,
                .eviction = EvictionKind::kAdaptive,
                .seed = 1,
                .read_lease_ttl_ms = 50,
                .lookup_lease_ttl_ms = 20,
                .lookup_lease_share = 0.5,
                .hard_pin_share = 0.5,
                .reservation_ttl_ms = 100,
                .grow = nullptr}) {
    store_.add_memory(0, kPool);
    for (SessionIndex& session : sessions_) session = store_.open_session();
    for (uint8_t i = 0; i < 2; ++i) {
      NamespaceDigest digest;
      digest.bytes.fill(i);
      (void)store_.open_namespace(digest, "");
    }
  }

  void run(Input input) {
    while (input.size() >= 8) {
      step(input.first<8>());
      input = input.subspan(8);
    }
    require(store_.check_invariants().empty());
  }

 private:
  static constexpr uint64_t kPool = 4 * kMiB;

  void step(std::span<const uint8_t, 8> bytes) {
    const SessionIndex session = sessions_[bytes[1] % sessions_.size()];
    const NamespaceIndex space = bytes[2] % 2;
    Key key;
    key.bytes.fill(bytes[3] % 16);
    const PageRef ref{static_cast<PageIndex>(bytes[3] % 32), static_cast<uint32_t>(bytes[4])};
    now_ms_ += bytes[7] % 8;
    std::vector<Code> codes;
    std::vector<PageStore::Location> locations;
    std::vector<PageStore::Placement> placements;
    // From one byte to nearly 2^64: every power of two and its neighbours.
    const uint64_t size = std::max<uint64_t>(1, (uint64_t{1} << (bytes[5] % 64)) + bytes[6] - 1);
    const auto pin = static_cast<Pin>(bytes[6] % kPinCount);
    switch (bytes[0] % 12) {
      case 0:
        return store_.lookup(session, space, {&key, 1}, {bytes[5] % 2 == 0, true}, now_ms_, codes);
      case 1:
        return store_.lease(session, space, {&key, 1}, false, now_ms_, locations);
      case 2:
        return store_.release(session, {&ref, 1}, now_ms_);
      case 3:
      case 4:
        store_.reserve(session, space, {&key, 1}, {&size, 1},
                       {bytes[4] % 2 == 0 ? &key : nullptr, false, bytes[4] % 3 == 0, pin}, now_ms_,
                       placements);
        return;
      case 5:
      case 6:
        (void)store_.commit(session, ref, size, {bytes[5] % 2 == 0 ? size : 0, bytes[6] % 2 == 0},
                            now_ms_);
        return;
      case 7:
        return store_.abort(session, ref);
      case 8:
        (void)store_.remove(space, key);
        return;
      case 9:
        (void)store_.set_pin(space, key, pin, now_ms_);
        return;
      case 10:
        return store_.report_corrupt(ref);
      default:
        break;
    }
    if (bytes[5] % 4 == 0) {
      (void)store_.clear(space);
    } else {
      store_.close_session(session, now_ms_);
      sessions_[bytes[1] % sessions_.size()] = store_.open_session();
    }
  }

  PageStore store_;
  std::array<SessionIndex, 3> sessions_{};
  uint64_t now_ms_ = 1000;
};

inline void store(Input input) {
  StoreDriver().run(input);
}

/// As many bytes as asked for: those of the input, then zeros.
inline std::vector<uint8_t> filled(Input input, size_t size) {
  std::vector<uint8_t> bytes(input.begin(),
                             input.begin() + static_cast<ptrdiff_t>(std::min(input.size(), size)));
  bytes.resize(size);
  return bytes;
}

inline void put_checksum(std::span<uint8_t> target, Input source) {
  const uint64_t checksum = XXH3_64bits(source.data(), source.size());
  std::memcpy(target.data(), &checksum, sizeof(checksum));
}

/// The checksum of a group's or a footer's sector, so that what it covers is looked at, too.
inline LogId seal_sector(std::span<uint8_t> sector) {
  std::fill_n(sector.begin() + 8, 8, uint8_t{0});
  put_checksum(sector.subspan(8, 8), sector);
  LogId log_id;
  std::memcpy(log_id.data(), sector.data() + 16, log_id.size());
  return log_id;
}

inline void ssd_superblock(Input input) {
  std::vector<uint8_t> bytes = filled(input, kSectorSize);
  put_checksum(std::span(bytes).subspan(48, 8), std::span(bytes).first(48));
  const auto superblock = decode_superblock(Sector(bytes));
  if (!superblock.ok()) return require(!superblock.status().message().empty());
  std::vector<uint8_t> again(kSectorSize);
  encode(superblock.value(), MutableSector(again));
  require(again == bytes);
}

inline void ssd_group(Input input) {
  constexpr uint64_t kRegionSize = kMiB;
  std::vector<uint8_t> bytes = filled(input, kSectorSize);
  const LogId log_id = seal_sector(bytes);
  const uint32_t first_sector = bytes[40];  // The number of the group.
  GroupHeader header;
  if (!decode(log_id, Sector(bytes), first_sector, kRegionSize, header)) return;
  for (const SsdEntry& entry : header.entries) {
    require((entry.first_sector + sectors_of(entry.size)) * kSectorSize <= kRegionSize);
  }
  std::vector<uint8_t> again(kSectorSize);
  encode(log_id, header, MutableSector(again));
  require(again == bytes);
}

/// 64 bytes of a footer, then its entries.
inline void ssd_footer(Input input) {
  constexpr uint64_t kRegionSize = kMiB;
  std::vector<uint8_t> sector =
      filled(input.first(std::min<size_t>(input.size(), 64)), kSectorSize);
  RegionFooter footer;
  LogId log_id = seal_sector(sector);
  if (!decode(log_id, Sector(sector), kRegionSize, footer)) return;
  const uint64_t size = (footer_sectors(footer.entry_count) - 1) * kSectorSize;
  require(size + footer.sector_count * kSectorSize < kRegionSize);
  std::vector<uint8_t> bytes = filled(input.subspan(std::min<size_t>(input.size(), 64)), size);
  put_checksum(std::span(sector).subspan(48, 8), bytes);
  log_id = seal_sector(sector);
  std::vector<SsdEntry> entries;
  require(decode(log_id, Sector(sector), kRegionSize, footer));
  if (!decode_entries(footer, bytes, entries)) return;
  require(entries.size() == footer.entry_count);
  std::vector<uint8_t> again(size + kSectorSize);
  encode_footer(log_id, footer.region_sequence, footer.sector_count, entries, again);
  require(std::equal(bytes.begin(), bytes.end(), again.begin()) &&
          std::equal(sector.begin(), sector.end(), again.end() - kSectorSize));
}

/// What a restart reads from a disk. The first byte chooses the sector.
inline void ssd_format(Input input) {
  if (input.empty()) return;
  const Input bytes = input.subspan(1);
  switch (input[0] % 3) {
    case 0:
      return ssd_superblock(bytes);
    case 1:
      return ssd_group(bytes);
    default:
      return ssd_footer(bytes);
  }
}

struct Target {
  const char* name;
  void (*run)(Input);
};

inline constexpr std::array kTargets = {
    Target{"frame_header", frame_header},
    Target{"segment", segment},
    Target{"requests", requests},
    Target{"replies", replies},
    Target{"places", places},
    Target{"store", store},
    Target{"ssd_format", ssd_format},
    Target{"tcp_frame", tcp_frame},
    Target{"tcp_stream", tcp_stream},
    Target{"directory_messages", directory_messages},
    Target{"directory_core", directory_core},
    Target{"rdma_wire", rdma_wire},
    Target{"peer_messages", peer_messages},
};

}  // namespace hicache::fuzz
