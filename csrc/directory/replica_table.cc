#include "directory/replica_table.h"

#include <algorithm>
#include <cassert>

namespace hicache {
namespace {

// Keys ahead: first the place in the hash table is fetched, then the page that it names.
constexpr size_t kTableAhead = 24;
constexpr size_t kPageAhead = 12;
constexpr size_t kHashRing = 32;
static_assert(kPageAhead < kTableAhead && kTableAhead < kHashRing);
/// Replicas of one page that are looked at for the best few.
constexpr size_t kChoiceMax = 32;

}  // namespace

ReplicaTable::ReplicaTable(const Options& options) : options_(options) {
  assert(options.pages_max < kNoPage && options.holdings_max <= kHoldingsMax);
  for (size_t i = 0; i < kTablesCount; ++i) tables_.emplace_back(0);
}

// ---------------------------------------------------------------- namespaces and holdings

SpaceIndex ReplicaTable::find_space(const NamespaceDigest& digest) const {
  const auto known = spaces_by_digest_.find(digest);
  return known == spaces_by_digest_.end() ? kAnySpace : known->second;
}

/// The node's present holding in the namespace, made if needed; kNoRecord: there are too many.
ReplicaTable::HoldingIndex ReplicaTable::open_holding(NodeIndex node,
                                                      const NamespaceDigest& digest) {
  SpaceIndex space = find_space(digest);
  if (space != kAnySpace) {
    const auto known = current_.find(holding_key(node, space));
    if (known != current_.end()) return known->second;
  }
  if (holdings_.used_count() >= options_.holdings_max) return kNoRecord;
  if (space == kAnySpace) {
    space = spaces_.take();
    spaces_[space].digest = digest;
    spaces_by_digest_.emplace(digest, space);
  }
  const HoldingIndex index = holdings_.take();
  holdings_[index].node = node;
  holdings_[index].space = space;
  ++spaces_[space].holding_count;
  current_.emplace(holding_key(node, space), index);
  return index;
}

void ReplicaTable::close_holding(HoldingIndex index) {
  Holding& holding = holdings_[index];
  if (!holding.is_old) current_.erase(holding_key(holding.node, holding.space));
  holding.is_closed = true;
  ++closed_count_;
}

void ReplicaTable::let_go(HoldingIndex index) {
  Holding& holding = holdings_[index];
  if (--holding.replica_count != 0) return;
  if (holding.is_closed) --closed_count_;
  if (!holding.is_closed && !holding.is_old) {
    current_.erase(holding_key(holding.node, holding.space));
  }
  const SpaceIndex space = holding.space;
  holdings_.give_back(index);
  if (--spaces_[space].holding_count != 0) return;
  spaces_by_digest_.erase(spaces_[space].digest);
  spaces_.give_back(space);
}

template <typename IsMeant>
uint64_t ReplicaTable::close_holdings(IsMeant is_meant) {
  uint64_t replica_count = 0;
  for (HoldingIndex i = 0; i < holdings_.size(); ++i) {
    const Holding& holding = holdings_[i];
    if (holding.node == kNoNode || holding.is_closed || !is_meant(holding)) continue;
    replica_count += holding.replica_count;
    close_holding(i);
  }
  return replica_count;
}

void ReplicaTable::begin_announcement(NodeIndex node) {
  for (HoldingIndex i = 0; i < holdings_.size(); ++i) {
    Holding& holding = holdings_[i];
    if (holding.node != node || holding.is_closed || holding.is_old) continue;
    current_.erase(holding_key(node, holding.space));
    holding.is_old = true;
  }
}

void ReplicaTable::end_announcement(NodeIndex node) {
  (void)close_holdings(
      [node](const Holding& holding) { return holding.node == node && holding.is_old; });
}

uint64_t ReplicaTable::forget_node(NodeIndex node) {
  return close_holdings([node](const Holding& holding) { return holding.node == node; });
}

uint64_t ReplicaTable::forget_space(const NamespaceDigest& digest) {
  const SpaceIndex space = find_space(digest);
  return close_holdings([space](const Holding& holding) { return holding.space == space; });
}

uint64_t ReplicaTable::forget_space_of(NodeIndex node, const NamespaceDigest& digest) {
  const SpaceIndex space = find_space(digest);
  return close_holdings([node, space](const Holding& holding) {
    return holding.node == node && holding.space == space;
  });
}

// ---------------------------------------------------------------- pages

template <typename KeyOf, typename Visit>
void ReplicaTable::walk(SpaceIndex space, size_t count, KeyOf key_of, Visit visit) const {
  uint64_t hashes[kHashRing];
  for (size_t step = 0; step < count + kTableAhead; ++step) {
    if (step < count) {
      const uint64_t hash = page_hash(space, key_of(step));
      hashes[step % kHashRing] = hash;
      table(hash).prefetch(hash);
    }
    const size_t near = step - (kTableAhead - kPageAhead);  // Wraps: then not below the count.
    if (near < count) {
      const uint64_t hash = hashes[near % kHashRing];
      const PageIndex page = table(hash).guess(hash);
      if (page != kNoPage) pages_.prefetch(page);
    }
    const size_t i = step - kTableAhead;
    if (i >= count) continue;
    const uint64_t hash = hashes[i % kHashRing];
    const PageIndex page = table(hash).find(hash, [&](PageIndex candidate) {
      return pages_[candidate].space == space && pages_[candidate].key == key_of(i);
    });
    if (!visit(i, hash, page)) return;
  }
}

size_t ReplicaTable::apply(NodeIndex node, const NamespaceDigest& digest,
                           std::span<const PageChange> changes) {
  const bool has_puts = std::any_of(changes.begin(), changes.end(),
                                    [](const PageChange& change) { return change.tiers != 0; });
  const HoldingIndex holding = has_puts ? open_holding(node, digest) : kNoRecord;
  const SpaceIndex space = find_space(digest);
  if (space == kAnySpace) {
    return static_cast<size_t>(
        std::count_if(changes.begin(), changes.end(),
                      [](const PageChange& change) { return change.tiers != 0; }));
  }
  // Counted as one more replica, so that it outlives the batch.
  if (holding != kNoRecord) ++holdings_[holding].replica_count;
  size_t refused_count = 0;
  const auto key_of = [&](size_t i) -> const Key& { return changes[i].key; };
  walk(space, changes.size(), key_of, [&](size_t i, uint64_t hash, PageIndex page) {
    const PageChange& change = changes[i];
    if (change.tiers != 0) {
      if (!put(node, holding, space, hash, page, change)) ++refused_count;
    } else if (page != kNoPage) {
      drop_copies(page, [&](const Copy& copy) { return holdings_[copy.holding].node == node; });
    }
    return true;
  });
  if (holding != kNoRecord) let_go(holding);
  return refused_count;
}

/// `page`: where the key is already, or kNoPage.
bool ReplicaTable::put(NodeIndex node, HoldingIndex holding, SpaceIndex space, uint64_t hash,
                       PageIndex page, const PageChange& change) {
  if (holding == kNoRecord) return false;
  const Copy copy{change.generation, holding, change.tiers & kTiersMax};
  if (page == kNoPage) {
    if (pages_.used_count() >= options_.pages_max) return false;
    page = pages_.take();
    pages_[page].key = change.key;
    pages_[page].space = space;
    pages_[page].first = copy;
    table(hash).reserve_one(hash_of_page());
    table(hash).insert(hash, page);
    ++holdings_[holding].replica_count;
    return true;
  }
  // The node's older one, or else the place of one that nobody sees any more.
  Copy* place = nullptr;
  Copy* at = &pages_[page].first;
  for (uint32_t next = pages_[page].next;; at = &cells_[next].copy, next = cells_[next].next) {
    if (holdings_[at->holding].node == node) {
      place = at;
      break;
    }
    if (place == nullptr && holdings_[at->holding].is_closed) place = at;
    if (next == kNoRecord) break;
  }
  if (place == nullptr) {
    const uint32_t cell = cells_.take();
    cells_[cell] = {copy, pages_[page].next};
    pages_[page].next = cell;
    ++holdings_[holding].replica_count;
    return true;
  }
  const HoldingIndex before = place->holding;
  *place = copy;
  ++holdings_[holding].replica_count;
  let_go(before);
  return true;
}

/// Drops a page's copies for which `is_meant` is true, and the page with its last.
template <typename IsMeant>
void ReplicaTable::drop_copies(PageIndex index, IsMeant is_meant) {
  Page& page = pages_[index];
  for (uint32_t* link = &page.next; *link != kNoRecord;) {
    const uint32_t cell = *link;
    if (is_meant(cells_[cell].copy)) {
      const HoldingIndex holding = cells_[cell].copy.holding;
      *link = cells_[cell].next;
      cells_.give_back(cell);
      let_go(holding);
    } else {
      link = &cells_[cell].next;
    }
  }
  if (!is_meant(page.first)) return;
  const HoldingIndex holding = page.first.holding;
  if (page.next != kNoRecord) {
    const uint32_t cell = page.next;
    page.first = cells_[cell].copy;
    page.next = cells_[cell].next;
    cells_.give_back(cell);
  } else {
    const uint64_t hash = page_hash(page.space, page.key);
    table(hash).erase(hash, index, hash_of_page());
    pages_.give_back(index);
  }
  let_go(holding);
}

bool ReplicaTable::sweep(size_t count_max) {
  for (size_t i = 0; i < count_max && closed_count_ != 0; ++i) {
    if (sweep_at_ >= pages_.size()) sweep_at_ = 0;
    const PageIndex page = sweep_at_++;
    if (pages_[page].first.tiers == 0) continue;
    drop_copies(page, [this](const Copy& copy) { return holdings_[copy.holding].is_closed; });
  }
  return closed_count_ != 0;
}

// ---------------------------------------------------------------- look-ups

void ReplicaTable::append_replicas(const Page& page, size_t replicas_max,
                                   LocateReply& reply) const {
  std::array<Replica, kChoiceMax> found;
  size_t count = 0;
  const Copy* copy = &page.first;
  for (uint32_t next = page.next;; copy = &cells_[next].copy, next = cells_[next].next) {
    const Holding& holding = holdings_[copy->holding];
    if (!holding.is_closed && count < found.size()) {
      found[count++] = {copy->generation, holding.node, static_cast<uint8_t>(copy->tiers),
                        ranks_[holding.node]};
    }
    if (next == kNoRecord) break;
  }
  if (count > 1) {
    const auto worth = [](const Replica& replica) {
      return replica.rank * 2 + ((replica.tiers & kInDram) != 0 ? 0 : 1);
    };
    std::stable_sort(found.begin(), found.begin() + static_cast<ptrdiff_t>(count),
                     [&](const Replica& a, const Replica& b) { return worth(a) < worth(b); });
    count = std::min(count, replicas_max);
  }
  reply.counts.push_back(static_cast<uint8_t>(count));
  for (size_t i = 0; i < count; ++i) reply.replicas.push_back(found[i]);
}

size_t ReplicaTable::locate(const LocateRequest& request, LocateReply& reply) const {
  reply.counts.clear();
  reply.replicas.clear();
  const size_t count = request.keys.size();
  const SpaceIndex space = find_space(request.digest);
  if (space == kAnySpace) {
    if (!request.is_prefix) reply.counts.assign(count, 0);
    return 0;
  }
  const size_t replicas_max = std::clamp<size_t>(request.replicas_max, 1, kReplicasMax);
  reply.counts.reserve(count);
  size_t found_count = 0;
  const auto key_of = [&](size_t i) -> const Key& { return request.keys[i]; };
  walk(space, count, key_of, [&](size_t, uint64_t, PageIndex page) {
    if (page == kNoPage) {
      reply.counts.push_back(0);
    } else {
      append_replicas(pages_[page], replicas_max, reply);
    }
    if (reply.counts.back() != 0) {
      ++found_count;
      return true;
    }
    if (request.is_prefix) reply.counts.pop_back();
    return !request.is_prefix;
  });
  return found_count;
}

// ---------------------------------------------------------------- figures

std::vector<uint64_t> ReplicaTable::replica_counts() const {
  std::vector<uint64_t> counts(kNodesMax);
  for (HoldingIndex i = 0; i < holdings_.size(); ++i) {
    const Holding& holding = holdings_[i];
    if (holding.node != kNoNode && !holding.is_closed) {
      counts[holding.node] += holding.replica_count;
    }
  }
  return counts;
}

size_t ReplicaTable::memory_size_bytes() const {
  size_t size = pages_.memory_size_bytes() + cells_.memory_size_bytes() +
                holdings_.memory_size_bytes() + spaces_.memory_size_bytes();
  for (const KeyTable& table : tables_) size += table.memory_size_bytes();
  return size;
}

/// Adds the page's copies to `counts`, by holding.
std::string ReplicaTable::check_page(PageIndex index, std::vector<uint32_t>& counts,
                                     uint64_t& cells) const {
  const Page& page = pages_[index];
  const std::string name = "page " + std::to_string(index);
  const uint64_t hash = page_hash(page.space, page.key);
  const PageIndex found = table(hash).find(hash, [&](PageIndex candidate) {
    return pages_[candidate].space == page.space && pages_[candidate].key == page.key;
  });
  if (found != index) return name + " is not found by its key";
  std::vector<NodeIndex> nodes;
  const Copy* copy = &page.first;
  for (uint32_t next = page.next;; copy = &cells_[next].copy, next = cells_[next].next) {
    const Holding& holding = holdings_[copy->holding];
    if (holding.node == kNoNode) return name + " belongs to a holding that is not there";
    if (holding.space != page.space) return name + " belongs to another namespace's holding";
    if (copy->tiers == 0 || copy->tiers > kTiersMax) return name + " lies in no tier";
    nodes.push_back(holding.node);
    ++counts[copy->holding];
    if (next == kNoRecord) break;
    ++cells;
  }
  std::sort(nodes.begin(), nodes.end());
  const bool is_twice = std::adjacent_find(nodes.begin(), nodes.end()) != nodes.end();
  return is_twice ? name + " has two replicas on one node" : "";
}

std::string ReplicaTable::check_invariants() const {
  std::vector<uint32_t> counts(holdings_.size());
  uint64_t page_count = 0;
  uint64_t cells = 0;
  for (PageIndex i = 0; i < pages_.size(); ++i) {
    if (pages_[i].first.tiers == 0) continue;
    ++page_count;
    if (std::string fault = check_page(i, counts, cells); !fault.empty()) return fault;
  }
  uint64_t in_tables = 0;
  for (const KeyTable& table : tables_) in_tables += table.count();
  if (page_count != pages_.used_count() || page_count != in_tables) return "pages are miscounted";
  if (cells != cells_.used_count()) return "cells are miscounted";
  uint64_t closed_count = 0;
  uint64_t current_count = 0;
  std::vector<uint32_t> space_counts(spaces_.size());
  for (HoldingIndex i = 0; i < holdings_.size(); ++i) {
    const Holding& holding = holdings_[i];
    const std::string name = "holding " + std::to_string(i);
    if (holding.node == kNoNode) continue;
    if (holding.replica_count != counts[i]) return name + " miscounts its replicas";
    if (holding.replica_count == 0) return name + " is empty";
    closed_count += holding.is_closed ? 1 : 0;
    ++space_counts[holding.space];
    const auto current = current_.find(holding_key(holding.node, holding.space));
    const bool is_current = current != current_.end() && current->second == i;
    if (is_current == (holding.is_closed || holding.is_old)) return name + " is listed wrongly";
    current_count += is_current ? 1 : 0;
  }
  if (closed_count != closed_count_) return "closed holdings are miscounted";
  if (current_count != current_.size()) return "a holding that is gone is listed";
  uint64_t space_count = 0;
  for (SpaceIndex i = 0; i < spaces_.size(); ++i) {
    if (spaces_[i].holding_count != space_counts[i]) return "a namespace miscounts its holdings";
    if (space_counts[i] == 0) continue;
    ++space_count;
    if (find_space(spaces_[i].digest) != i) return "a namespace is not found by its digest";
  }
  return space_count == spaces_by_digest_.size() ? "" : "a namespace that is gone is listed";
}

}  // namespace hicache
