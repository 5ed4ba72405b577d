#include "store/remote_tier.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr size_t kWaitsMax = 65536;
constexpr size_t kUnresolvedMax = 1024;
constexpr uint64_t kFirstMeanSize = 1 * kMiB;  // Before any page was leased.
constexpr uint64_t kMembersTimeoutMs = 1000;
constexpr uint64_t kReapIntervalMs = 100;  // While there is something to reap.
// A new leader hears from all nodes within that: until then what it does not know may be there.
constexpr uint64_t kNewLeaderMs = 30'000;
constexpr uint64_t kForgetPeerMs = 60'000;  // One that the list of members lacks.

}  // namespace

RemoteTier::RemoteTier(Options options, Surroundings surroundings)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      store_(surroundings_.store),
      inbox_(std::make_shared<Inbox>()),
      routes_(options_.routes_max),
      mean_size_(kFirstMeanSize) {
  inbox_->wake = surroundings_.wake;
}

RemoteTier::~RemoteTier() {
  const std::lock_guard lock(inbox_->mutex);
  inbox_->is_closed = true;
  inbox_->wake = nullptr;
}

// ---------------------------------------------------------------- waits

RemoteWaitId RemoteTier::begin_lookup(Question question, uint64_t now_ms) {
  return begin(std::move(question), WaitKind::kLookup, now_ms + options_.lookup_timeout_ms, now_ms);
}

RemoteWaitId RemoteTier::begin_get(Question question, uint64_t patience_ms, uint64_t now_ms) {
  return begin(std::move(question), WaitKind::kGet, now_ms + patience_ms, now_ms);
}

RemoteWaitId RemoteTier::begin(Question question, WaitKind kind, uint64_t until_ms,
                               uint64_t now_ms) {
  now_ms_ = now_ms;
  is_due_ = true;
  const RemoteWaitId id = ++last_wait_;
  Wait& wait = waits_[id];
  const size_t count = std::min(question.keys.size(), std::min(kLocateKeysMax, kPeerKeysMax));
  question.keys.resize(count);
  question.parents.resize(count);
  for (const Key& key : question.keys) wait.hashes.push_back(page_hash(question.space, key));
  wait.question = std::move(question);
  wait.sources.resize(count);
  wait.attempts.resize(count);
  wait.found.resize(count);
  if (kind == WaitKind::kRemove) {
    wait.lacking.assign(count, 1);
    wait.may_be_more.assign(count, 1);
  }
  wait.kind = kind;
  wait.until_ms = until_ms;
  wait.progress_ms = now_ms;
  wait.started_ns = monotonic_ns();
  if (waits_.size() > kWaitsMax || count == 0) {
    settle(wait);
  } else {
    locate(id, wait);
  }
  return id;
}

bool RemoteTier::is_settled(RemoteWaitId id, uint64_t now_ms, uint64_t* next_ms) {
  const auto found = waits_.find(id);
  if (found == waits_.end() || found->second.is_settled) return true;
  const Wait& wait = found->second;
  uint64_t until_ms = wait.until_ms;
  if (wait.kind == WaitKind::kGet) {
    until_ms = std::min(until_ms, wait.progress_ms + options_.stall_timeout_ms);
  }
  if (now_ms >= until_ms) {
    ++timeouts_;
    return true;
  }
  *next_ms = std::min(*next_ms, until_ms);
  return false;
}

void RemoteTier::settle(Wait& wait) {
  wait.is_settled = true;
}

RemoteTier::Answer RemoteTier::finish(RemoteWaitId id) {
  const auto found = waits_.find(id);
  if (found == waits_.end()) return {};
  Wait wait = std::move(found->second);
  waits_.erase(found);
  const uint64_t took_ns = monotonic_ns() - wait.started_ns;
  if (wait.kind == WaitKind::kGet) {
    fetch_seconds_.add(took_ns);
  } else if (wait.kind == WaitKind::kLookup) {
    lookup_seconds_.add(took_ns);
    const auto hits = std::count(wait.found.begin(), wait.found.end(), 1);
    found_pages_ += static_cast<uint64_t>(hits);
    if (wait.question.leases) stage(wait);
  }
  Answer answer{std::move(wait.found), std::move(wait.held), {}, std::move(wait.listed)};
  answer.is_part = wait.is_part;
  for (const uint32_t count : wait.lacking) answer.in_doubt.push_back(count != 0);
  return answer;
}

