#include "transfer/rdma/connection_cache.h"

#include <algorithm>
#include <string>
#include <utility>

namespace hicache {
namespace {

uint64_t psn_sum(const std::vector<QueuePair>& pairs) {
  uint64_t sum = 0;
  for (const QueuePair& pair : pairs) sum += pair.received_psn();
  return sum;
}

}  // namespace

Status ActiveConnections::admit(const std::shared_ptr<Member>& member) {
  const std::lock_guard lock(mutex_);
  std::erase_if(members_, [](const auto& entry) { return entry.second.expired(); });
  if (members_.contains(member.get())) return Status();
  if (members_.size() >= count_max_) {
    std::vector<std::shared_ptr<Member>> oldest_first;
    for (const auto& [key, other] : members_) {
      if (auto living = other.lock()) oldest_first.push_back(std::move(living));
    }
    std::ranges::sort(oldest_first, {}, [](const auto& other) { return other->last_used_ns(); });
    const auto evicted =
        std::ranges::find_if(oldest_first, [](auto& other) { return other->evict(); });
    if (evicted == oldest_first.end()) {
      return Status(Code::kNoSpace, "RDMA: " + std::to_string(count_max_) +
                                        " connections are open and all in use; raise the RDMA "
                                        "option connections_max");
    }
    members_.erase(evicted->get());
    ++evictions_;
  }
  members_.emplace(member.get(), member);
  return Status();
}

void ActiveConnections::leave(const Member& member) {
  const std::lock_guard lock(mutex_);
  members_.erase(&member);
}

size_t ActiveConnections::count() const {
  const std::lock_guard lock(mutex_);
  return members_.size();
}

uint64_t ActiveConnections::evictions() const {
  const std::lock_guard lock(mutex_);
  return evictions_;
}

Result<ConnectReply> PassiveConnections::accept(const std::shared_ptr<RdmaRail>& rail,
                                                const ConnectRequest& request, uint64_t now_ns) {
  const Result<RailRoute> route = rail->route();
  if (!route.ok()) return route.status();
  if (route.value().address.link_layer != request.from.link_layer) {
    return Status(Code::kUnavailable, "RDMA: " + rail->name() +
                                          " is of another link layer than the rail that connects");
  }
  Entry entry{{}, 0, now_ns};
  ConnectReply reply{route.value().address, {}};
  for (const PairAddress& peer : request.pairs) {
    Result<QueuePair> pair = QueuePair::make(rail, route.value(), rail->passive_queue(), {0, 0});
    if (!pair.ok()) return pair.status();
    HICACHE_RETURN_IF_ERROR(
        pair.value().connect(route.value(), request.from, peer, /*asks=*/false));
    reply.pairs.push_back(pair.value().address());
    entry.pairs.push_back(std::move(pair.value()));
  }
  std::vector<Entry> dropped;  // Destroyed without the lock.
  const std::lock_guard lock(mutex_);
  if (entries_.contains(request.connection)) {
    return Status(Code::kAlreadyExists, "RDMA: that connection is open already");
  }
  make_room(now_ns, dropped);
  entry.psn_sum = psn_sum(entry.pairs);
  entries_.emplace(request.connection, std::move(entry));
  return reply;
}

void PassiveConnections::make_room(uint64_t now_ns, std::vector<Entry>& dropped) {
  if (entries_.size() < count_max_) return;
  for (auto& [connection, entry] : entries_) {
    const uint64_t sum = psn_sum(entry.pairs);
    if (sum != entry.psn_sum) entry.last_used_ns = now_ns;
    entry.psn_sum = sum;
  }
  const auto oldest = std::ranges::min_element(
      entries_, {}, [](const auto& item) { return item.second.last_used_ns; });
  dropped.push_back(std::move(oldest->second));
  entries_.erase(oldest);
  ++evictions_;
}

void PassiveConnections::drop(uint64_t connection) {
  std::vector<QueuePair> dropped;  // Destroyed without the lock.
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(connection);
  if (found == entries_.end()) return;
  dropped = std::move(found->second.pairs);
  entries_.erase(found);
}

size_t PassiveConnections::count() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

uint64_t PassiveConnections::evictions() const {
  const std::lock_guard lock(mutex_);
  return evictions_;
}

}  // namespace hicache
