// Pages on their way from peers to the pool.
#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "store/remote_tier.h"

namespace hicache {
namespace {

constexpr size_t kWantedMax = 65536;
constexpr uint64_t kStagePatienceMs = 10'000;  // Of a page that is only expected.
constexpr size_t kLeaseCallsMax = 2;           // Under way to one peer.
constexpr uint64_t kLeaseBytes = 16 * kMiB;    // That one call asks for, as far as known.
constexpr size_t kLeaseKeysMax = 256;
constexpr uint64_t kMovingMax = 64 * kMiB;  // Leased at one peer and not here yet.
// A page on its way from the owner's SSD is asked for again after that, and then ever later.
constexpr uint64_t kBusyMinMs = 2;
constexpr uint64_t kBusyMaxMs = 64;
constexpr uint64_t kMs = 1'000'000;

std::vector<uint8_t> message_of(const std::vector<PageRef>& refs) {
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, RefsRequest{refs});
  return message;
}

}  // namespace

uint64_t RemoteTier::staging_max_bytes() const {
  return static_cast<uint64_t>(options_.staging_share *
                               static_cast<double>(store_.reachable_bytes()));
}

void RemoteTier::fetch_all(RemoteWaitId id, Wait& wait) {
  const uint64_t deadline_ms = std::min(wait.until_ms, now_ms_ + options_.fetch_timeout_ms);
  wait.left_count = wait.hashes.size();
  for (size_t i = 0; i < wait.hashes.size(); ++i) want(wait, i, id, deadline_ms);
}

void RemoteTier::stage(const Wait& wait) {
  for (size_t i = 0; i < wait.hashes.size(); ++i) {
    if (!wait.found[i] && wait.question.is_prefix) return;
    // More than that would push out of the pool what has just come.
    if ((wanted_.size() + 1) * mean_size_ > staging_max_bytes()) return;
    if (wait.found[i]) want(wait, i, 0, now_ms_ + kStagePatienceMs);
  }
}

void RemoteTier::want(const Wait& wait, size_t number, RemoteWaitId waiter, uint64_t deadline_ms) {
  const uint64_t hash = wait.hashes[number];
  const bool is_full = wanted_.size() >= kWantedMax;
  const auto [entry, is_new] = wanted_.try_emplace(hash);
  Wanted& wanted = entry->second;
  if (waiter != 0) {
    wanted.waiters.push_back(waiter);
  } else if (wait.question.session != kNobody) {
    wanted.promised_to = wait.question.session;
  }
  if (is_new) {
    wanted.space = wait.question.space;
    wanted.key = wait.question.keys[number];
    wanted.parent_hash = wait.question.parents[number];
    wanted.sources = wait.sources[number];
    wanted.source = waiter == 0 ? wait.attempts[number] : 0;
    wanted.is_urgent = waiter != 0;
    wanted.deadline_ms = deadline_ms;
    if (is_full || store_.has_hash(hash) || !store_.is_current(wanted.space)) return end(hash);
    return enqueue(hash, wanted);
  }
  // Who comes later waits for it later, too.
  wanted.deadline_ms = std::max(wanted.deadline_ms, deadline_ms);
  if (waiter == 0 || std::exchange(wanted.is_urgent, true)) return;
  if (wanted.state == WantedState::kQueued) enqueue(hash, wanted);
}

void RemoteTier::remove(SpaceIndex space, const Key& key) {
  const uint64_t hash = page_hash(space, key);
  routes_.forget(hash);
  const auto found = wanted_.find(hash);
  if (found == wanted_.end()) return;
  is_due_ = true;
  if (found->second.state == WantedState::kQueued) return end(hash);
  found->second.is_dropped = true;
}

/// Puts it into the queue of the next source that may have it.
void RemoteTier::enqueue(uint64_t hash, Wanted& wanted) {
  is_due_ = true;
  const size_t count = wanted.sources.count();
  while (wanted.source < count && usable(wanted.sources.peers[wanted.source]) == nullptr) {
    ++wanted.source;
  }
  if (wanted.source >= count || now_ms_ >= wanted.deadline_ms) return end(hash);
  Peer& peer = peers_.at(wanted.sources.peers[wanted.source]);
  (wanted.is_urgent ? peer.urgent : peer.background).push_back(hash);
}

void RemoteTier::fail_over(uint64_t hash) {
  Wanted& wanted = wanted_.at(hash);
  if (wanted.is_dropped) return end(hash);
  ++wanted.source;
  wanted.busy_count = 0;
  wanted.state = WantedState::kQueued;
  enqueue(hash, wanted);
}

void RemoteTier::end(uint64_t hash) {
  const auto found = wanted_.find(hash);
  const std::vector<RemoteWaitId> waiters = std::move(found->second.waiters);
  wanted_.erase(found);
  is_due_ = true;
  for (const RemoteWaitId waiter : waiters) {
    const auto entry = waits_.find(waiter);
    if (entry == waits_.end()) continue;
    if (--entry->second.left_count == 0) all_ended(waiter, entry->second);
  }
}

