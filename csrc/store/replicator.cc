#include "store/replicator.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kWindowBytes = 256 * kMiB;  // That are being copied at the same time.
constexpr size_t kWindowCount = 4096;
constexpr size_t kFreshMax = 65536;         // More wait for the next walk.
constexpr PageIndex kWalkCount = 4096;      // Records that one step looks at.
constexpr uint64_t kWalkPauseMs = 10;       // From one step to the next.
constexpr size_t kAskedMax = 1024;          // Pages of one request.
constexpr uint64_t kLookAgainMs = 50;       // For what is being copied.
constexpr uint64_t kTryAgainMs = 500;       // After a question that failed, or with nobody there.
constexpr uint64_t kRescanMs = 2000;        // For pages that came meanwhile.
constexpr uint64_t kCopyPatienceMs = 5000;  // Until somebody else is asked.
constexpr uint64_t kHeardMs = 1000;         // Until the directory hears what a node has.
constexpr size_t kAsksMax = 3;              // Of nodes, for one copy.
// Where so much happens that all is never told: until a page that the directory lacks is given up.
constexpr uint64_t kToldMs = 15'000;

}  // namespace

Replicator::Replicator(Options options, Surroundings surroundings)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      store_(surroundings_.store) {}

void Replicator::want(PageRef ref) {
  if (fresh_.size() < kFreshMax) fresh_.push_back(ref);
}

void Replicator::note_members(uint64_t epoch, uint32_t version) {
  if (std::exchange(noted_members_, {epoch, version}) == std::pair{epoch, version}) return;
  walk_at_ = 0;
  walk_ms_ = 0;
}

void Replicator::set_draining(bool is_draining) {
  if (std::exchange(is_draining_, is_draining) == is_draining) return;
  ++round_;  // What is still to be answered belongs to none.
  is_round_on_ = false;
  is_drained_ = is_alone_ = false;
  next_round_ms_ = 0;
  window_.clear();
  in_window_.clear();
  window_bytes_ = 0;
  list_.clear();
  list_at_ = 0;
  walk_at_ = 0;
  walk_ms_ = 0;  // For what was in the window.
  if (is_draining) scan(0);
}

bool Replicator::has_work() const {
  return is_draining_ || !window_.empty() || !fresh_.empty() ||
         (store_.replicated_count() != 0 && now_ms_ >= walk_ms_);
}

uint64_t Replicator::advance(uint64_t now_ms) {
  now_ms_ = now_ms;
  if (is_round_on_) return UINT64_MAX;
  if (has_work() && now_ms >= next_round_ms_) begin_round();
  if (is_round_on_) return UINT64_MAX;
  if (has_work()) return next_round_ms_;
  return store_.replicated_count() != 0 ? std::max(walk_ms_, next_round_ms_) : UINT64_MAX;
}

template <typename Reply>
auto Replicator::in_round(std::function<void(const Result<Reply>&)> task) {
  return [this, round = round_, task = std::move(task)](Result<Reply> reply) {
    surroundings_.post([this, round, task, reply = std::move(reply)] {
      if (round == round_) task(reply);
    });
  };
}

// ---------------------------------------------------------------- which pages

/// Lists what is here since then.
void Replicator::scan(uint64_t from_ms) {
  scanned_ms_ = now_ms_;
  list_ = store_.pages_to_keep();
  std::erase_if(list_,
                [&](const PageRef& ref) { return store_.record(ref.page).inserted_ms < from_ms; });
  list_at_ = 0;
  left_bytes_ = 0;
  for (const PageRef& ref : list_) left_bytes_ += store_.record(ref.page).size;
}

void Replicator::fill_window() {
  const auto has_room = [this] {
    return window_.size() < kWindowCount && window_bytes_ < kWindowBytes;
  };
  while (list_at_ < list_.size() && has_room()) add(list_[list_at_++]);
  while (!fresh_.empty() && has_room()) {
    add(fresh_.front());
    fresh_.pop_front();
  }
  if (store_.replicated_count() != 0 && now_ms_ >= walk_ms_ && has_room()) walk();
}

/// One step over the pool, to pages whose copies were lost or never came.
void Replicator::walk() {
  const PageIndex end = std::min(store_.record_count(), walk_at_ + kWalkCount);
  for (; walk_at_ < end; ++walk_at_) {
    const PageRecord& record = store_.record(walk_at_);
    if (record.replica_count > 1) add({walk_at_, record.generation});
  }
  const bool is_over = walk_at_ >= store_.record_count();
  if (is_over) walk_at_ = 0;
  walk_ms_ = now_ms_ + (is_over ? options_.walk_interval_ms : kWalkPauseMs);
}

void Replicator::add(PageRef ref) {
  if (!store_.is_present(ref)) return;
  const PageRecord& record = store_.record(ref.page);
  const size_t wanted_count =
      std::max<size_t>(record.replica_count - size_t{1}, is_draining_ ? 1 : 0);
  if (wanted_count == 0 || !in_window_.insert(ref.page).second) return;
  const bool may_evict = record.replica_count > 1 || record.reads != 0 || record.pin != Pin::kNone;
  window_.push_back({.ref = ref,
                     .size = record.size,
                     .may_evict = may_evict,
                     .wanted_count = wanted_count,
                     .since_ms = now_ms_,
                     .not_to = {}});
  window_bytes_ += record.size;
}

