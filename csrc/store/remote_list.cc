// Lists of what other members have, one of them after the other.
//
// The directory is asked each time who they are: whoever has come or gone meanwhile is seen. It
// numbers them, and the cursor goes on with the next number that is a member's.
#include <algorithm>
#include <utility>

#include "store/remote_tier.h"

namespace hicache {
namespace {

constexpr size_t kListsMax = 1024;  // That are under way, with all else that waits.

uint64_t cursor_of(size_t member, uint64_t at) {
  return (static_cast<uint64_t>(member) + 1) << kListMemberShift | at;
}

Result<ListReply> listed_of(const Result<PeerLine::Answer>& answer, uint64_t after) {
  if (!answer.ok()) return answer.status();
  ListReply reply;
  // It must come to an end, whoever answers.
  const bool is_sound = decode(WireReader(answer.value().payload), reply) &&
                        reply.code == Code::kOk && reply.cursor > after &&
                        (reply.cursor < kListMembers || reply.cursor == kListEnd) &&
                        reply.head_sizes.size() == reply.keys.size();
  if (!is_sound) return Status(Code::kCorrupt, "malformed list");
  return reply;
}

}  // namespace

bool RemoteTier::is_own(const Member& member) const {
  return member.name == options_.own_name || member.incarnation == options_.own_incarnation;
}

RemoteWaitId RemoteTier::begin_list(SessionIndex session, const NamespaceDigest& digest,
                                    uint64_t cursor, uint64_t patience_ms, uint64_t now_ms) {
  now_ms_ = now_ms;
  is_due_ = true;
  const RemoteWaitId id = ++last_wait_;
  Wait& wait = waits_[id];
  wait.question.session = session;
  wait.kind = WaitKind::kList;
  wait.digest = digest;
  wait.listed.cursor = cursor;
  wait.until_ms = now_ms + std::min(patience_ms, 2 * options_.call_timeout_ms);
  if (waits_.size() > kListsMax) {
    settle(wait);
    return id;
  }
  surroundings_.directory.ask<MembersReply>(
      MembersRequest{}, Deadline::after_ms(options_.call_timeout_ms),
      [inbox = inbox_, id](Result<MembersReply> reply) {
        inbox->post([id, reply = std::move(reply)](RemoteTier& tier) {
          tier.on_members_to_list(id, reply);
        });
      });
  return id;
}

void RemoteTier::on_members_to_list(RemoteWaitId id, const Result<MembersReply>& reply) {
  const bool is_good = reply.ok() && reply.value().head.code == Code::kOk;
  if (is_good) take_members(reply.value());
  const auto found = waits_.find(id);
  if (found == waits_.end()) return;
  Wait& wait = found->second;
  if (!is_good) {
    ++failed_locates_;
    return settle(wait);
  }
  const uint64_t first = (wait.listed.cursor >> kListMemberShift) - 1;
  NodeIndex next = kNoNode;
  for (const MemberView& view : reply.value().members) {
    if (view.state == NodeState::kGone || is_own(view.member) || view.index < first) continue;
    next = std::min(next, view.index);
  }
  if (next == kNoNode) {
    wait.listed.code = Code::kOk;
    wait.listed.cursor = kListEnd;
    return settle(wait);
  }
  const uint64_t at = next == first ? wait.listed.cursor & (kListMembers - 1) : 0;
  const auto member = members_.find(next);
  Peer* peer = member == members_.end() ? nullptr : usable(member->second);
  PeerLine* link = peer == nullptr ? nullptr : link_of(*peer);
  if (link == nullptr) return settle(wait);
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, PeerListRequest{wait.digest, at});
  link->ask(NodeOp::kList, std::move(message),
            [inbox = inbox_, id, next, at](const Result<PeerLine::Answer>& answer) {
              inbox->post([id, next, listed = listed_of(answer, at)](RemoteTier& tier) {
                tier.on_listed(id, next, listed);
              });
            });
}

void RemoteTier::on_listed(RemoteWaitId id, NodeIndex member, const Result<ListReply>& reply) {
  if (!reply.ok()) ++failed_calls_;
  const auto found = waits_.find(id);
  if (found == waits_.end()) return;
  Wait& wait = found->second;
  if (reply.ok()) {
    wait.listed = reply.value();
    const bool is_over = wait.listed.cursor == kListEnd;
    wait.listed.cursor =
        is_over ? cursor_of(size_t{member} + 1, 0) : cursor_of(member, wait.listed.cursor);
  }
  settle(wait);
}

}  // namespace hicache
