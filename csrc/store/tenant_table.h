// Who uses how much of a node's pool, and how much each may: namespaces of one tenant count
// together.
//
// A tenant is a name: what a namespace's description says under `tenant`, or else the whole
// description. It is there as long as a namespace of it is. Pure: it evicts nothing. Threads: one
// owner.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tier/eviction.h"

namespace hicache {

/// Place of a tenant in a node's table, reused when it has no namespace any more.
using TenantIndex = PageGroup;

inline constexpr uint64_t kNoQuota = UINT64_MAX;

/// Bytes of the pool by name. The name "*" is for each tenant that is not named.
using Quotas = std::map<std::string, uint64_t, std::less<>>;
inline constexpr std::string_view kOtherTenants = "*";

/// The tenant of a namespace with this description, as `namespace_text` of the package writes it.
std::string tenant_of(std::string_view description);

struct Tenant {
  std::string name;
  uint64_t limit_bytes = kNoQuota;
  uint64_t used_bytes = 0;      // As the pool rounds them up, reserved ones included.
  uint64_t reserved_bytes = 0;  // Of these: being written.
  uint64_t page_count = 0;      // Present.
  uint64_t namespace_count = 0;
};

class TenantTable {
 public:
  /// One more namespace of it.
  TenantIndex join(std::string_view name);
  /// One less. Requires: what it used has been taken off.
  void leave(TenantIndex index);

  void set_quotas(Quotas quotas);
  bool has_quotas() const { return !quotas_.empty(); }

  Tenant& operator[](TenantIndex index) { return tenants_[index]; }
  const Tenant& operator[](TenantIndex index) const { return tenants_[index]; }
  /// Tenants are below it; those without a namespace are not there.
  TenantIndex end() const { return static_cast<TenantIndex>(tenants_.size()); }

 private:
  uint64_t limit_of(std::string_view name) const;

  Quotas quotas_;
  std::vector<Tenant> tenants_;
  std::unordered_map<std::string, TenantIndex> by_name_;
  std::vector<TenantIndex> free_;
};

}  // namespace hicache
