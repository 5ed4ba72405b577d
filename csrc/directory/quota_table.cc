#include "directory/quota_table.h"

#include <algorithm>
#include <tuple>

namespace hicache {
namespace {

// FNV-1a: tables are told apart by it, nobody is kept from anything.
constexpr uint64_t kDigestStart = 0xcbf29ce484222325;
constexpr uint64_t kDigestPrime = 0x100000001b3;
/// Larger numbers are not believed: nothing could come after the largest.
constexpr uint64_t kChangeMax = uint64_t{1} << 62;

void add(uint64_t& digest, uint64_t value) {
  for (int i = 0; i < 8; ++i, value >>= 8) digest = (digest ^ (value & 0xff)) * kDigestPrime;
}

}  // namespace

bool QuotaTable::set(std::string name, uint64_t size_bytes, uint64_t epoch) {
  if (quotas_.size() >= kQuotasMax && !quotas_.contains(name)) return false;
  quotas_[name] = {name, size_bytes, epoch, ++last_change_};
  update_digest();
  return true;
}

bool QuotaTable::merge(const std::vector<TenantQuota>& quotas, uint64_t epoch_max) {
  bool has_changed = false;
  const auto age = [](const TenantQuota& quota) {
    return std::tuple(quota.epoch, quota.change, quota.size_bytes);
  };
  for (const TenantQuota& quota : quotas) {
    if (quota.epoch > epoch_max || quota.change > kChangeMax) continue;
    const auto known = quotas_.find(quota.name);
    if (known == quotas_.end() ? quotas_.size() >= kQuotasMax : age(known->second) >= age(quota)) {
      continue;
    }
    quotas_[quota.name] = quota;
    // Of a leader that goes on after it was told its own changes.
    if (quota.epoch == epoch_max) last_change_ = std::max(last_change_, quota.change);
    has_changed = true;
  }
  if (has_changed) update_digest();
  return has_changed;
}

std::vector<TenantQuota> QuotaTable::all() const {
  std::vector<TenantQuota> quotas;
  for (const auto& [name, quota] : quotas_) quotas.push_back(quota);
  return quotas;
}

void QuotaTable::update_digest() {
  digest_ = kDigestStart;
  for (const auto& [name, quota] : quotas_) {
    for (const char letter : name) add(digest_, static_cast<uint8_t>(letter));
    for (const uint64_t value : {quota.size_bytes, quota.epoch, quota.change}) add(digest_, value);
  }
  digest_ += digest_ == 0;
}

}  // namespace hicache