void RemoteTier::hold(RemoteWaitId id, std::vector<PageRef> held) {
  Wait& wait = waits_.at(id);
  wait.held.insert(wait.held.end(), held.begin(), held.end());
}

void RemoteTier::close_session(SessionIndex session) {
  std::erase_if(waits_,
                [&](const auto& entry) { return entry.second.question.session == session; });
  for (auto& [hash, wanted] : wanted_) {
    if (wanted.promised_to == session) wanted.promised_to = kNobody;
  }
}

// ---------------------------------------------------------------- where pages are

void RemoteTier::locate(RemoteWaitId id, Wait& wait) {
  bool is_known = wait.kind == WaitKind::kGet;
  for (size_t i = 0; is_known && i < wait.hashes.size(); ++i) {
    is_known = wanted_.contains(wait.hashes[i]) || routes_.find(wait.hashes[i]).count() != 0;
  }
  if (is_known || surroundings_.directory.connection_number() == 0 ||
      !store_.is_current(wait.question.space)) {
    use_routes(wait);
    return go_on(id);
  }
  ask_directory(id, wait);
}

void RemoteTier::ask_directory(RemoteWaitId id, Wait& wait) {
  wait.has_asked = true;
  const uint64_t left_ms = wait.until_ms - std::min(wait.until_ms, now_ms_);
  const uint64_t budget_ms = std::min(left_ms, options_.call_timeout_ms);
  surroundings_.directory.ask<LocateReply>(
      LocateRequest{0, store_.digest_of(wait.question.space), wait.question.is_prefix,
                    static_cast<uint8_t>(PageSources::kCountMax), wait.question.keys},
      Deadline::after_ms(std::max<uint64_t>(budget_ms, 1)),
      [inbox = inbox_, id](Result<LocateReply> reply) {
        inbox->post(
            [id, reply = std::move(reply)](RemoteTier& tier) { tier.on_located(id, reply); });
      });
}

void RemoteTier::on_located(RemoteWaitId id, const Result<LocateReply>& reply) {
  const auto found = waits_.find(id);
  const bool is_good = reply.ok() && reply.value().head.code == Code::kOk;
  if (!is_good) ++failed_locates_;
  if (found == waits_.end()) return;
  if (!is_good) {
    use_routes(found->second);
    return go_on(id);
  }
  const ReplyHead& head = reply.value().head;
  if (head.epoch == members_epoch_ && head.members_version <= members_version_) {
    resolve(found->second, reply.value());
    return go_on(id);
  }
  if (unresolved_.size() >= kUnresolvedMax) {
    // Nobody looks for the end of a copy.
    if (found->second.kind == WaitKind::kCopy) return (void)waits_.erase(found);
    return settle(found->second);
  }
  unresolved_.emplace_back(id, reply.value());
  ask_members();
}

void RemoteTier::ask_members() {
  if (std::exchange(asks_members_, true)) return;
  surroundings_.directory.ask<MembersReply>(
      MembersRequest{}, Deadline::after_ms(kMembersTimeoutMs),
      [inbox = inbox_](Result<MembersReply> reply) {
        inbox->post([reply = std::move(reply)](RemoteTier& tier) { tier.on_members(reply); });
      });
}

void RemoteTier::on_members(const Result<MembersReply>& reply) {
  asks_members_ = false;
  if (reply.ok() && reply.value().head.code == Code::kOk) {
    take_members(reply.value());
  } else {
    ++failed_locates_;
  }
  for (const auto& [id, located] : std::exchange(unresolved_, {})) {
    const auto found = waits_.find(id);
    if (found == waits_.end()) continue;
    const bool is_known =
        located.head.epoch == members_epoch_ && located.head.members_version <= members_version_;
    if (is_known) {
      resolve(found->second, located);
    } else {
      use_routes(found->second);
    }
    go_on(id);
  }
}

