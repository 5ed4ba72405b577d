#include "directory/quota_table.h"

#include <gtest/gtest.h>

#include <map>

#include "directory_rig.h"
#include "support.h"

namespace hicache {
namespace {

using testing::Random;

TEST(QuotaTable, TheLatestChangeCounts) {
  QuotaTable table;
  EXPECT_EQ(table.digest(), 0U);
  EXPECT_TRUE(table.set("a", 5, 3));
  const std::vector<TenantQuota> first = table.all();
  EXPECT_TRUE(table.set("a", 7, 3));
  EXPECT_FALSE(table.merge(first, 3));
  EXPECT_EQ(table.all().at(0).size_bytes, 7U);
  QuotaTable later;
  EXPECT_TRUE(later.set("a", 9, 4)) << "the first change of a later leader";
  EXPECT_FALSE(table.merge(later.all(), 3)) << "of a leader that nobody has heard of";
  EXPECT_TRUE(table.merge(later.all(), 4));
  EXPECT_EQ(table.digest(), later.digest());
  EXPECT_TRUE(table.set("a", 0, 4));
  EXPECT_TRUE(later.merge(table.all(), 4)) << "taken back";
  EXPECT_EQ(later.all().at(0).size_bytes, 0U);
}

TEST(QuotaTable, IsBounded) {
  QuotaTable table;
  for (size_t i = 0; i < kQuotasMax; ++i) ASSERT_TRUE(table.set(std::to_string(i), 1, 1));
  EXPECT_FALSE(table.set("one more", 1, 1));
  EXPECT_TRUE(table.set("0", 2, 1));
  EXPECT_FALSE(table.merge({{"one more", 1, 1, 1}}, 1));
  EXPECT_FALSE(table.merge({{"0", 1, 1, UINT64_MAX}}, 1)) << "nothing could come after it";
  EXPECT_EQ(table.all().size(), kQuotasMax);
}

TEST(QuotaTable, AllThatHearOfEachOtherBecomeEqual) {
  HICACHE_TRACE_SEED();
  Random random;
  for (int round = 0; round < 200; ++round) {
    std::vector<QuotaTable> tables(4);
    std::map<std::string, uint64_t> latest;
    uint64_t epoch = 1;
    // Table 0 is the leader's, which sometimes begins with nothing, as a later leader.
    for (int step = 0; step < 60; ++step) {
      const size_t other = random.between(1, 3);
      if (random.one_in(12)) {
        for (size_t i = 1; i < tables.size(); ++i) (void)tables[i].merge(tables[0].all(), epoch);
        tables[0] = QuotaTable();
        ++epoch;
      } else if (random.one_in(2)) {
        const std::string name(1, static_cast<char>('a' + random.below(5)));
        latest[name] = random.below(3);
        ASSERT_TRUE(tables[0].set(name, latest[name], epoch));
      } else {
        (void)tables[0].merge(tables[other].all(), epoch);
        (void)tables[other].merge(tables[0].all(), epoch);
        ASSERT_EQ(tables[0].digest(), tables[other].digest());
      }
    }
    for (int again = 0; again < 2; ++again) {
      for (size_t i = 1; i < tables.size(); ++i) {
        (void)tables[0].merge(tables[i].all(), epoch);
        (void)tables[i].merge(tables[0].all(), epoch);
      }
    }
    for (const QuotaTable& table : tables) {
      ASSERT_EQ(table.digest(), tables[0].digest());
      for (const TenantQuota& quota : table.all()) ASSERT_EQ(quota.size_bytes, latest[quota.name]);
      ASSERT_EQ(table.all().size(), latest.size());
    }
  }
}

TEST(DirectoryQuotas, ChangesAreToldToAllNodesAndUsesAreAddedUp) {
  Directory directory({.nodes_max = 4,
                       .pages_max = 100,
                       .holdings_max = 10,
                       .heartbeat_interval_ms = 10,
                       .silence_max_ms = 1000,
                       .probe_interval_ms = 100,
                       .probe_timeout_ms = 100,
                       .is_elected = false});
  EXPECT_EQ(directory.apply(QuotasRequest{}).head.code, Code::kNotLeader);
  directory.lead(5);
  for (uint64_t n = 1; n <= 2; ++n) {
    Member member = testing::member_of("node-" + std::to_string(n), n);
    member.capacity_bytes = n * kGiB;
    ASSERT_EQ(directory.apply(JoinRequest{5, member}, n, 0).head.code, Code::kOk);
  }
  (void)directory.take_effects();
  const QuotasReply set =
      directory.apply(QuotasRequest{0, kNoNode, 0, {{.name = "a", .size_bytes = 9}}, {}});
  EXPECT_EQ(set.quotas, (std::vector<TenantQuota>{{"a", 9, 5, 1}}));
  const std::vector<Directory::Effect> effects = directory.take_effects();
  ASSERT_EQ(effects.size(), 2U);
  QuotaTable same;
  (void)same.merge(set.quotas, 5);
  for (const auto& effect : effects) {
    EXPECT_EQ(effect.kind, Directory::EffectKind::kSendOrders);
    EXPECT_EQ(directory.orders_of(effect.node).quota_digest, same.digest());
    EXPECT_EQ(directory.orders_of(effect.node).cluster_capacity_bytes, 3 * kGiB);
  }
  for (NodeIndex node = 0; node < 2; ++node) {
    const QuotasRequest request{5, node, node + 1U, {}, {{"a", 4, 3, 1, 2}}};
    EXPECT_EQ(directory.apply(request).quotas, set.quotas);
  }
  EXPECT_TRUE(directory.take_effects().empty());
  EXPECT_EQ(directory.apply(QuotasRequest{}).uses, (std::vector<TenantUse>{{"a", 8, 6, 2, 4}}));
  EXPECT_EQ(directory.apply(QuotasRequest{0, 3, 9, {}, {}}).head.code, Code::kCancelled);
  // A later leader hears of it from a node.
  directory.lead(6);
  EXPECT_TRUE(directory.apply(QuotasRequest{}).quotas.empty());
  ASSERT_EQ(directory.apply(JoinRequest{6, testing::member_of("node-1", 1)}, 1, 0).head.code,
            Code::kOk);
  const QuotasRequest known{6, 0, 1, set.quotas, {}};
  EXPECT_EQ(directory.apply(known).quotas, set.quotas);
  EXPECT_EQ(directory.check_invariants(), "");
}

}  // namespace
}  // namespace hicache
