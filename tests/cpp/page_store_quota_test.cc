// Quotas of tenants: by example, and a random store against a model that adds up what it put.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "store/page_store.h"
#include "support.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::Random;

PageStore::Options options_of(uint64_t capacity, EvictionKind kind) {
  return {.capacity_bytes = capacity,
          .eviction = kind,
          .seed = 1,
          .read_lease_ttl_ms = 1000,
          .lookup_lease_ttl_ms = 100,
          .lookup_lease_share = 0.5,
          .hard_pin_share = 0.5,
          .reservation_ttl_ms = 5000,
          .grow = nullptr};
}

class PageStoreQuota : public ::testing::TestWithParam<EvictionKind> {
 protected:
  PageStoreQuota() {
    store.add_memory(0, 64 * kMiB);
    session = store.open_session();
    flood = store.open_namespace(key_of(1'000'000), "tenant=flood").value();
    quiet = store.open_namespace(key_of(1'000'001), "tenant=quiet").value();
  }
  ~PageStoreQuota() override { EXPECT_EQ(store.check_invariants(), ""); }

  Code put(NamespaceIndex space, uint64_t n, uint64_t size, uint64_t parent = 0,
           Pin pin = Pin::kNone) {
    const Key key = key_of(n);
    const Key above = key_of(parent);
    std::vector<PageStore::Placement> placements;
    store.reserve(session, space, {&key, 1}, {&size, 1},
                  {parent == 0 ? nullptr : &above, false, false, pin}, now_ms, placements);
    if (placements.at(0).code != Code::kOk) return placements[0].code;
    return store.commit(session, placements[0].ref, 0, {0, false}, now_ms);
  }
  bool has(NamespaceIndex space, uint64_t n) {
    const Key key = key_of(n);
    std::vector<Code> codes;
    store.lookup(session, space, {&key, 1}, {false, false}, now_ms, codes);
    return codes.at(0) == Code::kOk;
  }
  PageRef lease(NamespaceIndex space, uint64_t n) {
    const Key key = key_of(n);
    std::vector<PageStore::Location> locations;
    store.lease(session, space, {&key, 1}, false, now_ms, locations);
    EXPECT_EQ(locations.at(0).code, Code::kOk);
    return locations.at(0).ref;
  }
  uint64_t used(const std::string& tenant) {
    for (const Tenant& one : store.tenant_use(100)) {
      if (one.name == tenant) return one.used_bytes;
    }
    return 0;
  }
  void settle() {
    while (store.advance(now_ms) == now_ms) {
    }
  }

  PageStore store{options_of(64 * kMiB, GetParam())};
  SessionIndex session = 0;
  NamespaceIndex flood = 0;
  NamespaceIndex quiet = 0;
  uint64_t now_ms = 1'000'000;
};

TEST_P(PageStoreQuota, WhoFloodsLosesItsOwnPagesAndNobodyElseDoes) {
  store.set_quotas({{"flood", 8 * kMiB}});
  for (uint64_t n = 1; n <= 40; ++n) ASSERT_EQ(put(quiet, n, kMiB), Code::kOk);
  for (uint64_t n = 1; n <= 1000; ++n) {
    ASSERT_EQ(put(flood, n, kMiB), Code::kOk);
    ASSERT_LE(used("flood"), 8 * kMiB);
  }
  for (uint64_t n = 1; n <= 40; ++n) EXPECT_TRUE(has(quiet, n)) << n;
  EXPECT_TRUE(has(flood, 1000));
  EXPECT_EQ(store.stats().quota_evicted_pages, 992U);
  EXPECT_EQ(store.stats().evicted_pages, 992U);
  EXPECT_EQ(store.stats().put_over_quota_pages, 0U);
}

