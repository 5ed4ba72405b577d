#include "store/cluster_quotas.h"

#include <algorithm>
#include <utility>

namespace hicache {
namespace {

std::vector<TenantUse> uses_of(const PageStore& store) {
  std::vector<TenantUse> uses;
  for (const Tenant& tenant : store.tenant_use(kTenantUsesMax)) {
    // Nobody can have set a quota for a name that long.
    if (tenant.name.size() > kTenantNameSizeMax) continue;
    uses.push_back({tenant.name, tenant.limit_bytes, tenant.used_bytes, tenant.reserved_bytes,
                    tenant.page_count});
  }
  return uses;
}

}  // namespace

void ClusterQuotas::heard(const HeartbeatReply& reply, Membership::Seat seat, uint64_t join) {
  if (seat.node == kNoNode) return;
  const uint64_t capacity_bytes = surroundings_.store.capacity_bytes();
  if (cluster_capacity_bytes_ != reply.cluster_capacity_bytes ||
      capacity_bytes_ != capacity_bytes) {
    cluster_capacity_bytes_ = reply.cluster_capacity_bytes;
    capacity_bytes_ = capacity_bytes;
    apply();
  }
  if (is_asking_) return;
  const bool differs = reply.quota_digest != table_.digest();
  std::vector<TenantUse> uses = uses_of(surroundings_.store);
  if (!differs && uses == told_ && join == told_join_) return;
  is_asking_ = true;
  told_join_ = join;
  QuotasRequest request{.node = seat.node,
                        .incarnation = seat.incarnation,
                        .quotas = differs ? table_.all() : std::vector<TenantQuota>(),
                        .uses = uses};
  surroundings_.directory.ask<QuotasReply>(
      std::move(request), Deadline::after_ms(surroundings_.call_timeout_ms),
      [this, uses = std::move(uses)](Result<QuotasReply> answer) {
        surroundings_.post([this, uses, answer = std::move(answer)] { answered(answer, uses); });
      });
}

void ClusterQuotas::answered(const Result<QuotasReply>& reply, std::vector<TenantUse> uses) {
  is_asking_ = false;
  if (!reply.ok() || reply.value().head.code != Code::kOk) {
    told_join_ = 0;  // The next heartbeat tries again.
    return;
  }
  told_ = std::move(uses);
  if (table_.merge(reply.value().quotas, reply.value().head.epoch)) apply();
}

void ClusterQuotas::apply() {
  Quotas quotas = surroundings_.own;
  for (const TenantQuota& quota : table_.all()) {
    if (quota.size_bytes == 0) continue;  // Taken back.
    const uint64_t whole = std::max({cluster_capacity_bytes_, capacity_bytes_, uint64_t{1}});
    const auto share = static_cast<unsigned __int128>(quota.size_bytes) * capacity_bytes_ / whole;
    quotas[quota.name] = static_cast<uint64_t>(share);
  }
  if (quotas == applied_) return;
  applied_ = quotas;
  surroundings_.store.set_quotas(std::move(quotas));
}

}  // namespace hicache
