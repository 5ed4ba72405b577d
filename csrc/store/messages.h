// Every message between a client and its node, field by field, and their codecs.
//
// A reply carries its request's op with kReplyBit and its request id. `Release` and `ReportCorrupt`
// have no reply. A payload that does not decode exactly is hostile: the connection is closed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "net/wire.h"
#include "store/page_record.h"
#include "store/page_store.h"

namespace hicache {

enum class NodeOp : uint16_t {
  kHello = 1,
  kOpenNamespace = 2,
  kLookup = 3,
  kLease = 4,
  kRelease = 5,
  kReserve = 6,
  kCommit = 7,
  kRemove = 8,
  kClear = 9,
  kSetPin = 10,
  kReportCorrupt = 11,
  kStats = 12,
  kStop = 13,
  kList = 14,
  kCopy = 15,  // Of peers alone.
};
inline constexpr size_t kOpCount = 16;  // One more than the largest, so that ops index arrays.
inline constexpr uint16_t kReplyBit = 0x8000;

/// "lookup", "lease" …: the label of metrics; empty for what is not an op.
std::string_view op_name(NodeOp op);

/// Pages of one request. Larger batches are the caller's to split.
inline constexpr size_t kBatchCountMax = 65536;
/// Of one request of ours: as many as a node asks others about at a time. Those beyond are looked
/// for here alone, and a removal of them is kUnavailable where there are other nodes.
inline constexpr size_t kAskedCountMax = 16384;
inline constexpr size_t kDescriptionSizeMax = 4096;
inline constexpr size_t kClientNameSizeMax = 256;
inline constexpr size_t kExtentCountMax = 1 << 20;

struct HelloRequest {
  std::string client_name;
  uint64_t pool_contribution_bytes = 0;  // What the pool is to have on this client's behalf.
};
/// The pool's descriptor travels with it, and after it those of the node's SSD files, which clients
/// read past the page cache.
struct HelloReply {
  uint64_t incarnation;
  uint64_t pool_size_bytes;  // Of the file: with what it can grow by.
  uint8_t file_count;
};
inline constexpr size_t kHelloReplySize = 17;
inline constexpr uint8_t kSsdFilesMax = 16;

struct OpenNamespaceRequest {
  NamespaceDigest digest;
  std::string description;
};
struct OpenNamespaceReply {
  Code code;
  NamespaceIndex index;
  std::string message;
};

/// `patience_ms` of what must be on a disk before it is answered: answered kTimeout after that
/// time, where the disk hangs. It is done then, but a restart may undo it. 0: answered when it is
/// there. Of Lease: how long it may wait for pages that other nodes have; 0: it does not.
inline constexpr uint32_t kPatient = 0;

/// Of Lookup, Lease, Remove, Clear (no keys) and SetPin.
struct KeysRequest {
  NamespaceIndex index = 0;
  uint8_t flags = 0;  // Lookup: kLookupLease | kLookupPrefix | kLookupResident. Lease:
                      // kLeaseReadNow | kLeaseParts. SetPin: the Pin.
  std::vector<Key> keys;
  uint32_t patience_ms = kPatient;
};
inline constexpr uint8_t kLookupLease = 1;
inline constexpr uint8_t kLookupPrefix = 2;
/// Only what is in the pool counts, answered without waiting for anybody; what is on SSD or on
/// other nodes is brought there meanwhile. With kLookupLease, what cannot be leased does not count.
inline constexpr uint8_t kLookupResident = 4;
/// A page that is on its way from an SSD file to the pool is answered with its place in the file,
/// not with kBusy.
inline constexpr uint8_t kLeaseReadNow = 1;
/// Many bytes from other nodes are answered in parts: those that are here, and kBusy for the rest,
/// which goes on coming while the client copies and then asks for it again.
inline constexpr uint8_t kLeaseParts = 2;

/// Of Release and ReportCorrupt.
struct RefsRequest {
  std::vector<PageRef> refs;
};

struct ReserveRequest {
  NamespaceIndex index = 0;
  uint8_t flags = 0;
  Pin pin = Pin::kNone;
  SpaceIndex space = kAnySpace;  // Other than in this life of the namespace: all kCancelled.
  Key parent;                    // Meaningful with kReserveParent.
  std::vector<Key> keys;
  std::vector<uint64_t> sizes;
};
inline constexpr uint8_t kReserveParent = 1;
inline constexpr uint8_t kReserveChained = 2;
inline constexpr uint8_t kReserveReplace = 4;
inline constexpr uint8_t kReserveMayWait = 8;  // See PageStore::ReserveOptions.
/// The first page was kBusy before. Without kReserveMayWait: it has waited in vain.
inline constexpr uint8_t kReserveAgain = 16;

/// Where one page lies or may be written, as a client sees it.
struct Place {
  Code code = Code::kNotFound;
  PageRef ref{kNoPage, 0};
  uint64_t size = 0;
  uint64_t checksum = 0;
  uint8_t device = 0;          // 0: the pool. n: the n-th file of the hello, in one extent.
  uint32_t extents_begin = 0;  // In Places::extents.
  uint32_t extents_count = 0;
};

/// Reply of Lease and Reserve. One flat array of extents: a batch costs two allocations.
struct Places {
  SpaceIndex space = kAnySpace;  // The namespace's life, of Reserve.
  std::vector<Place> places;
  std::vector<Extent> extents;

