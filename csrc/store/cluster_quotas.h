// What a node makes of the cluster's quotas: it keeps them as long as it lives, tells them to a
// master that knows less, and holds each tenant to its own share of them.
//
// A quota counts for all nodes' memory together. Each node enforces the part of it that its pool is
// of all pools: nobody has to be asked, and together they never allow more. Heartbeats tell whether
// the master's table is another one, and how large all pools are.
//
// Threads: the node's alone.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "directory/directory_line.h"
#include "directory/quota_table.h"
#include "store/membership.h"
#include "store/page_store.h"

namespace hicache {

class ClusterQuotas {
 public:
  /// What it works on; all outlive it.
  struct Surroundings {
    DirectoryLine& directory;
    PageStore& store;
    Quotas own;  // Of this node's options: for tenants that the cluster has no quota of.
    uint64_t call_timeout_ms;
    std::function<void(std::function<void()>)> post;  // To the node's thread, from any.
  };

  explicit ClusterQuotas(Surroundings surroundings) : surroundings_(std::move(surroundings)) {}

  /// A leader has answered a heartbeat, or sent orders. `join`: counts the times that it joined.
  void heard(const HeartbeatReply& reply, Membership::Seat seat, uint64_t join);

 private:
  void answered(const Result<QuotasReply>& reply, std::vector<TenantUse> uses);
  void apply();

  const Surroundings surroundings_;
  QuotaTable table_;
  Quotas applied_;
  uint64_t cluster_capacity_bytes_ = 0;
  uint64_t capacity_bytes_ = 0;
  bool is_asking_ = false;
  std::vector<TenantUse> told_;
  uint64_t told_join_ = 0;  // A leader that it joins again has forgotten.
};

}  // namespace hicache
