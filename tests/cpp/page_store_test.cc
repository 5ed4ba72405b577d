#include "store/page_store.h"

#include <gtest/gtest.h>

#include "support.h"

namespace hicache {
namespace {

using testing::key_of;
using testing::keys_of;
using testing::Random;

constexpr uint64_t kReadTtl = 1000;
constexpr uint64_t kLookupTtl = 100;
constexpr uint64_t kReservationTtl = 5000;

/// A store with a session and a namespace, and a clock that tests turn.
struct Bench {
  explicit Bench(uint64_t capacity, EvictionKind eviction = EvictionKind::kAdaptive,
                 double lookup_share = 0.5)
      : store({.capacity_bytes = capacity,
               .eviction = eviction,
               .seed = 1,
               .read_lease_ttl_ms = kReadTtl,
               .lookup_lease_ttl_ms = kLookupTtl,
               .lookup_lease_share = lookup_share,
               .hard_pin_share = 0.5,
               .reservation_ttl_ms = kReservationTtl,
               .grow = nullptr}) {
    store.add_memory(0, capacity);
    session = store.open_session();
    space = store.open_namespace(key_of(1'000'000), "test").value();
  }
  ~Bench() { EXPECT_EQ(store.check_invariants(), ""); }

  PageStore::Placement reserve(const Key& key, uint64_t size, bool replace = false,
                               Pin pin = Pin::kNone) {
    std::vector<PageStore::Placement> placements;
    store.reserve(session, space, {&key, 1}, {&size, 1}, {nullptr, false, replace, pin}, now_ms,
                  placements);
    return placements.at(0);
  }
  Code commit(PageRef ref, uint64_t ttl_ms = 0, bool replace = false) {
    return store.commit(session, ref, 0, {ttl_ms, replace}, now_ms);
  }
  Code put(const Key& key, uint64_t size, uint64_t ttl_ms = 0, Pin pin = Pin::kNone,
           bool replace = false) {
    const PageStore::Placement placement = reserve(key, size, replace, pin);
    return placement.code == Code::kOk ? commit(placement.ref, ttl_ms, replace) : placement.code;
  }
  PageStore::Location lease(const Key& key) {
    std::vector<PageStore::Location> locations;
    store.lease(session, space, {&key, 1}, false, now_ms, locations);
    return locations.at(0);
  }
  void release(PageRef ref) { store.release(session, {&ref, 1}, now_ms); }
  Code lookup(const Key& key, bool leased = false) {
    std::vector<Code> codes;
    store.lookup(session, space, {&key, 1}, {leased, false}, now_ms, codes);
    return codes.at(0);
  }

