// Copies that nobody waits for: those that another node asks this one to make, and the other way
// round.
#include <utility>

#include "store/remote_tier.h"

namespace hicache {
namespace {

constexpr size_t kCopiesMax = 1024;           // Requests that are being looked for.
constexpr uint64_t kCopyPatienceMs = 10'000;  // Of a page that is to come.

}  // namespace

bool RemoteTier::begin_copy(Question question, uint64_t now_ms) {
  if (question.keys.empty() || waits_.size() >= kCopiesMax) return false;
  begin(std::move(question), WaitKind::kCopy, now_ms + options_.call_timeout_ms, now_ms);
  return true;
}

void RemoteTier::copy_all(RemoteWaitId id) {
  const auto found = waits_.find(id);
  const Wait wait = std::move(found->second);
  waits_.erase(found);
  for (size_t i = 0; i < wait.hashes.size(); ++i) want(wait, i, 0, now_ms_ + kCopyPatienceMs);
}

void RemoteTier::ask_to_copy(const std::string& name, uint64_t incarnation,
                             const PeerCopyRequest& request, CodesDone done) {
  const auto answered = [inbox = inbox_, count = request.keys.size(),
                         done = std::move(done)](const Result<PeerLine::Answer>& answer) {
    inbox->post([done, codes = codes_of(answer, count)](RemoteTier&) { done(codes); });
  };
  const auto known = peer_ids_.find({name, incarnation});
  Peer* peer = known == peer_ids_.end() ? nullptr : usable(known->second);
  PeerLine* link = peer == nullptr ? nullptr : link_of(*peer);
  if (link == nullptr) return answered(Status(Code::kUnavailable, "no link to the peer"));
  std::vector<uint8_t> message;
  begin_frame(message);
  WireWriter writer(message);
  encode(writer, request);
  link->ask(NodeOp::kCopy, std::move(message), answered);
}

}  // namespace hicache
