// One well-formed payload of every message of the directory.
#pragma once

#include <vector>

#include "directory/directory_messages.h"
#include "directory_rig.h"
#include "messages_samples.h"

namespace hicache::testing {

inline std::vector<Sample> directory_samples() {
  const ReplyHead head{7, 3, Code::kOk};
  const Member member = member_of("node-1", 99);
  Member plain;
  plain.name = "node-2";
  return {
      sample_of("join", JoinRequest{6, member}),
      sample_of("join_reply", JoinReply{head, 4, 250, true, 12, ""}),
      sample_of(
          "heartbeat",
          HeartbeatRequest{7, 4, 99, 1 << 21, 1 << 20, 350, {.found_pages = 9, .get_ns = 1 << 30}}),
      sample_of("heartbeat_reply",
                HeartbeatReply{head,
                               false,
                               13,
                               {{1, OrderKind::kClearSpace, kSpaceA}, {2, OrderKind::kDrain, {}}},
                               77,
                               kMiB}),
      sample_of("batch",
                BatchRequest{7,
                             4,
                             99,
                             12,
                             1,
                             BatchKind::kChanges,
                             kSpaceA,
                             {change_of(key_of(1), kInDram | kOnSsd, 5), change_of(key_of(2), 0)}}),
      sample_of("batch_reply", BatchReply{head, true, 12}),
      sample_of("leave", LeaveRequest{7, 4, 99}),
      sample_of("locate", LocateRequest{7, kSpaceA, true, 2, keys_of(0, 3)}),
      sample_of("locate_reply", LocateReply{head,
                                            {1, 0, 2},
                                            {{9, 4, kInDram, kRankGood},
                                             {3, 1, kOnSsd, kRankDraining},
                                             {8, 2, kOnSsd, kRankSuspect}}}),
      sample_of("members", MembersRequest{7}),
      sample_of("members_reply",
                MembersReply{
                    head, {{4, NodeState::kLive, 1000, member}, {0, NodeState::kGone, 0, plain}}}),
      sample_of("clear_space", ClearSpaceRequest{7, kSpaceB, 3, 12345}),
      sample_of("clear_space_reply", ClearSpaceReply{head, 17}),
      sample_of("drain", DrainRequest{7, true, "node-1"}),
      sample_of("quotas",
                QuotasRequest{7, 4, 99, {{"acme", kMiB, 6, 3}}, {{"acme", kMiB, 100, 50, 2}}}),
      sample_of("quotas_reply",
                QuotasReply{head, {{"acme", kMiB, 6, 3}, {"b", 0, 7, 1}}, {{"*", 1, 2, 3, 4}}}),
      sample_of("plain_reply", PlainReply{{7, 3, Code::kNotFound}}),
  };
}

}  // namespace hicache::testing
