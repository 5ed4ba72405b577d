// The directory's messages on the wire: codecs of directory_types.h.
//
// A request is a frame (frame_pipe.h) with its op; the reply has the same request id and the op
// with kDirectoryReplyBit. A payload that does not decode exactly is hostile: the connection is
// closed. Orders also come unasked, as the reply of a heartbeat with request id 0.
//
// Pure but for its home beside the sockets. Threads: any.
#pragma once

#include <cstdint>
#include <string_view>

#include "directory/directory_types.h"
#include "net/frame.h"
#include "net/wire.h"

namespace hicache {

enum class DirectoryOp : uint16_t {
  kJoin = 1,
  kHeartbeat = 2,
  kBatch = 3,
  kLeave = 4,
  kLocate = 5,
  kMembers = 6,
  kClearSpace = 7,
  kDrain = 8,
  kQuotas = 9,
};
inline constexpr uint16_t kDirectoryReplyBit = 0x8000;

/// The largest request: a full batch. What is larger is not waited for.
inline constexpr size_t kDirectoryRequestSizeMax = 1 * kMiB;
/// The largest reply: all members, with the longest names.
inline constexpr size_t kDirectoryReplySizeMax = 15 * kMiB;

constexpr DirectoryOp op_of(const JoinRequest&) {
  return DirectoryOp::kJoin;
}
constexpr DirectoryOp op_of(const HeartbeatRequest&) {
  return DirectoryOp::kHeartbeat;
}
constexpr DirectoryOp op_of(const BatchRequest&) {
  return DirectoryOp::kBatch;
}
constexpr DirectoryOp op_of(const LeaveRequest&) {
  return DirectoryOp::kLeave;
}
constexpr DirectoryOp op_of(const LocateRequest&) {
  return DirectoryOp::kLocate;
}
constexpr DirectoryOp op_of(const MembersRequest&) {
  return DirectoryOp::kMembers;
}
constexpr DirectoryOp op_of(const ClearSpaceRequest&) {
  return DirectoryOp::kClearSpace;
}
constexpr DirectoryOp op_of(const DrainRequest&) {
  return DirectoryOp::kDrain;
}

constexpr DirectoryOp op_of(const QuotasRequest&) {
  return DirectoryOp::kQuotas;
}

/// "join", "locate" …, for messages.
std::string_view op_name(DirectoryOp op);

void encode(WireWriter& writer, const JoinRequest& message);
void encode(WireWriter& writer, const JoinReply& message);
void encode(WireWriter& writer, const HeartbeatRequest& message);
void encode(WireWriter& writer, const HeartbeatReply& message);
void encode(WireWriter& writer, const BatchRequest& message);
void encode(WireWriter& writer, const BatchReply& message);
void encode(WireWriter& writer, const LeaveRequest& message);
void encode(WireWriter& writer, const LocateRequest& message);
void encode(WireWriter& writer, const LocateReply& message);
void encode(WireWriter& writer, const MembersRequest& message);
void encode(WireWriter& writer, const MembersReply& message);
void encode(WireWriter& writer, const ClearSpaceRequest& message);
void encode(WireWriter& writer, const ClearSpaceReply& message);
void encode(WireWriter& writer, const DrainRequest& message);
void encode(WireWriter& writer, const QuotasRequest& message);
void encode(WireWriter& writer, const QuotasReply& message);
void encode(WireWriter& writer, const PlainReply& message);

/// False for a payload that is not exactly such a message, or is beyond a bound.
bool decode(WireReader reader, JoinRequest& message);
bool decode(WireReader reader, JoinReply& message);
bool decode(WireReader reader, HeartbeatRequest& message);
bool decode(WireReader reader, HeartbeatReply& message);
bool decode(WireReader reader, BatchRequest& message);
bool decode(WireReader reader, BatchReply& message);
bool decode(WireReader reader, LeaveRequest& message);
bool decode(WireReader reader, LocateRequest& message);
bool decode(WireReader reader, LocateReply& message);
bool decode(WireReader reader, MembersRequest& message);
bool decode(WireReader reader, MembersReply& message);
bool decode(WireReader reader, ClearSpaceRequest& message);
bool decode(WireReader reader, ClearSpaceReply& message);
bool decode(WireReader reader, DrainRequest& message);
bool decode(WireReader reader, QuotasRequest& message);
bool decode(WireReader reader, QuotasReply& message);
bool decode(WireReader reader, PlainReply& message);

}  // namespace hicache