  PageStore store;
  SessionIndex session = 0;
  NamespaceIndex space = 0;
  uint64_t now_ms = 1'000'000;
};

TEST(PageStore, APageIsVisibleOnlyWhenCommitted) {
  Bench bench(4 * kMiB);
  const auto placement = bench.reserve(key_of(1), 100'000);
  ASSERT_EQ(placement.code, Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kNotFound);
  EXPECT_EQ(bench.lease(key_of(1)).code, Code::kNotFound);
  EXPECT_EQ(bench.store.stats().pool_reserved_bytes, 100'000U);
  EXPECT_EQ(bench.store.commit(bench.session, placement.ref, 77, {0, false}, bench.now_ms),
            Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kOk);
  const auto location = bench.lease(key_of(1));
  EXPECT_EQ(location.code, Code::kOk);
  EXPECT_EQ(location.size, 100'000U);
  EXPECT_EQ(location.checksum, 77U);
  EXPECT_EQ(bench.reserve(key_of(1), 5).code, Code::kAlreadyExists);
  EXPECT_EQ(bench.commit(placement.ref), Code::kCancelled) << "a second commit of one reservation";
}

TEST(PageStore, TheFirstCommitOfAKeyWins) {
  Bench bench(4 * kMiB);
  const auto first = bench.reserve(key_of(1), 1000);
  const auto second = bench.reserve(key_of(1), 2000);
  ASSERT_EQ(second.code, Code::kOk);
  EXPECT_EQ(bench.commit(first.ref), Code::kOk);
  EXPECT_EQ(bench.commit(second.ref), Code::kAlreadyExists);
  EXPECT_EQ(bench.lease(key_of(1)).size, 1000U);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 1000U);
  EXPECT_EQ(bench.store.stats().put_existing_pages, 1U);
}

TEST(PageStore, AbortGivesTheRoomBack) {
  Bench bench(4 * kMiB);
  const auto placement = bench.reserve(key_of(1), kMiB);
  bench.store.abort(bench.session + 1, placement.ref);
  EXPECT_EQ(bench.store.stats().pool_reserved_bytes, kMiB) << "another session's reservation";
  bench.store.abort(bench.session, placement.ref);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 0U);
  bench.store.abort(bench.session, placement.ref);
  bench.store.abort(bench.session, {12345678, 1});
  EXPECT_EQ(bench.commit(placement.ref), Code::kCancelled);
  EXPECT_EQ(bench.store.stats().aborted_pages, 1U);
}

TEST(PageStore, AReservationEndsWithItsTime) {
  Bench bench(4 * kMiB);
  const auto placement = bench.reserve(key_of(1), kMiB);
  EXPECT_EQ(bench.store.advance(bench.now_ms), bench.now_ms + kReservationTtl);
  bench.now_ms += kReservationTtl;
  bench.store.advance(bench.now_ms);
  EXPECT_EQ(bench.store.stats().pool_reserved_bytes, 0U);
  EXPECT_EQ(bench.commit(placement.ref), Code::kCancelled);
}

TEST(PageStore, AnOldReferenceNeverMeetsALaterPage) {
  Bench bench(4 * kMiB);
  ASSERT_EQ(bench.put(key_of(1), 1000), Code::kOk);
  const PageRef old = bench.lease(key_of(1)).ref;
  bench.release(old);
  ASSERT_EQ(bench.store.remove(bench.space, key_of(1)), Code::kOk);
  ASSERT_EQ(bench.put(key_of(2), 1000), Code::kOk);
  const PageRef fresh = bench.lease(key_of(2)).ref;
  ASSERT_EQ(fresh.page, old.page) << "the record is used again";
  ASSERT_NE(fresh.generation, old.generation);
  bench.release(old);
  bench.store.report_corrupt(old);
  bench.store.abort(bench.session, old);
  EXPECT_EQ(bench.commit(old), Code::kCancelled);
  EXPECT_EQ(bench.lookup(key_of(2)), Code::kOk);
  EXPECT_EQ(bench.store.stats().leases, 1U) << "the new page's lease is untouched";
}

TEST(PageStore, ReplaceKeepsTheOldBytesWhileTheyAreRead) {
  Bench bench(4 * kMiB);
  ASSERT_EQ(bench.put(key_of(1), 1000), Code::kOk);
  const auto old = bench.lease(key_of(1));
  ASSERT_EQ(bench.put(key_of(1), 3000, 0, Pin::kNone, true), Code::kOk);
  EXPECT_EQ(bench.lease(key_of(1)).size, 3000U);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 4000U);
  bench.release(old.ref);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 3000U);
}

TEST(PageStore, ClearHidesAtOnceAndForgetsReservations) {
  Bench bench(64 * kMiB);
  for (uint64_t i = 0; i < 900; ++i) ASSERT_EQ(bench.put(key_of(i), 60'000), Code::kOk);
  const auto leased = bench.lease(key_of(5));
  const auto reserved = bench.reserve(key_of(5000), 1000);
  const NamespaceIndex other = bench.store.open_namespace(key_of(2'000'000), "other").value();
  EXPECT_EQ(bench.store.clear(other), 0U);
  EXPECT_EQ(bench.store.clear(bench.space), 900U);
  for (uint64_t i = 0; i < 900; ++i) ASSERT_EQ(bench.lookup(key_of(i)), Code::kNotFound);
  EXPECT_NE(bench.commit(reserved.ref), Code::kAlreadyExists);
  EXPECT_EQ(bench.lookup(key_of(5000)), Code::kNotFound) << "reserved before the clear";
  ASSERT_EQ(bench.put(key_of(5), 100), Code::kOk);
  EXPECT_EQ(bench.lease(key_of(5)).size, 100U);
  while (bench.store.advance(bench.now_ms) == bench.now_ms) {
  }
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 60'000U + 100U) << "the leased page is kept";
  bench.release(leased.ref);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 100U);
}

TEST(PageStore, ClearedRoomIsUsedBeforeAnythingIsEvicted) {
  Bench bench(16 * kMiB);
  const NamespaceIndex kept = bench.store.open_namespace(key_of(3'000'000), "kept").value();
  const NamespaceIndex cleared = bench.space;
  bench.space = kept;
  for (uint64_t i = 0; i < 8; ++i) ASSERT_EQ(bench.put(key_of(i), kMiB), Code::kOk);
  bench.space = cleared;
  for (uint64_t i = 0; i < 120; ++i) ASSERT_EQ(bench.put(key_of(i), kSlotSize), Code::kOk);
  bench.store.clear(cleared);
  ASSERT_EQ(bench.put(key_of(1), 8 * kMiB), Code::kOk);
  EXPECT_EQ(bench.store.stats().evicted_pages, 0U);
}

TEST(PageStore, APageEndsWithItsTime) {
  Bench bench(4 * kMiB);
  ASSERT_EQ(bench.put(key_of(1), 1000, 50), Code::kOk);
  ASSERT_EQ(bench.put(key_of(2), 1000, UINT64_MAX), Code::kOk) << "for ever";
  ASSERT_EQ(bench.put(key_of(3), 1000, UINT64_MAX - bench.now_ms + 1), Code::kOk);
  bench.now_ms += 49;
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kOk);
  bench.now_ms += 1;
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kNotFound);
  EXPECT_EQ(bench.lookup(key_of(2)), Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(3)), Code::kOk);
  EXPECT_EQ(bench.store.stats().expired_pages, 1U);
}