  std::span<const Extent> extents_of(const Place& place) const {
    return std::span(extents).subspan(place.extents_begin, place.extents_count);
  }
};

/// What a client made of a reservation. kUnbacked: the machine has no memory for its place.
enum class WriteOutcome : uint8_t { kDropped = 0, kWritten = 1, kUnbacked = 2 };
inline constexpr uint64_t kWriteOutcomeCount = 3;

struct CommitItem {
  PageRef ref;
  uint64_t checksum;
  WriteOutcome outcome;
};
struct CommitRequest {
  uint64_t ttl_ms = 0;
  uint8_t replace = 0;
  std::vector<CommitItem> items;
  uint32_t patience_ms = kPatient;
  uint8_t replica_count = 1;  // That the cluster should have: 1 … kReplicaCountMax.
};
struct ClearReply {
  Code code;
  uint64_t page_count;
};

/// Pages of a namespace, in no order, a piece at a time: `cursor` is 0 at first, then what the
/// reply says, until that is kListEnd. First the node's own pages, then those of each other member
/// of its cluster. What stays at one of them all the while is listed, once or more often; a piece
/// may be empty.
struct ListRequest {
  NamespaceIndex index = 0;
  uint64_t cursor = 0;
  uint32_t patience_ms = kPatient;  // How long it may wait for another node.
};
inline constexpr uint64_t kListEnd = UINT64_MAX;
/// Cursors from here on are of other members: their place in the directory, and one, is above
/// these bits, and the member's own cursor in them.
inline constexpr int kListMemberShift = 48;
inline constexpr uint64_t kListMembers = uint64_t{1} << kListMemberShift;
/// Of one page's first bytes in a reply.
inline constexpr size_t kListHeadSizeMax = 512;
inline constexpr size_t kListHeadsMax = 4096;  // Pages of a reply that has such.

/// kUnavailable: some member, or the directory, did not answer; what it has is not known.
struct ListReply {
  Code code = Code::kOk;
  uint64_t cursor = kListEnd;
  std::vector<Key> keys;
  // The first bytes of each page, one after the other; of size 0 where it is not in memory. No
  // sizes at all: the pages are this node's own, and the client reads for itself.
  std::vector<uint16_t> head_sizes;
  std::vector<uint8_t> heads;
};

void encode(WireWriter& writer, const HelloRequest& message);
void encode(WireWriter& writer, const HelloReply& message);
void encode(WireWriter& writer, const OpenNamespaceRequest& message);
void encode(WireWriter& writer, const OpenNamespaceReply& message);
void encode_keys(WireWriter& writer, NamespaceIndex index, uint8_t flags, std::span<const Key> keys,
                 uint32_t patience_ms = kPatient);
void encode(WireWriter& writer, const RefsRequest& message);
void encode(WireWriter& writer, const ReserveRequest& message);
void encode(WireWriter& writer, const CommitRequest& message);
void encode(WireWriter& writer, const ClearReply& message);
void encode(WireWriter& writer, const ListRequest& message);
void encode(WireWriter& writer, const ListReply& message);
void encode_locations(WireWriter& writer, std::span<const PageStore::Location> locations);
void encode_placements(WireWriter& writer, SpaceIndex space,
                       std::span<const PageStore::Placement> placements);

/// False for a payload that is not exactly such a message, or is beyond a bound.
bool decode(WireReader reader, HelloRequest& message);
bool decode(WireReader reader, HelloReply& message);
bool decode(WireReader reader, OpenNamespaceRequest& message);
bool decode(WireReader reader, OpenNamespaceReply& message);
bool decode(WireReader reader, KeysRequest& message);
bool decode(WireReader reader, RefsRequest& message);
bool decode(WireReader reader, ReserveRequest& message);
bool decode(WireReader reader, CommitRequest& message);
bool decode(WireReader reader, ClearReply& message);
bool decode(WireReader reader, ListRequest& message);
bool decode(WireReader reader, ListReply& message);

/// What a client may be pointed to.
struct PlaceBounds {
  uint64_t pool_size_bytes;
  uint8_t file_count;
};
/// Of a page in a file: more than fits is not believed.
inline constexpr uint64_t kFilePageSizeMax = 4 * kGiB;
inline constexpr uint64_t kFileSizeMax = uint64_t{1} << 60;

/// Also refuses places that do not lie inside the pool or whose extents do not add up, and places
/// of a file that are not one extent which begins on a sector.
bool decode(WireReader reader, Places& message, const PlaceBounds& bounds);
bool decode_codes(WireReader reader, std::vector<Code>& codes);

}  // namespace hicache