/// Those that have their copies, or are gone.
void Replicator::drop_ended() {
  std::erase_if(window_, [this](const Item& item) {
    const bool is_done = item.found_count >= item.wanted_count;
    if (!is_done && store_.is_present(item.ref)) return false;
    if (is_done && item.asked_count != 0) ++(is_draining_ ? drained_pages_ : replicated_pages_);
    leave_window(item);
    return true;
  });
}

void Replicator::leave_window(const Item& item) {
  in_window_.erase(item.ref.page);
  window_bytes_ -= item.size;
  left_bytes_ -= std::min(left_bytes_, item.size);
}

void Replicator::give_up(Item& item) {
  given_up_pages_ += is_draining_;
  leave_window(item);
  item.size = 0;
}

// ---------------------------------------------------------------- a round

void Replicator::begin_round() {
  drop_ended();
  if (is_drained_) scan(scanned_ms_);
  fill_window();
  is_drained_ = is_draining_ && window_.empty();
  if (window_.empty()) {
    left_bytes_ = 0;
    next_round_ms_ = now_ms_ + (is_draining_ ? kRescanMs : 0);
    return;
  }
  is_round_on_ = true;
  ++round_;
  surroundings_.directory.ask<MembersReply>(
      MembersRequest{}, Deadline::after_ms(options_.call_timeout_ms),
      in_round<MembersReply>([this](const auto& reply) { on_members(reply); }));
}

void Replicator::end_round(uint64_t pause_ms) {
  is_round_on_ = false;
  next_round_ms_ = now_ms_ + pause_ms;
}

void Replicator::on_members(const Result<MembersReply>& reply) {
  if (!reply.ok() || reply.value().head.code != Code::kOk) return end_round(kTryAgainMs);
  surroundings_.remote.take_members(reply.value());
  take_targets(reply.value());
  locate();
}

void Replicator::take_targets(const MembersReply& reply) {
  targets_.clear();
  own_node_ = kNoNode;
  members_epoch_ = reply.head.epoch;
  members_version_ = reply.head.members_version;
  for (const MemberView& view : reply.members) {
    const Member& member = view.member;
    const bool is_own =
        member.name == options_.own_name || member.incarnation == options_.own_incarnation;
    if (is_own && view.state != NodeState::kGone) own_node_ = view.index;
    if (view.state != NodeState::kLive || is_own) continue;
    const bool is_apart =
        !member.failure_domain.empty() && member.failure_domain != options_.failure_domain;
    targets_.emplace(view.index, Target{member.name,
                                        member.incarnation,
                                        {.free_bytes = member.free_bytes,
                                         .capacity_bytes = member.capacity_bytes,
                                         .load_permille = member.load_permille,
                                         .is_apart = is_apart,
                                         .is_excluded = false}});
  }
  is_alone_ = targets_.empty();
}

void Replicator::locate() {
  // Of this leader: what was told another one counts no more.
  has_told_all_ = own_node_ != kNoNode && noted_members_.first == members_epoch_ &&
                  surroundings_.has_told_all();
  std::map<SpaceIndex, Numbers> by_space;
  for (uint32_t i = 0; i < window_.size(); ++i) {
    if (!store_.is_present(window_[i].ref)) continue;
    by_space[store_.record(window_[i].ref.page).space].push_back(i);
  }
  calls_left_ = by_space.size();
  if (by_space.empty()) return end_round(0);
  for (const auto& [space, numbers] : by_space) {
    LocateRequest request{0, store_.digest_of(space), false, kReplicasMax, {}};
    for (const uint32_t i : numbers) {
      request.keys.push_back(store_.record(window_[i].ref.page).key);
    }
    surroundings_.directory.ask<LocateReply>(
        std::move(request), Deadline::after_ms(options_.call_timeout_ms),
        in_round<LocateReply>([this, numbers](const auto& reply) { on_located(numbers, reply); }));
  }
}

void Replicator::on_located(const Numbers& numbers, const Result<LocateReply>& reply) {
  // Another list of members names other nodes.
  const bool is_good = reply.ok() && reply.value().head.code == Code::kOk &&
                       reply.value().head.epoch == members_epoch_ &&
                       reply.value().head.members_version == members_version_;
  if (!is_good) {
    ++round_;  // Whatever else comes is of no use without it.
    return end_round(kLookAgainMs);
  }
  const LocateReply& located = reply.value();
  size_t at = 0;
  for (size_t n = 0; n < numbers.size() && n < located.counts.size(); ++n) {
    const size_t count = std::min<size_t>(located.counts[n], located.replicas.size() - at);
    const auto replicas = std::span(located.replicas).subspan(at, count);
    at += count;
    note_replicas(window_[numbers[n]], replicas);
  }
  if (--calls_left_ == 0) ask_for_copies();
}

