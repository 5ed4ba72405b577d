#include "tier/key_table.h"

#include <algorithm>
#include <bit>

namespace hicache {

KeyTable::KeyTable(size_t expected_count)
    : entries_(std::bit_ceil(std::max<size_t>(64, expected_count / 3 * 4))),
      mask_(entries_.size() - 1) {}

void KeyTable::insert(uint64_t hash, PageIndex page) {
  size_t i = home(hash);
  while (entries_[i].page != kNoPage) i = (i + 1) & mask_;
  entries_[i] = Entry{tag_of(hash), page};
  ++count_;
}

}  // namespace hicache
