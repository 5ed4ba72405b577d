// Keys to the memory of a peer, as its descriptor tells them. All paths to the peer share them.
//
// Threads: immutable once made.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "transfer/rdma/op_queue.h"
#include "transfer/rdma/rdma_wire.h"
#include "transfer/segment.h"

namespace hicache {

class PeerKeys {
 public:
  /// Buffers without a key, or with one that is malformed, are not reachable.
  explicit PeerKeys(const SegmentDescriptor& peer);

  /// For a range on one of the peer's rails. kInvalidArgument: the peer has not registered it, or
  /// allows no writing. kNotFound: not with that rail. kUnsupported: with none (memory of a GPU,
  /// say).
  Result<KeyedRange> find(BufferId id, size_t rail, uint64_t address, uint64_t size,
                          bool writes) const;

 private:
  struct Entry {
    uint64_t address;
    uint64_t size;
    bool remote_write;
    std::map<size_t, KeyedRange> rails;
  };

  std::map<BufferId, Entry> entries_;
  std::set<BufferId> others_;  // All that the peer has registered, in any way.
};

}  // namespace hicache