TEST(PageStore, ThePoolFullOfUnleasedPagesTakesEveryPut) {
  HICACHE_TRACE_SEED();
  Random random(30);
  for (const auto kind : {EvictionKind::kLru, EvictionKind::kS3Fifo, EvictionKind::kAdaptive}) {
    Bench bench(64 * kMiB, kind);
    const std::vector<uint64_t> sizes = {524288, 589824 * 2, 4497408, 515328, 9437184, 100, 40'000};
    for (uint64_t i = 0; i < 1000; ++i) {
      ASSERT_EQ(bench.put(key_of(i), random.pick(sizes)), Code::kOk) << "put " << i;
      ++bench.now_ms;
    }
    EXPECT_EQ(bench.put(key_of(5000), 64 * kMiB), Code::kOk) << "a page as large as the pool";
    EXPECT_EQ(bench.store.stats().pages, 1U);
    EXPECT_EQ(bench.put(key_of(5001), 64 * kMiB + 1), Code::kNoSpace);
    EXPECT_EQ(bench.lookup(key_of(5000)), Code::kOk) << "nothing is evicted for what cannot fit";
  }
}

TEST(PageStore, SparePagesAreReadUntilTheirRoomIsNeeded) {
  for (const EvictionKind kind :
       {EvictionKind::kLru, EvictionKind::kS3Fifo, EvictionKind::kAdaptive}) {
    Bench bench(16 * kMiB, kind);
    for (uint64_t n = 0; n < 16; ++n) ASSERT_EQ(bench.put(key_of(n), kMiB), Code::kOk);
    std::vector<PageIndex> spares;
    for (int i = 0; i < 4; ++i) {
      spares.push_back(bench.store.next_victim(bench.now_ms));
      bench.store.spare(spares.back());
    }
    EXPECT_EQ(bench.store.spare_bytes(), 4 * kMiB);
    EXPECT_EQ(bench.store.stats().evicted_pages, 0U);
    for (uint64_t n = 0; n < 16; ++n) EXPECT_EQ(bench.lookup(key_of(n)), Code::kOk) << n;
    // One is read, one asked for, one put again: they are spare no more.
    std::vector<Key> keys;
    for (const PageIndex page : spares) keys.push_back(bench.store.record(page).key);
    const auto location = bench.lease(keys[0]);
    EXPECT_EQ(location.code, Code::kOk);
    bench.release(location.ref);
    EXPECT_EQ(bench.lookup(keys[1], true), Code::kOk);
    EXPECT_EQ(bench.put(keys[2], kMiB), Code::kAlreadyExists);
    EXPECT_EQ(bench.store.spare_bytes(), kMiB);
    // What is spare leaves first, and only for want of room.
    ASSERT_EQ(bench.put(key_of(100), kMiB), Code::kOk);
    EXPECT_EQ(bench.lookup(keys[3]), Code::kNotFound);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(bench.lookup(keys[i]), Code::kOk) << i;
    EXPECT_EQ(bench.store.stats().evicted_pages, 1U);
    EXPECT_EQ(bench.store.stats().pool_spare_bytes, 0U);
  }
}

TEST(PageStore, SparePagesCanBeRemovedReplacedClearedAndExpire) {
  Bench bench(16 * kMiB);
  for (uint64_t n = 0; n < 5; ++n) {
    ASSERT_EQ(bench.put(key_of(n), kMiB, n == 0 ? 1000 : 0), Code::kOk);
  }
  for (int i = 0; i < 5; ++i) bench.store.spare(bench.store.next_victim(bench.now_ms));
  EXPECT_EQ(bench.store.next_victim(bench.now_ms), kNoPage);
  EXPECT_EQ(bench.store.remove(bench.space, key_of(1)), Code::kOk);
  EXPECT_EQ(bench.put(key_of(2), kMiB, 0, Pin::kNone, true), Code::kOk);
  EXPECT_EQ(bench.store.spare_bytes(), 3 * kMiB);
  EXPECT_EQ(bench.store.set_pin(bench.space, key_of(3), Pin::kHard, bench.now_ms), Code::kOk);
  EXPECT_EQ(bench.store.spare_bytes(), 2 * kMiB);
  bench.now_ms += 1000;
  bench.store.advance(bench.now_ms);
  EXPECT_EQ(bench.store.spare_bytes(), kMiB);
  EXPECT_EQ(bench.store.check_invariants(), "");
  bench.store.clear(bench.space);
  EXPECT_EQ(bench.store.spare_bytes(), 0U);
}

TEST(PageStore, NoSpaceAtOnceWhenAllIsLeased) {
  Bench bench(16 * kMiB);
  std::vector<PageRef> refs;
  for (uint64_t i = 0; i < 16; ++i) {
    ASSERT_EQ(bench.put(key_of(i), kMiB), Code::kOk);
    refs.push_back(bench.lease(key_of(i)).ref);
  }
  EXPECT_EQ(bench.put(key_of(100), 1), Code::kNoSpace);
  EXPECT_EQ(bench.put(key_of(100), kMiB), Code::kNoSpace);
  bench.release(refs[3]);
  EXPECT_EQ(bench.put(key_of(100), 2 * kMiB), Code::kNoSpace);
  EXPECT_EQ(bench.lookup(key_of(3)), Code::kOk) << "nothing is evicted for what cannot fit";
  EXPECT_EQ(bench.put(key_of(100), kMiB), Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(3)), Code::kNotFound);
  bench.now_ms += kReadTtl;
  EXPECT_EQ(bench.put(key_of(101), 16 * kMiB), Code::kOk) << "leases end by themselves";
}

