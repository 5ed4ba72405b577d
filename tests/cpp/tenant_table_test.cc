#include "store/tenant_table.h"

#include <gtest/gtest.h>

#include "support.h"

namespace hicache {
namespace {

using testing::Random;

TEST(TenantOf, IsWhatTheDescriptionSaysUnderTenantOrAllOfIt) {
  EXPECT_EQ(tenant_of("store=mooncake tenant=acme"), "acme");
  EXPECT_EQ(tenant_of("tenant=acme store=mooncake"), "acme");
  EXPECT_EQ(tenant_of("my pages"), "my pages");
  EXPECT_EQ(tenant_of(""), "");
  EXPECT_EQ(tenant_of("tenant="), "");
  EXPECT_EQ(tenant_of("tenants=x subtenant=y"), "tenants=x subtenant=y");
  EXPECT_EQ(tenant_of("a  tenant=x"), "x") << "an empty item between";
}

TEST(TenantOf, IsNotMisledByTextInsideOtherItems) {
  EXPECT_EQ(tenant_of(R"(tag="a tenant=evil b" tenant=good)"), "good");
  EXPECT_EQ(tenant_of(R"(tag="a \" tenant=evil" tenant=good)"), "good");
  EXPECT_EQ(tenant_of(R"(server={"x":"y tenant=evil"} tenant=good)"), "good");
  EXPECT_EQ(tenant_of(R"(list=["x tenant=evil"] tenant="a b \"c\"")"), "a b \"c\"");
  EXPECT_EQ(tenant_of(R"(tag="never ends tenant=x)"), R"(tag="never ends tenant=x)");
  EXPECT_EQ(tenant_of(R"(tenant="cut of)"), R"("cut of)");
}

TEST(TenantOf, TakesAnyText) {
  HICACHE_TRACE_SEED();
  Random random;
  const std::string letters = "tenant= \"\\{}[]x";
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint64_t n = random.below(24); n != 0; --n) text += letters[random.below(letters.size())];
    if (random.one_in(2)) text += " tenant=" + text;
    EXPECT_LE(tenant_of(text).size(), text.size());
  }
}

TEST(TenantTable, QuotasAreByNameAndForAllOthers) {
  TenantTable tenants;
  const TenantIndex a = tenants.join("a");
  const TenantIndex b = tenants.join("b");
  EXPECT_EQ(tenants[a].limit_bytes, kNoQuota);
  EXPECT_FALSE(tenants.has_quotas());
  tenants.set_quotas({{"a", 10}, {"*", 7}});
  EXPECT_TRUE(tenants.has_quotas());
  EXPECT_EQ(tenants[a].limit_bytes, 10U);
  EXPECT_EQ(tenants[b].limit_bytes, 7U);
  EXPECT_EQ(tenants[tenants.join("c")].limit_bytes, 7U) << "who comes later";
  tenants.set_quotas({{"a", 10}});
  EXPECT_EQ(tenants[b].limit_bytes, kNoQuota);
}

TEST(TenantTable, ATenantEndsWithItsLastNamespaceAndItsPlaceIsUsedAgain) {
  TenantTable tenants;
  const TenantIndex a = tenants.join("a");
  EXPECT_EQ(tenants.join("a"), a);
  EXPECT_EQ(tenants[a].namespace_count, 2U);
  tenants.leave(a);
  EXPECT_EQ(tenants.join("a"), a);
  tenants.leave(a);
  tenants.leave(a);
  EXPECT_EQ(tenants.join("b"), a);
  EXPECT_EQ(tenants[a].name, "b");
  EXPECT_EQ(tenants.end(), 1U);
}

}  // namespace
}  // namespace hicache
