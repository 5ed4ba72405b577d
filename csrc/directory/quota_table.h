// The quotas of a cluster's tenants, which everybody keeps and tells on: two tables that have been
// merged are equal, whoever missed what, because of each tenant the latest change counts.
//
// Pure. Threads: one owner.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "directory/directory_types.h"

namespace hicache {

class QuotaTable {
 public:
  /// Notes a change of a leader; false: there are too many tenants.
  bool set(std::string name, uint64_t size_bytes, uint64_t epoch);
  /// Takes what is later than its own, but for what is of a later epoch than this; true: there was
  /// some.
  bool merge(const std::vector<TenantQuota>& quotas, uint64_t epoch_max);

  /// By name, those that were taken back included.
  std::vector<TenantQuota> all() const;
  /// Of equal tables equal; of an empty one 0.
  uint64_t digest() const { return digest_; }

 private:
  void update_digest();

  std::map<std::string, TenantQuota> quotas_;
  uint64_t last_change_ = 0;
  uint64_t digest_ = 0;
};

}  // namespace hicache
