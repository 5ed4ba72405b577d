#include "tier/page_links.h"

#include <cassert>

namespace hicache {
namespace {

// Longer walks up are cut, so that a hostile order of puts cannot make one put slow.
constexpr int kAncestorsMax = 1 << 16;
constexpr size_t kTableSizeMin = 64;

// Callers hash well, but nothing breaks when they do not.
uint64_t mix(uint64_t hash) {
  hash ^= hash >> 32;
  hash *= 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

}  // namespace

uint64_t PageLinks::slot_hash(uint32_t value) const {
  if (value & kWaitBit) return wait_lists_[value & ~kWaitBit].parent_hash;
  return (*this)[value].key_hash;
}

size_t PageLinks::find_slot(uint64_t hash) const {
  const size_t mask = table_.size() - 1;
  size_t slot = mix(hash) & mask;
  while (table_[slot] != kNoPage && slot_hash(table_[slot]) != hash) slot = (slot + 1) & mask;
  return slot;
}

void PageLinks::grow_table() {
  if (table_.size() >= kTableSizeMin && (table_used_ + 2) * 5 <= table_.size() * 4) return;
  std::vector<uint32_t> old = std::move(table_);
  table_.assign(old.empty() ? kTableSizeMin : old.size() * 2, kNoPage);
  for (uint32_t value : old) {
    if (value != kNoPage) table_[find_slot(slot_hash(value))] = value;
  }
}

// Closes the gap, so that probing needs no tombstones.
void PageLinks::clear_slot(size_t slot) {
  const size_t mask = table_.size() - 1;
  size_t gap = slot;
  for (size_t next = (gap + 1) & mask; table_[next] != kNoPage; next = (next + 1) & mask) {
    const size_t home = mix(slot_hash(table_[next])) & mask;
    if (((next - home) & mask) < ((next - gap) & mask)) continue;
    table_[gap] = table_[next];
    gap = next;
  }
  table_[gap] = kNoPage;
  --table_used_;
}

void PageLinks::link_child(PageIndex page, uint32_t& first_child) {
  LinkedPage& record = (*this)[page];
  record.prev_sibling = kNoPage;
  record.next_sibling = first_child;
  if (first_child != kNoPage) (*this)[first_child].prev_sibling = page;
  first_child = page;
}

void PageLinks::unlink_child(PageIndex page) {
  LinkedPage& record = (*this)[page];
  if (record.parent == kNoPage) return;
  uint32_t& first_child = record.is_waiting ? wait_lists_[record.parent].first_child
                                            : (*this)[record.parent].first_child;
  if (record.prev_sibling == kNoPage) {
    first_child = record.next_sibling;
  } else {
    (*this)[record.prev_sibling].next_sibling = record.next_sibling;
  }
  if (record.next_sibling != kNoPage) {
    (*this)[record.next_sibling].prev_sibling = record.prev_sibling;
  }
  if (record.is_waiting && first_child == kNoPage) {
    clear_slot(find_slot(wait_lists_[record.parent].parent_hash));
    wait_lists_[record.parent].first_child = wait_lists_free_;
    wait_lists_free_ = record.parent;
  }
  record.parent = kNoPage;
  record.is_waiting = 0;
}

bool PageLinks::is_ancestor(PageIndex page, PageIndex of) const {
  for (int steps = 0; of != kNoPage; of = parent(of)) {
    if (of == page || ++steps > kAncestorsMax) return true;
  }
  return false;
}

uint32_t PageLinks::new_wait_list(uint64_t parent_hash) {
  uint32_t list = wait_lists_free_;
  if (list == kNoPage) {
    list = static_cast<uint32_t>(wait_lists_.size());
    wait_lists_.push_back({});
  } else {
    wait_lists_free_ = wait_lists_[list].first_child;
  }
  wait_lists_[list] = {parent_hash, kNoPage};
  return list;
}

void PageLinks::adopt_waiting(PageIndex page, uint32_t list) {
  LinkedPage& record = (*this)[page];
  record.first_child = wait_lists_[list].first_child;
  record.had_child = 1;
  for (PageIndex child = record.first_child; child != kNoPage;
       child = (*this)[child].next_sibling) {
    (*this)[child].parent = page;
    (*this)[child].is_waiting = 0;
  }
  wait_lists_[list].first_child = wait_lists_free_;
  wait_lists_free_ = list;
}

void PageLinks::link_parent(PageIndex page, uint64_t parent_hash) {
  LinkedPage& record = (*this)[page];
  if (parent_hash == 0 || parent_hash == record.key_hash) return;
  grow_table();
  const size_t slot = find_slot(parent_hash);
  if (table_[slot] != kNoPage && !(table_[slot] & kWaitBit)) {
    const PageIndex parent = table_[slot];
    // Only a page that already has children can close a ring.
    if (record.first_child != kNoPage && is_ancestor(page, parent)) return;
    record.parent = parent;
    (*this)[parent].had_child = 1;
    link_child(page, (*this)[parent].first_child);
    return;
  }
  if (table_[slot] == kNoPage) {
    table_[slot] = new_wait_list(parent_hash) | kWaitBit;
    ++table_used_;
  }
  record.parent = table_[slot] & ~kWaitBit;
  record.is_waiting = 1;
  link_child(page, wait_lists_[record.parent].first_child);
}

void PageLinks::add(PageIndex page, const PageTraits& traits) {
  assert(page < kWaitBit && !is_resident(page));
  assert(traits.size_bytes <= kSizeBytesMax);
  while ((page >> kChunkBits) >= chunks_.size()) {
    chunks_.push_back(std::make_unique<LinkedPage[]>(size_t{1} << kChunkBits));
  }
  LinkedPage& record = (*this)[page];
  record = {};
  record.key_hash = traits.key_hash;
  record.parent = record.first_child = kNoPage;
  record.next_sibling = record.prev_sibling = kNoPage;
  record.queue_next = record.queue_prev = kNoPage;
  record.size_bytes = traits.size_bytes;
  record.place = static_cast<uint64_t>(PagePlace::kInner);
  record.is_soft_pinned = traits.is_soft_pinned;
  ++page_count_;

  grow_table();
  const size_t slot = find_slot(traits.key_hash);
  const uint32_t found = table_[slot];
  if (found == kNoPage || (found & kWaitBit)) {
    table_[slot] = page;
    record.is_named = 1;
    if (found == kNoPage) {
      ++table_used_;
    } else {
      adopt_waiting(page, found & ~kWaitBit);
    }
    link_parent(page, traits.parent_hash);
  }
}

void PageLinks::remove(PageIndex page) {
  assert(is_resident(page));
  unlink_child(page);
  LinkedPage& record = (*this)[page];
  if (record.is_named) {
    const size_t slot = find_slot(record.key_hash);
    if (record.first_child == kNoPage) {
      clear_slot(slot);
    } else {
      const uint32_t list = new_wait_list(record.key_hash);
      wait_lists_[list].first_child = record.first_child;
      table_[slot] = list | kWaitBit;
      for (PageIndex child = record.first_child; child != kNoPage;
           child = (*this)[child].next_sibling) {
        (*this)[child].parent = list;
        (*this)[child].is_waiting = 1;
      }
    }
  }
  record.place = static_cast<uint64_t>(PagePlace::kAbsent);
  --page_count_;
}

size_t PageLinks::memory_size_bytes() const {
  return chunks_.size() * (sizeof(LinkedPage) << kChunkBits) +
         chunks_.capacity() * sizeof(chunks_[0]) + table_.capacity() * sizeof(table_[0]) +
         wait_lists_.capacity() * sizeof(WaitList);
}

std::string PageLinks::check_invariants() const {
  size_t resident = 0;
  size_t named = 0;
  for (PageIndex page = 0; page < index_end(); ++page) {
    if (!is_resident(page)) continue;
    const LinkedPage& record = (*this)[page];
    ++resident;
    named += record.is_named;
    if (record.is_named && table_[find_slot(record.key_hash)] != page) {
      return "page " + std::to_string(page) + " is not found by its key";
    }
    PageIndex newer = kNoPage;
    for (PageIndex child = record.first_child; child != kNoPage;
         child = (*this)[child].next_sibling) {
      if (!is_resident(child) || parent(child) != page) {
        return "page " + std::to_string(page) + " has a child that is not its own";
      }
      if ((*this)[child].prev_sibling != newer) return "sibling links disagree";
      newer = child;
    }
    size_t steps = 0;
    for (PageIndex up = page; up != kNoPage; up = parent(up)) {
      if (++steps > page_count_) return "ring above page " + std::to_string(page);
    }
  }
  if (resident != page_count_) return "page count is wrong";
  size_t used = 0;
  for (uint32_t value : table_) {
    if (value == kNoPage) continue;
    ++used;
    if (!(value & kWaitBit)) continue;
    const WaitList& list = wait_lists_[value & ~kWaitBit];
    if (list.first_child == kNoPage) return "empty wait list";
    for (PageIndex child = list.first_child; child != kNoPage;
         child = (*this)[child].next_sibling) {
      const LinkedPage& record = (*this)[child];
      if (!record.is_waiting || record.parent != (value & ~kWaitBit)) return "wait list disagrees";
    }
    ++named;
  }
  if (used != table_used_ || used != named) return "key table count is wrong";
  return "";
}

}  // namespace hicache