void RemoteTier::take_members(const MembersReply& reply) {
  // Of the first one that this node hears of nothing older is known that it could lack.
  const bool is_another = members_epoch_ != 0 && members_epoch_ != reply.head.epoch;
  if (is_another) leader_since_ms_ = now_ms_;
  members_epoch_ = reply.head.epoch;
  members_version_ = reply.head.members_version;
  members_.clear();
  for (const MemberView& view : reply.members) {
    const Member& member = view.member;
    if (view.state == NodeState::kGone || is_own(member) || member.addresses.empty()) continue;
    const Result<HostPort> address = parse_host_port(member.addresses[0]);
    if (!address.ok()) continue;
    const auto [known, is_new] = peer_ids_.try_emplace({member.name, member.incarnation}, 0);
    if (is_new) known->second = ++last_peer_;
    Peer& peer = peers_[known->second];
    if (is_new) {
      peer.name = member.name;
      peer.incarnation = member.incarnation;
    }
    if (is_new || peer.address != address.value()) {
      retire(peer);
      peer.address = address.value();
    }
    peer.seen_ms = now_ms_;
    members_.emplace(view.index, known->second);
  }
}

/// Of one page's replicas, the best first. Where several are as good, each node takes another one.
PageSources RemoteTier::sources_of(std::span<const Replica> replicas) {
  size_t equal_count = 0;
  while (equal_count < replicas.size() && replicas[equal_count].rank == replicas[0].rank &&
         replicas[equal_count].tiers == replicas[0].tiers) {
    ++equal_count;
  }
  PageSources sources;
  PageSources failing;
  for (size_t n = 0; n < replicas.size(); ++n) {
    const size_t turned =
        n < equal_count ? (n + options_.own_incarnation % equal_count) % equal_count : n;
    const auto member = members_.find(replicas[turned].node);
    if (member == members_.end()) continue;
    (void)(usable(member->second) != nullptr ? sources : failing).add(member->second);
  }
  for (size_t n = 0; n < failing.count(); ++n) (void)sources.add(failing.peers[n]);
  return sources;
}

void RemoteTier::resolve(Wait& wait, const LocateReply& reply) {
  const bool is_new_leader = now_ms_ < leader_since_ms_ + kNewLeaderMs;
  size_t at = 0;
  for (size_t i = 0; i < wait.hashes.size(); ++i) {
    const size_t named = i < reply.counts.size() ? reply.counts[i] : 0;
    const size_t count = std::min(named, reply.replicas.size() - at);
    PageSources sources = sources_of(std::span(reply.replicas).subspan(at, count));
    at += count;
    if (wait.kind == WaitKind::kRemove) {
      if (!wait.may_be_more[i]) continue;
      note_named(wait, i, named);
    }
    if (sources.count() != 0) {
      routes_.put(wait.hashes[i], sources);
    } else if (is_new_leader) {
      sources = routes_.find(wait.hashes[i]);
    } else if (i < reply.counts.size()) {
      routes_.forget(wait.hashes[i]);
    }
    wait.sources[i] = sources;
  }
}

void RemoteTier::use_routes(Wait& wait) {
  for (size_t i = 0; i < wait.hashes.size(); ++i) wait.sources[i] = routes_.find(wait.hashes[i]);
  wait.may_be_more.assign(wait.may_be_more.size(), 0);  // The directory is not asked once more.
}

void RemoteTier::go_on(RemoteWaitId id) {
  Wait& wait = waits_.at(id);
  if (wait.kind == WaitKind::kGet) return fetch_all(id, wait);
  if (wait.kind == WaitKind::kRemove) return ask_to_remove(id, wait);
  if (wait.kind == WaitKind::kCopy) return copy_all(id);
  if (wait.question.leases) return ask_peers(id, wait);
  for (size_t i = 0; i < wait.hashes.size(); ++i) wait.found[i] = wait.sources[i].count() != 0;
  settle(wait);
}

// ---------------------------------------------------------------- promises