TEST(PageStore, SizesThatWrapAreRefused) {
  Bench bench(4 * kMiB);
  ASSERT_EQ(bench.put(key_of(0), 1000), Code::kOk);
  for (const Pin pin : {Pin::kNone, Pin::kSoft, Pin::kHard}) {
    for (const uint64_t size : {UINT64_MAX, UINT64_MAX - 1000, UINT64_MAX - kSlotSize + 1,
                                UINT64_MAX / 2 + 1, 4 * kMiB + 1}) {
      EXPECT_EQ(bench.put(key_of(1), size, 0, pin), Code::kNoSpace) << size;
    }
  }
  EXPECT_EQ(bench.lookup(key_of(0)), Code::kOk);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 1000U);
}

TEST(PageStore, PinnedPagesStay) {
  Bench bench(16 * kMiB);
  ASSERT_EQ(bench.put(key_of(0), 2 * kMiB, 0, Pin::kHard), Code::kOk);
  ASSERT_EQ(bench.put(key_of(1), 2 * kMiB, 0, Pin::kSoft), Code::kOk);
  for (uint64_t i = 10; i < 60; ++i) ASSERT_EQ(bench.put(key_of(i), kMiB), Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(0)), Code::kOk);
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kOk) << "unpinned pages leave first";
  ASSERT_EQ(bench.put(key_of(2), 13 * kMiB), Code::kOk) << "a soft pin yields to need";
  EXPECT_EQ(bench.lookup(key_of(1)), Code::kNotFound);
  EXPECT_EQ(bench.lookup(key_of(0)), Code::kOk);
  EXPECT_EQ(bench.put(key_of(3), 15 * kMiB), Code::kNoSpace) << "a hard pin does not";
  EXPECT_EQ(bench.put(key_of(3), 7 * kMiB, 0, Pin::kHard), Code::kNoSpace) << "beyond the share";
  EXPECT_EQ(bench.store.set_pin(bench.space, key_of(2), Pin::kHard, bench.now_ms), Code::kNoSpace);
  EXPECT_EQ(bench.store.set_pin(bench.space, key_of(0), Pin::kSoft, bench.now_ms), Code::kOk);
  EXPECT_EQ(bench.store.set_pin(bench.space, key_of(9), Pin::kSoft, bench.now_ms), Code::kNotFound);
  EXPECT_EQ(bench.store.stats().pinned_bytes, 0U);
  EXPECT_EQ(bench.put(key_of(3), 16 * kMiB), Code::kOk);
}

