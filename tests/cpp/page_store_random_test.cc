// The page store against an obvious model, step by step, on memory that is really written: a byte
// handed out twice, or reused while somebody may read it, shows as a page with foreign bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "store/page_store.h"
#include "support.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::Random;

constexpr uint64_t kCapacity = 4 * kMiB;
constexpr uint64_t kReadTtl = 300;
constexpr uint64_t kLookupTtl = 60;
constexpr uint64_t kReservationTtl = 500;
constexpr double kLookupShare = 0.25;
constexpr double kHardPinShare = 0.25;
constexpr uint64_t kKeys = 24;
constexpr size_t kNamespaces = 3;
constexpr size_t kSessions = 4;

enum class Life { kReserved, kPresent, kCondemned };

struct LeaseModel {
  uint32_t count = 0;
  uint64_t expires_ms = 0;
};

struct PageModel {
  uint64_t key = 0;
  size_t space = 0;
  size_t session = 0;  // Who writes.
  uint64_t size = 0;
  PageRef ref{kNoPage, 0};
  std::vector<Extent> extents;
  Life life = Life::kReserved;
  uint64_t expires_ms = 0;
  Pin pin = Pin::kNone;
  bool is_orphan = false;  // Its namespace was cleared while it was reserved.
  bool is_spare = false;
  std::map<std::pair<LeaseKind, size_t>, LeaseModel> leases;  // By session.

  bool is_held() const { return life != Life::kPresent || !leases.empty() || pin == Pin::kHard; }
};

class Simulation {
 public:
  Simulation(EvictionKind kind, uint64_t stream)
      : random_(stream),
        memory_(kCapacity),
        store_({.capacity_bytes = kCapacity,
                .eviction = kind,
                .seed = stream,
                .read_lease_ttl_ms = kReadTtl,
                .lookup_lease_ttl_ms = kLookupTtl,
                .lookup_lease_share = kLookupShare,
                .hard_pin_share = kHardPinShare,
                .reservation_ttl_ms = kReservationTtl,
                .grow = [this] { return grow(); }}) {
    for (size_t i = 0; i < kNamespaces; ++i) {
      spaces_.push_back(store_.open_namespace(key_of(9000 + i), "").value());
    }
    for (size_t i = 0; i < kSessions; ++i) sessions_.push_back(store_.open_session());
  }

  void step() {
    switch (random_.below(17)) {
      case 0:
      case 1:
      case 2:
        return reserve();
      case 3:
      case 4:
      case 5:
        return finish_reservation();
      case 6:
        return lookup();
      case 7:
      case 8:
        return lease();
      case 9:
      case 10:
        return release();
      case 11:
        return remove();
      case 12:
        return set_pin();
      case 13:
        return report_corrupt();
      case 14:
        return pass_time();
      case 15:
        return spare();
      default:
        if (random_.one_in(12)) return clear();
        if (random_.one_in(6)) return reopen_session();
        return lookup();
    }
  }

  /// Everything that can be seen from outside agrees with the model.
  void check(bool thorough) {
    ASSERT_EQ(store_.check_invariants(), "");
    uint64_t used = 0;
    uint64_t held = 0;
    uint64_t reserved = 0;
    uint64_t leased = 0;
    uint64_t leases = 0;
    uint64_t present = 0;
    uint64_t spare = 0;
    for (const auto& [id, page] : pages_) {
      used += page.size;
      if (page.is_held()) held += SlotAllocator::footprint(page.size);
      if (page.life == Life::kReserved) reserved += page.size;
      if (page.life == Life::kPresent) ++present;
      if (page.is_spare) spare += SlotAllocator::footprint(page.size);
      leases += page.leases.size();
      for (const auto& [name, lease] : page.leases) {
        if (name.first == LeaseKind::kLookup) leased += page.size;
      }
      if (thorough) check_bytes(id, page);
    }
    const NodeStats stats = store_.stats();
    ASSERT_EQ(stats.pool_used_bytes, used);
    ASSERT_EQ(stats.pool_held_bytes, held);
    ASSERT_EQ(stats.pool_spare_bytes, spare);
    ASSERT_EQ(store_.spare_bytes(), spare);
    ASSERT_EQ(stats.pool_reserved_bytes, reserved);
    ASSERT_EQ(stats.leased_bytes, leased);
    ASSERT_EQ(stats.leases, leases);
    ASSERT_EQ(stats.pages, present);
    ASSERT_EQ(store_.free_bytes() + stats.pool_used_bytes + stats.pool_waste_bytes, populated_);
    for (size_t space = 0; space < kNamespaces; ++space) {
      const std::vector<Code> found = look(space);
      for (uint64_t key = 0; key < kKeys; ++key) {
        ASSERT_EQ(found[key] == Code::kOk, by_key_.contains({space, key}));
      }
    }
  }

