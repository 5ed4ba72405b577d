#include "tier/eviction_adaptive.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

namespace hicache {
namespace {

constexpr int kAgeCount = ReuseModel::kAgeCount;
// A class: uses - 1 in bits 0 to 3, then these.
constexpr int kFrequencyMax = 15;
constexpr int kFrequencyMask = 15;
constexpr int kHadChildBit = 1 << 4;
constexpr int kSupersededBit = 1 << 5;
static_assert(2 * kSupersededBit == ReuseModel::kClassCount);

constexpr size_t kGhostsMin = size_t{1} << 15;
// Anew after a sixteenth of the capacity came in, but not for fewer uses than this.
constexpr uint64_t kLearnTicks = ReuseModel::kTicksPerCapacity / 16;
constexpr uint64_t kLearnUsesMin = 256;
// Observations fade to a half while this much comes in.
constexpr double kHalfLifeTicks = 16.0 * ReuseModel::kTicksPerCapacity;
// A use counts half after this much, so that the count tells how often, not since when.
constexpr double kUseHalfLifeTicks = 32.0 * ReuseModel::kTicksPerCapacity;
// Enough to keep up with one insert per call: a page ages by some fifteen steps in its life.
constexpr int kAgingCellsPerCall = 16;
constexpr int kAgingMovesPerCell = 16;

uint64_t uses_left(uint64_t uses, uint64_t ticks) {
  const double share = std::exp2(-static_cast<double>(ticks) / kUseHalfLifeTicks);
  return static_cast<uint64_t>(static_cast<double>(uses) * share + 0.5);
}

}  // namespace

AdaptiveEviction::AdaptiveEviction(uint64_t capacity_bytes)
    : capacity_bytes_(std::max<uint64_t>(capacity_bytes, 1)),
      ghosts_(kGhostsMin),
      cells_(kCellCount),
      cell_of_rank_(kCellCount),
      filled_cells_((kCellCount + 63) / 64),
      filled_ranks_((kCellCount + 63) / 64) {
  learn();
}

int AdaptiveEviction::class_of(PageIndex page) const {
  const LinkedPage& record = pages_[page];
  int page_class = static_cast<int>(record.frequency) - 1;
  // A page that just came may yet get its child: the same put may not have come to it.
  if (record.had_child || page == chain_end_ || age_step_of(page) == 0) {
    page_class |= kHadChildBit;
  } else if (pages_.has_newer_sibling(page)) {
    page_class |= kSupersededBit;
  }
  return page_class;
}

void AdaptiveEviction::advance(uint64_t size_bytes) {
  inserted_bytes_ += size_bytes;
  now_tick_ = first_tick_ + static_cast<uint64_t>(static_cast<unsigned __int128>(inserted_bytes_) *
                                                  ReuseModel::kTicksPerCapacity / capacity_bytes_);
}

void AdaptiveEviction::set_capacity(uint64_t capacity_bytes) {
  capacity_bytes_ = std::max<uint64_t>(capacity_bytes, 1);
  inserted_bytes_ = 0;
  first_tick_ = now_tick_;
}

void AdaptiveEviction::use(PageIndex page) {
  LinkedPage& record = pages_[page];
  record.frequency = std::min<uint64_t>(record.frequency + 1, kFrequencyMax);
  record.order = now_tick_ << kCellBits;
  record.mark = static_cast<uint64_t>(class_of(page));
  model_.add_use(static_cast<int>(record.mark), now_tick_);
  ++uses_since_learning_;
}

void AdaptiveEviction::on_insert(PageIndex page) {
  set_chain_end(page);
  LinkedPage& record = pages_[page];
  advance(record.size_bytes);
  ghosts_.reserve(pages_.page_count());
  if (const auto ghost = ghosts_.take(record.key_hash)) {
    const uint64_t tick = now_tick_ - ((now_tick_ - ghost->stamp) & GhostTable::kStampMax);
    model_.add_reuse(ghost->mark, tick, now_tick_);
    record.frequency = uses_left((ghost->mark & kFrequencyMask) + 1, now_tick_ - tick);
  }
  use(page);
}

void AdaptiveEviction::on_access(PageIndex page) {
  LinkedPage& record = pages_[page];
  model_.add_reuse(static_cast<int>(record.mark), tick_of(page), now_tick_);
  record.frequency = uses_left(record.frequency, now_tick_ - tick_of(page));
  use(page);
}

void AdaptiveEviction::on_chain_end(PageIndex page) {
  set_chain_end(page);
}

void AdaptiveEviction::on_family_change(PageIndex page) {
  const int old_class = static_cast<int>(pages_[page].mark);
  const int new_class = class_of(page);
  if (new_class == old_class) return;
  model_.change_class(old_class, new_class, tick_of(page));
  pages_[page].mark = static_cast<uint64_t>(new_class);
}

void AdaptiveEviction::on_erase(PageIndex page, EraseReason reason) {
  if (page == chain_end_) chain_end_ = kNoPage;
  const LinkedPage& record = pages_[page];
  const auto page_class = static_cast<uint8_t>(record.mark);
  const uint64_t tick = tick_of(page);
  if (reason == EraseReason::kRemoved) {
    model_.drop(page_class, tick, now_tick_);
    return;
  }
  const auto now = static_cast<uint32_t>(now_tick_ & GhostTable::kStampMax);
  const auto forgotten =
      ghosts_.add(record.key_hash, {static_cast<uint32_t>(tick), page_class}, now);
  if (forgotten) {
    const auto age = static_cast<double>((now - forgotten->stamp) & GhostTable::kStampMax);
    ghost_reach_ticks_ += (age - ghost_reach_ticks_) * (ghost_reach_ticks_ == 0 ? 1 : 1.0 / 64);
  }
}

// ---- Learning.

void AdaptiveEviction::learn() {
  const double passed = static_cast<double>(now_tick_ - learned_tick_);
  if (ghost_reach_ticks_ != 0 && ghost_reach_ticks_ < static_cast<double>(now_tick_)) {
    model_.forget_before(now_tick_ - static_cast<uint64_t>(ghost_reach_ticks_), now_tick_);
  }
  model_.learn(now_tick_, std::exp2(-passed / kHalfLifeTicks));
  learned_tick_ = now_tick_;
  uses_since_learning_ = 0;

  const auto worth = [this](int cell) { return model_.worth(cell / kAgeCount, cell % kAgeCount); };
  std::iota(cell_of_rank_.begin(), cell_of_rank_.end(), 0);
  std::sort(cell_of_rank_.begin(), cell_of_rank_.end(), [&](uint16_t a, uint16_t b) {
    if (worth(a) != worth(b)) return worth(a) < worth(b);
    if (a % kAgeCount != b % kAgeCount) return a % kAgeCount > b % kAgeCount;
    return a < b;
  });
  std::fill(filled_ranks_.begin(), filled_ranks_.end(), 0);
  for (int rank = 0; rank < kCellCount; ++rank) {
    Cell& cell = cells_[cell_of_rank_[rank]];
    cell.rank = static_cast<uint16_t>(rank);
    if (cell.oldest != kNoPage) filled_ranks_[rank / 64] |= uint64_t{1} << (rank % 64);
  }
  for (int cell = 0; cell < kCellCount; ++cell) {
    const int step = cell % kAgeCount;
    cells_[cell].is_ripening = step > 0 && step + 1 < kAgeCount && worth(cell + 1) > worth(cell);
  }
}

// ---- Cells.

void AdaptiveEviction::put_in_cell(PageIndex page, int cell_index, bool is_at_youngest) {
  Cell& cell = cells_[cell_index];
  LinkedPage& record = pages_[page];
  record.order = tick_of(page) << kCellBits | static_cast<uint64_t>(cell_index);
  if (cell.oldest == kNoPage) {
    filled_cells_[cell_index / 64] |= uint64_t{1} << (cell_index % 64);
    filled_ranks_[cell.rank / 64] |= uint64_t{1} << (cell.rank % 64);
    record.queue_next = record.queue_prev = kNoPage;
    cell.oldest = cell.youngest = page;
  } else if (is_at_youngest) {
    record.queue_prev = cell.youngest;
    record.queue_next = kNoPage;
    pages_[cell.youngest].queue_next = page;
    cell.youngest = page;
  } else {
    record.queue_prev = kNoPage;
    record.queue_next = cell.oldest;
    pages_[cell.oldest].queue_prev = page;
    cell.oldest = page;
  }
}

void AdaptiveEviction::take_from_cell(PageIndex page) {
  const int cell_index = cell_of(page);
  Cell& cell = cells_[cell_index];
  const LinkedPage& record = pages_[page];
  (cell.oldest == page ? cell.oldest : pages_[record.queue_prev].queue_next) = record.queue_next;
  (cell.youngest == page ? cell.youngest : pages_[record.queue_next].queue_prev) =
      record.queue_prev;
  if (cell.oldest == kNoPage) {
    filled_cells_[cell_index / 64] &= ~(uint64_t{1} << (cell_index % 64));
    filled_ranks_[cell.rank / 64] &= ~(uint64_t{1} << (cell.rank % 64));
  }
}

void AdaptiveEviction::add_candidate(PageIndex page) {
  ++candidate_count_;
  if (page == chain_end_) return;
  const int step = age_step_of(page);
  const int cell = static_cast<int>(pages_[page].mark) * kAgeCount + step;
  // A parent whose last child left goes next, so that chains leave whole.
  put_in_cell(page, cell, step == 0 || cells_[cell].is_ripening);
}

void AdaptiveEviction::remove_candidate(PageIndex page) {
  --candidate_count_;
  if (page != chain_end_) take_from_cell(page);
}

// Into the cell of its present class and age.
void AdaptiveEviction::move_on(PageIndex page) {
  on_family_change(page);
  const int page_class = static_cast<int>(pages_[page].mark);
  put_in_cell(page, page_class * kAgeCount + age_step_of(page), true);
}

// Evicting the page below which a put goes on would waste the pages that it brings.
void AdaptiveEviction::set_chain_end(PageIndex page) {
  if (page == chain_end_) return;
  const PageIndex before = std::exchange(chain_end_, page);
  if (place_of(page) == PagePlace::kCandidate) take_from_cell(page);
  if (before != kNoPage && place_of(before) == PagePlace::kCandidate) move_on(before);
}

int AdaptiveEviction::next_filled_cell(int from) const {
  const int word_count = static_cast<int>(filled_cells_.size());
  for (int i = 0; i <= word_count; ++i) {
    const int word = (from / 64 + i) % word_count;
    uint64_t bits = filled_cells_[word];
    if (i == 0) bits &= ~uint64_t{0} << (from % 64);
    if (bits != 0) return word * 64 + std::countr_zero(bits);
  }
  return -1;
}

int AdaptiveEviction::least_worth_cell() const {
  for (size_t word = 0; word < filled_ranks_.size(); ++word) {
    if (filled_ranks_[word] != 0) {
      return cell_of_rank_[word * 64 + std::countr_zero(filled_ranks_[word])];
    }
  }
  return -1;
}

// Goes round the cells and moves on what has aged.
void AdaptiveEviction::age_some_cells() {
  for (int i = 0; i < kAgingCellsPerCall; ++i) {
    const int cell = next_filled_cell((aging_cell_ + 1) % kCellCount);
    if (cell < 0) return;
    aging_cell_ = cell;
    for (int moves = 0; moves < kAgingMovesPerCell; ++moves) {
      const PageIndex page = cells_[cell].oldest;
      if (page == kNoPage || age_step_of(page) == cell % kAgeCount) break;
      take_from_cell(page);
      move_on(page);
    }
  }
}

PageIndex AdaptiveEviction::next_candidate() {
  if (now_tick_ - learned_tick_ >= kLearnTicks && uses_since_learning_ >= kLearnUsesMin) learn();
  age_some_cells();
  while (true) {
    const int cell = least_worth_cell();
    if (cell < 0) return candidate_count_ == 0 ? kNoPage : chain_end_;
    const PageIndex page = cells_[cell].is_ripening ? cells_[cell].youngest : cells_[cell].oldest;
    if (age_step_of(page) == cell % kAgeCount) return page;
    take_from_cell(page);
    move_on(page);
  }
}

size_t AdaptiveEviction::policy_memory_size_bytes() const {
  return model_.memory_size_bytes() + ghosts_.memory_size_bytes() +
         cells_.capacity() * sizeof(Cell) + cell_of_rank_.capacity() * sizeof(uint16_t) +
         (filled_cells_.capacity() + filled_ranks_.capacity()) * sizeof(uint64_t);
}

std::string AdaptiveEviction::check_policy() const {
  size_t count = 0;
  for (int cell = 0; cell < kCellCount; ++cell) {
    PageIndex older = kNoPage;
    for (PageIndex page = cells_[cell].oldest; page != kNoPage; page = pages_[page].queue_next) {
      if (cell_of(page) != cell || pages_[page].queue_prev != older) return "cell links disagree";
      if (static_cast<int>(pages_[page].mark) != cell / kAgeCount) return "page of another class";
      older = page;
      ++count;
    }
    if (cells_[cell].youngest != older) return "cell's youngest is wrong";
    const bool is_filled = (filled_cells_[cell / 64] >> (cell % 64)) & 1;
    const int rank = cells_[cell].rank;
    const bool is_rank_filled = (filled_ranks_[rank / 64] >> (rank % 64)) & 1;
    const bool has_pages = cells_[cell].oldest != kNoPage;
    if (is_filled != has_pages || is_rank_filled != has_pages) return "filled bits are wrong";
    if (cell_of_rank_[rank] != cell) return "rank of a cell is wrong";
  }
  if (chain_end_ != kNoPage && place_of(chain_end_) == PagePlace::kCandidate) ++count;
  return count == candidate_count_ ? "" : "pages are missing from the cells";
}

std::unique_ptr<Eviction> make_adaptive_eviction(uint64_t capacity_bytes) {
  return std::make_unique<AdaptiveEviction>(capacity_bytes);
}

}  // namespace hicache
