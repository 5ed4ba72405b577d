#include "sim/sim_node.h"

#include <algorithm>
#include <utility>

namespace hicache::testing {
namespace {

constexpr uint64_t kCallTimeoutMs = 500;

PageStore::Options store_options(uint64_t pool_size_bytes) {
  return {.capacity_bytes = pool_size_bytes,
          .eviction = EvictionKind::kAdaptive,
          .seed = random_token(),
          .read_lease_ttl_ms = SimNode::kReadTtlMs,
          .lookup_lease_ttl_ms = SimNode::kLookupTtlMs,
          .lookup_lease_share = 0.5,
          .hard_pin_share = 0.1,
          .reservation_ttl_ms = SimNode::kReservationTtlMs,
          .grow = [] { return false; }};
}

RemoteTier::Options remote_options(const SimNode::Options& options) {
  return {.own_name = options.name,
          .own_incarnation = options.incarnation,
          .lookup_timeout_ms = 800,
          .stall_timeout_ms = 1200,
          .fetch_timeout_ms = 1000,
          .call_timeout_ms = kCallTimeoutMs,
          .staging_share = 0.5,
          .routes_max = 64,
          .peers_max = 8};
}

/// Small, so that every bound is met.
constexpr Announcer::Options kAnnouncing{
    .changes_max = 4, .batches_max = 3, .pending_max = 24, .walk_count = 5};

std::string address_of(uint16_t port) {
  return "10.0.0.1:" + std::to_string(port);
}

}  // namespace

SimNode::SimNode(World& world, PageOracle& oracle, const Options& options)
    : world_(world),
      oracle_(oracle),
      options_(options),
      host_(*options.host),
      pool_(options.pool_size_bytes),
      neighbour_{&host_, options.incarnation, pool_.data()},
      store_(store_options(options.pool_size_bytes)),
      announcer_(kAnnouncing, store_, nullptr),
      life_(world, line_options(true)),
      bulk_(world, line_options(false)),
      membership_({.member = {.name = options.name,
                              .incarnation = options.incarnation,
                              .addresses = {address_of(options.port)},
                              .failure_domain = "",
                              .capacity_bytes = options.pool_size_bytes},
                   .call_timeout_ms = kCallTimeoutMs},
                  membership_surroundings()),
      roads_(world, host_, options.name, pool_.data(), options.find),
      remote_(remote_options(options),
              {.store = store_, .roads = roads_, .directory = bulk_, .wake = [this] { wake(); }}),
      replicator_({.own_name = options.name,
                   .own_incarnation = options.incarnation,
                   .failure_domain = "",
                   .call_timeout_ms = kCallTimeoutMs,
                   .walk_interval_ms = 500},
                  {.store = store_,
                   .directory = bulk_,
                   .remote = remote_,
                   .post =
                       [this](Replicator::Task task) {
                         posted_.push_back(std::move(task));
                         wake();
                       },
                   .has_told_all = [this] { return membership_.has_told_all(); }}),
      desk_({options.incarnation, reinterpret_cast<uint64_t>(pool_.data()), options.pool_size_bytes,
             address_of(options.port)},
            *this),
      clients_(kClients) {
  store_.add_memory(0, options.pool_size_bytes);
  store_.set_listener(announcer_);
  pages_.set_remote(remote_);
  for (uint64_t n = 0; n < PageOracle::kSpaces; ++n) {
    spaces_.push_back(store_.open_namespace(space_digest(n), "").value());
  }
  for (Client& client : clients_) client.session = store_.open_session();
  world_.listen(host_, [this](const StreamRef& stream) { accept(stream); });
  wake();
}

SimNode::~SimNode() = default;

SimLine::Options SimNode::line_options(bool takes_orders) {
  return {.owner = &host_,
          .masters = options_.masters,
          .on_connection = [this] { wake(); },
          .on_orders =
              [this, takes_orders](const HeartbeatReply& orders) {
                if (!takes_orders) return;
                posted_.push_back([this, orders] { membership_.take_orders(orders); });
                wake();
              }};
}

Membership::Surroundings SimNode::membership_surroundings() {
  return {.life = life_,
          .bulk = bulk_,
          .announcer = announcer_,
          .post =
              [this](const Membership::Task& task) {
                posted_.push_back(task);
                wake();
              },
          .capacity_bytes = [this] { return store_.capacity_bytes(); },
          .free_bytes = [this] { return store_.free_bytes() + store_.spare_bytes(); },
          .busy_ns = [] { return uint64_t{0}; },
          .tally = [] { return NodeTally(); },
          .clear =
              [this](const NamespaceDigest& digest) {
                world_.note(&host_, "is told to clear a namespace");
                uint64_t ticket = 0;
                const auto index = store_.find_namespace(digest);
                if (index) (void)pages_.clear(*index, ticket);
                return ticket;
              },
          .is_done = [](uint64_t) { return true; },
          .on_notice = [this](const std::string& text) { world_.note(&host_, text); }};
}

// ---------------------------------------------------------------- the node's thread

void SimNode::wake() {
  if (std::exchange(is_step_near_, true)) return;
  world_.after_us(host_, world_.random().between(3, 60), [this] {
    is_step_near_ = false;
    step();
  });
}

void SimNode::step() {
  const uint64_t now_ms = monotonic_ms();
  uint64_t next_ms = store_.advance(now_ms);
  next_ms = std::min(next_ms, remote_.advance(now_ms));
  for (Waiter& waiter : std::exchange(waiters_, {})) {
    if (remote_.is_settled(waiter.wait, now_ms, &next_ms)) {
      waiter.then();
    } else {
      waiters_.push_back(std::move(waiter));
    }
  }
  for (const auto& task : std::exchange(posted_, {})) task();
  next_ms = std::min(next_ms, membership_.advance(now_ms));
  replicator_.note_members(membership_.epoch(), membership_.members_version());
  replicator_.set_draining(membership_.is_draining());
  next_ms = std::min(next_ms, replicator_.advance(now_ms));
  const bool is_due = remote_.is_due() || (membership_.can_send() && announcer_.is_due());
  if (is_due) wake();
  if (next_ms == UINT64_MAX || next_ms >= step_at_ms_) return;
  step_at_ms_ = std::max(next_ms, now_ms + 1);
  world_.at_local_ms(host_, step_at_ms_, [this] {
    step_at_ms_ = UINT64_MAX;
    step();
  });
}

// ---------------------------------------------------------------- its peers

void SimNode::accept(const StreamRef& stream) {
  auto guest = std::make_shared<PeerDesk::Guest>();
  ++guest_count_;
  stream->listen(
      1, [this, stream, guest](const Message& message) { take(stream, *guest, message); },
      [this, guest] {
        desk_.leave(*guest);
        --guest_count_;
      });
}

void SimNode::take(const StreamRef& stream, PeerDesk::Guest& guest, const Message& message) {
  std::vector<uint8_t> frame;
  const auto op = static_cast<NodeOp>(message.op);
  if (!desk_.answer(guest, op, message.payload, monotonic_ms(), frame)) {
    return world_.fail("a node takes a peer's request for hostile");
  }
  if (frame.empty()) return;
  stream->send(1, message_of(message.op | kReplyBit, message.id, frame));
  wake();
}

void SimNode::leave() {
  const auto [node, incarnation] = membership_.seat();
  if (node == kNoNode) return;
  world_.note(&host_, "leaves");
  life_.ask<PlainReply>(LeaveRequest{0, node, incarnation}, Deadline::after_ms(kCallTimeoutMs),
                        [](const Result<PlainReply>&) {});
}

void SimNode::flip_a_bit() {
  for (PageIndex page = 0; page < store_.record_count(); ++page) {
    if (store_.record(page).state != PageState::kPresent || !world_.chance(4)) continue;
    const Extent& extent = store_.record(page).extents.span().front();
    pool_[extent.offset + world_.random().below(extent.size)] ^= 4;
    has_flips_ = true;
    world_.note(&host_, "a bit flips in its memory");
    return;
  }
}

// ---------------------------------------------------------------- what is left

bool SimNode::has(uint64_t space, uint64_t key) const {
  return store_.find_present(store_.space_of(spaces_[space]), key_of(key)) != kNoPage;
}

std::string SimNode::why_not_quiet() const {
  if (!membership_.is_joined()) return "it has not joined";
  if (!announcer_.is_settled()) return "it has something to tell";
  if (!waiters_.empty() || remote_.pending_count() != 0) return "it waits for pages of peers";
  const bool is_busy =
      std::any_of(clients_.begin(), clients_.end(), [](const Client& c) { return c.is_busy; });
  return is_busy ? "a client waits" : "";
}

std::string SimNode::leaks() const {
  const NodeStats stats = store_.stats();
  if (stats.leases != 0) return std::to_string(stats.leases) + " leases";
  if (stats.pool_reserved_bytes != 0) return "bytes reserved";
  if (stats.pool_held_bytes != 0) return "bytes held";
  NodeStats remote;
  remote_.add_stats(remote);
  if (remote.remote_coming_bytes != 0) return "bytes on their way";
  if (stats.pages != 0) return std::to_string(stats.pages) + " pages";
  return store_.free_bytes() == options_.pool_size_bytes ? "" : "room in the pool";
}

}  // namespace hicache::testing