 private:
  bool grow() {
    if (populated_ == kCapacity) return false;
    store_.add_memory(populated_, kCapacity / 4);
    populated_ += kCapacity / 4;
    return true;
  }

  // ---- bytes

  static uint8_t byte_of(uint64_t id) { return static_cast<uint8_t>(id * 151 + id / 251 + 1); }

  void write_bytes(uint64_t id, const PageModel& page) {
    for (const Extent& extent : page.extents) {
      ASSERT_LE(extent.offset + extent.size, populated_);
      std::memset(memory_.data() + extent.offset, byte_of(id), extent.size);
      if (extent.size >= 8) std::memcpy(memory_.data() + extent.offset, &id, sizeof(id));
    }
  }

  void check_bytes(uint64_t id, const PageModel& page) {
    for (const Extent& extent : page.extents) {
      const uint8_t* bytes = memory_.data() + extent.offset;
      uint64_t skip = 0;
      if (extent.size >= 8) {
        uint64_t stamp;
        std::memcpy(&stamp, bytes, sizeof(stamp));
        ASSERT_EQ(stamp, id) << "the page's bytes were overwritten";
        skip = 8;
      }
      if (extent.size == skip) continue;
      ASSERT_EQ(bytes[skip], byte_of(id));
      ASSERT_EQ(std::memcmp(bytes + skip, bytes + skip + 1, extent.size - skip - 1), 0)
          << "the page's bytes were overwritten";
    }
  }

  // ---- the model's own rules

  void forget(uint64_t id) { pages_.erase(id); }

  void condemn(uint64_t id) {
    PageModel& page = pages_.at(id);
    by_key_.erase({page.space, page.key});
    page.life = Life::kCondemned;
    page.is_spare = false;
    if (page.leases.empty()) forget(id);
  }

  void end_leases(auto is_over) {
    for (auto it = pages_.begin(); it != pages_.end();) {
      const uint64_t id = (it++)->first;
      PageModel& page = pages_.at(id);
      std::erase_if(page.leases, is_over);
      if (page.life == Life::kCondemned && page.leases.empty()) forget(id);
    }
  }

  void expire() {
    end_leases([this](const auto& lease) { return lease.second.expires_ms <= now_ms_; });
    for (auto it = pages_.begin(); it != pages_.end();) {
      const uint64_t id = (it++)->first;
      const PageModel& page = pages_.at(id);
      if (page.life == Life::kCondemned || page.expires_ms == 0 || page.expires_ms > now_ms_) {
        continue;
      }
      page.life == Life::kReserved ? forget(id) : condemn(id);
    }
  }

  std::vector<Code> look(size_t space) {
    std::vector<Key> keys;
    for (uint64_t key = 0; key < kKeys; ++key) keys.push_back(key_of(key));
    std::vector<Code> codes;
    store_.lookup(sessions_[0], spaces_[space], keys, {false, false}, now_ms_, codes);
    return codes;
  }

  /// After a put: pages that left to make room. They must have been free to leave.
  void sync_evictions(uint64_t evicted_count) {
    uint64_t gone = 0;
    bool has_chosen = false;
    for (size_t space = 0; space < kNamespaces; ++space) {
      const std::vector<Code> found = look(space);
      for (uint64_t key = 0; key < kKeys; ++key) {
        auto known = by_key_.find({space, key});
        if (known == by_key_.end() || found[key] == Code::kOk) continue;
        const uint64_t id = known->second;
        ASSERT_FALSE(pages_.at(id).is_held()) << "a held page was evicted";
        has_chosen = has_chosen || !pages_.at(id).is_spare;
        condemn(id);
        ++gone;
      }
    }
    ASSERT_EQ(gone, evicted_count);
    if (has_chosen) ASSERT_EQ(store_.spare_bytes(), 0u) << "others left before spare pages";
  }

  /// As the tier below does with pages that it has, or does not want.
  void spare() {
    for (uint64_t left = random_.below(4); left != 0; --left) {
      const PageIndex victim = store_.next_victim(now_ms_);
      const auto is_it = [victim](const auto& page) {
        return page.second.life == Life::kPresent && page.second.ref.page == victim;
      };
      const auto found = std::find_if(pages_.begin(), pages_.end(), is_it);
      if (victim == kNoPage) {
        ASSERT_TRUE(std::all_of(pages_.begin(), pages_.end(), [](const auto& page) {
          return page.second.is_held() || page.second.is_spare;
        }));
        return;
      }
      ASSERT_NE(found, pages_.end());
      ASSERT_FALSE(found->second.is_held() || found->second.is_spare);
      store_.spare(victim);
      found->second.is_spare = true;
    }
  }

