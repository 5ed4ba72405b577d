#include "transfer/peer.h"

#include <algorithm>
#include <utility>

#include "net/wire.h"

namespace hicache {
namespace {

constexpr uint64_t kMs = 1'000'000;
/// A transport that did not reach the peer is not asked again sooner.
constexpr uint64_t kTierRetryNs = 1000 * kMs;
/// For opening paths in the middle of things.
constexpr uint64_t kOpenTimeoutNs = 5000 * kMs;

Deadline deadline_at(uint64_t at_ns) {
  const uint64_t now = monotonic_ns();
  return Deadline::after_ms(at_ns <= now ? 0 : (at_ns - now + kMs - 1) / kMs);
}

}  // namespace

Peer::Peer(PeerContext& context, HostPort address, SegmentId id)
    : context_(context),
      address_(std::move(address)),
      address_name_(to_string(address_)),
      id_(id),
      control_(address_, context.secret, context.tls,
               [this](int fd) { context_.watch(*this, fd); }),
      table_(context.limits),
      tiers_(context.transports.size()) {}

Result<std::shared_ptr<Peer>> Peer::open(PeerContext& context, const HostPort& address,
                                         SegmentId id, uint64_t deadline_ns) {
  // A private constructor, which make_shared cannot call.
  std::shared_ptr<Peer> peer(std::unique_ptr<Peer>(new Peer(context, address, id)));
  Result<std::shared_ptr<const SegmentDescriptor>> descriptor = peer->refresh(deadline_ns);
  if (!descriptor.ok()) return descriptor.status();
  HICACHE_RETURN_IF_ERROR(peer->open_first_tier(deadline_ns));
  return peer;
}

Result<std::vector<uint8_t>> Peer::ask_control(ControlOp op, std::span<const uint8_t> request,
                                               uint64_t deadline_ns) {
  if (is_lost_) return lost_status();
  Result<std::vector<uint8_t>> reply = control_.ask(op, request, deadline_at(deadline_ns));
  if (reply.ok()) return reply;
  look_at_control();
  if (is_lost_ && reply.status().code() == Code::kUnavailable) return lost_status();
  return reply;
}

Result<std::vector<uint8_t>> Peer::call(TransportKind kind, std::span<const uint8_t> request,
                                        uint64_t deadline_ns) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kind);
  writer.put_bytes(request.data(), request.size());
  return ask_control(ControlOp::kTransport, bytes, deadline_ns);
}

Status Peer::ask(ControlOp op, std::span<const uint8_t> request, uint64_t deadline_ns) {
  return ask_control(op, request, deadline_ns).status();
}

void Peer::look_at_control() {
  if (!control_.is_gone()) return;
  lose(Status(Code::kUnavailable,
              "the peer " + address_name_ + " is gone: its connection broke; open it again"));
}

Status Peer::lost_status() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

// ---- descriptor

std::shared_ptr<const SegmentDescriptor> Peer::descriptor() const {
  const std::lock_guard lock(mutex_);
  return descriptor_;
}

Result<std::shared_ptr<const SegmentDescriptor>> Peer::fetch(uint64_t deadline_ns) {
  Result<std::vector<uint8_t>> bytes = ask_control(ControlOp::kDescribe, {}, deadline_ns);
  if (!bytes.ok()) return bytes.status();
  Result<SegmentDescriptor> decoded = decode_segment(bytes.value());
  if (!decoded.ok()) return decoded.status();
  if (decoded.value().epoch != control_.epoch()) {
    return Status(Code::kCorrupt, "the descriptor of " + address_name_ +
                                      " names another incarnation than its connection");
  }
  return std::make_shared<const SegmentDescriptor>(std::move(decoded.value()));
}

Result<std::shared_ptr<const SegmentDescriptor>> Peer::refresh(uint64_t deadline_ns) {
  is_stale_ = false;
  Result<std::shared_ptr<const SegmentDescriptor>> fetched = fetch(deadline_ns);
  if (!fetched.ok()) return fetched.status();
  std::vector<OpenPath*> paths;
  {
    const std::lock_guard lock(mutex_);
    // Another thread may have fetched a later one.
    if (descriptor_ != nullptr && descriptor_->version >= fetched.value()->version) {
      return descriptor_;
    }
    descriptor_ = fetched.value();
    for (OpenPath& open : paths_) paths.push_back(&open);
  }
  for (const OpenPath* open : paths) {
    for (Transport* transport : context_.transports) {
      if (transport->kind() == open->kind) transport->update(*open->path, *fetched.value());
    }
  }
  return fetched.value();
}

// ---- paths

Status Peer::open_first_tier(uint64_t deadline_ns) {
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    if (open_tier(tier, deadline_ns)) return Status();
    if (is_lost_) return lost_status();
  }
  std::string message = "no path to " + address_name_;
  const std::lock_guard lock(mutex_);
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    message += (tier == 0 ? ": " : "; ");
    message += transport_name(context_.transports[tier]->kind());
    message += " " + tiers_[tier].refusal;
  }
  return Status(Code::kUnavailable, message);
}

