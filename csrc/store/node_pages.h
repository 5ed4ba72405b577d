// The pages of a node as those see them who ask for some, whichever tier they are in: what is
// removed leaves them all, what is leased is given back to where it lies, what is lacking here is
// asked for elsewhere. It knows no sockets.
//
// Threads: the node's alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/page_store.h"
#include "store/peer_messages.h"
#include "store/remote_tier.h"
#include "store/ssd_tier.h"

namespace hicache {

class NodePages {
 public:
  struct Counts {
    uint64_t peer_leased_pages = 0;
    uint64_t peer_leased_bytes = 0;
  };

  /// It outlives this, and so does what is set.
  explicit NodePages(PageStore& store) : store_(store) {}
  void set_ssd(SsdTier& ssd) { ssd_ = &ssd; }
  void set_remote(RemoteTier& remote) { remote_ = &remote; }

  /// `ticket` becomes that of the SSD tier, if that is later.
  Code remove(NamespaceIndex index, const Key& key, uint64_t& ticket);
  /// Returns how many pages there were.
  uint64_t clear(NamespaceIndex index, uint64_t& ticket);
  void release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms);
  void report_corrupt(std::span<const PageRef> refs);
  /// Appends keys of this node's pages, looking at `count_max` records. Returns the next cursor.
  uint64_t list(NamespaceIndex index, uint64_t cursor, size_t count_max, uint64_t now_ms,
                std::vector<Key>& keys) const;

  // --- for peers, who name a namespace by its digest
  void lookup_for_peer(SessionIndex session, const PeerKeysRequest& request, uint64_t now_ms,
                       std::vector<Code>& codes);
  /// Writes places in the pool. kBusy: it is on its way there.
  void lease_for_peer(SessionIndex session, const PeerKeysRequest& request, uint64_t now_ms,
                      WireWriter& writer);
  /// kOk: a copy is to come; kNoSpace, kBusy: none will; kAlreadyExists.
  void copy_for_peer(NamespaceIndex index, const PeerCopyRequest& request, uint64_t now_ms,
                     std::vector<Code>& codes);
  void remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes);
  /// `pool`: where the store's offsets begin.
  void list_for_peer(const PeerListRequest& request, const uint8_t* pool, uint64_t now_ms,
                     ListReply& reply) const;

  // --- for clients, where there are peers to ask

  /// What to ask peers for, of what was asked for here; no keys: nothing lacks. `flags` are those
  /// of a look-up, without any for a get. `missing`: which of the keys.
  RemoteTier::Question question_of(SessionIndex session, NamespaceIndex index,
                                   std::span<const Key> keys, uint8_t flags, uint64_t now_ms,
                                   std::vector<uint32_t>& missing) const;
  /// Of a look-up: what is here, and of what was missing that which peers have.
  void lookup(SessionIndex session, NamespaceIndex index, std::span<const Key> keys, uint8_t flags,
              std::span<const uint32_t> missing, std::span<const uint8_t> found, uint64_t now_ms,
              std::vector<Code>& codes);

  const Counts& counts() const { return counts_; }

 private:
  void add_head(SpaceIndex space, const Key& key, const uint8_t* pool, ListReply& reply) const;
  uint64_t room_for_copies(NamespaceIndex index) const;

  PageStore& store_;
  SsdTier* ssd_ = nullptr;        // Null: none.
  RemoteTier* remote_ = nullptr;  // Likewise.
  std::vector<PageStore::Location> locations_;
  Counts counts_;
};

}  // namespace hicache
