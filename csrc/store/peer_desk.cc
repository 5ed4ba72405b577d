#include "store/peer_desk.h"

#include "net/frame.h"

namespace hicache {
namespace {

bool has_reply(NodeOp op) {
  return op != NodeOp::kRelease && op != NodeOp::kReportCorrupt;
}

}  // namespace

bool PeerDesk::answer(Guest& guest, NodeOp op, Payload payload, uint64_t now_ms,
                      std::vector<uint8_t>& frame) {
  frame.clear();
  if ((op == NodeOp::kHello) == guest.has_session) return false;
  if (has_reply(op)) begin_frame(frame);
  bool is_sound = false;
  switch (op) {
    case NodeOp::kHello:
      return answer_hello(guest, payload, frame);
    case NodeOp::kLookup:
    case NodeOp::kLease:
    case NodeOp::kRemove:
      return answer_keys(guest, op, payload, frame);
    case NodeOp::kCopy:
      return answer_copy(payload, frame);
    case NodeOp::kList:
      return answer_list(payload, frame);
    case NodeOp::kRelease:
      is_sound = decode(WireReader(payload), refs_);
      if (is_sound) pages_.release(guest.session, refs_.refs, now_ms);
      return is_sound;
    case NodeOp::kReportCorrupt:
      is_sound = decode(WireReader(payload), refs_);
      if (is_sound) pages_.report_corrupt(refs_.refs);
      return is_sound;
    default:
      return false;
  }
}

bool PeerDesk::answer_hello(Guest& guest, Payload payload, std::vector<uint8_t>& frame) {
  PeerHello request;
  if (!decode(WireReader(payload), request)) return false;
  guest.session = pages_.open_peer();
  guest.has_session = true;
  WireWriter writer(frame);
  encode(writer, hello_);
  return true;
}

bool PeerDesk::answer_copy(Payload payload, std::vector<uint8_t>& frame) {
  if (!decode(WireReader(payload), copy_)) return false;
  pages_.copy_for_peer(copy_, codes_);
  WireWriter(frame).put_array(std::span<const Code>(codes_));
  return true;
}

bool PeerDesk::answer_list(Payload payload, std::vector<uint8_t>& frame) {
  PeerListRequest request;
  if (!decode(WireReader(payload), request)) return false;
  ListReply reply;
  pages_.list_for_peer(request, reply);
  WireWriter writer(frame);
  encode(writer, reply);
  return true;
}

bool PeerDesk::answer_keys(const Guest& guest, NodeOp op, Payload payload,
                           std::vector<uint8_t>& frame) {
  if (!decode(WireReader(payload), keys_)) return false;
  WireWriter writer(frame);
  if (op == NodeOp::kLease) {
    pages_.lease_for_peer(guest.session, keys_, writer);
    return true;
  }
  if (op == NodeOp::kRemove) {
    pages_.remove_for_peer(keys_, codes_);
  } else {
    pages_.lookup_for_peer(guest.session, keys_, codes_);
  }
  writer.put_array(std::span<const Code>(codes_));
  return true;
}

void PeerDesk::leave(Guest& guest) {
  if (std::exchange(guest.has_session, false)) pages_.close_peer(guest.session);
}

}  // namespace hicache