/// Where a page was when the directory was asked last it may be no more, and elsewhere instead.
void RemoteTier::all_ended(RemoteWaitId id, Wait& wait) {
  const bool can_ask = !wait.has_asked && surroundings_.directory.connection_number() != 0 &&
                       store_.is_current(wait.question.space);
  const bool lacks = std::any_of(wait.hashes.begin(), wait.hashes.end(),
                                 [this](uint64_t hash) { return !store_.has_hash(hash); });
  if (!can_ask || !lacks) return settle(wait);
  ask_directory(id, wait);
}

// ---------------------------------------------------------------- leases

void RemoteTier::pump(PeerId id, Peer& peer) {
  if (peer.urgent.empty() && peer.background.empty()) return;
  PeerLine* link = usable(id) == nullptr ? nullptr : link_of(peer);
  if (link == nullptr) {
    for (auto* queue : {&peer.urgent, &peer.background}) {
      for (const uint64_t hash : std::exchange(*queue, {})) {
        const auto found = wanted_.find(hash);
        if (found != wanted_.end() && found->second.state == WantedState::kQueued &&
            found->second.sources.peers[found->second.source] == id) {
          fail_over(hash);
        }
      }
    }
    return;
  }
  while (peer.leasing_count < kLeaseCallsMax && peer.moving_bytes < kMovingMax) {
    std::vector<uint64_t> hashes = take_queued(id, peer);
    if (hashes.empty()) return;
    lease(id, peer, std::move(hashes));
  }
}

/// Some that one call can ask for: of one namespace, and equally urgent.
std::vector<uint64_t> RemoteTier::take_queued(PeerId id, Peer& peer) {
  std::vector<uint64_t> taken;
  SpaceIndex space = kAnySpace;
  const size_t count_max = std::clamp<uint64_t>(kLeaseBytes / mean_size_, 1, kLeaseKeysMax);
  std::deque<uint64_t>& queue = peer.urgent.empty() ? peer.background : peer.urgent;
  if (&queue == &peer.background && coming_bytes_ >= staging_max_bytes()) return taken;
  while (!queue.empty() && taken.size() < count_max) {
    const uint64_t hash = queue.front();
    const auto found = wanted_.find(hash);
    // It may have gone another way since it was put here.
    const bool is_ours = found != wanted_.end() && found->second.state == WantedState::kQueued &&
                         found->second.sources.peers[found->second.source] == id;
    if (is_ours && !taken.empty() && found->second.space != space) break;
    queue.pop_front();
    if (!is_ours) continue;
    if (now_ms_ >= found->second.deadline_ms || !store_.is_current(found->second.space)) {
      end(hash);
      continue;
    }
    space = found->second.space;
    found->second.state = WantedState::kLeasing;
    taken.push_back(hash);
  }
  return taken;
}

void RemoteTier::lease(PeerId id, Peer& peer, std::vector<uint64_t> hashes) {
  PeerKeysRequest request{store_.digest_of(wanted_.at(hashes[0]).space), 0, {}};
  for (const uint64_t hash : hashes) request.keys.push_back(wanted_.at(hash).key);
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, request);
  ++peer.leasing_count;
  peer.link->ask(NodeOp::kLease, std::move(message),
                 [inbox = inbox_, id, hashes = std::move(hashes)](Result<PeerLine::Answer> answer) {
                   Result<Leased> leased = answer.status();
                   if (answer.ok()) {
                     Leased decoded{{}, answer.value().peer};
                     const PlaceBounds bounds{decoded.peer->pool_size_bytes, 0};
                     const bool is_sound =
                         decode(WireReader(answer.value().payload), decoded.places, bounds) &&
                         decoded.places.places.size() == hashes.size();
                     leased = is_sound ? Result<Leased>(std::move(decoded))
                                       : Result<Leased>(Status(Code::kCorrupt, "malformed places"));
                   }
                   inbox->post([id, hashes, leased = std::move(leased)](RemoteTier& tier) {
                     tier.on_leased(id, hashes, leased);
                   });
                 });
}

void RemoteTier::on_leased(PeerId id, const std::vector<uint64_t>& hashes,
                           const Result<Leased>& leased) {
  Peer& peer = peers_.at(id);  // Kept while it is busy.
  --peer.leasing_count;
  if (!leased.ok()) {
    ++failed_calls_;
    for (const uint64_t hash : hashes) fail_over(hash);
    return;
  }
  std::vector<PageRef> refused;
  std::vector<PeerReader::Page> pages;
  Priority priority = Priority::kBackground;
  for (size_t n = 0; n < hashes.size(); ++n) {
    const uint64_t hash = hashes[n];
    Wanted& wanted = wanted_.at(hash);  // Nothing ends it while it is being leased.
    const Place& place = leased.value().places.places[n];
    if (place.code == Code::kBusy && !wanted.is_dropped) {
      busy(hash, wanted);
    } else if (place.code != Code::kOk) {
      ++stale_pages_;
      routes_.forget(hash);
      fail_over(hash);
    } else if (wanted.is_dropped || !this->place(wanted, hash, place)) {
      refused.push_back(place.ref);
      end(hash);
    } else {
      const auto extents = leased.value().places.extents_of(place);
      const auto local = store_.record(wanted.page).extents.span();
      pages.push_back({hash,
                       place.size,
                       place.checksum,
                       {local.begin(), local.end()},
                       {extents.begin(), extents.end()}});
      if (wanted.is_urgent) priority = Priority::kUrgent;
    }
  }
  if (!refused.empty() && peer.link) peer.link->tell(NodeOp::kRelease, message_of(refused));
  if (!pages.empty()) move(id, peer, leased.value().peer, std::move(pages), priority);
}

