// What the fuzzers call of the directory: its messages, and its core driven by requests that
// decoded: what hostile but well-formed nodes and clients can do to it.
#pragma once

#include <cstdlib>
#include <span>
#include <vector>

#include "directory/directory.h"
#include "directory/directory_messages.h"

namespace hicache::fuzz {

/// What decodes is written again as it was.
template <typename Message>
bool decode_same(std::span<const uint8_t> input) {
  Message message;
  if (!decode(WireReader(input), message)) return false;
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, message);
  if (!std::equal(bytes.begin(), bytes.end(), input.begin(), input.end())) std::abort();
  return true;
}

using DecodeSame = bool (*)(std::span<const uint8_t>);
inline constexpr DecodeSame kDirectoryDecoders[] = {
    decode_same<JoinRequest>,     decode_same<JoinReply>,     decode_same<HeartbeatRequest>,
    decode_same<HeartbeatReply>,  decode_same<BatchRequest>,  decode_same<BatchReply>,
    decode_same<LeaveRequest>,    decode_same<LocateRequest>, decode_same<LocateReply>,
    decode_same<MembersRequest>,  decode_same<MembersReply>,  decode_same<ClearSpaceRequest>,
    decode_same<ClearSpaceReply>, decode_same<DrainRequest>,  decode_same<PlainReply>,
    decode_same<QuotasRequest>,   decode_same<QuotasReply>,
};

/// The first byte chooses the message.
inline void directory_messages(std::span<const uint8_t> input) {
  if (input.empty()) return;
  (void)kDirectoryDecoders[input[0] % std::size(kDirectoryDecoders)](input.subspan(1));
}

class DirectoryDriver {
 public:
  DirectoryDriver()
      : directory_({.nodes_max = 4,
                    .pages_max = 20,
                    .holdings_max = 6,
                    .heartbeat_interval_ms = 1,
                    .silence_max_ms = 60,
                    .probe_interval_ms = 20,
                    .probe_timeout_ms = 30,
                    .is_elected = false}) {
    directory_.lead(1);
  }

  void run(std::span<const uint8_t> input) {
    for (; input.size() >= 8; input = input.subspan(8)) step(input.first<8>());
    if (!directory_.check_invariants().empty()) std::abort();
  }

 private:
  static Key key_of(uint8_t n) {
    Key key;
    key.bytes.fill(n);
    return key;
  }

  void step(std::span<const uint8_t, 8> bytes) {
    const NodeIndex node = bytes[1] % 5;
    const uint64_t incarnation = bytes[2] % 3;
    const SessionId session = bytes[3] % 6 + 1;
    const NamespaceDigest digest = key_of(bytes[4] % 4);
    const uint64_t epoch = bytes[0] == 255 ? uint64_t{1} << (bytes[7] % 64) : 0;
    now_ms_ += bytes[7] % 16;
    switch (bytes[0] % 11) {
      case 0: {
        const Member member{.name = std::string(1, static_cast<char>('a' + bytes[1] % 7)),
                            .incarnation = incarnation,
                            .addresses = {"h:1"},
                            .failure_domain = "",
                            .capacity_bytes = 0,
                            .free_bytes = 0,
                            .load_permille = 0};
        (void)directory_.apply(JoinRequest{epoch, member}, session, now_ms_);
        break;
      }
      case 1:
        (void)directory_.apply(HeartbeatRequest{epoch, node, incarnation, 0, 0, {}}, session,
                               now_ms_);
        break;
      case 2:
      case 3:
      case 4:
        take_batch(bytes, {epoch,
                           node,
                           incarnation,
                           bytes[5] % 32u,
                           bytes[6] % 8u,
                           static_cast<BatchKind>(bytes[6] % kBatchKindCount),
                           digest,
                           {}});
        break;
      case 5:
        (void)directory_.apply(LeaveRequest{epoch, node, incarnation}, now_ms_);
        break;
      case 6: {
        LocateReply reply;
        directory_.apply(LocateRequest{epoch,
                                       digest,
                                       bytes[5] % 2 == 0,
                                       bytes[6],
                                       {key_of(bytes[5] % 32), key_of(bytes[6] % 32)}},
                         reply);
        break;
      }
      case 7:
        (void)directory_.apply(ClearSpaceRequest{.epoch = epoch, .digest = digest});
        break;
      case 8:
        (void)directory_.apply(
            DrainRequest{epoch, bytes[5] % 2 == 0, std::string(1, "abcdefg"[bytes[1] % 7])});
        break;
      case 9:
        directory_.disconnected(session, now_ms_);
        break;
      default:
        directory_.probe_result(node, bytes[5], bytes[6] % 2 == 0, now_ms_);
        (void)directory_.advance(now_ms_);
    }
    (void)directory_.take_effects();
  }

  void take_batch(std::span<const uint8_t, 8> bytes, BatchRequest request) {
    for (uint8_t i = 0; i < bytes[6] / 32; ++i) {
      request.changes.push_back(
          {key_of(static_cast<uint8_t>((bytes[5] + i) % 32)), i, bytes[7] % (kTiersMax + 1u)});
    }
    (void)directory_.apply(request);
  }

  Directory directory_;
  uint64_t now_ms_ = 0;
};

inline void directory_core(std::span<const uint8_t> input) {
  DirectoryDriver().run(input);
}

}  // namespace hicache::fuzz
