// One well-formed payload of every message, and how to read and write it again.
#pragma once

#include <xxhash.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "net/frame.h"
#include "store/messages.h"
#include "store/peer_messages.h"
#include "support.h"

namespace hicache::testing {

inline constexpr PlaceBounds kSampleBounds{64 * kMiB, 2};

struct Sample {
  std::string name;
  std::vector<uint8_t> bytes;
  /// Empty when the payload is refused.
  std::function<std::optional<std::vector<uint8_t>>(const std::vector<uint8_t>&)> decode_and_encode;
};

template <typename Message>
Sample sample_of(std::string name, const Message& message) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, message);
  return {std::move(name), bytes,
          [](const std::vector<uint8_t>& given) -> std::optional<std::vector<uint8_t>> {
            Message read{};
            if (!decode(WireReader(given), read)) return std::nullopt;
            std::vector<uint8_t> again;
            WireWriter again_writer(again);
            encode(again_writer, read);
            return again;
          }};
}

inline Sample keys_sample() {
  const std::vector<Key> keys = keys_of(0, 3);
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode_keys(writer, 4, kLookupLease, keys, 500);
  return {"keys", bytes,
          [](const std::vector<uint8_t>& given) -> std::optional<std::vector<uint8_t>> {
            KeysRequest read;
            if (!decode(WireReader(given), read)) return std::nullopt;
            std::vector<uint8_t> again;
            WireWriter again_writer(again);
            encode_keys(again_writer, read.index, read.flags, read.keys, read.patience_ms);
            return again;
          }};
}

inline PageStore::Location location_of(Code code, PageRef ref, uint64_t size, uint64_t checksum,
                                       uint8_t device, std::span<const Extent> extents) {
  PageStore::Location location;
  location.code = code;
  location.ref = ref;
  location.size = size;
  location.checksum = checksum;
  location.device = device;
  location.extents = extents;
  return location;
}

inline Sample places_sample() {
  const std::vector<Extent> one{{kMiB, 100'000}};
  const std::vector<Extent> two{{0, kSlotSize}, {5 * kMiB, 77}};
  const std::vector<Extent> in_file{{7 * kSectorSize, 3 * kMiB + 1}};
  const std::vector<PageStore::Location> locations{
      location_of(Code::kOk, {3, 9}, 100'000, 0x1234, 0, one),
      location_of(Code::kNotFound, {kNoPage, 0}, 0, 0, 0, {}),
      location_of(Code::kOk, {4, 1}, kSlotSize + 77, 0x5678, 0, two),
      location_of(Code::kNoSpace, {kNoPage, 0}, 0, 0, 0, {}),
      location_of(Code::kOk, {5, 2}, 3 * kMiB + 1, 0x9ABC, 2, in_file),
  };
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode_locations(writer, locations);
  return {
      "places", bytes,
      [](const std::vector<uint8_t>& given) -> std::optional<std::vector<uint8_t>> {
        Places read;
        if (!decode(WireReader(given), read, kSampleBounds)) return std::nullopt;
        std::vector<PageStore::Location> again_locations;
        for (const Place& place : read.places) {
          again_locations.push_back(location_of(place.code, place.ref, place.size, place.checksum,
                                                place.device, read.extents_of(place)));
        }
        std::vector<uint8_t> again;
        WireWriter again_writer(again);
        encode_locations(again_writer, again_locations);
        return again;
      }};
}

inline Sample codes_sample() {
  const std::vector<Code> codes{Code::kOk, Code::kNotFound, Code::kInternal};
  std::vector<uint8_t> bytes;
  WireWriter(bytes).put_array(std::span<const Code>(codes));
  return {"codes", bytes,
          [](const std::vector<uint8_t>& given) -> std::optional<std::vector<uint8_t>> {
            std::vector<Code> read;
            if (!decode_codes(WireReader(given), read)) return std::nullopt;
            std::vector<uint8_t> again;
            WireWriter(again).put_array(std::span<const Code>(read));
            return again;
          }};
}

inline std::vector<Sample> samples() {
  return {
      sample_of("hello", HelloRequest{"rank 0"}),
      sample_of("hello_reply", HelloReply{77, 64 * kMiB, 2}),
      sample_of("open_namespace", OpenNamespaceRequest{key_of(1), "{\"model\": \"m\"}"}),
      sample_of("open_namespace_reply", OpenNamespaceReply{Code::kNoSpace, 3, "too many"}),
      sample_of("refs", RefsRequest{{{1, 2}, {3, 4}}}),
      sample_of("reserve", ReserveRequest{7,
                                          kReserveParent | kReserveChained,
                                          Pin::kSoft,
                                          11,
                                          key_of(5),
                                          keys_of(6, 2),
                                          {4096, 12345}}),
      sample_of("commit", CommitRequest{60'000,
                                        1,
                                        {{{1, 2}, 99, WriteOutcome::kWritten},
                                         {{3, 4}, 0, WriteOutcome::kUnbacked}},
                                        500,
                                        3}),
      sample_of("clear_reply", ClearReply{Code::kTimeout, 12}),
      sample_of("list", ListRequest{3, kListMembers | 7, 500}),
      sample_of("list_reply", ListReply{Code::kOk, 9, keys_of(0, 3), {}, {}}),
      sample_of("list_reply_with_heads",
                ListReply{Code::kOk, kListEnd, keys_of(0, 3), {2, 0, 1}, {7, 8, 9}}),
      sample_of("peer_list", PeerListRequest{key_of(9), kListMembers - 1}),
      keys_sample(),
      places_sample(),
      codes_sample(),
  };
}

/// A header with a right check, as a peer that knows the protocol and means ill would send it.
inline std::vector<uint8_t> frame_header(uint16_t op, uint32_t payload_size,
                                         uint64_t request_id = 1) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  end_frame(frame, op, request_id);
  const uint32_t zero = 0;
  std::memcpy(frame.data() + 8, &payload_size, sizeof(payload_size));
  std::memcpy(frame.data() + 12, &zero, sizeof(zero));
  const auto check = static_cast<uint32_t>(XXH3_64bits(frame.data(), kFrameHeaderSize));
  std::memcpy(frame.data() + 12, &check, sizeof(check));
  return frame;
}

}  // namespace hicache::testing
