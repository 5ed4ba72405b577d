// Which nodes have which pages: the large part of the directory.
//
// A page has one replica for each node that has it; replicas belong to *holdings*. A holding is
// what one node has in one namespace, as of one announcement. All of a node's pages, or of a
// namespace's, vanish at once: their holdings are closed. Replicas of a closed holding are skipped
// from then on, and swept away in bounded steps.
//
// A page costs 48 bytes and its share of the hash table (11 to 21), a further replica 12. Keys are
// kept whole: who repairs or drains must be able to name a page.
//
// Pure. Threads: one owner.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "directory/directory_types.h"
#include "directory/record_array.h"
#include "tier/key_table.h"
#include "tier/page_hash.h"

namespace hicache {

class ReplicaTable {
 public:
  struct Options {
    uint64_t pages_max;
    uint32_t holdings_max;  // At most kHoldingsMax.
  };
  static constexpr uint32_t kHoldingsMax = 1 << 20;

  explicit ReplicaTable(const Options& options);

  /// Takes a node's changes of one namespace. Returns how many found no room.
  size_t apply(NodeIndex node, const NamespaceDigest& digest, std::span<const PageChange> changes);

  /// What the node has said so far is old: end_announcement() forgets what was not said again.
  void begin_announcement(NodeIndex node);
  void end_announcement(NodeIndex node);

  // How many replicas were hidden:
  uint64_t forget_node(NodeIndex node);
  uint64_t forget_space(const NamespaceDigest& digest);
  uint64_t forget_space_of(NodeIndex node, const NamespaceDigest& digest);

  /// Replicas of nodes with a lower rank are named first.
  void set_rank(NodeIndex node, uint8_t rank) { ranks_[node] = rank; }
  uint8_t rank_of(NodeIndex node) const { return ranks_[node]; }

  /// Fills in `counts` and `replicas`. Returns how many keys were found.
  size_t locate(const LocateRequest& request, LocateReply& reply) const;

  /// Looks at `count_max` pages for what is forgotten. True: there is more to sweep.
  bool sweep(size_t count_max);

  /// Replicas that are not hidden, by node.
  std::vector<uint64_t> replica_counts() const;

  uint64_t page_count() const { return pages_.used_count(); }
  uint64_t space_count() const { return spaces_by_digest_.size(); }
  uint64_t holding_count() const { return holdings_.used_count(); }
  size_t memory_size_bytes() const;

  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  using HoldingIndex = uint32_t;
  /// What of a replica is kept. `tiers` is 0 in a page that is not in use.
  struct Copy {
    uint32_t generation = 0;
    uint32_t holding : 24 = 0;
    uint32_t tiers : 8 = 0;
  };
  struct Page {
    Key key;
    SpaceIndex space = 0;
    Copy first;
    uint32_t next = kNoRecord;  // Further copies.
  };
  static_assert(sizeof(Page) == 48);
  struct Cell {
    Copy copy;
    uint32_t next = kNoRecord;
  };
  static_assert(sizeof(Cell) == 12);
  struct Holding {
    uint32_t next = kNoRecord;
    uint32_t replica_count = 0;  // Never 0, but while it is being filled for the first time.
    SpaceIndex space = kAnySpace;
    NodeIndex node = kNoNode;  // None: not in use.
    bool is_old = false;       // Of before the announcement that is coming in.
    bool is_closed = false;
  };
  struct Space {
    NamespaceDigest digest;
    uint32_t next = kNoRecord;
    uint32_t holding_count = 0;
  };
  struct DigestHash {
    size_t operator()(const NamespaceDigest& digest) const { return digest.hash(); }
  };

  static constexpr size_t kLargePiece = 3 * kHugePageSize;  // Filled by 2^17 pages.
  static constexpr size_t kSmallPiece = 64 * kKiB;
  static constexpr size_t kTablesCount = 32;  // So that growing one stops nobody for long.
  static uint64_t holding_key(NodeIndex node, SpaceIndex space) {
    return uint64_t{node} << 32 | space;
  }
  KeyTable& table(uint64_t hash) { return tables_[hash >> 24 & (kTablesCount - 1)]; }
  const KeyTable& table(uint64_t hash) const { return tables_[hash >> 24 & (kTablesCount - 1)]; }
  auto hash_of_page() const {
    return [this](PageIndex page) { return page_hash(pages_[page].space, pages_[page].key); };
  }

  SpaceIndex find_space(const NamespaceDigest& digest) const;
  HoldingIndex open_holding(NodeIndex node, const NamespaceDigest& digest);
  void close_holding(HoldingIndex index);
  /// One replica less; the last one frees the holding, and maybe its namespace.
  void let_go(HoldingIndex index);
  template <typename IsMeant>
  uint64_t close_holdings(IsMeant is_meant);

  /// Calls visit(i, hash, page) for each of `count` keys in turn, until it returns false; the
  /// memory that a few keys later will be needed is asked for ahead.
  template <typename KeyOf, typename Visit>
  void walk(SpaceIndex space, size_t count, KeyOf key_of, Visit visit) const;
  bool put(NodeIndex node, HoldingIndex holding, SpaceIndex space, uint64_t hash, PageIndex page,
           const PageChange& change);
  template <typename IsMeant>
  void drop_copies(PageIndex page, IsMeant is_meant);
  void append_replicas(const Page& page, size_t replicas_max, LocateReply& reply) const;
  std::string check_page(PageIndex page, std::vector<uint32_t>& counts, uint64_t& cells) const;

  Options options_;
  std::vector<KeyTable> tables_;
  RecordArray<Page, kLargePiece> pages_;
  RecordArray<Cell, kLargePiece> cells_;
  RecordArray<Holding, kSmallPiece> holdings_;
  RecordArray<Space, kSmallPiece> spaces_;
  std::unordered_map<NamespaceDigest, SpaceIndex, DigestHash> spaces_by_digest_;
  std::unordered_map<uint64_t, HoldingIndex> current_;  // By node and namespace.
  std::array<uint8_t, kNodesMax> ranks_{};
  uint64_t closed_count_ = 0;
  PageIndex sweep_at_ = 0;
};

}  // namespace hicache
