// The peers of an engine, found by id.
//
// A slot is taken while a peer is being opened, open, or closed with batches that nobody has
// released yet. Ids are a slot and a generation: bogus and old ones find nothing. Peers leave here
// as pointers, so that a peer never ends under somebody who uses it.
//
// Threads: any. Nothing here blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "transfer/peer.h"

namespace hicache {

class PeerSlots {
 public:
  static constexpr size_t kPeersMax = 1 << 16;

  /// A new id for a peer that is about to be opened; 0: there are kPeersMax.
  SegmentId reserve(uint32_t generation);
  /// The opening failed.
  void abandon(SegmentId id);
  /// The opening is over. If meanwhile somebody else opened the same address, his is counted once
  /// more and returned, and `peer` is not taken.
  SegmentId insert(SegmentId id, std::shared_ptr<Peer>& peer);
  /// A living, open peer with this address, counted as opened once more; 0 if there is none. Lost
  /// ones of that address count as closed from now on.
  SegmentId reopen(const std::string& address);
  /// Counts down; the peer, if that was the last time. Its batches can still be found.
  std::shared_ptr<Peer> close(SegmentId id);

  std::shared_ptr<Peer> find(SegmentId id) const;
  /// A batch's id and its peer, closed or not.
  static BatchId batch_id(SegmentId id, BatchKey key);
  std::pair<std::shared_ptr<Peer>, BatchKey> find_batch(BatchId id) const;

  /// Peers whose slots are free again: closed, and without batches.
  std::vector<std::shared_ptr<Peer>> reap();
  std::vector<std::shared_ptr<Peer>> all() const;

 private:
  struct Slot {
    SegmentId id = 0;  // 0: free.
    size_t opened = 0;
    std::shared_ptr<Peer> peer;  // Null: being opened.
  };
  static size_t index_of(SegmentId id) { return id % kPeersMax; }
  SegmentId reopen_locked(const std::string& address);

  mutable std::shared_mutex mutex_;
  std::vector<Slot> slots_;
};

}  // namespace hicache
