// What the owner of a node or a master should know: what could not be had, and what fails. The
// newest are kept.
//
// Pure. Threads: one at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace hicache {

class NoticeList {
 public:
  static constexpr size_t kCountMax = 100;
  /// Said again sooner, a notice says nothing new.
  static constexpr uint64_t kRepeatMs = 60'000;

  void add(const std::string& text, uint64_t now_ms) {
    const auto is_news_no_more = [&](const Entry& entry) {
      return entry.text == text && now_ms < entry.at_ms + kRepeatMs;
    };
    if (std::any_of(entries_.begin(), entries_.end(), is_news_no_more)) return;
    entries_.push_back({text, now_ms});
    ++count_;
    if (entries_.size() > kCountMax) entries_.pop_front();
  }

  /// How many there ever were.
  uint64_t count() const { return count_; }
  /// Those that are kept, without the first `known` that there ever were; the oldest first.
  std::vector<std::string> since(uint64_t known) const {
    std::vector<std::string> found;
    uint64_t number = count_ - entries_.size();
    for (const Entry& entry : entries_) {
      if (number++ >= known) found.push_back(entry.text);
    }
    return found;
  }

 private:
  struct Entry {
    std::string text;
    uint64_t at_ms;
  };
  std::deque<Entry> entries_;
  uint64_t count_ = 0;
};

}  // namespace hicache