/// Finds room for it; false: there is none, or it has come another way.
bool RemoteTier::place(Wanted& wanted, uint64_t hash, const Place& place) {
  mean_size_ = std::max<uint64_t>((mean_size_ * 3 + place.size) / 4, 1);
  if (!store_.is_current(wanted.space) || store_.has_hash(hash)) return false;
  const PageName name{wanted.space, wanted.key, hash};
  wanted.page = store_.reserve_from_below(name, place.size, wanted.parent_hash, now_ms_);
  if (wanted.page == kNoPage) {
    ++no_space_pages_;
    return false;
  }
  wanted.state = WantedState::kMoving;
  wanted.remote = place.ref;
  wanted.size = place.size;
  wanted.checksum = place.checksum;
  coming_bytes_ += place.size;
  return true;
}

void RemoteTier::busy(uint64_t hash, Wanted& wanted) {
  const uint64_t pause_ms = std::min(kBusyMinMs << std::min(wanted.busy_count, 8U), kBusyMaxMs);
  ++wanted.busy_count;
  wanted.state = WantedState::kQueued;
  later_.emplace(now_ms_ + pause_ms, hash);
}

// ---------------------------------------------------------------- bytes

void RemoteTier::move(PeerId id, Peer& peer, const std::shared_ptr<const PeerHelloReply>& hello,
                      std::vector<PeerReader::Page> pages, Priority priority) {
  if (!peer.reader) {
    peer.reader = surroundings_.roads.reader_of(
        *hello, [inbox = inbox_, id](std::vector<PeerReader::Outcome> outcomes) {
          inbox->post([id, outcomes = std::move(outcomes)](RemoteTier& tier) {
            tier.on_moved(id, outcomes);
          });
        });
  }
  for (const PeerReader::Page& page : pages) peer.moving_bytes += page.size;
  peer.reader->read(std::move(pages), priority, monotonic_ns() + options_.fetch_timeout_ms * kMs);
}

void RemoteTier::on_moved(PeerId id, const std::vector<PeerReader::Outcome>& outcomes) {
  Peer& peer = peers_.at(id);
  std::vector<PageRef> leased;
  std::vector<PageRef> corrupt;
  for (const PeerReader::Outcome& outcome : outcomes) {
    Wanted& wanted = wanted_.at(outcome.tag);  // Nothing ends it while it moves.
    leased.push_back(wanted.remote);
    peer.moving_bytes -= wanted.size;
    coming_bytes_ -= wanted.size;
    if (outcome.code == Code::kOk && !wanted.is_dropped) {
      arrived(outcome.tag, wanted);
      continue;
    }
    store_.drop_from_below(std::exchange(wanted.page, kNoPage));
    if (outcome.code == Code::kCorrupt) {
      ++corrupt_pages_;
      corrupt.push_back(wanted.remote);
    } else if (outcome.code != Code::kOk) {
      ++failed_reads_;
    }
    fail_over(outcome.tag);
  }
  if (!peer.link) return;
  if (!corrupt.empty()) peer.link->tell(NodeOp::kReportCorrupt, message_of(corrupt));
  peer.link->tell(NodeOp::kRelease, message_of(leased));
}

void RemoteTier::note_arrival(Wait& wait, uint64_t size) {
  wait.arrived_bytes += size;
  // This one is still counted as left.
  if (!wait.question.in_parts || wait.arrived_bytes < kPartSize || wait.left_count < 2) return;
  wait.is_part = true;
  settle(wait);
}

void RemoteTier::arrived(uint64_t hash, Wanted& wanted) {
  const PageRef ref{wanted.page, store_.record(wanted.page).generation};
  store_.commit_from_below(wanted.page, wanted.checksum, now_ms_);
  ++fetched_pages_;
  fetched_bytes_ += wanted.size;
  if (store_.is_present(ref)) {
    if (wanted.promised_to != kNobody) (void)store_.promise(wanted.promised_to, ref.page, now_ms_);
    for (const RemoteWaitId waiter : wanted.waiters) {
      const auto found = waits_.find(waiter);
      if (found == waits_.end()) continue;
      store_.hold(found->second.question.session, ref.page, now_ms_);
      found->second.held.push_back(ref);
      found->second.progress_ms = now_ms_;
      note_arrival(found->second, wanted.size);
    }
  }
  end(hash);
}

}  // namespace hicache
