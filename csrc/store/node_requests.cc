// What a node answers to each message.
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/json.h"
#include "io/unix_socket.h"
#include "net/frame.h"
#include "store/node.h"
#include "store/node_connection.h"
#include "store/reply_cut.h"

namespace hicache {
namespace {

constexpr uint64_t kHelloSendMs = 1000;
constexpr size_t kNamespacesShownMax = 100;
constexpr size_t kTenantsShownMax = 100;

void add_histogram(JsonWriter& json, std::string_view name, const DurationHistogram& histogram) {
  json.open_member(name, '{');
  json.open_member("bounds", '[');
  for (size_t b = 0; b < DurationHistogram::kBoundCount; ++b) {
    json.element(DurationHistogram::bound_seconds(b));
  }
  json.close(']');
  json.open_member("counts", '[');
  for (const uint64_t count : histogram.counts) json.element(count);
  json.close(']');
  json.member("sum", static_cast<double>(histogram.sum_ns) * 1e-9);
  json.close('}');
}

bool has_reply(NodeOp op) {
  return op != NodeOp::kRelease && op != NodeOp::kReportCorrupt;
}

}  // namespace

bool Node::handle(Connection& connection, NodeOp op, uint64_t request_id, Payload payload) {
  const bool known = !op_name(op).empty();
  if (!known || (op == NodeOp::kHello) == connection.has_session) {
    ++bad_frames_;
    return false;
  }
  if (op == NodeOp::kHello) return handle_hello(connection, request_id, payload);
  const bool may_lack = op == NodeOp::kLookup || op == NodeOp::kLease;
  if (may_lack && ask_peers(connection, op, request_id, payload)) return true;
  if (op == NodeOp::kList && ask_to_list(connection, request_id, payload)) return true;
  begin_frame(reply_);
  ticket_ = 0;
  patience_ms_ = kPatient;
  bool valid = false;
  switch (op) {
    case NodeOp::kOpenNamespace:
      valid = handle_open_namespace(payload);
      break;
    case NodeOp::kLookup:
      valid = handle_lookup(connection, payload);
      break;
    case NodeOp::kLease:
      valid = handle_lease(connection, payload, false);
      break;
    case NodeOp::kRelease:
    case NodeOp::kReportCorrupt:
      valid = handle_refs(connection, op, payload);
      break;
    case NodeOp::kReserve:
      valid = handle_reserve(connection, payload);
      break;
    case NodeOp::kCommit:
      valid = handle_commit(connection, payload);
      break;
    case NodeOp::kRemove:
    case NodeOp::kClear:
    case NodeOp::kSetPin:
      valid = handle_keys(connection, op, payload);
      break;
    case NodeOp::kList:
      valid = handle_list(payload);
      break;
    case NodeOp::kStats:
      valid = payload.empty();
      WireWriter(reply_).put_string(make_stats_json());
      break;
    case NodeOp::kStop: {
      valid = payload.empty();
      std::lock_guard lock(mutex_);
      stop_asked_ = stop_asked_ || valid;
      break;
    }
    case NodeOp::kHello:
    case NodeOp::kCopy:
      break;
  }
  if (!valid) {
    ++bad_frames_;
    return false;
  }
  if (op == NodeOp::kStop) changed_.notify_all();
  if (!has_reply(op)) return true;
  const bool may_be_elsewhere = op == NodeOp::kRemove || op == NodeOp::kCommit;
  if (may_be_elsewhere && ask_to_remove(connection, op, request_id, payload)) return true;
  end_frame(reply_, static_cast<uint16_t>(op) | kReplyBit, request_id);
  return answer(connection, op, request_id);
}

bool Node::answer(Connection& connection, NodeOp op, uint64_t request_id) {
  if (connection.clearing) {
    connection.clear_reply = reply_;
    connection.clear_ticket = ticket_;
    connection.clear_request_id = request_id;
    clear_waiters_.push_back(connection.socket.get());
    return true;
  }
  if (ticket_ == 0) return send(connection, reply_);
  if (ssd_->is_done(ticket_)) {
    if (!ssd_->is_lost(ticket_)) return send(connection, reply_);
    return send(connection, doubtful_reply(op, request_id, Code::kIo));
  }
  connection.ticket = ticket_;
  connection.deferred = reply_;
  connection.late = doubtful_reply(op, request_id, Code::kTimeout);
  connection.lost = doubtful_reply(op, request_id, Code::kIo);
  connection.patient_until_ms =
      patience_ms_ == kPatient ? UINT64_MAX : monotonic_ms() + patience_ms_;
  deferred_.push_back(connection.socket.get());
  return true;
}

std::vector<uint8_t> Node::doubtful_reply(NodeOp op, uint64_t request_id, Code why) const {
  std::vector<uint8_t> reply;
  begin_frame(reply);
  WireWriter writer(reply);
  if (op == NodeOp::kClear) {
    encode(writer, ClearReply{why, 0});
  } else {
    std::vector<Code> codes = codes_;
    for (Code& code : codes) {
      // Not found is what an earlier removal made of it, which may not be on its disk either.
      if (code == Code::kOk || code == Code::kNotFound) code = why;
    }
    writer.put_array(std::span<const Code>(codes));
  }
  end_frame(reply, static_cast<uint16_t>(op) | kReplyBit, request_id);
  return reply;
}

bool Node::answer_deferred(Connection& connection, uint64_t now_ms, uint64_t* next_ms) {
  if (connection.ticket == 0) return true;
  const bool is_done = ssd_->is_done(connection.ticket);
  if (!is_done && now_ms < connection.patient_until_ms) {
    *next_ms = std::min(*next_ms, connection.patient_until_ms);
    deferred_.push_back(connection.socket.get());
    return true;
  }
  const bool is_lost = is_done && ssd_->is_lost(connection.ticket);
  connection.ticket = 0;
  const std::vector<uint8_t>& reply = is_lost   ? connection.lost
                                      : is_done ? connection.deferred
                                                : connection.late;
  if (!send(connection, reply)) return false;
  connection.deferred = {};
  connection.late = {};
  connection.lost = {};
  unfinished_.push_back(connection.socket.get());  // It may have sent more meanwhile.
  return true;
}

bool Node::handle_hello(Connection& connection, uint64_t request_id, Payload payload) {
  HelloRequest request;
  if (!decode(WireReader(payload), request)) {
    ++bad_frames_;
    return false;
  }
  begin_frame(reply_);
  WireWriter writer(reply_);
  encode(writer,
         HelloReply{incarnation_, memory_->size_bytes(), static_cast<uint8_t>(reader_fds_.size())});
  end_frame(reply_, static_cast<uint16_t>(NodeOp::kHello) | kReplyBit, request_id);
  // Before the reply: once a client knows that it is connected the node must not look idle.
  connection.session = store_.open_session();
  connection.has_session = true;
  ++client_count_;
  idle_since_ms_ = 0;
  // Bounded, so that sums of it cannot wrap.
  connection.pool_contribution_bytes =
      std::min(request.pool_contribution_bytes, memory_->size_bytes());
  contributed_bytes_ += connection.pool_contribution_bytes;
  extend_pool();
  std::vector<int> passed{memory_->fd().get()};
  for (const Fd& fd : reader_fds_) passed.push_back(fd.get());
  // The first bytes on a fresh connection: they fit into the socket's buffer, this cannot wait.
  return send_all(connection.socket, reply_, Deadline::after_ms(kHelloSendMs), passed).ok();
}

Result<NamespaceIndex> Node::open_namespace(const NamespaceDigest& digest,
                                            std::string description) {
  if (store_.is_full_of_namespaces() && !store_.find_namespace(digest)) {
    const NamespaceIndex least_used = store_.least_used_namespace();
    uint64_t ticket = 0;  // Not waited for: nobody asked for it to be removed, it may come back.
    (void)pages_.clear(least_used, ticket);
    store_.end_namespace(least_used);
  }
  return store_.open_namespace(digest, std::move(description));
}

bool Node::handle_open_namespace(Payload payload) {
  OpenNamespaceRequest request;
  if (!decode(WireReader(payload), request)) return false;
  const Result<NamespaceIndex> index =
      open_namespace(request.digest, std::move(request.description));
  WireWriter writer(reply_);
  if (index.ok()) {
    encode(writer, OpenNamespaceReply{Code::kOk, index.value(), ""});
  } else {
    encode(writer, OpenNamespaceReply{index.status().code(), 0, index.status().message()});
  }
  return true;
}

bool Node::handle_lookup(Connection& connection, Payload payload) {
  KeysRequest& request = keys_request_;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  const PageStore::LookupFlags flags{(request.flags & kLookupLease) != 0,
                                     (request.flags & kLookupPrefix) != 0,
                                     (request.flags & kLookupResident) != 0};
  store_.lookup(connection.session, request.index, request.keys, flags, monotonic_ms(), codes_);
  WireWriter(reply_).put_array(std::span<const Code>(codes_));
  return true;
}

bool Node::handle_lease(Connection& connection, Payload payload, bool more_comes) {
  KeysRequest& request = keys_request_;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  const uint64_t now_ms = monotonic_ms();
  const bool read_now = (request.flags & kLeaseReadNow) != 0;
  store_.lease(connection.session, request.index, request.keys, read_now, now_ms, locations_);
  for (PageStore::Location& location : locations_) {
    if (more_comes && location.code == Code::kNotFound) location.code = Code::kBusy;
  }
  const std::vector<PageRef> cut = cut_to_frame(locations_, kPayloadSizeMax);
  WireWriter writer(reply_);
  encode_locations(writer, locations_);
  pages_.release(connection.session, cut, now_ms);
  return true;
}

bool Node::handle_refs(Connection& connection, NodeOp op, Payload payload) {
  RefsRequest request;
  if (!decode(WireReader(payload), request)) return false;
  if (op == NodeOp::kRelease) {
    pages_.release(connection.session, request.refs, monotonic_ms());
    return true;
  }
  pages_.report_corrupt(request.refs);
  return true;
}

bool Node::handle_reserve(Connection& connection, Payload payload) {
  ReserveRequest& request = reserve_request_;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  const PageStore::ReserveOptions options{
      .parent = (request.flags & kReserveParent) != 0 ? &request.parent : nullptr,
      .chained = (request.flags & kReserveChained) != 0,
      .replace = (request.flags & kReserveReplace) != 0,
      .pin = request.pin,
      .space = request.space,
      .may_wait = (request.flags & kReserveMayWait) != 0,
  };
  const uint64_t now_ms = monotonic_ms();
  store_.reserve(connection.session, request.index, request.keys, request.sizes, options, now_ms,
                 placements_);
  const bool is_again = ssd_ && (request.flags & kReserveAgain) != 0 && !placements_.empty();
  const bool found_room = is_again && placements_[0].code == Code::kOk;
  if (is_again && (found_room || !options.may_wait)) ssd_->note_wait_over(options.may_wait, now_ms);
  const std::vector<PageRef> cut = cut_to_frame(placements_, kPayloadSizeMax);
  WireWriter writer(reply_);
  encode_placements(writer, store_.space_of(request.index), placements_);
  for (const PageRef& ref : cut) store_.abort(connection.session, ref);
  ssd_due_ms_ = 0;  // Room was taken.
  grow_ahead();
  return true;
}

bool Node::handle_commit(Connection& connection, Payload payload) {
  CommitRequest request;
  if (!decode(WireReader(payload), request)) return false;
  const PageStore::CommitOptions options{request.ttl_ms, request.replace != 0,
                                         request.replica_count};
  patience_ms_ = request.patience_ms;
  const uint64_t now_ms = monotonic_ms();
  codes_.clear();
  replaced_.clear();
  for (const CommitItem& item : request.items) {
    if (item.outcome == WriteOutcome::kWritten) {
      codes_.push_back(commit(connection.session, item, options, now_ms));
      if (options.replace && codes_.back() == Code::kOk) {
        replaced_.emplace_back(codes_.size() - 1, item.ref);
      }
      continue;
    }
    const bool backed = item.outcome != WriteOutcome::kUnbacked;
    if (backed) {
      store_.abort(connection.session, item.ref);
    } else {
      drop_unbacked(connection.session, item.ref);
    }
    codes_.push_back(backed ? Code::kCancelled : Code::kNoSpace);
  }
  WireWriter(reply_).put_array(std::span<const Code>(codes_));
  return true;
}

Code Node::commit(SessionIndex session, const CommitItem& item,
                  const PageStore::CommitOptions& options, uint64_t now_ms) {
  const Code code = store_.commit(session, item.ref, item.checksum, options, now_ms);
  if (code == Code::kOk && replicator_ && options.replica_count > 1) replicator_->want(item.ref);
  if (code == Code::kOk && ssd_) {
    ticket_ = std::max(ticket_, ssd_->note_stored(item.ref, options.replace, now_ms));
  }
  return code;
}

Code Node::set_pin(NamespaceIndex index, const Key& key, Pin pin) {
  const Code code = store_.set_pin(index, key, pin, monotonic_ms());
  if (code != Code::kNotFound || !ssd_) return code;
  // Only what is in the pool can be pinned there.
  return ssd_->fetch(store_.space_of(index), key) ? Code::kBusy : code;
}

bool Node::handle_keys(Connection& connection, NodeOp op, Payload payload) {
  KeysRequest& request = keys_request_;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  patience_ms_ = request.patience_ms;
  if (op == NodeOp::kClear) {
    WireWriter writer(reply_);
    encode(writer, ClearReply{Code::kOk, pages_.clear(request.index, ticket_)});
    if (cluster_) clear_elsewhere(connection, store_.digest_of(store_.space_of(request.index)));
    return true;
  }
  if (op == NodeOp::kSetPin && request.flags >= kPinCount) return false;
  codes_.clear();
  for (const Key& key : request.keys) {
    codes_.push_back(op == NodeOp::kRemove
                         ? pages_.remove(request.index, key, ticket_)
                         : set_pin(request.index, key, static_cast<Pin>(request.flags)));
  }
  WireWriter(reply_).put_array(std::span<const Code>(codes_));
  return true;
}

NodeStats Node::stats() const {
  NodeStats stats = store_.stats();
  stats.clients = client_count_;
  stats.pool_size_max_bytes = memory_->size_bytes();
  stats.pool_backed_bytes = memory_->backed_bytes();
  stats.uptime_ms = monotonic_ms() - started_ms_;
  stats.rejected_clients = rejected_clients_;
  stats.bad_frames = bad_frames_;
  if (ssd_) ssd_->add_stats(stats, monotonic_ms());
  add_network_stats(stats);
  return stats;
}

std::string Node::make_stats_json() const {
  JsonWriter json;
  const NodeStats now = stats();
  const auto* values = reinterpret_cast<const uint64_t*>(&now);
  for (size_t i = 0; i < kNodeStatCount; ++i) json.member(kNodeStatNames[i], values[i]);
  json.member("incarnation", incarnation_);
  json.member("pid", static_cast<uint64_t>(getpid()));
  json.member("eviction_policy", eviction_kind_name(options_.eviction));
  if (options_.cluster) {
    std::string masters;
    for (const HostPort& master : options_.cluster->masters) {
      masters += (masters.empty() ? "" : ",") + to_string(master);
    }
    json.open_member("cluster", '{');
    json.member("name", options_.cluster->name);
    json.member("masters", masters);
    json.member("trouble", cluster_ ? cluster_->trouble() : "");
    json.close('}');
  }
  json.open_member("requests_seconds", '{');
  for (size_t i = 0; i < kOpCount; ++i) {
    const auto op = static_cast<NodeOp>(i);
    const std::string_view name = op_name(op);
    if (name.empty() || op == NodeOp::kCopy) continue;
    add_histogram(json, name, durations_[i]);
  }
  json.close('}');
  json.open_member("ssd_seconds", '{');
  add_histogram(json, "read", ssd_ ? ssd_->read_seconds() : DurationHistogram());
  add_histogram(json, "write", ssd_ ? ssd_->write_seconds() : DurationHistogram());
  json.close('}');
  json.open_member("remote_seconds", '{');
  const bool is_remote = network_ && network_->has_directory();
  const DurationHistogram none;
  add_histogram(json, "lookup", is_remote ? network_->remote().lookup_seconds() : none);
  add_histogram(json, "fetch", is_remote ? network_->remote().fetch_seconds() : none);
  json.close('}');
  json.open_member("namespace_use", '[');
  for (const PageStore::NamespaceUse& use : store_.namespace_use(kNamespacesShownMax)) {
    json.open_element('{');
    json.member("description", use.description);
    json.member("tenant", use.tenant);
    json.member("pages", use.page_count);
    json.member("size_bytes", use.size_bytes);
    json.member("ssd_pages", ssd_ ? ssd_->log().index().page_count_of(use.space) : 0);
    json.close('}');
  }
  json.close(']');
  json.open_member("tenant_use", '[');
  for (const Tenant& tenant : store_.tenant_use(kTenantsShownMax)) {
    json.open_element('{');
    json.member("tenant", tenant.name);
    json.member("limit_bytes", tenant.limit_bytes);
    json.member("used_bytes", tenant.used_bytes);
    json.member("reserved_bytes", tenant.reserved_bytes);
    json.member("pages", tenant.page_count);
    json.close('}');
  }
  json.close(']');
  return json.finish();
}

}  // namespace hicache