TEST_P(PageStoreQuota, NamespacesOfOneTenantCountTogether) {
  const NamespaceIndex other =
      store.open_namespace(key_of(1'000'002), "model=m tenant=flood").value();
  store.set_quotas({{"flood", 8 * kMiB}});
  for (uint64_t n = 1; n <= 8; ++n) ASSERT_EQ(put(flood, n, kMiB), Code::kOk);
  for (uint64_t n = 1; n <= 8; ++n) ASSERT_EQ(put(other, n, kMiB), Code::kOk);
  EXPECT_EQ(used("flood"), 8 * kMiB);
  EXPECT_FALSE(has(flood, 1)) << "the least recently used of both";
  EXPECT_TRUE(has(other, 8));
}

TEST_P(PageStoreQuota, RefusesOnlyWhatTheQuotaCanNeverHoldOrWhatIsHeld) {
  store.set_quotas({{"flood", 4 * kMiB}});
  EXPECT_EQ(put(flood, 1, 4 * kMiB + 1), Code::kOverQuota);
  EXPECT_EQ(put(flood, 1, 4 * kMiB), Code::kOk);
  const PageRef ref = lease(flood, 1);
  EXPECT_EQ(put(flood, 2, 1), Code::kOverQuota);
  EXPECT_EQ(store.stats().put_over_quota_pages, 2U);
  EXPECT_EQ(store.stats().put_no_space_pages, 0U);
  EXPECT_EQ(put(quiet, 2, 1), Code::kOk);
  store.release(session, {&ref, 1}, now_ms);
  EXPECT_EQ(put(flood, 2, 1), Code::kOk);
  EXPECT_FALSE(has(flood, 1));
  EXPECT_EQ(put(flood, 3, 2 * kMiB, 0, Pin::kHard), Code::kOk);
  EXPECT_EQ(put(flood, 4, 3 * kMiB), Code::kOverQuota) << "pinned pages stay";
  EXPECT_EQ(put(flood, 4, 2 * kMiB), Code::kOk);
}

TEST_P(PageStoreQuota, ReservationsCount) {
  store.set_quotas({{"flood", 4 * kMiB}});
  const std::vector<Key> keys = testing::keys_of(1, 6);
  const std::vector<uint64_t> sizes(6, kMiB);
  std::vector<PageStore::Placement> placements;
  store.reserve(session, flood, keys, sizes, {nullptr, true, false, Pin::kNone}, now_ms,
                placements);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(placements[i].code, i < 4 ? Code::kOk : Code::kOverQuota) << i;
  }
  EXPECT_EQ(store.tenant_use(1).at(0).reserved_bytes, 4 * kMiB);
  store.abort(session, placements[0].ref);
  EXPECT_EQ(put(flood, 9, kMiB), Code::kOk);
  EXPECT_EQ(store.tenant_use(1).at(0).reserved_bytes, 3 * kMiB);
  EXPECT_EQ(store.tenant_use(1).at(0).page_count, 1U);
}

