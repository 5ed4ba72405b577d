// What a node counts. One list: the wire, the binding and the metrics are generated from it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace hicache {

// GAUGE: what is. COUNTER: what has happened since the node started.
#define HICACHE_NODE_STATS(GAUGE, COUNTER) \
  GAUGE(pool_size_bytes)                   \
  GAUGE(pool_size_max_bytes)               \
  GAUGE(pool_grown_bytes)                  \
  GAUGE(pool_backed_bytes)                 \
  GAUGE(pool_used_bytes)                   \
  GAUGE(pool_waste_bytes)                  \
  GAUGE(pool_reserved_bytes)               \
  GAUGE(pool_held_bytes)                   \
  GAUGE(pool_spare_bytes)                  \
  GAUGE(pinned_bytes)                      \
  GAUGE(pages)                             \
  GAUGE(namespaces)                        \
  GAUGE(clients)                           \
  GAUGE(leases)                            \
  GAUGE(leased_bytes)                      \
  GAUGE(index_size_bytes)                  \
  GAUGE(eviction_age_ms)                   \
  GAUGE(uptime_ms)                         \
  GAUGE(ssd_directories)                   \
  GAUGE(ssd_failed_directories)            \
  GAUGE(ssd_size_bytes)                    \
  GAUGE(ssd_used_bytes)                    \
  GAUGE(ssd_live_bytes)                    \
  GAUGE(ssd_pages)                         \
  GAUGE(ssd_index_size_bytes)              \
  GAUGE(ssd_recovering)                    \
  GAUGE(ssd_recovery_ms)                   \
  GAUGE(ssd_writing_bytes)                 \
  GAUGE(ssd_flush_left_bytes)              \
  GAUGE(ssd_eviction_age_s)                \
  GAUGE(ssd_written_last_day_bytes)        \
  GAUGE(ssd_budget_left_bytes)             \
  COUNTER(lookup_requests)                 \
  COUNTER(lookup_hit_pages)                \
  COUNTER(lookup_miss_pages)               \
  COUNTER(get_requests)                    \
  COUNTER(get_hit_pages)                   \
  COUNTER(get_miss_pages)                  \
  COUNTER(get_hit_bytes)                   \
  COUNTER(put_requests)                    \
  COUNTER(put_stored_pages)                \
  COUNTER(put_existing_pages)              \
  COUNTER(put_stored_bytes)                \
  COUNTER(put_no_space_pages)              \
  COUNTER(put_over_quota_pages)            \
  COUNTER(aborted_pages)                   \
  COUNTER(evicted_pages)                   \
  COUNTER(evicted_bytes)                   \
  COUNTER(quota_evicted_pages)             \
  COUNTER(expired_pages)                   \
  COUNTER(removed_pages)                   \
  COUNTER(cleared_pages)                   \
  COUNTER(corrupt_pages)                   \
  COUNTER(ssd_hit_pages)                   \
  COUNTER(ssd_hit_bytes)                   \
  COUNTER(ssd_written_pages)               \
  COUNTER(ssd_written_bytes)               \
  COUNTER(ssd_device_written_bytes)        \
  COUNTER(ssd_rewritten_pages)             \
  COUNTER(ssd_rewritten_bytes)             \
  COUNTER(ssd_refused_pages)               \
  COUNTER(ssd_overrun_pages)               \
  COUNTER(ssd_put_waits)                   \
  COUNTER(ssd_put_waits_in_vain)           \
  COUNTER(ssd_oversize_pages)              \
  COUNTER(ssd_dropped_pages)               \
  COUNTER(ssd_staged_pages)                \
  COUNTER(ssd_staged_bytes)                \
  COUNTER(ssd_corrupt_pages)               \
  COUNTER(ssd_recovered_pages)             \
  COUNTER(ssd_read_errors)                 \
  COUNTER(ssd_write_errors)                \
  GAUGE(cluster_joined)                    \
  GAUGE(cluster_draining)                  \
  GAUGE(cluster_announcing)                \
  GAUGE(cluster_pending_pages)             \
  GAUGE(cluster_lag_ms)                    \
  COUNTER(cluster_joins)                   \
  COUNTER(cluster_orders)                  \
  COUNTER(cluster_batches)                 \
  COUNTER(cluster_changes)                 \
  COUNTER(cluster_announcements)           \
  COUNTER(cluster_overflows)               \
  COUNTER(cluster_refused_batches)         \
  GAUGE(replica_pages)                     \
  COUNTER(replicated_pages)                \
  GAUGE(drain_left_bytes)                  \
  COUNTER(drained_pages)                   \
  COUNTER(drain_given_up_pages)            \
  GAUGE(peers)                             \
  GAUGE(remote_peers)                      \
  GAUGE(remote_coming_bytes)               \
  COUNTER(remote_found_pages)              \
  COUNTER(remote_fetched_pages)            \
  COUNTER(remote_fetched_bytes)            \
  COUNTER(remote_stale_pages)              \
  COUNTER(remote_corrupt_pages)            \
  COUNTER(remote_no_space_pages)           \
  COUNTER(remote_read_errors)              \
  COUNTER(remote_call_errors)              \
  COUNTER(remote_locate_errors)            \
  COUNTER(remote_late_requests)            \
  COUNTER(remote_breaker_opens)            \
  COUNTER(peer_leased_pages)               \
  COUNTER(peer_leased_bytes)               \
  COUNTER(rejected_peers)                  \
  COUNTER(rejected_clients)                \
  COUNTER(bad_frames)

struct NodeStats {
#define HICACHE_FIELD(name) uint64_t name = 0;
  HICACHE_NODE_STATS(HICACHE_FIELD, HICACHE_FIELD)
#undef HICACHE_FIELD
};

inline constexpr std::array kNodeStatNames = {
#define HICACHE_NAME(name) #name,
    HICACHE_NODE_STATS(HICACHE_NAME, HICACHE_NAME)
#undef HICACHE_NAME
};

inline constexpr size_t kNodeStatCount = kNodeStatNames.size();
static_assert(sizeof(NodeStats) == kNodeStatCount * sizeof(uint64_t));

}  // namespace hicache