TEST(PageStore, TheEndOfASessionEndsWhatItHolds) {
  Bench bench(16 * kMiB);
  ASSERT_EQ(bench.put(key_of(0), kMiB), Code::kOk);
  const SessionIndex stays = bench.session;
  bench.session = bench.store.open_session();
  ASSERT_EQ(bench.lease(key_of(0)).code, Code::kOk);
  ASSERT_EQ(bench.lookup(key_of(0), true), Code::kOk);
  const auto placement = bench.reserve(key_of(1), kMiB);
  ASSERT_EQ(placement.code, Code::kOk);
  EXPECT_EQ(bench.store.remove(bench.space, key_of(0)), Code::kOk);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 2 * kMiB);
  const SessionIndex gone = bench.session;
  bench.store.close_session(gone, bench.now_ms);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 0U);
  EXPECT_EQ(bench.store.stats().leases, 0U);
  EXPECT_EQ(bench.store.stats().leased_bytes, 0U);
  EXPECT_EQ(bench.store.stats().clients, 1U);
  bench.session = bench.store.open_session();
  EXPECT_EQ(bench.session, gone) << "used again";
  EXPECT_EQ(bench.commit(placement.ref), Code::kCancelled);
  bench.session = stays;
}

TEST(PageStore, LookUpLeasesKeepWithinTheirShare) {
  Bench bench(16 * kMiB, EvictionKind::kLru, 0.25);
  for (uint64_t i = 0; i < 16; ++i) ASSERT_EQ(bench.put(key_of(i), kMiB), Code::kOk);
  const std::vector<Key> keys = keys_of(0, 16);
  std::vector<Code> codes;
  for (int again = 0; again < 3; ++again) {
    bench.store.lookup(bench.session, bench.space, keys, {true, true}, bench.now_ms, codes);
    EXPECT_EQ(codes, std::vector<Code>(16, Code::kOk));
    EXPECT_EQ(bench.store.stats().leased_bytes, 4 * kMiB);
    EXPECT_EQ(bench.store.stats().leases, 4U);
  }
  EXPECT_EQ(bench.put(key_of(100), 12 * kMiB), Code::kOk);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(bench.lookup(key_of(i)), Code::kOk) << i;
  const auto read = bench.lease(key_of(2));
  bench.release(read.ref);
  EXPECT_EQ(bench.store.stats().leased_bytes, 3 * kMiB) << "the read ends the look-up's lease";
  bench.now_ms += kLookupTtl;
  bench.store.advance(bench.now_ms);
  EXPECT_EQ(bench.store.stats().leased_bytes, 0U);
}

