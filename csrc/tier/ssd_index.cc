#include "tier/ssd_index.h"

#include <cassert>

#include "tier/ssd_format.h"

namespace hicache {
namespace {

uint64_t size_on_disk(const SsdPage& page) {
  return sectors_of(page.size) * kSectorSize;
}

}  // namespace

SsdIndex::SsdIndex(size_t expected_page_count) : table_(expected_page_count) {}

RegionIndex SsdIndex::add_region() {
  regions_.emplace_back();
  return static_cast<RegionIndex>(regions_.size() - 1);
}

void SsdIndex::begin_region(RegionIndex region, uint64_t sequence) {
  assert(regions_[region].page_count == 0);
  regions_[region].sequence = sequence;
}

// ---------------------------------------------------------------- pages

SsdPageIndex SsdIndex::take_record() {
  if (free_ != kNoSsdPage) {
    const SsdPageIndex page = free_;
    free_ = at(page).next;
    return page;
  }
  assert(record_count_ < kNoSsdPage);
  if (record_count_ == pieces_.size() * kPieceCount) {
    pieces_.emplace_back().reserve(kPieceCount);  // Touched only as far as it is used.
  }
  pieces_.back().emplace_back();
  return record_count_++;
}

template <typename Visit>
void SsdIndex::for_each_of(uint64_t hash, Visit visit) const {
  (void)table_.find(hash, [&](SsdPageIndex page) {
    if (hash_of(page) == hash) visit(page);
    return false;
  });
}

SsdPageIndex SsdIndex::find_hash(uint64_t hash) const {
  return table_.find(hash, [&](SsdPageIndex page) { return hash_of(page) == hash; });
}

SsdPageIndex SsdIndex::find(SpaceIndex space, const Key& key, uint64_t hash) const {
  return table_.find(
      hash, [&](SsdPageIndex page) { return at(page).space == space && at(page).key == key; });
}

void SsdIndex::add_child(uint64_t parent_hash) {
  if (parent_hash == 0) return;
  bool is_there = false;
  for_each_of(parent_hash, [&](SsdPageIndex parent) {
    ++at(parent).child_count;
    is_there = true;
  });
  if (!is_there) orphans_.add(parent_hash, 1);
}

void SsdIndex::remove_child(uint64_t parent_hash) {
  if (parent_hash == 0) return;
  bool is_there = false;
  for_each_of(parent_hash, [&](SsdPageIndex parent) {
    --at(parent).child_count;
    is_there = true;
  });
  if (!is_there) orphans_.remove(parent_hash, 1);
}

void SsdIndex::enter_region(SsdPageIndex page) {
  SsdPage& record = at(page);
  Region& region = regions_[record.place.region];
  record.previous = region.last;
  record.next = kNoSsdPage;
  (region.last == kNoSsdPage ? region.first : at(region.last).next) = page;
  region.last = page;
  ++region.page_count;
  region.live_bytes += size_on_disk(record);
  live_bytes_ += size_on_disk(record);
}

void SsdIndex::leave_region(SsdPageIndex page) {
  const SsdPage& record = at(page);
  Region& region = regions_[record.place.region];
  (record.previous == kNoSsdPage ? region.first : at(record.previous).next) = record.next;
  (record.next == kNoSsdPage ? region.last : at(record.next).previous) = record.previous;
  --region.page_count;
  region.live_bytes -= size_on_disk(record);
  live_bytes_ -= size_on_disk(record);
  if (record.reads != 0) region.reused_bytes -= size_on_disk(record);
}

SsdIndex::Inserted SsdIndex::insert(const SsdPage& page) {
  assert(page.place.region < regions_.size());
  const uint64_t hash = page_hash(page.space, page.key);
  SsdPageIndex index = find(page.space, page.key, hash);
  const bool is_new = index == kNoSsdPage;
  uint32_t child_count = 0;
  if (is_new) {
    const SsdPageIndex twin = find_hash(hash);
    if (twin != kNoSsdPage) {
      child_count = at(twin).child_count;
    } else if ((child_count = orphans_.count_of(hash)) != 0) {
      orphans_.remove(hash, child_count);
    }
    index = take_record();
  } else {
    if (at(index).sequence >= page.sequence) return Inserted::kOlder;
    leave_region(index);
    remove_child(at(index).parent_hash);
    child_count = at(index).child_count;
  }
  SsdPage& record = at(index);
  record = page;
  record.child_count = child_count;
  record.reads = 0;
  if (is_new) {
    table_.reserve_one([&](SsdPageIndex other) { return hash_of(other); });
    table_.insert(hash, index);
    ++spaces_[page.space].page_count;
    ++page_count_;
  }
  add_child(page.parent_hash);  // Now that the page itself can be found: it may be its own parent.
  enter_region(index);
  if (listener_ != nullptr) listener_->page_changed(page.space, page.key);
  return is_new ? Inserted::kNew : Inserted::kReplaced;
}

void SsdIndex::erase(SsdPageIndex page) {
  assert(!is_free(page));
  remove_child(at(page).parent_hash);
  leave_region(page);
  const SsdPage& record = at(page);
  if (listener_ != nullptr) listener_->page_changed(record.space, record.key);
  const uint64_t hash = hash_of(page);
  const uint32_t child_count = record.child_count;
  table_.erase(hash, page, [&](SsdPageIndex other) { return hash_of(other); });
  if (child_count != 0 && find_hash(hash) == kNoSsdPage) orphans_.add(hash, child_count);
  const auto space = spaces_.find(record.space);
  if (--space->second.page_count == 0) spaces_.erase(space);
  --page_count_;
  at(page) = SsdPage{};
  at(page).next = free_;
  free_ = page;
}

void SsdIndex::note_read(SsdPageIndex page) {
  SsdPage& record = at(page);
  if (record.reads == 0) regions_[record.place.region].reused_bytes += size_on_disk(record);
  if (record.reads != UINT16_MAX) ++record.reads;
}

// ---------------------------------------------------------------- regions and spaces

SsdPageIndex SsdIndex::page_at(SsdPlace place) const {
  SsdPageIndex page = place.region < regions_.size() ? regions_[place.region].first : kNoSsdPage;
  while (page != kNoSsdPage && at(page).place != place) page = at(page).next;
  return page;
}

std::vector<SsdPageIndex> SsdIndex::pages_of(RegionIndex region) const {
  std::vector<SsdPageIndex> pages;
  pages.reserve(regions_[region].page_count);
  for (SsdPageIndex page = regions_[region].first; page != kNoSsdPage; page = at(page).next) {
    pages.push_back(page);
  }
  return pages;
}

uint64_t SsdIndex::drop_region(RegionIndex region) {
  const uint64_t count = regions_[region].page_count;
  while (regions_[region].first != kNoSsdPage) erase(regions_[region].first);
  return count;
}

bool SsdIndex::drop_space(SpaceIndex space, size_t count_max) {
  const auto use = spaces_.find(space);
  if (use == spaces_.end()) return false;
  SsdPageIndex cursor = use->second.cursor;
  for (; count_max != 0; --count_max) {
    // A page may have come behind the cursor: then once more from the start.
    if (cursor >= record_count_) cursor = 0;
    const SsdPageIndex page = cursor++;
    if (is_free(page) || at(page).space != space) continue;
    const bool is_last = use->second.page_count == 1;
    erase(page);
    if (is_last) return false;
  }
  use->second.cursor = cursor;
  return true;
}

// ---------------------------------------------------------------- for reports and tests

SsdPageIndex SsdIndex::list(SpaceIndex space, SsdPageIndex first, size_t count_max,
                            std::vector<Key>& keys) const {
  const size_t end = std::min<size_t>(record_count_, first + count_max);
  SsdPageIndex page = first;
  for (; page < end; ++page) {
    if (!is_free(page) && at(page).space == space) keys.push_back(at(page).key);
  }
  return page < record_count_ ? page : kNoSsdPage;
}

size_t SsdIndex::memory_size_bytes() const {
  // A node of the map, roughly: what it holds, a link and its place in the buckets.
  constexpr size_t kSpaceSize = sizeof(SpaceIndex) + sizeof(Space) + 3 * sizeof(void*);
  return pieces_.size() * kPieceCount * sizeof(SsdPage) + table_.memory_size_bytes() +
         orphans_.memory_size_bytes() + regions_.capacity() * sizeof(Region) +
         spaces_.size() * kSpaceSize;
}

std::string SsdIndex::check_invariants() const {
  uint64_t page_count = 0;
  uint64_t live_bytes = 0;
  for (RegionIndex i = 0; i < regions_.size(); ++i) {
    if (std::string wrong = check_region(i); !wrong.empty()) return wrong;
    page_count += regions_[i].page_count;
    live_bytes += regions_[i].live_bytes;
  }
  if (page_count != page_count_ || live_bytes != live_bytes_) return "totals are not the regions'";
  if (table_.count() != page_count_) return "the key table has another count";
  uint64_t free_count = 0;
  for (SsdPageIndex page = free_; page != kNoSsdPage; page = at(page).next) {
    if (!is_free(page) || ++free_count > record_count_) return "the free list is broken";
  }
  if (free_count + page_count_ != record_count_) return "a record is lost";
  std::unordered_map<SpaceIndex, uint64_t> counts;
  for (SsdPageIndex page = 0; page < record_count_; ++page) {
    if (!is_free(page)) ++counts[at(page).space];
  }
  if (counts.size() != spaces_.size()) return "spaces are counted that have no page";
  for (const auto& [space, use] : spaces_) {
    if (use.page_count != counts[space]) return "a space has another count";
  }
  return check_children();
}

std::string SsdIndex::check_region(RegionIndex index) const {
  const std::string name = "region " + std::to_string(index) + ": ";
  const Region& region = regions_[index];
  uint32_t page_count = 0;
  uint64_t live_bytes = 0;
  uint64_t reused_bytes = 0;
  SsdPageIndex previous = kNoSsdPage;
  for (SsdPageIndex page = region.first; page != kNoSsdPage; page = at(page).next) {
    const SsdPage& record = at(page);
    if (record.place.region != index) return name + "a page of another region is in its list";
    if (record.previous != previous) return name + "a link back is wrong";
    if (find(record.space, record.key) != page) return name + "a page cannot be found";
    if (++page_count > region.page_count) return name + "its list is too long";
    live_bytes += size_on_disk(record);
    if (record.reads != 0) reused_bytes += size_on_disk(record);
    previous = page;
  }
  if (region.last != previous) return name + "its list ends elsewhere";
  if (region.page_count != page_count) return name + "its list is too short";
  if (region.live_bytes != live_bytes) return name + "live bytes are wrong";
  if (region.reused_bytes != reused_bytes) return name + "reused bytes are wrong";
  return "";
}

std::string SsdIndex::check_children() const {
  std::unordered_map<uint64_t, uint32_t> children;
  for (SsdPageIndex page = 0; page < record_count_; ++page) {
    if (!is_free(page) && at(page).parent_hash != 0) ++children[at(page).parent_hash];
  }
  size_t missing_count = 0;
  for (const auto& [hash, count] : children) {
    if (find_hash(hash) != kNoSsdPage) continue;
    ++missing_count;
    if (orphans_.count_of(hash) != count) return "orphans are counted wrong";
  }
  if (orphans_.parent_count() != missing_count) return "orphans are kept of a parent that is there";
  for (SsdPageIndex page = 0; page < record_count_; ++page) {
    if (is_free(page)) continue;
    const auto found = children.find(hash_of(page));
    if (at(page).child_count != (found == children.end() ? 0 : found->second)) {
      return "page " + std::to_string(page) + " counts its children wrong";
    }
  }
  return "";
}

}  // namespace hicache
