// What nodes say to each other, and its codecs: the part of the clients' protocol (messages.h) that
// needs no memory in common.
//
// Hello, Lookup, Lease, Release, ReportCorrupt, Remove, Copy and List, in frames with a seal
// (directory/frame_pipe.h). A namespace is named by its digest, so that nothing is kept of a peer
// but its leases, and asking for one makes none; a Copy, which brings pages, may. A reply of Lease
// places pages in the pool alone: bytes in files are for who is on the same machine. Everything
// else is refused, and so is a payload that does not decode exactly: the connection is closed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "net/wire.h"
#include "store/messages.h"

namespace hicache {

inline constexpr size_t kPeerKeysMax = 16384;
inline constexpr size_t kPeerRequestSizeMax = 1 * kMiB;
inline constexpr size_t kPeerReplySizeMax = 15 * kMiB;
inline constexpr size_t kPeerTextSizeMax = 256;
/// Where a pool may lie: user addresses of every machine that serves.
inline constexpr uint64_t kPoolAddressMax = uint64_t{1} << 57;

struct PeerHello {
  std::string name;  // Of who asks, for people.
};

struct PeerHelloReply {
  uint64_t incarnation = 0;
  uint64_t pool_address = 0;  // As its transfer engine has it registered.
  uint64_t pool_size_bytes = 0;
  std::string engine_address;  // "host:port" of that engine.
};

/// Of Lookup (kLookupLease), Lease and Remove.
struct PeerKeysRequest {
  NamespaceDigest digest;
  uint8_t flags = 0;
  std::vector<Key> keys;
};

/// Asks for copies of pages that the asker has. Whoever is asked reads them from where the
/// directory says they are, as it would for a client. The reply has a code for each: kOk: it will
/// be tried; kAlreadyExists; kNoSpace; kBusy: not now.
struct PeerCopyRequest {
  NamespaceDigest digest;
  std::string description;  // Of the namespace, for whom it is new.
  bool may_evict = false;   // Pages that are worth more than the least of what is there.
  uint64_t size_bytes = 0;  // Of all of them.
  std::vector<Key> keys;
  std::vector<Key> parents;  // As many; kNoParent: none, or not known.
};
inline constexpr Key kNoParent{};

/// Some of the pages that the peer has, as ListRequest says: of its own alone. The reply is a
/// ListReply with the first bytes of those that are in memory.
struct PeerListRequest {
  NamespaceDigest digest;
  uint64_t cursor = 0;
};

void encode(WireWriter& writer, const PeerHello& message);
void encode(WireWriter& writer, const PeerHelloReply& message);
void encode(WireWriter& writer, const PeerKeysRequest& message);
void encode(WireWriter& writer, const PeerCopyRequest& message);
void encode(WireWriter& writer, const PeerListRequest& message);

/// False for a payload that is not exactly such a message, or is beyond a bound.
bool decode(WireReader reader, PeerHello& message);
bool decode(WireReader reader, PeerHelloReply& message);
bool decode(WireReader reader, PeerKeysRequest& message);
bool decode(WireReader reader, PeerCopyRequest& message);
bool decode(WireReader reader, PeerListRequest& message);

}  // namespace hicache