TEST(PageStore, AResidentLookUpReportsNothingThatItCannotKeep) {
  Bench bench(16 * kMiB, EvictionKind::kLru, 0.25);
  for (uint64_t i = 0; i < 16; ++i) ASSERT_EQ(bench.put(key_of(i), kMiB), Code::kOk);
  const std::vector<Key> keys = keys_of(0, 16);
  std::vector<Code> expected(16, Code::kNotFound);
  std::fill_n(expected.begin(), 8, Code::kOk);
  std::vector<Code> codes;
  for (const bool prefix : {true, false, true}) {
    const PageStore::LookupFlags flags{.lease = true, .prefix = prefix, .resident = true};
    bench.store.lookup(bench.session, bench.space, keys, flags, bench.now_ms, codes);
    EXPECT_EQ(codes, expected) << "twice the share";
    EXPECT_EQ(bench.store.stats().leased_bytes, 8 * kMiB);
  }
  EXPECT_EQ(bench.put(key_of(100), 8 * kMiB), Code::kOk);
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(bench.lookup(key_of(i)), Code::kOk) << i;
  const PageStore::LookupFlags asked{.lease = false, .prefix = true, .resident = true};
  bench.store.lookup(bench.session, bench.space, keys_of(0, 8), asked, bench.now_ms, codes);
  EXPECT_EQ(codes, std::vector<Code>(8, Code::kOk)) << "who asks for no lease needs none";
}

TEST(PageStore, PrefixLookUpStopsAtTheFirstMiss) {
  Bench bench(16 * kMiB);
  for (const uint64_t i : {0, 1, 3}) ASSERT_EQ(bench.put(key_of(i), 1000), Code::kOk);
  std::vector<Code> codes;
  const std::vector<Key> keys = keys_of(0, 4);
  bench.store.lookup(bench.session, bench.space, keys, {true, true}, bench.now_ms, codes);
  EXPECT_EQ(codes, (std::vector{Code::kOk, Code::kOk, Code::kNotFound, Code::kNotFound}));
  bench.store.lookup(bench.session, bench.space, keys, {false, false}, bench.now_ms, codes);
  EXPECT_EQ(codes, (std::vector{Code::kOk, Code::kOk, Code::kNotFound, Code::kOk}));
  EXPECT_EQ(bench.store.stats().leases, 2U);
}