void RemoteTier::ask_peers(RemoteWaitId id, Wait& wait) {
  std::map<PeerId, std::vector<uint32_t>> by_peer;
  for (uint32_t i = 0; i < wait.hashes.size(); ++i) {
    const PageSources& sources = wait.sources[i];
    while (!wait.found[i] && wait.attempts[i] < sources.count() &&
           usable(sources.peers[wait.attempts[i]]) == nullptr) {
      ++wait.attempts[i];
    }
    const bool has_next = !wait.found[i] && wait.attempts[i] < sources.count();
    if (has_next) by_peer[sources.peers[wait.attempts[i]]].push_back(i);
    // What comes behind a page that cannot be had is of no use.
    if (!wait.found[i] && !has_next && wait.question.is_prefix) break;
  }
  wait.left_count = by_peer.size();
  if (by_peer.empty()) return settle(wait);
  for (const auto& [peer, numbers] : by_peer) ask_codes(NodeOp::kLookup, id, wait, peer, numbers);
}

Result<std::vector<Code>> RemoteTier::codes_of(const Result<PeerLine::Answer>& answer,
                                               size_t count) {
  if (!answer.ok()) return answer.status();
  std::vector<Code> codes;
  const bool is_sound =
      decode_codes(WireReader(answer.value().payload), codes) && codes.size() == count;
  return is_sound ? Result<std::vector<Code>>(std::move(codes))
                  : Result<std::vector<Code>>(Status(Code::kCorrupt, "malformed"));
}

/// Asks for a code for each of these pages.
void RemoteTier::ask_codes(NodeOp op, RemoteWaitId id, const Wait& wait, PeerId peer,
                           const std::vector<uint32_t>& numbers) {
  PeerLine* link = link_of(peers_.at(peer));
  const auto done = [inbox = inbox_, op, id, numbers](const Result<PeerLine::Answer>& answer) {
    inbox->post([op, id, numbers, codes = codes_of(answer, numbers.size())](RemoteTier& tier) {
      op == NodeOp::kRemove ? tier.on_removed(id, numbers, codes)
                            : tier.on_looked_up(id, numbers, codes);
    });
  };
  if (link == nullptr) return done(Status(Code::kUnavailable, "no link to the peer"));
  if (!store_.is_current(wait.question.space)) {
    return done(Status(Code::kCancelled, "the namespace was cleared meanwhile"));
  }
  PeerKeysRequest request{store_.digest_of(wait.question.space), kLookupLease, {}};
  for (const uint32_t i : numbers) request.keys.push_back(wait.question.keys[i]);
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, request);
  link->ask(op, std::move(message), done);
}

void RemoteTier::on_looked_up(RemoteWaitId id, const std::vector<uint32_t>& numbers,
                              const Result<std::vector<Code>>& codes) {
  if (!codes.ok()) ++failed_calls_;
  const auto entry = waits_.find(id);
  if (entry == waits_.end()) return;
  Wait& wait = entry->second;
  for (size_t n = 0; n < numbers.size(); ++n) {
    const uint32_t i = numbers[n];
    wait.found[i] = codes.ok() && codes.value()[n] == Code::kOk;
    if (wait.found[i]) continue;
    ++wait.attempts[i];
    if (!codes.ok()) continue;
    ++stale_pages_;
    routes_.forget(wait.hashes[i]);
  }
  if (--wait.left_count != 0) return;
  if (!store_.is_current(wait.question.space)) return settle(wait);
  ask_peers(id, wait);
}

// ---------------------------------------------------------------- peers

RemoteTier::Peer* RemoteTier::usable(PeerId id) {
  const auto found = peers_.find(id);
  if (found == peers_.end()) return nullptr;
  const PeerLine* link = found->second.link.get();
  return link != nullptr && link->is_failing() ? nullptr : &found->second;
}

PeerLine* RemoteTier::link_of(Peer& peer) {
  if (peer.link) return peer.link.get();
  // Those of nodes that are gone must not keep others from being asked.
  if (link_count_ >= options_.peers_max / 2) retire_strangers();
  if (link_count_ >= options_.peers_max) return nullptr;
  Result<std::unique_ptr<PeerLine>> link =
      surroundings_.roads.link_to(peer.address, peer.incarnation);
  if (!link.ok()) return nullptr;
  peer.link = std::move(link.value());
  ++link_count_;
  return peer.link.get();
}