TEST_P(PageStoreQuota, AQuotaSetLaterFindsThePagesThatAreThere) {
  for (uint64_t n = 1; n <= 10'000; ++n) {
    ASSERT_EQ(put(flood, n, 1000, n - 1), Code::kOk);
    if (n % 10 == 0) ASSERT_EQ(put(quiet, n, 1000), Code::kOk);
  }
  store.set_quotas({{"flood", kMiB}});
  settle();
  EXPECT_LE(used("flood"), kMiB);
  EXPECT_GT(used("flood"), kMiB - 2000);
  EXPECT_TRUE(has(flood, 1)) << "a chain loses its end first";
  EXPECT_FALSE(has(flood, 10'000));
  EXPECT_EQ(store.stats().quota_evicted_pages, store.stats().evicted_pages);
  for (uint64_t n = 10; n <= 10'000; n += 10) EXPECT_TRUE(has(quiet, n)) << n;
  store.set_quotas({});
  ASSERT_EQ(put(flood, 20'000, 2 * kMiB), Code::kOk);
}

TEST_P(PageStoreQuota, APutDoesNotWaitUntilAMuchLowerQuotaIsReached) {
  for (uint64_t n = 1; n <= 20'000; ++n) ASSERT_EQ(put(flood, n, 1000), Code::kOk);
  store.set_quotas({{"flood", kMiB}});
  const uint64_t before = store.stats().evicted_pages;
  EXPECT_EQ(put(flood, 30'000, 1000), Code::kOverQuota);
  EXPECT_LE(store.stats().evicted_pages - before, 2000U);
  settle();
  EXPECT_EQ(put(flood, 30'000, 1000), Code::kOk);
}

TEST_P(PageStoreQuota, SparePagesOfTheTenantGoFirst) {
  store.set_quotas({{"flood", 4 * kMiB}});
  for (uint64_t n = 1; n <= 4; ++n) ASSERT_EQ(put(flood, n, kMiB), Code::kOk);
  ASSERT_EQ(put(quiet, 1, kMiB), Code::kOk);
  const PageIndex quiet_page = lease(quiet, 1).page;
  const PageRef last = lease(flood, 4);
  store.release(session, {&last, 1}, now_ms);
  now_ms += 1000;  // Leases end.
  settle();
  store.spare(quiet_page);
  store.spare(last.page);
  ASSERT_EQ(put(flood, 5, kMiB), Code::kOk);
  EXPECT_FALSE(has(flood, 4));
  EXPECT_TRUE(has(quiet, 1)) << "spare, but another's";
}

TEST_P(PageStoreQuota, WhatIsClearedIsNobodysAtOnce) {
  store.set_quotas({{"flood", 16 * kMiB}});
  for (uint64_t n = 1; n <= 3000; ++n) ASSERT_EQ(put(flood, n, 4096), Code::kOk);
  const PageRef held = lease(flood, 7);
  store.clear(flood);
  EXPECT_EQ(used("flood"), 0U);
  for (uint64_t n = 1; n <= 4; ++n) ASSERT_EQ(put(flood, n, 4 * kMiB), Code::kOk);
  settle();
  EXPECT_EQ(used("flood"), 16 * kMiB);
  EXPECT_EQ(store.stats().quota_evicted_pages, 0U);
  store.release(session, {&held, 1}, now_ms);
  EXPECT_EQ(used("flood"), 16 * kMiB);
}

TEST_P(PageStoreQuota, ANamespaceOfAnUnknownTenantIsCountedWhereItBelongsOnceThatIsKnown) {
  const NamespaceIndex late = store.open_namespace(key_of(2'000'000), "").value();
  store.set_quotas({{"flood", 4 * kMiB}});
  for (uint64_t n = 1; n <= 3; ++n) ASSERT_EQ(put(late, n, kMiB), Code::kOk);
  EXPECT_EQ(store.open_namespace(key_of(2'000'000), "tenant=flood").value(), late);
  EXPECT_EQ(used("flood"), 3 * kMiB);
  for (uint64_t n = 11; n <= 14; ++n) ASSERT_EQ(put(flood, n, kMiB), Code::kOk);
  EXPECT_EQ(used("flood"), 4 * kMiB);
  EXPECT_FALSE(has(late, 1));
}

TEST_P(PageStoreQuota, ANamespaceThatEndsTakesItsTenantAlong) {
  store.set_quotas({{"flood", 4 * kMiB}, {"*", 2 * kMiB}});
  for (uint64_t n = 1; n <= 1000; ++n) ASSERT_EQ(put(flood, n, 2000), Code::kOk);
  store.end_namespace(flood);
  ASSERT_EQ(store.check_invariants(), "");
  // The next one takes its place, while pages of the old one are still there.
  const NamespaceIndex next = store.open_namespace(key_of(3), "tenant=next").value();
  for (uint64_t n = 1; n <= 5; ++n) ASSERT_EQ(put(next, n, kMiB), Code::kOk);
  EXPECT_EQ(used("next"), 2 * kMiB);
  settle();
  EXPECT_EQ(store.stats().pages, 2U);
}

// ---------------------------------------------------------------- random

constexpr uint64_t kKeys = 40;
constexpr size_t kTenants = 3;
constexpr size_t kSpaces = 5;

struct Model {
  uint64_t key = 0;
  size_t space = 0;
  uint64_t size = 0;
  uint64_t parent = UINT64_MAX;  // Its key; none: UINT64_MAX.
  PageRef ref{kNoPage, 0};
  bool is_present = false;
  bool is_condemned = false;
  bool is_cleared = false;
  bool is_spare = false;
  bool is_pinned = false;
  uint64_t leases = 0;

  bool is_held() const { return !is_present || leases != 0 || is_pinned; }
};

class Simulation {
 public:
  Simulation(EvictionKind kind, uint64_t stream, uint64_t capacity)
      : random_(stream), capacity_(capacity), store_(options_of(capacity, kind)) {
    store_.add_memory(0, capacity);
    session_ = store_.open_session();
    for (size_t i = 0; i < kSpaces; ++i) {
      spaces_.push_back(store_.open_namespace(key_of(9000 + i), description_of(i)).value());
    }
  }

  void step() {
    switch (random_.below(14)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return reserve();
      case 4:
      case 5:
      case 6:
        return finish();
      case 7:
        return lease();
      case 8:
        return release();
      case 9:
        return remove();
      case 10:
        return spare();
      case 11:
        return pin();
      case 12:
        if (random_.one_in(8)) return clear();
        return release();
      default:
        if (random_.one_in(6)) return set_quotas();
        return finish();
    }
  }

  void check() {
    ASSERT_EQ(store_.check_invariants(), "");
    for (const Tenant& tenant : store_.tenant_use(100)) {
      const size_t number = tenant.name[0] - 'a';
      ASSERT_EQ(tenant.used_bytes, used(number, false)) << tenant.name;
      ASSERT_EQ(tenant.limit_bytes, limits_[number]);
    }
    uint64_t used = 0;
    for (const Model& page : pages_) used += page.size;
    ASSERT_EQ(store_.stats().pool_used_bytes, used) << "space has leaked";
  }

 private:
  static size_t tenant_of_space(size_t space) { return space % kTenants; }
  static std::string description_of(size_t space) {
    const auto letter = static_cast<char>('a' + tenant_of_space(space));
    return "n=" + std::to_string(space) + " tenant=" + std::string(1, letter);
  }

  uint64_t used(size_t tenant, bool only_held) const {
    uint64_t bytes = 0;
    for (const Model& page : pages_) {
      const bool counts = tenant_of_space(page.space) == tenant && !page.is_cleared;
      if (counts && (!only_held || page.is_held())) bytes += SlotAllocator::footprint(page.size);
    }
    return bytes;
  }

  Model* find(size_t space, uint64_t key) {
    for (Model& page : pages_) {
      if (page.is_present && page.space == space && page.key == key) return &page;
    }
    return nullptr;
  }

  void drop(Model& page) {
    page.is_present = false;
    page.is_spare = false;
    page.is_condemned = true;
  }
  void forget_freed() {
    std::erase_if(pages_, [](const Model& page) { return page.is_condemned && page.leases == 0; });
  }

  /// Pages that left since; checks that they might, and that those of `tenant` went leaf first.
  void sync(size_t tenant, bool others_may) {
    const std::vector<Model> before = pages_;
    std::vector<std::pair<size_t, uint64_t>> gone;
    for (Model& page : pages_) {
      if (!page.is_present) continue;
      const Key key = key_of(page.key);
      std::vector<Code> codes;
      store_.lookup(session_, spaces_[page.space], {&key, 1}, {false, false}, now_ms_, codes);
      if (codes[0] == Code::kOk) continue;
      ASSERT_FALSE(page.is_held()) << "a held page has left";
      ASSERT_TRUE(others_may || tenant_of_space(page.space) == tenant) << "another's page has left";
      if (!page.is_spare) gone.emplace_back(page.space, page.key);
      drop(page);
    }
    for (const Model& page : before) {
      const Model* child = page.is_present && !page.is_spare ? find(page.space, page.key) : nullptr;
      if (child == nullptr || child->is_held() || child->parent == UINT64_MAX) continue;
      const auto parent = std::pair(child->space, child->parent);
      ASSERT_EQ(std::count(gone.begin(), gone.end(), parent), 0) << "a page left before its child";
    }
    forget_freed();
  }

  void reserve() {
    const size_t space = random_.below(kSpaces);
    const size_t tenant = tenant_of_space(space);
    // Parents have lower keys, so that there are no rings.
    const uint64_t number = random_.below(kKeys);
    const Key key = key_of(number);
    const uint64_t parent = number == 0 || random_.one_in(3) ? UINT64_MAX : number / 2;
    const Key parent_key = key_of(parent);
    const uint64_t size = random_.size_up_to(kMiB);
    const bool replace = random_.one_in(4);
    const uint64_t footprint = SlotAllocator::footprint(size);
    const uint64_t held = used(tenant, true);
    const uint64_t before = used(tenant, false);
    // By whole slots, so that no hole in a shared one matters.
    const bool is_roomy = store_.free_bytes() >= round_up(size, kSlotSize);
    const uint64_t evicted = store_.stats().evicted_pages;
    std::vector<PageStore::Placement> placements;
    store_.reserve(session_, spaces_[space], {&key, 1}, {&size, 1},
                   {parent == UINT64_MAX ? nullptr : &parent_key, false, replace, Pin::kNone},
                   now_ms_, placements);
    const Code code = placements[0].code;
    if (code == Code::kAlreadyExists) {
      Model* known = find(space, number);
      ASSERT_NE(known, nullptr);
      known->is_spare = false;
      return;
    }
    const bool can_never = limits_[tenant] < footprint || held > limits_[tenant] - footprint;
    if (code == Code::kOverQuota) ASSERT_TRUE(can_never) << "its own pages could have left";
    if (code == Code::kOk) ASSERT_FALSE(can_never);
    if (is_roomy) {
      ASSERT_NE(code, Code::kNoSpace);
      const bool fits = !can_never && before <= limits_[tenant] - footprint;
      if (fits) ASSERT_EQ(store_.stats().evicted_pages, evicted) << "evicted for nothing";
    }
    sync(tenant, !is_roomy);
    if (::testing::Test::HasFatalFailure() || code != Code::kOk) return;
    pages_.push_back(
        {.key = number, .space = space, .size = size, .parent = parent, .ref = placements[0].ref});
    replacing_[placements[0].ref.page] = replace;
    ASSERT_LE(used(tenant, false), limits_[tenant]) << "beyond its quota";
  }

  Model* random_page(auto is_wanted) {
    std::vector<Model*> found;
    for (Model& page : pages_) {
      if (is_wanted(page)) found.push_back(&page);
    }
    return found.empty() ? nullptr : random_.pick(found);
  }

  void finish() {
    Model* page =
        random_page([](const Model& one) { return !one.is_present && !one.is_condemned; });
    if (page == nullptr) return;
    if (random_.one_in(8)) {
      store_.abort(session_, page->ref);
      drop(*page);
      return forget_freed();
    }
    const bool replace = replacing_[page->ref.page];
    const Code code = store_.commit(session_, page->ref, 0, {0, replace}, now_ms_);
    Model* known = find(page->space, page->key);
    if (page->is_cleared) {
      ASSERT_EQ(code, Code::kCancelled);
      drop(*page);
    } else if (known != nullptr && !replace) {
      ASSERT_EQ(code, Code::kAlreadyExists);
      drop(*page);
    } else {
      ASSERT_EQ(code, Code::kOk);
      if (known != nullptr) drop(*known);
      page->is_present = true;
    }
    forget_freed();
  }

  void lease() {
    Model* page = random_page([](const Model& one) { return one.is_present; });
    if (page == nullptr) return;
    const Key key = key_of(page->key);
    std::vector<PageStore::Location> locations;
    store_.lease(session_, spaces_[page->space], {&key, 1}, true, now_ms_, locations);
    ASSERT_EQ(locations[0].code, Code::kOk);
    ++page->leases;
    page->is_spare = false;
  }

  void release() {
    Model* page = random_page([](const Model& one) { return one.leases != 0; });
    if (page == nullptr) return;
    store_.release(session_, {&page->ref, 1}, now_ms_);
    --page->leases;
    forget_freed();
  }

  void remove() {
    Model* page = random_page([](const Model& one) { return one.is_present; });
    if (page == nullptr) return;
    ASSERT_EQ(store_.remove(spaces_[page->space], key_of(page->key)), Code::kOk);
    drop(*page);
    forget_freed();
  }

  void spare() {
    const PageIndex victim = store_.next_victim(now_ms_);
    if (victim == kNoPage) return;
    store_.spare(victim);
    for (Model& page : pages_) page.is_spare |= page.is_present && page.ref.page == victim;
  }

  void pin() {
    Model* page = random_page([](const Model& one) { return one.is_present; });
    if (page == nullptr) return;
    const auto level = static_cast<Pin>(random_.below(3));
    const Code code = store_.set_pin(spaces_[page->space], key_of(page->key), level, now_ms_);
    if (code != Code::kOk) return;
    page->is_spare = page->is_spare && store_.record(page->ref.page).is_spare;
    page->is_pinned = level == Pin::kHard;
  }

  void clear() {
    const size_t space = random_.below(kSpaces);
    store_.clear(spaces_[space]);
    settle();
    for (Model& page : pages_) {
      if (page.space != space) continue;
      page.is_cleared = true;
      if (page.is_present) drop(page);
    }
    forget_freed();
  }

  void settle() {
    while (store_.advance(now_ms_) == now_ms_) {
    }
  }

  void set_quotas() {
    Quotas quotas;
    limits_.assign(kTenants, kNoQuota);
    const uint64_t others = random_.one_in(3) ? random_.below(capacity_) : kNoQuota;
    if (others != kNoQuota) quotas.emplace("*", others);
    for (size_t tenant = 0; tenant < kTenants; ++tenant) {
      limits_[tenant] = others;
      if (random_.one_in(3)) continue;
      limits_[tenant] = random_.size_up_to(capacity_);
      quotas.emplace(std::string(1, static_cast<char>('a' + tenant)), limits_[tenant]);
    }
    std::vector<uint64_t> before;
    for (size_t tenant = 0; tenant < kTenants; ++tenant) before.push_back(used(tenant, false));
    store_.set_quotas(quotas);
    settle();
    for (size_t tenant = 0; tenant < kTenants; ++tenant) {
      if (before[tenant] > limits_[tenant]) sync(tenant, true);
    }
    for (size_t tenant = 0; tenant < kTenants; ++tenant) {
      if (before[tenant] <= limits_[tenant]) ASSERT_EQ(used(tenant, false), before[tenant]);
      ASSERT_LE(used(tenant, false), std::max(limits_[tenant], used(tenant, true)));
    }
  }

  Random random_;
  const uint64_t capacity_;
  PageStore store_;
  SessionIndex session_ = 0;
  std::vector<NamespaceIndex> spaces_;
  std::vector<Model> pages_;
  std::map<PageIndex, bool> replacing_;
  std::vector<uint64_t> limits_ = std::vector<uint64_t>(kTenants, kNoQuota);
  uint64_t now_ms_ = 1000;
};

void run(EvictionKind kind, uint64_t capacity) {
  Simulation simulation(kind, 70 + static_cast<uint64_t>(kind), capacity);
  for (int step = 0; step < 4000; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    simulation.step();
    if (::testing::Test::HasFatalFailure()) return;
    simulation.check();
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(PageStoreQuota, InAPoolThatIsNeverFullOnlyQuotasEvict) {
  HICACHE_TRACE_SEED();
  run(GetParam(), 512 * kMiB);
}

TEST_P(PageStoreQuota, InAPoolThatIsFullNoTenantIsBeyondItsQuota) {
  HICACHE_TRACE_SEED();
  run(GetParam(), 6 * kMiB);
}

INSTANTIATE_TEST_SUITE_P(Policies, PageStoreQuota,
                         ::testing::Values(EvictionKind::kLru, EvictionKind::kS3Fifo,
                                           EvictionKind::kAdaptive),
                         [](const auto& kind) {
                           return std::string(eviction_kind_name(kind.param));
                         });

}  // namespace
}  // namespace hicache
