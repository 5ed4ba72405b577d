#include "store/tenant_table.h"

#include <algorithm>
#include <utility>

#include "base/json_reader.h"

namespace hicache {
namespace {

/// Where the item of a description that begins at `begin` ends. Values that are not a plain word
/// are JSON, and may have spaces in their strings.
size_t end_of_item(std::string_view text, size_t begin) {
  const size_t equals = text.find_first_of("= ", begin);
  if (equals == std::string_view::npos || text[equals] == ' ') {
    return std::min(equals, text.size());
  }
  const size_t value = equals + 1;
  const bool is_json =
      value < text.size() && std::string_view("\"{[").find(text[value]) != std::string_view::npos;
  bool is_in_string = false;
  for (size_t i = value; i < text.size(); ++i) {
    if (is_json && text[i] == '"') is_in_string = !is_in_string;
    if (is_in_string && text[i] == '\\') ++i;
    if (i < text.size() && text[i] == ' ' && !is_in_string) return i;
  }
  return text.size();
}

}  // namespace

std::string tenant_of(std::string_view description) {
  constexpr std::string_view kItem = "tenant=";
  for (size_t begin = 0; begin < description.size();) {
    const size_t end = end_of_item(description, begin);
    const std::string_view item = description.substr(begin, end - begin);
    if (!item.starts_with(kItem)) {
      begin = end + 1;
      continue;
    }
    const std::string_view value = item.substr(kItem.size());
    if (!value.starts_with('"')) return std::string(value);
    const Result<JsonValue> quoted = parse_json(value);
    return quoted.ok() ? quoted.value().string : std::string(value);
  }
  return std::string(description);
}

TenantIndex TenantTable::join(std::string_view name) {
  const auto known = by_name_.find(std::string(name));
  if (known != by_name_.end()) {
    ++tenants_[known->second].namespace_count;
    return known->second;
  }
  if (free_.empty()) {
    free_.push_back(end());
    tenants_.emplace_back();
  }
  const TenantIndex index = free_.back();
  free_.pop_back();
  tenants_[index] = Tenant{};
  tenants_[index].name = name;
  tenants_[index].limit_bytes = limit_of(name);
  tenants_[index].namespace_count = 1;
  by_name_.emplace(name, index);
  return index;
}

void TenantTable::leave(TenantIndex index) {
  Tenant& tenant = tenants_[index];
  if (--tenant.namespace_count != 0) return;
  by_name_.erase(tenant.name);
  tenant = Tenant{};
  free_.push_back(index);
}

void TenantTable::set_quotas(Quotas quotas) {
  quotas_ = std::move(quotas);
  for (Tenant& tenant : tenants_) tenant.limit_bytes = limit_of(tenant.name);
}

uint64_t TenantTable::limit_of(std::string_view name) const {
  auto found = quotas_.find(name);
  if (found == quotas_.end()) found = quotas_.find(kOtherTenants);
  return found == quotas_.end() ? kNoQuota : found->second;
}

}  // namespace hicache
