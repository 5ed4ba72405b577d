#include "store/drainer.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kWindowBytes = 256 * kMiB;  // That are being given away at the same time.
constexpr size_t kWindowCount = 4096;
constexpr size_t kAskedMax = 1024;          // Pages of one request.
constexpr uint64_t kLookAgainMs = 50;       // For what is being copied.
constexpr uint64_t kTryAgainMs = 500;       // After a question that failed, or with nobody there.
constexpr uint64_t kRescanMs = 2000;        // For pages that came meanwhile.
constexpr uint64_t kCopyPatienceMs = 5000;  // Until somebody else is asked.
constexpr uint64_t kHeardMs = 1000;         // Until the directory hears what a node has.
constexpr size_t kTargetsMax = 3;           // That are asked for one page.

}  // namespace

Drainer::Drainer(Options options, Surroundings surroundings)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      store_(surroundings_.store) {}

void Drainer::set_on(bool is_on) {
  if (std::exchange(is_on_, is_on) == is_on) return;
  ++round_;  // What is still to be answered belongs to none.
  is_round_on_ = false;
  is_over_ = is_alone_ = false;
  next_round_ms_ = 0;
  window_.clear();
  window_bytes_ = 0;
  list_.clear();
  list_at_ = 0;
  if (is_on) scan(0);
}

uint64_t Drainer::advance(uint64_t now_ms) {
  now_ms_ = now_ms;
  if (!is_on_ || is_round_on_) return UINT64_MAX;
  if (now_ms >= next_round_ms_) begin_round();
  return is_round_on_ ? UINT64_MAX : next_round_ms_;
}

template <typename Reply>
auto Drainer::in_round(std::function<void(const Result<Reply>&)> task) {
  return [this, round = round_, task = std::move(task)](Result<Reply> reply) {
    surroundings_.post([this, round, task, reply = std::move(reply)] {
      if (round == round_) task(reply);
    });
  };
}

// ---------------------------------------------------------------- which pages

/// Lists what is here since then.
void Drainer::scan(uint64_t from_ms) {
  scanned_ms_ = now_ms_;
  list_ = store_.pages_to_keep();
  std::erase_if(list_,
                [&](const PageRef& ref) { return store_.record(ref.page).inserted_ms < from_ms; });
  list_at_ = 0;
  left_bytes_ = 0;
  for (const PageRef& ref : list_) left_bytes_ += store_.record(ref.page).size;
}

void Drainer::fill_window() {
  while (list_at_ < list_.size() && window_.size() < kWindowCount && window_bytes_ < kWindowBytes) {
    const PageRef ref = list_[list_at_++];
    const PageRecord& record = store_.record(ref.page);
    if (!store_.is_present(ref)) continue;
    const bool may_evict = record.reads != 0 || record.pin != Pin::kNone;
    window_.push_back({ref, record.size, may_evict, false, 0, {}});
    window_bytes_ += record.size;
  }
}

/// Those that are safe, or gone.
void Drainer::drop_ended() {
  std::erase_if(window_, [this](const Item& item) {
    if (!item.is_safe && store_.is_present(item.ref)) return false;
    drained_pages_ += item.is_safe && !item.tried.empty();
    window_bytes_ -= item.size;
    forget_bytes(item.size);
    return true;
  });
}

void Drainer::give_up(Item& item) {
  ++given_up_pages_;
  window_bytes_ -= item.size;
  forget_bytes(item.size);
  item.size = 0;
}

// ---------------------------------------------------------------- a round

void Drainer::begin_round() {
  drop_ended();
  if (is_over_) scan(scanned_ms_);
  fill_window();
  is_over_ = window_.empty();
  if (is_over_) {
    left_bytes_ = 0;
    next_round_ms_ = now_ms_ + kRescanMs;
    return;
  }
  is_round_on_ = true;
  ++round_;
  surroundings_.directory.ask<MembersReply>(
      MembersRequest{}, Deadline::after_ms(options_.call_timeout_ms),
      in_round<MembersReply>([this](const auto& reply) { on_members(reply); }));
}

