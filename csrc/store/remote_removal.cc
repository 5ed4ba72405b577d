// Removals at all peers that have a page.
//
// The directory names the first few that have it. These are asked, all of them; a page of which it
// named as many as it does at most is looked up again once they have told it, until it names fewer.
// What did not answer leaves the page in doubt, and keeps no other peer from being asked.
#include <algorithm>
#include <map>
#include <utility>

#include "store/remote_tier.h"

namespace hicache {
namespace {

constexpr uint64_t kCallsMax = 8;  // One after the other: the directory, peers, and so on.
// Until a peer has told the directory that it has the page no more: that takes one round trip.
constexpr uint64_t kHeardMs = 20;

static_assert(kAskedCountMax <= kLocateKeysMax && kAskedCountMax <= kPeerKeysMax);
static_assert(PageSources::kCountMax == kReplicasMax);

}  // namespace

RemoteWaitId RemoteTier::begin_remove(Question question, uint64_t patience_ms, uint64_t now_ms) {
  const uint64_t budget_ms = std::min(patience_ms, kCallsMax * options_.call_timeout_ms);
  return begin(std::move(question), WaitKind::kRemove, now_ms + budget_ms, now_ms);
}

/// The directory has answered.
void RemoteTier::note_named(Wait& wait, size_t number, size_t named_count) {
  --wait.lacking[number];
  wait.may_be_more[number] = named_count >= kReplicasMax;
}

/// All that have it, not the best one.
void RemoteTier::ask_to_remove(RemoteWaitId id, Wait& wait) {
  std::map<PeerId, std::vector<uint32_t>> by_peer;
  for (uint32_t i = 0; i < wait.hashes.size(); ++i) {
    const PageSources sources = std::exchange(wait.sources[i], {});
    for (size_t n = 0; n < sources.count(); ++n) {
      ++wait.lacking[i];
      if (usable(sources.peers[n]) != nullptr) by_peer[sources.peers[n]].push_back(i);
    }
    routes_.forget(wait.hashes[i]);
  }
  wait.left_count = by_peer.size();
  if (by_peer.empty()) return go_on_removing(id, wait);
  for (const auto& [peer, numbers] : by_peer) ask_codes(NodeOp::kRemove, id, wait, peer, numbers);
}

void RemoteTier::on_removed(RemoteWaitId id, const std::vector<uint32_t>& numbers,
                            const Result<std::vector<Code>>& codes) {
  if (!codes.ok()) ++failed_calls_;
  const auto entry = waits_.find(id);
  if (entry == waits_.end()) return;
  Wait& wait = entry->second;
  for (size_t n = 0; codes.ok() && n < numbers.size(); ++n) {
    const Code code = codes.value()[n];
    if (code == Code::kOk) wait.found[numbers[n]] = 1;
    if (code == Code::kOk || code == Code::kNotFound) --wait.lacking[numbers[n]];
  }
  if (--wait.left_count == 0) go_on_removing(id, wait);
}

void RemoteTier::go_on_removing(RemoteWaitId id, Wait& wait) {
  const bool is_over = std::ranges::count(wait.may_be_more, 1) == 0;
  if (is_over || !store_.is_current(wait.question.space)) return settle(wait);
  is_due_ = true;
  again_.emplace(now_ms_ + kHeardMs, id);
}

void RemoteTier::look_for_more(uint64_t now_ms) {
  while (!again_.empty() && again_.begin()->first <= now_ms) {
    const RemoteWaitId id = again_.begin()->second;
    again_.erase(again_.begin());
    const auto found = waits_.find(id);
    if (found == waits_.end()) continue;
    Wait& wait = found->second;
    for (size_t i = 0; i < wait.hashes.size(); ++i) wait.lacking[i] += wait.may_be_more[i];
    ask_directory(id, wait);
  }
}

}  // namespace hicache