  uint64_t slots_held_at_most() const {
    uint64_t slots = 0;
    for (const auto& [id, page] : pages_) {
      if (page.is_held()) slots += round_up(page.size, kSlotSize) / kSlotSize;
    }
    return slots;
  }

  uint64_t hard_pinned_bytes() const {
    uint64_t pinned = 0;
    for (const auto& [id, page] : pages_) {
      if (page.pin == Pin::kHard) pinned += page.size;
    }
    return pinned;
  }

  uint64_t random_page() {
    if (pages_.empty()) return 0;
    return std::next(pages_.begin(), static_cast<ptrdiff_t>(random_.below(pages_.size())))->first;
  }

  // ---- steps

  void reserve() {
    const size_t space = random_.below(kNamespaces);
    const size_t session = random_.below(kSessions);
    const uint64_t count = random_.between(1, 4);
    std::vector<uint64_t> numbers;
    std::vector<Key> keys;
    std::vector<uint64_t> sizes;
    for (uint64_t i = 0; i < count; ++i) {
      numbers.push_back(random_.below(kKeys));
      keys.push_back(key_of(numbers.back()));
      sizes.push_back(random_.one_in(40) ? random_.bits() : random_.size_up_to(kMiB));
      sizes.back() += sizes.back() == 0;
    }
    const Key parent = key_of(random_.below(kKeys));
    const PageStore::ReserveOptions options{
        random_.one_in(2) ? &parent : nullptr, random_.one_in(2), random_.one_in(4),
        static_cast<Pin>(random_.one_in(4) ? random_.below(3) : 0)};
    const uint64_t evicted_before = store_.stats().evicted_pages;
    std::vector<PageStore::Placement> placements;
    const uint64_t slots_held = slots_held_at_most();
    const uint64_t pinned = hard_pinned_bytes();
    store_.reserve(sessions_[session], spaces_[space], keys, sizes, options, now_ms_, placements);
    ASSERT_EQ(placements.size(), count);
    uint64_t batch_slots = 0;
    uint64_t batch_pinned = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const PageStore::Placement& placement = placements[i];
      const bool was_present = by_key_.contains({space, numbers[i]});
      if (placement.code == Code::kAlreadyExists) {
        ASSERT_TRUE(was_present && !options.replace);
        pages_.at(by_key_.at({space, numbers[i]})).is_spare = false;
        continue;
      }
      const uint64_t slots = round_up(std::min(sizes[i], 2 * kCapacity), kSlotSize) / kSlotSize;
      if (placement.code == Code::kNoSpace) {
        const bool over_pins =
            options.pin == Pin::kHard &&
            (sizes[i] > kCapacity || pinned + batch_pinned + sizes[i] > kCapacity * kHardPinShare);
        ASSERT_TRUE(over_pins || slots_held + batch_slots + slots > kCapacity / kSlotSize)
            << "there was room, or pages that could leave";
        continue;
      }
      ASSERT_EQ(placement.code, Code::kOk);
      batch_slots += slots;
      if (options.pin == Pin::kHard) batch_pinned += sizes[i];
      PageModel page;
      page.key = numbers[i];
      page.space = space;
      page.session = session;
      page.size = sizes[i];
      page.pin = options.pin;
      add_reservation(placement, std::move(page));
    }
    sync_evictions(store_.stats().evicted_pages - evicted_before);
  }

  void add_reservation(const PageStore::Placement& placement, PageModel page) {
    page.ref = placement.ref;
    page.extents.assign(placement.extents.begin(), placement.extents.end());
    page.expires_ms = now_ms_ + kReservationTtl;
    uint64_t sum = 0;
    for (const Extent& extent : page.extents) sum += extent.size;
    ASSERT_EQ(sum, page.size);
    const uint64_t id = ++last_id_;
    write_bytes(id, page);
    pages_.emplace(id, std::move(page));
  }

  void finish_reservation() {
    const uint64_t id = random_page();
    if (id == 0) return;
    const PageModel page = pages_.at(id);
    const SessionIndex session =
        sessions_[random_.one_in(10) ? random_.below(kSessions) : page.session];
    const bool is_mine = page.life == Life::kReserved && session == sessions_[page.session];
    if (random_.one_in(5)) {
      store_.abort(session, page.ref);
      if (is_mine) forget(id);
      return;
    }
    if (page.life == Life::kReserved) check_bytes(id, page);
    const PageStore::CommitOptions options{
        .ttl_ms = random_.one_in(3) ? random_.between(1, 2000) : 0,
        .replace = random_.one_in(3),
        .replica_count = static_cast<uint8_t>(random_.between(1, 3))};
    const Code code = store_.commit(session, page.ref, id, options, now_ms_);
    if (!is_mine) {
      ASSERT_EQ(code, Code::kCancelled);
      return;
    }
    if (page.is_orphan) {
      ASSERT_EQ(code, Code::kCancelled);
      forget(id);
      return;
    }
    auto present = by_key_.find({page.space, page.key});
    if (present != by_key_.end() && !options.replace) {
      ASSERT_EQ(code, Code::kAlreadyExists);
      forget(id);
      return;
    }
    ASSERT_EQ(code, Code::kOk);
    if (present != by_key_.end()) condemn(present->second);
    pages_.at(id).life = Life::kPresent;
    pages_.at(id).expires_ms = options.ttl_ms == 0 ? 0 : now_ms_ + options.ttl_ms;
    by_key_[{page.space, page.key}] = id;
  }

  void lookup() {
    const size_t space = random_.below(kNamespaces);
    const size_t session = random_.below(kSessions);
    const PageStore::LookupFlags flags{random_.one_in(2), random_.one_in(2)};
    std::vector<uint64_t> numbers;
    std::vector<Key> keys;
    for (uint64_t i = random_.below(8); i > 0; --i) {
      numbers.push_back(random_.below(kKeys));
      keys.push_back(key_of(numbers.back()));
    }
    std::vector<Code> codes;
    store_.lookup(sessions_[session], spaces_[space], keys, flags, now_ms_, codes);
    ASSERT_EQ(codes.size(), keys.size());
    bool missed = false;
    for (size_t i = 0; i < keys.size(); ++i) {
      auto known = by_key_.find({space, numbers[i]});
      missed = missed || (flags.prefix && known == by_key_.end());
      const bool is_hit = known != by_key_.end() && !missed;
      ASSERT_EQ(codes[i], is_hit ? Code::kOk : Code::kNotFound);
      if (!is_hit || !flags.lease) continue;
      PageModel& page = pages_.at(known->second);
      const std::pair name{LeaseKind::kLookup, session};
      if (!page.leases.contains(name) &&
          static_cast<double>(lookup_leased_bytes() + page.size) > kLookupShare * kCapacity) {
        continue;
      }
      page.leases[name] = {1, now_ms_ + kLookupTtl};
      page.is_spare = false;
    }
  }

  uint64_t lookup_leased_bytes() const {
    uint64_t leased = 0;
    for (const auto& [id, page] : pages_) {
      for (const auto& [name, lease] : page.leases) {
        if (name.first == LeaseKind::kLookup) leased += page.size;
      }
    }
    return leased;
  }

  void lease() {
    const size_t space = random_.below(kNamespaces);
    const size_t session = random_.below(kSessions);
    std::vector<uint64_t> numbers;
    std::vector<Key> keys;
    for (uint64_t i = random_.below(5); i > 0; --i) {
      numbers.push_back(random_.below(kKeys));
      keys.push_back(key_of(numbers.back()));
    }
    std::vector<PageStore::Location> locations;
    store_.lease(sessions_[session], spaces_[space], keys, false, now_ms_, locations);
    for (size_t i = 0; i < keys.size(); ++i) {
      auto known = by_key_.find({space, numbers[i]});
      ASSERT_EQ(locations[i].code, known == by_key_.end() ? Code::kNotFound : Code::kOk);
      if (known == by_key_.end()) continue;
      PageModel& page = pages_.at(known->second);
      ASSERT_EQ(locations[i].size, page.size);
      ASSERT_EQ(locations[i].checksum, known->second);
      ASSERT_TRUE(std::equal(page.extents.begin(), page.extents.end(), locations[i].extents.begin(),
                             locations[i].extents.end()));
      check_bytes(known->second, page);
      LeaseModel& held = page.leases[{LeaseKind::kRead, session}];
      ++held.count;
      page.is_spare = false;
      held.expires_ms = now_ms_ + kReadTtl;
    }
  }

  void release() {
    const uint64_t id = random_page();
    if (id == 0) return;
    PageModel& page = pages_.at(id);
    check_bytes(id, page);
    const size_t session = random_.below(kSessions);
    PageRef ref = page.ref;
    if (random_.one_in(8)) ref.generation -= static_cast<uint32_t>(random_.between(1, 3));
    if (random_.one_in(20)) ref.page = static_cast<PageIndex>(random_.bits());
    store_.release(sessions_[session], {&ref, 1}, now_ms_);
    if (ref.page != page.ref.page || ref.generation != page.ref.generation) return;
    page.leases.erase({LeaseKind::kLookup, session});
    auto read = page.leases.find({LeaseKind::kRead, session});
    if (read != page.leases.end() && --read->second.count == 0) page.leases.erase(read);
    if (page.life == Life::kCondemned && page.leases.empty()) forget(id);
  }

  void remove() {
    const size_t space = random_.below(kNamespaces);
    const uint64_t key = random_.below(kKeys);
    auto known = by_key_.find({space, key});
    ASSERT_EQ(store_.remove(spaces_[space], key_of(key)),
              known == by_key_.end() ? Code::kNotFound : Code::kOk);
    if (known != by_key_.end()) condemn(known->second);
  }

  void set_pin() {
    const size_t space = random_.below(kNamespaces);
    const uint64_t key = random_.below(kKeys);
    const auto pin = static_cast<Pin>(random_.below(3));
    auto known = by_key_.find({space, key});
    const Code code = store_.set_pin(spaces_[space], key_of(key), pin, now_ms_);
    if (known == by_key_.end()) {
      ASSERT_EQ(code, Code::kNotFound);
      return;
    }
    PageModel& page = pages_.at(known->second);
    const bool fits =
        pin != Pin::kHard || page.pin == pin ||
        static_cast<double>(hard_pinned_bytes() + page.size) <= kHardPinShare * kCapacity;
    ASSERT_EQ(code, fits ? Code::kOk : Code::kNoSpace);
    if (fits && page.pin != pin) page.is_spare = false;
    if (fits) page.pin = pin;
  }

  void report_corrupt() {
    const uint64_t id = random_page();
    if (id == 0 || !random_.one_in(4)) return;
    PageRef ref = pages_.at(id).ref;
    const bool is_stale = random_.one_in(2);
    if (is_stale) --ref.generation;
    store_.report_corrupt(ref);
    if (!is_stale && pages_.at(id).life == Life::kPresent) condemn(id);
  }

  void pass_time() {
    now_ms_ += random_.size_up_to(400);
    const uint64_t next_ms = store_.advance(now_ms_);
    expire();
    uint64_t expected = UINT64_MAX;
    for (const auto& [id, page] : pages_) {
      if (page.life != Life::kCondemned && page.expires_ms != 0) {
        expected = std::min(expected, page.expires_ms);
      }
      for (const auto& [name, lease] : page.leases) {
        expected = std::min(expected, lease.expires_ms);
      }
    }
    ASSERT_EQ(next_ms, expected);
  }

  void clear() {
    const size_t space = random_.below(kNamespaces);
    uint64_t count = 0;
    for (auto it = pages_.begin(); it != pages_.end();) {
      const auto& [id, page] = *it++;
      if (page.space != space) continue;
      if (page.life == Life::kPresent) {
        ++count;
        condemn(id);
      } else if (page.life == Life::kReserved) {
        pages_.at(id).is_orphan = true;
      }
    }
    ASSERT_EQ(store_.clear(spaces_[space]), count);
  }

  void reopen_session() {
    const size_t session = random_.below(kSessions);
    store_.close_session(sessions_[session], now_ms_);
    end_leases([&](const auto& lease) { return lease.first.second == session; });
    std::erase_if(pages_, [&](const auto& page) {
      return page.second.life == Life::kReserved && page.second.session == session;
    });
    sessions_[session] = store_.open_session();
  }

  Random random_;
  std::vector<uint8_t> memory_;
  uint64_t populated_ = 0;
  PageStore store_;
  std::vector<NamespaceIndex> spaces_;
  std::vector<SessionIndex> sessions_;
  std::map<uint64_t, PageModel> pages_;                     // All that have bytes, by id.
  std::map<std::pair<size_t, uint64_t>, uint64_t> by_key_;  // Present ones.
  uint64_t last_id_ = 0;
  uint64_t now_ms_ = 1000;
};

class PageStoreRandom : public ::testing::TestWithParam<EvictionKind> {};

TEST_P(PageStoreRandom, AgreesWithAModel) {
  HICACHE_TRACE_SEED();
  Simulation simulation(GetParam(), 40 + static_cast<uint64_t>(GetParam()));
  for (int step = 0; step < 8000; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    simulation.step();
    if (HasFatalFailure()) return;
    simulation.check(step % 500 == 499);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, PageStoreRandom,
                         ::testing::Values(EvictionKind::kLru, EvictionKind::kS3Fifo,
                                           EvictionKind::kAdaptive),
                         [](const auto& kind) {
                           return std::string(eviction_kind_name(kind.param));
                         });

}  // namespace
}  // namespace hicache