TEST(PageStore, ADamagedPageIsDroppedAndCounted) {
  Bench bench(16 * kMiB);
  ASSERT_EQ(bench.put(key_of(0), kMiB), Code::kOk);
  const PageRef ref = bench.lease(key_of(0)).ref;
  bench.store.report_corrupt(ref);
  bench.store.report_corrupt(ref);
  bench.store.report_corrupt({999'999, 1});
  EXPECT_EQ(bench.store.stats().corrupt_pages, 1U);
  EXPECT_EQ(bench.lookup(key_of(0)), Code::kNotFound);
  EXPECT_EQ(bench.put(key_of(0), kMiB), Code::kOk) << "it may come back";
  EXPECT_EQ(bench.store.stats().pool_used_bytes, 2 * kMiB) << "until its reader is done";
  bench.release(ref);
  EXPECT_EQ(bench.store.stats().pool_used_bytes, kMiB);
}

TEST(PageStore, NamespacesAreApart) {
  Bench bench(16 * kMiB);
  const NamespaceIndex other = bench.store.open_namespace(key_of(2'000'000), "other").value();
  EXPECT_EQ(bench.store.open_namespace(key_of(2'000'000), "again").value(), other);
  ASSERT_EQ(bench.put(key_of(0), 1000), Code::kOk);
  const NamespaceIndex first = std::exchange(bench.space, other);
  EXPECT_EQ(bench.lookup(key_of(0)), Code::kNotFound);
  ASSERT_EQ(bench.put(key_of(0), 5000), Code::kOk);
  const auto use = bench.store.namespace_use(10);
  ASSERT_EQ(use.size(), 2U);
  EXPECT_EQ(use[0].description, "other");
  EXPECT_EQ(use[0].size_bytes, 5000U);
  EXPECT_EQ(use[1].page_count, 1U);
  EXPECT_EQ(bench.store.namespace_use(1).size(), 1U);
  bench.space = first;
  EXPECT_EQ(bench.lease(key_of(0)).size, 1000U);
}

TEST(PageStore, RefusesNamespacesWithoutEnd) {
  Bench bench(1 * kMiB);
  for (uint64_t i = 1; i < 65536; ++i) {
    Key digest;
    std::memcpy(digest.bytes.data(), &i, sizeof(i));
    ASSERT_TRUE(bench.store.open_namespace(digest, "").ok());
  }
  EXPECT_EQ(bench.store.open_namespace(key_of(7), "").status().code(), Code::kNoSpace);
  EXPECT_TRUE(bench.store.open_namespace(key_of(1'000'000), "").ok())
      << "the known ones still open";
  EXPECT_EQ(bench.store.namespace_use(100).size(), 100U);
}

TEST(PageStore, EndsTheNamespaceThatWasNotNamedForTheLongestTime) {
  HICACHE_TRACE_SEED();
  Random random(21);
  Bench bench(4 * kMiB);
  const NamespaceIndex kept = bench.space;
  std::vector<NamespaceIndex> order{kept};  // The least used first.
  for (uint64_t i = 0; i < 40; ++i) {
    bench.space = bench.store.open_namespace(key_of(i), "some").value();
    order.push_back(bench.space);
    if (random.one_in(2)) ASSERT_EQ(bench.put(key_of(i), 1000), Code::kOk);
  }
  uint64_t next = 40;
  for (int i = 0; i < 3000; ++i) {
    if (random.one_in(2)) {  // Named, in one of three ways.
      const NamespaceIndex named = random.pick(order);
      bench.space = named;
      const uint64_t way = random.below(3);
      if (way == 0) bench.lookup(key_of(1));
      if (way == 1) bench.lease(key_of(1));
      if (way == 2) bench.put(key_of(2), 10);
      std::erase(order, named);
      order.push_back(named);
      continue;
    }
    const NamespaceIndex least = bench.store.least_used_namespace();
    ASSERT_EQ(least, order.front());
    const uint64_t count = bench.store.stats().namespaces;
    bench.store.end_namespace(least);
    EXPECT_FALSE(bench.store.has_namespace(least));
    EXPECT_EQ(bench.store.stats().namespaces, count - 1);
    order.erase(order.begin());
    // The same name once more is a namespace without pages, with another number.
    bench.space = bench.store.open_namespace(key_of(random.one_in(2) ? next++ : 7), "more").value();
    if (std::find(order.begin(), order.end(), bench.space) == order.end()) {
      EXPECT_EQ(bench.lookup(key_of(7)), Code::kNotFound);
      std::erase(order, bench.space);
    } else {
      bench.lookup(key_of(0));
      std::erase(order, bench.space);
    }
    order.push_back(bench.space);
    if (order.size() < 3) break;
    ASSERT_EQ(bench.store.check_invariants(), "");
  }
}

TEST(PageStore, TheIndexIsSmall) {
  Bench bench(100'000 * kSlotSize);
  for (uint64_t i = 0; i < 100'000; ++i) {
    const Key key = key_of(i);
    ASSERT_EQ(bench.put(key, kSlotSize), Code::kOk);
  }
  EXPECT_LE(bench.store.stats().index_size_bytes / 100'000, 256U);
}

TEST(PageStore, GrowsOnlyWhenAsked) {
  uint64_t added = 0;
  PageStore* grown = nullptr;
  PageStore store({.capacity_bytes = 8 * kMiB,
                   .eviction = EvictionKind::kLru,
                   .seed = 1,
                   .read_lease_ttl_ms = kReadTtl,
                   .lookup_lease_ttl_ms = kLookupTtl,
                   .lookup_lease_share = 0.5,
                   .hard_pin_share = 0.5,
                   .reservation_ttl_ms = kReservationTtl,
                   .grow = [&] {
                     if (added == 8 * kMiB) return false;
                     grown->add_memory(added, kMiB);
                     added += kMiB;
                     return true;
                   }});
  grown = &store;
  const SessionIndex session = store.open_session();
  const NamespaceIndex space = store.open_namespace(key_of(1), "").value();
  std::vector<PageStore::Placement> placements;
  for (uint64_t i = 0; i < 40; ++i) {
    const Key key = key_of(i);
    const uint64_t size = 512 * kKiB;
    store.reserve(session, space, {&key, 1}, {&size, 1}, {nullptr, false, false, Pin::kNone}, i,
                  placements);
    ASSERT_EQ(placements[0].code, Code::kOk);
    ASSERT_EQ(store.commit(session, placements[0].ref, 0, {0, false}, i), Code::kOk);
    EXPECT_EQ(added, std::min((i / 2 + 1) * kMiB, 8 * kMiB));
  }
  EXPECT_EQ(store.stats().evicted_pages, 40U - 16U);
}

TEST(PageStore, APlaceWithoutMemoryIsNeverGivenOutAgain) {
  Bench bench(16 * kMiB);
  const PageStore::Placement lost = bench.reserve(key_of(1), 3 * kSlotSize - 5);
  ASSERT_EQ(lost.code, Code::kOk);
  ASSERT_EQ(lost.extents.size(), 1U);
  const Extent place = lost.extents[0];
  bench.store.abort(bench.session, lost.ref, false);
  EXPECT_EQ(bench.store.stats().pool_grown_bytes, 16 * kMiB - 3 * kSlotSize);
  for (uint64_t i = 2; i < 500; ++i) {
    const PageStore::Placement given = bench.reserve(key_of(i), kSlotSize);
    ASSERT_EQ(given.code, Code::kOk);
    for (const Extent& extent : given.extents) {
      EXPECT_TRUE(extent.offset + extent.size <= place.offset ||
                  place.offset + 3 * kSlotSize <= extent.offset);
    }
    ASSERT_EQ(bench.commit(given.ref), Code::kOk);
  }
}

}  // namespace
}  // namespace hicache
