// A client that puts, replaces, removes, clears and reads at random, and knows which values each
// page may have: those that no acknowledged replacement, removal or clearing has ended. A miss is
// always allowed, another value never, whatever became of the node meanwhile.
//
// Each has a namespace of its own. Threads: one at a time.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "node_bench.h"

namespace hicache::testing {

class Customer {
 public:
  Customer(uint64_t number, uint64_t page_count, uint64_t size_max)
      : random_(number),
        number_(number),
        size_max_(size_max),
        client_({1, 5000, true, "customer"}),
        space_(client_.open_namespace(key_of(77'000 + number), "customer")),
        allowed_(page_count) {}

  bool connect(const std::string& path) { return client_.connect(path, 20'000).ok(); }
  bool is_connected() const { return client_.is_connected(); }

  /// One random call.
  void step() {
    const uint64_t page = random_.below(allowed_.size());
    const uint64_t dice = random_.below(1000);
    if (dice < 450) return put(page, false);
    if (dice < 550) return put(page, true);
    if (dice < 600) return remove(page);
    if (dice < 603) return clear();
    if (dice < 700) return look_up();
    get(page);
  }

  void put(uint64_t page, bool replace) {
    const uint64_t version = ++last_version_;
    std::vector<uint8_t> bytes = content(version);
    const Key key = key_of(page);
    std::vector<Code> codes;
    client_.put(
        space_, {&key, 1},
        [&](size_t, std::vector<MemorySegment>& segments) {
          segments.push_back({bytes.data(), bytes.size()});
        },
        {.replace = replace}, codes);
    if (codes.at(0) == Code::kAlreadyExists) return;
    if (codes.at(0) == Code::kOk && replace) allowed_[page].clear();
    refused_ += codes.at(0) == Code::kNoSpace;
    stored_ += codes.at(0) == Code::kOk;
    // Also when no answer came: it may have been done all the same.
    if (codes.at(0) != Code::kNoSpace) allowed_[page].insert(version);
  }

  void remove(uint64_t page) {
    const Key key = key_of(page);
    std::vector<Code> codes;
    client_.remove(space_, {&key, 1}, codes);
    if (codes.at(0) == Code::kOk || codes.at(0) == Code::kNotFound) allowed_[page].clear();
  }

  void clear() {
    if (!client_.clear(space_).ok()) return;
    for (std::set<uint64_t>& versions : allowed_) versions.clear();
  }

  /// With intent: what is on an SSD begins to come up.
  void look_up() {
    std::vector<Key> keys;
    for (int i = 0; i < 8; ++i) keys.push_back(key_of(random_.below(allowed_.size())));
    std::vector<Code> codes;
    client_.lookup(space_, keys, {.lease = true, .prefix = false}, codes);
  }

  void get(uint64_t page) {
    const Key key = key_of(page);
    std::vector<uint8_t> bytes;
    std::vector<Code> codes;
    client_.get(
        space_, {&key, 1},
        [&](size_t, uint64_t size, std::vector<MemorySegment>& segments) {
          bytes.resize(size);
          segments.push_back({bytes.data(), size});
          return true;
        },
        codes);
    if (codes.at(0) == Code::kNotFound) return;
    // Whoever verifies meets no damage: nobody but the node writes there.
    EXPECT_NE(codes.at(0), Code::kCorrupt) << "page " << page << " of customer " << number_;
    if (codes.at(0) != Code::kOk) return;
    ++hits_;
    const bool is_allowed =
        std::any_of(allowed_[page].begin(), allowed_[page].end(),
                    [&](uint64_t version) { return content(version) == bytes; });
    EXPECT_TRUE(is_allowed) << "page " << page << " of customer " << number_ << ": "
                            << version_of(bytes) << " of " << last_version_
                            << " versions, which was replaced, removed or cleared";
  }

  void get_all() {
    for (uint64_t page = 0; page < allowed_.size(); ++page) get(page);
  }

  uint64_t hits() const { return hits_; }
  uint64_t stored() const { return stored_; }
  uint64_t refused() const { return refused_; }
  const ClientStats& stats() const { return client_.stats(); }

 private:
  std::vector<uint8_t> content(uint64_t version) const {
    constexpr uint64_t kSizes[] = {4096, 65536, 12345, 1 << 20, 300, 8192, 131'073, 262'144};
    const uint64_t size = kSizes[(version * 7 + number_) % std::size(kSizes)];
    return bytes_of(version * 64 + number_, std::min(size, size_max_));
  }
  std::string version_of(const std::vector<uint8_t>& bytes) const {
    for (uint64_t version = 1; version <= last_version_; ++version) {
      if (content(version) == bytes) return "it is the " + std::to_string(version) + "th";
    }
    return "it is none";
  }

  Random random_;
  const uint64_t number_;
  const uint64_t size_max_;
  Client client_;
  const size_t space_;
  std::vector<std::set<uint64_t>> allowed_;  // By page.
  uint64_t last_version_ = 0;
  uint64_t hits_ = 0;
  uint64_t stored_ = 0;
  uint64_t refused_ = 0;
};

}  // namespace hicache::testing