void Drainer::end_round(uint64_t pause_ms) {
  is_round_on_ = false;
  next_round_ms_ = now_ms_ + pause_ms;
}

void Drainer::on_members(const Result<MembersReply>& reply) {
  if (!reply.ok() || reply.value().head.code != Code::kOk) return end_round(kTryAgainMs);
  surroundings_.remote.take_members(reply.value());
  take_targets(reply.value());
  locate();
}

void Drainer::take_targets(const MembersReply& reply) {
  targets_.clear();
  members_epoch_ = reply.head.epoch;
  members_version_ = reply.head.members_version;
  for (const MemberView& view : reply.members) {
    const Member& member = view.member;
    const bool is_own =
        member.name == options_.own_name || member.incarnation == options_.own_incarnation;
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

void Drainer::locate() {
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

void Drainer::on_located(const Numbers& numbers, const Result<LocateReply>& reply) {
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
    window_[numbers[n]].is_safe =
        std::any_of(replicas.begin(), replicas.end(),
                    [this](const Replica& replica) { return targets_.contains(replica.node); });
  }
  if (--calls_left_ == 0) ask_for_copies();
}

// ---------------------------------------------------------------- copies

/// False: nobody is left to be asked.
bool Drainer::choose(Item& item, NodeIndex& chosen) {
  if (item.tried.size() >= kTargetsMax) return false;
  std::vector<PlacementTarget> places;
  std::vector<NodeIndex> nodes;
  for (const auto& [node, target] : targets_) {
    places.push_back(target.place);
    places.back().is_excluded = std::ranges::count(item.tried, target.incarnation) != 0;
    nodes.push_back(node);
  }
  const std::optional<size_t> best = best_target(places, item.size, item.may_evict);
  if (!best) return false;
  chosen = nodes[*best];
  PlacementTarget& place = targets_.at(chosen).place;
  place.free_bytes -= std::min(place.free_bytes, item.size);
  return true;
}

void Drainer::ask_for_copies() {
  using Group = std::tuple<NodeIndex, SpaceIndex, bool>;
  std::map<Group, Numbers> groups;
  for (uint32_t i = 0; i < window_.size(); ++i) {
    Item& item = window_[i];
    if (item.is_safe || !store_.is_present(item.ref) || now_ms_ < item.until_ms) continue;
    NodeIndex node = kNoNode;
    if (targets_.empty()) continue;  // Somebody may come.
    if (!choose(item, node)) {
      give_up(item);
      continue;
    }
    item.tried.push_back(targets_.at(node).incarnation);
    groups[{node, store_.record(item.ref.page).space, item.may_evict}].push_back(i);
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

void Drainer::ask(const Target& target, SpaceIndex space, bool may_evict, const Numbers& numbers) {
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

void Drainer::on_answered(const Numbers& numbers, const Result<std::vector<Code>>& codes) {
  for (size_t n = 0; n < numbers.size(); ++n) {
    Item& item = window_[numbers[n]];
    const Code code = codes.ok() ? codes.value()[n] : codes.status().code();
    if (code == Code::kAlreadyExists) {
      item.until_ms = now_ms_ + kHeardMs;
    } else if (code != Code::kOk) {
      item.until_ms = 0;
    }
  }
  answered_one();
}

void Drainer::answered_one() {
  if (--calls_left_ != 0) return;
  std::erase_if(window_, [](const Item& item) { return item.size == 0; });
  end_round(targets_.empty() ? kTryAgainMs : kLookAgainMs);
}

void Drainer::add_stats(NodeStats& stats) const {
  stats.drain_left_bytes = left_bytes();
  stats.drained_pages = drained_pages_;
  stats.drain_given_up_pages = given_up_pages_;
}

}  // namespace hicache