/// True: the tier has paths now.
bool Peer::open_tier(size_t tier, uint64_t deadline_ns) {
  Transport* transport = context_.transports[tier];
  std::shared_ptr<const SegmentDescriptor> peer;
  {
    const std::lock_guard lock(mutex_);
    tiers_[tier].is_opening = true;
    peer = descriptor_;
  }
  Result<std::vector<std::unique_ptr<Path>>> opened =
      transport->open(*peer, *this, *this, deadline_ns);
  std::vector<OpenPath*> unwanted;
  bool has_paths = false;
  {
    const std::lock_guard lock(mutex_);
    Tier& state = tiers_[tier];
    state.is_opening = false;
    state.next_try_ns = monotonic_ns() + kTierRetryNs;
    state.refusal = opened.ok() ? "does not reach it" : opened.status().message();
    if (opened.ok()) {
      for (std::unique_ptr<Path>& path : opened.value()) {
        OpenPath& open = paths_.emplace_back();
        open.kind = transport->kind();
        open.path = std::move(path);
        rails_.add(open.path->cost(), static_cast<uint8_t>(tier), open.path->slice_size_bytes());
        distance_.add_rail(open.path->device());
        if (is_lost_) unwanted.push_back(&open);
        has_paths = true;
      }
    }
    state.has_paths = has_paths;
  }
  for (OpenPath* open : unwanted) close_path(*open);
  return has_paths;
}

void Peer::set_topology(const std::shared_ptr<const Topology>& topology) {
  const std::lock_guard lock(mutex_);
  distance_.set_topology(topology);
}

void Peer::close_path(OpenPath& open) const {
  std::call_once(open.close_once, [&] { open.path->close(); });
}

bool Peer::run_errand(Errands::Urgency urgency, std::function<void(Peer&)> errand) {
  return context_.errands->add(
      this, urgency, [self = shared_from_this(), errand = std::move(errand)] { errand(*self); });
}

// ---- end

void Peer::lose(const Status& status) {
  std::vector<BatchKey> done;
  std::vector<OpenPath*> paths;
  {
    const std::lock_guard lock(mutex_);
    if (is_lost_) return;
    lost_ = status;
    is_lost_ = true;
    table_.cancel_all(status, done);
    for (OpenPath& open : paths_) paths.push_back(&open);
  }
  control_.end();
  signal_done(done);
  for (OpenPath* open : paths) {
    const bool is_begun =
        run_errand(Errands::Urgency::kClosing, [open](Peer& peer) { peer.close_path(*open); });
    if (!is_begun) close_path(*open);
  }
}

void Peer::close(const Status& status) {
  std::vector<BatchKey> done;
  std::vector<OpenPath*> paths;
  {
    const std::lock_guard lock(mutex_);
    if (!is_lost_) {
      lost_ = status;
      is_lost_ = true;
      table_.cancel_all(status, done);
    }
    for (OpenPath& open : paths_) paths.push_back(&open);
  }
  control_.end();
  signal_done(done);
  for (OpenPath* open : paths) close_path(*open);
}

uint64_t Peer::tick(uint64_t now_ns) {
  std::vector<BatchKey> done;
  uint64_t next_ns = UINT64_MAX;
  {
    const std::lock_guard lock(mutex_);
    if (is_lost_) return next_ns;
    table_.expire(now_ns, last_failure_, done);
    while (const std::optional<RailIndex> rail = rails_.take_probe(now_ns)) {
      const bool is_begun = run_errand(Errands::Urgency::kProbe,
                                       [rail = *rail](Peer& peer) { peer.probe_rail(rail); });
      if (!is_begun) rails_.probe_ended(*rail, false, now_ns);
    }
    next_ns = std::min(rails_.next_probe_ns(), table_.next_deadline_ns());
  }
  signal_done(done);
  return next_ns;
}

void Peer::probe_rail(RailIndex rail) {
  Path* path;
  {
    const std::lock_guard lock(mutex_);
    path = paths_[rail].path.get();
  }
  const bool is_ok = path->probe().ok();
  uint64_t next_ns;
  {
    const std::lock_guard lock(mutex_);
    rails_.probe_ended(rail, is_ok, monotonic_ns());
    next_ns = rails_.next_probe_ns();
  }
  context_.wake_at(next_ns);
  if (is_ok) (void)dispatch();
}

void Peer::write_stats(JsonWriter& json) const {
  const std::lock_guard lock(mutex_);
  json.member("address", address_name_);
  json.member("segment", descriptor_ == nullptr ? std::string_view() : descriptor_->name);
  json.member("is_lost", uint64_t{is_lost_});
  json.member("batches", table_.batch_count());
  json.member("requests", table_.request_count());
  json.member("slices", table_.slice_count());
  json.member("waiting_bytes", table_.waiting_bytes());
  json.member("last_failure", last_failure_);
  json.open_member("paths", '[');
  for (RailIndex i = 0; i < rails_.count(); ++i) {
    const RailChoice::Rail& rail = rails_.rail(i);
    json.open_element('{');
    json.member("name", paths_[i].path->name());
    json.member("transport", transport_name(paths_[i].kind));
    json.member("is_healthy", uint64_t{rail.is_alive});
    json.member("fixed_ns", rail.cost.fixed_ns);
    json.member("ns_per_byte", rail.cost.ns_per_byte);
    json.member("done_bytes", rail.done_bytes);
    json.member("outstanding_bytes", rail.outstanding_bytes);
    json.member("failures", rail.failures);
    json.close('}');
  }
  json.close(']');
}

}  // namespace hicache
