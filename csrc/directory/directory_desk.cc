#include "directory/directory_desk.h"

namespace hicache {

template <typename Request, typename Apply>
bool DirectoryDesk::reply_to(std::span<const uint8_t> payload, std::vector<uint8_t>& frame,
                             Apply apply) {
  Request request;
  if (!decode(WireReader(payload), request)) return false;
  WireWriter writer(frame);
  encode(writer, apply(request));
  return true;
}

bool DirectoryDesk::answer(DirectoryOp op, std::span<const uint8_t> payload, SessionId session,
                           uint64_t now_ms, std::vector<uint8_t>& frame) {
  const auto plain = [&](const auto& request) { return directory_.apply(request); };
  const auto timed = [&](const auto& request) { return directory_.apply(request, now_ms); };
  const auto of_session = [&](const auto& request) {
    return directory_.apply(request, session, now_ms);
  };
  switch (op) {
    case DirectoryOp::kLocate: {
      if (!decode(WireReader(payload), locate_request_)) return false;
      directory_.apply(locate_request_, locate_reply_);
      WireWriter writer(frame);
      encode(writer, locate_reply_);
      return true;
    }
    case DirectoryOp::kJoin:
      return reply_to<JoinRequest>(payload, frame, of_session);
    case DirectoryOp::kHeartbeat:
      return reply_to<HeartbeatRequest>(payload, frame, of_session);
    case DirectoryOp::kBatch:
      return reply_to<BatchRequest>(payload, frame, plain);
    case DirectoryOp::kLeave:
      return reply_to<LeaveRequest>(payload, frame, timed);
    case DirectoryOp::kMembers:
      return reply_to<MembersRequest>(payload, frame, plain);
    case DirectoryOp::kClearSpace:
      return reply_to<ClearSpaceRequest>(payload, frame, plain);
    case DirectoryOp::kDrain:
      return reply_to<DrainRequest>(payload, frame, plain);
    case DirectoryOp::kQuotas:
      return reply_to<QuotasRequest>(payload, frame, plain);
  }
  return false;
}

}  // namespace hicache
