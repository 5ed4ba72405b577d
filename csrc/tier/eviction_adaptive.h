// Least worth first, by what was learned of pages alike (reuse_model.h).
//
// Alike are pages of one class: how often used (remembered in ghosts after eviction), whether ever
// continued by a child, and whether a newer sibling took over.  Leaves wait in cells, one for each
// (class, age step), lists in the order of age; a page moves on to the next cell when it has aged
// enough.  The victim comes from the non-empty cell of least worth.  All O(1) amortised: a page
// passes at most kAgeCount cells.  Pure; one owner, not thread-safe.
#pragma once

#include <vector>

#include "tier/eviction_base.h"
#include "tier/ghost_table.h"
#include "tier/reuse_model.h"

namespace hicache {

class AdaptiveEviction final : public EvictionBase {
 public:
  explicit AdaptiveEviction(uint64_t capacity_bytes);

  void set_capacity(uint64_t capacity_bytes) override;

 private:
  static constexpr int kCellCount = ReuseModel::kClassCount * ReuseModel::kAgeCount;

  // LinkedPage::order is the tick of the last use, and below it the cell it waits in.
  static constexpr int kCellBits = 12;
  static_assert(kCellCount <= 1 << kCellBits);

  struct Cell {
    PageIndex oldest = kNoPage;
    PageIndex youngest = kNoPage;
    uint16_t rank = 0;
    bool is_ripening = false;  // worth grows with age: the youngest leaves first
  };

  void on_insert(PageIndex page) override;
  void on_access(PageIndex page) override;
  void on_chain_end(PageIndex page) override;
  void on_erase(PageIndex page, EraseReason reason) override;
  void on_family_change(PageIndex page) override;
  void add_candidate(PageIndex page) override;
  void remove_candidate(PageIndex page) override;
  PageIndex next_candidate() override;
  size_t policy_memory_size_bytes() const override;
  size_t candidate_count() const override { return candidate_count_; }
  std::string check_policy() const override;

  int class_of(PageIndex page) const;
  uint64_t tick_of(PageIndex page) const { return pages_[page].order >> kCellBits; }
  int cell_of(PageIndex page) const {
    return static_cast<int>(pages_[page].order & ((1u << kCellBits) - 1));
  }
  int age_step_of(PageIndex page) const { return ReuseModel::age_step(now_tick_ - tick_of(page)); }
  void use(PageIndex page);
  void advance(uint64_t size_bytes);
  void learn();
  void put_in_cell(PageIndex page, int cell, bool is_at_youngest);
  void take_from_cell(PageIndex page);
  void move_on(PageIndex page);
  void set_chain_end(PageIndex page);
  void age_some_cells();
  int next_filled_cell(int from) const;
  int least_worth_cell() const;

  uint64_t capacity_bytes_;
  ReuseModel model_;
  GhostTable ghosts_;
  std::vector<Cell> cells_;
  std::vector<uint16_t> cell_of_rank_;
  std::vector<uint64_t> filled_cells_;  // bit per cell
  std::vector<uint64_t> filled_ranks_;  // bit per rank
  size_t candidate_count_ = 0;
  uint64_t inserted_bytes_ = 0;  // Since first_tick_, when the capacity was set.
  uint64_t first_tick_ = 1;
  uint64_t now_tick_ = 1;
  uint64_t learned_tick_ = 0;
  uint64_t uses_since_learning_ = 0;
  double ghost_reach_ticks_ = 0;
  int aging_cell_ = 0;
  PageIndex chain_end_ = kNoPage;  // of the put or access just seen; not in a cell
};

}  // namespace hicache