void Replicator::note_replicas(Item& item, std::span<const Replica> replicas) const {
  const size_t before = std::exchange(item.found_count, 0);
  item.is_announced = false;
  for (const Replica& replica : replicas) {
    item.is_announced = item.is_announced || replica.node == own_node_;
    const auto target = targets_.find(replica.node);
    if (target == targets_.end()) continue;
    ++item.found_count;
    const uint64_t incarnation = target->second.incarnation;
    if (std::ranges::count(item.not_to, incarnation) == 0) item.not_to.push_back(incarnation);
  }
  const size_t came = item.found_count - std::min(before, item.found_count);
  item.coming_count =
      now_ms_ < item.until_ms ? item.coming_count - std::min(came, item.coming_count) : 0;
}

// ---------------------------------------------------------------- copies

/// False: nobody is left to be asked.
bool Replicator::choose(Item& item, NodeIndex& chosen) {
  if (item.asked_count >= kAsksMax * item.wanted_count) return false;
  std::vector<PlacementTarget> places;
  std::vector<NodeIndex> nodes;
  for (const auto& [node, target] : targets_) {
    places.push_back(target.place);
    places.back().is_excluded = std::ranges::count(item.not_to, target.incarnation) != 0;
    nodes.push_back(node);
  }
  const std::optional<size_t> best = best_target(places, item.size, item.may_evict);
  if (!best) return false;
  chosen = nodes[*best];
  PlacementTarget& place = targets_.at(chosen).place;
  place.free_bytes -= std::min(place.free_bytes, item.size);
  ++item.asked_count;
  item.not_to.push_back(targets_.at(chosen).incarnation);
  return true;
}

void Replicator::ask_for_copies() {
  using Group = std::tuple<NodeIndex, SpaceIndex, bool>;
  std::map<Group, Numbers> groups;
  for (uint32_t i = 0; i < window_.size(); ++i) {
    Item& item = window_[i];
    if (!store_.is_present(item.ref)) continue;
    if (targets_.empty() && is_draining_) continue;  // Somebody may come.
    if (!item.is_announced) {
      if (!will_be_announced(item)) give_up(item);
      continue;
    }
    NodeIndex node = kNoNode;
    while (item.found_count + item.coming_count < item.wanted_count && choose(item, node)) {
      ++item.coming_count;
      groups[{node, store_.record(item.ref.page).space, item.may_evict}].push_back(i);
    }
    if (item.found_count < item.wanted_count && item.coming_count == 0) give_up(item);
  }
  calls_left_ = 1;
  for (const auto& [group, numbers] : groups) {
    const auto& [node, space, may_evict] = group;
    for (size_t first = 0; first < numbers.size(); first += kAskedMax) {
      const size_t last = std::min(first + kAskedMax, numbers.size());
      ++calls_left_;
      ask(targets_.at(node), space, may_evict,
          {numbers.begin() + static_cast<ptrdiff_t>(first),
           numbers.begin() + static_cast<ptrdiff_t>(last)});
    }
  }
  answered_one();
}

/// It was told by now, unless that waits for its turn.
bool Replicator::will_be_announced(const Item& item) const {
  return !has_told_all_ && now_ms_ < item.since_ms + kToldMs;
}

void Replicator::ask(const Target& target, SpaceIndex space, bool may_evict,
                     const Numbers& numbers) {
  PeerCopyRequest request{.digest = store_.digest_of(space),
                          .description = store_.description_of(space),
                          .may_evict = may_evict,
                          .size_bytes = 0,
                          .keys = {},
                          .parents = {}};
  for (const uint32_t i : numbers) {
    const PageRecord& record = store_.record(window_[i].ref.page);
    window_[i].until_ms = now_ms_ + kCopyPatienceMs;
    request.size_bytes += record.size;
    request.keys.push_back(record.key);
    request.parents.push_back(store_.parent_key_of(window_[i].ref.page));
  }
  surroundings_.remote.ask_to_copy(
      target.name, target.incarnation, request,
      [this, round = round_, numbers](const Result<std::vector<Code>>& codes) {
        if (round == round_) on_answered(numbers, codes);
      });
}

void Replicator::on_answered(const Numbers& numbers, const Result<std::vector<Code>>& codes) {
  for (size_t n = 0; n < numbers.size(); ++n) {
    Item& item = window_[numbers[n]];
    const Code code = codes.ok() ? codes.value()[n] : codes.status().code();
    if (code == Code::kAlreadyExists) {
      item.until_ms = now_ms_ + kHeardMs;
    } else if (code != Code::kOk && item.coming_count != 0) {
      --item.coming_count;
    }
  }
  answered_one();
}

void Replicator::answered_one() {
  if (--calls_left_ != 0) return;
  std::erase_if(window_, [](const Item& item) { return item.size == 0; });
  end_round(targets_.empty() ? kTryAgainMs : kLookAgainMs);
}

void Replicator::add_stats(NodeStats& stats) const {
  stats.drain_left_bytes = drain_left_bytes();
  stats.drained_pages = drained_pages_;
  stats.replica_pages = store_.replicated_count();
  stats.replicated_pages = replicated_pages_;
  stats.drain_given_up_pages = given_up_pages_;
}

}  // namespace hicache
