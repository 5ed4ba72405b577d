#include "store/lease_table.h"

#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

constexpr uint64_t kLookupTtl = 30;
constexpr uint64_t kReadTtl = 100;

/// The obvious way: every lease in one map.
struct Oracle {
  struct Lease {
    uint64_t expires_ms;
    uint32_t count;
  };
  using Name = std::tuple<LeaseKind, SessionIndex, PageIndex>;
  std::map<Name, Lease> leases;

  void grant(LeaseKind kind, SessionIndex session, PageIndex page, uint64_t now_ms) {
    const uint64_t ttl = kind == LeaseKind::kLookup ? kLookupTtl : kReadTtl;
    auto [lease, is_new] = leases.try_emplace({kind, session, page}, Lease{0, 0});
    lease->second.count = is_new || kind == LeaseKind::kRead ? lease->second.count + 1 : 1;
    lease->second.expires_ms = now_ms + ttl;
  }
  bool release(LeaseKind kind, SessionIndex session, PageIndex page) {
    auto lease = leases.find({kind, session, page});
    if (lease == leases.end() || --lease->second.count != 0) return false;
    leases.erase(lease);
    return true;
  }
  std::multiset<std::pair<PageIndex, LeaseKind>> end_if(auto is_over) {
    std::multiset<std::pair<PageIndex, LeaseKind>> ended;
    for (auto it = leases.begin(); it != leases.end();) {
      const auto [kind, session, page] = it->first;
      if (is_over(session, it->second)) {
        ended.insert({page, kind});
        it = leases.erase(it);
      } else {
        ++it;
      }
    }
    return ended;
  }
  uint64_t next_expiry_ms() const {
    uint64_t next = UINT64_MAX;
    for (const auto& [name, lease] : leases) next = std::min(next, lease.expires_ms);
    return next;
  }
};

TEST(LeaseTable, AgreesWithTheObviousWay) {
  HICACHE_TRACE_SEED();
  Random random(20);
  LeaseTable table(LeaseTable::Options{{kLookupTtl, kReadTtl}});
  Oracle oracle;
  constexpr PageIndex kPages = 12;
  constexpr SessionIndex kSessions = 5;
  std::vector<LeaseIndex> heads(kPages, kNoLease);
  const auto head_of = [&](PageIndex page) { return &heads[page]; };
  uint64_t now_ms = 1000;
  for (int step = 0; step < 60'000; ++step) {
    const auto kind = static_cast<LeaseKind>(random.below(2));
    const auto session = static_cast<SessionIndex>(random.below(kSessions));
    const auto page = static_cast<PageIndex>(random.below(kPages));
    std::multiset<std::pair<PageIndex, LeaseKind>> ended;
    const auto on_end = [&](PageIndex of, LeaseKind which) { ended.insert({of, which}); };
    switch (random.below(20)) {
      case 0:
        table.end_session(session, head_of, on_end);
        ASSERT_EQ(ended, oracle.end_if(
                             [&](SessionIndex of, const Oracle::Lease&) { return of == session; }));
        break;
      case 1:
      case 2:
        now_ms += random.below(20);
        table.expire(now_ms, head_of, on_end);
        ASSERT_EQ(ended, oracle.end_if([&](SessionIndex, const Oracle::Lease& lease) {
          return lease.expires_ms <= now_ms;
        }));
        break;
      default:
        if (random.one_in(3)) {
          ASSERT_EQ(table.release(kind, session, &heads[page]),
                    oracle.release(kind, session, page));
        } else {
          table.grant(kind, session, page, &heads[page], now_ms);
          oracle.grant(kind, session, page, now_ms);
        }
    }
    ASSERT_EQ(table.count(), oracle.leases.size());
    ASSERT_EQ(table.next_expiry_ms(), oracle.next_expiry_ms());
    ASSERT_EQ(table.holds(kind, session, heads[page]),
              oracle.leases.contains({kind, session, page}));
    const auto first_of_page = [&](const auto& lease) { return std::get<2>(lease.first) == page; };
    ASSERT_EQ(heads[page] == kNoLease,
              std::none_of(oracle.leases.begin(), oracle.leases.end(), first_of_page));
  }
  EXPECT_LE(table.memory_size_bytes(), 64 * kKiB) << "leases that ended are used again";
}

TEST(LeaseTable, ReadsOfOnePageCount) {
  LeaseTable table(LeaseTable::Options{{kLookupTtl, kReadTtl}});
  LeaseIndex head = kNoLease;
  table.grant(LeaseKind::kRead, 0, 7, &head, 0);
  table.grant(LeaseKind::kRead, 0, 7, &head, 10);
  table.grant(LeaseKind::kLookup, 0, 7, &head, 10);
  table.grant(LeaseKind::kLookup, 0, 7, &head, 20);
  EXPECT_EQ(table.count(), 2U);
  EXPECT_FALSE(table.release(LeaseKind::kRead, 0, &head));
  EXPECT_TRUE(table.holds(LeaseKind::kRead, 0, head));
  EXPECT_FALSE(table.release(LeaseKind::kRead, 1, &head)) << "another session's";
  EXPECT_TRUE(table.release(LeaseKind::kRead, 0, &head));
  EXPECT_TRUE(table.release(LeaseKind::kLookup, 0, &head)) << "renewed, not counted";
  EXPECT_EQ(head, kNoLease);
  EXPECT_EQ(table.next_expiry_ms(), UINT64_MAX);
}

}  // namespace
}  // namespace hicache