bool RemoteTier::is_busy(const Peer& peer) {
  return peer.leasing_count != 0 || peer.moving_bytes != 0 || !peer.urgent.empty() ||
         !peer.background.empty();
}

/// Ends the links to idle peers that are no members any more.
void RemoteTier::retire_strangers() {
  std::set<PeerId> members;
  for (const auto& [index, id] : members_) members.insert(id);
  for (auto& [id, peer] : peers_) {
    if (!members.contains(id) && !is_busy(peer)) retire(peer);
  }
}

void RemoteTier::retire(Peer& peer) {
  if (!peer.link) return;
  past_breaks_ += peer.link->breaks_count();
  peer.link->stop_soon();
  if (peer.reader) peer.reader->stop_soon();
  retired_.push_back({std::move(peer.link), std::move(peer.reader)});
  reap_due_ms_ = std::min(reap_due_ms_, now_ms_ + kReapIntervalMs);
}

/// Forgets peers that were gone for long, and joins threads that have ended.
void RemoteTier::reap() {
  for (const auto& [index, id] : members_) peers_.at(id).seen_ms = now_ms_;
  for (auto entry = peers_.begin(); entry != peers_.end();) {
    Peer& peer = entry->second;
    if (is_busy(peer) || now_ms_ < peer.seen_ms + kForgetPeerMs) {
      ++entry;
      continue;
    }
    retire(peer);
    peer_ids_.erase({peer.name, peer.incarnation});
    entry = peers_.erase(entry);
  }
  std::erase_if(retired_, [this](const Retired& retired) {
    const bool has_ended =
        retired.link->has_ended() && (!retired.reader || retired.reader->has_ended());
    if (has_ended) --link_count_;
    return has_ended;
  });
}

// ---------------------------------------------------------------- time

uint64_t RemoteTier::advance(uint64_t now_ms) {
  now_ms_ = now_ms;
  is_due_ = false;
  std::vector<Task> tasks;
  {
    const std::lock_guard lock(inbox_->mutex);
    tasks.swap(inbox_->tasks);
  }
  for (const Task& task : tasks) task(*this);
  while (!later_.empty() && later_.begin()->first <= now_ms) {
    const uint64_t hash = later_.begin()->second;
    later_.erase(later_.begin());
    const auto found = wanted_.find(hash);
    if (found != wanted_.end() && found->second.state == WantedState::kQueued) {
      enqueue(hash, found->second);
    }
  }
  look_for_more(now_ms);
  for (auto& [id, peer] : peers_) pump(id, peer);
  if (now_ms >= reap_due_ms_) {
    reap();
    reap_due_ms_ = now_ms + (retired_.empty() ? kForgetPeerMs : kReapIntervalMs);
  }
  if (is_due_) return now_ms;
  uint64_t later_ms = later_.empty() ? UINT64_MAX : later_.begin()->first;
  if (!again_.empty()) later_ms = std::min(later_ms, again_.begin()->first);
  return peers_.empty() ? later_ms : std::min(later_ms, reap_due_ms_);
}

void RemoteTier::add_stats(NodeStats& stats) const {
  stats.remote_found_pages = found_pages_;
  stats.remote_fetched_pages = fetched_pages_;
  stats.remote_fetched_bytes = fetched_bytes_;
  stats.remote_stale_pages = stale_pages_;
  stats.remote_corrupt_pages = corrupt_pages_;
  stats.remote_no_space_pages = no_space_pages_;
  stats.remote_read_errors = failed_reads_;
  stats.remote_call_errors = failed_calls_;
  stats.remote_locate_errors = failed_locates_;
  stats.remote_late_requests = timeouts_;
  stats.remote_coming_bytes = coming_bytes_;
  stats.remote_peers = peers_.size();
  stats.remote_breaker_opens = past_breaks_;
  for (const auto& [id, peer] : peers_) {
    if (peer.link) stats.remote_breaker_opens += peer.link->breaks_count();
  }
}

}  // namespace hicache
