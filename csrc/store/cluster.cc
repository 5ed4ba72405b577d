#include "store/cluster.h"

#include <algorithm>
#include <utility>

namespace hicache {
namespace {

constexpr size_t kCallsMax = 4096;  // Under way at the same time.
constexpr uint64_t kLeaveMs = 500;  // That saying farewell may take.
/// A step of either takes a fraction of a millisecond of the node's thread.
constexpr Announcer::Options kAnnouncing{
    .changes_max = 1024, .batches_max = 8, .pending_max = 1 << 17, .walk_count = 1024};

}  // namespace

Result<std::unique_ptr<Cluster>> Cluster::start(ClusterOptions options, Surroundings surroundings) {
  std::unique_ptr<Cluster> cluster(new Cluster(std::move(options), std::move(surroundings)));
  HICACHE_RETURN_IF_ERROR(cluster->connect());
  cluster->enter();
  return cluster;
}

Cluster::Cluster(ClusterOptions options, Surroundings surroundings)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      announcer_(kAnnouncing, surroundings_.store,
                 surroundings_.ssd == nullptr ? nullptr : &surroundings_.ssd->log().index()) {}

Cluster::~Cluster() {
  stop();
}

Status Cluster::connect() {
  const TlsContext::Files& tls = options_.tls;
  if (!tls.certificate.empty() || !tls.key.empty() || !tls.authority.empty()) {
    Result<std::shared_ptr<TlsContext>> loaded = TlsContext::load(tls);
    if (!loaded.ok()) return loaded.status();
    tls_ = std::move(loaded.value());
  }
  DirectoryClient::Options options{.addresses = options_.masters,
                                   .secret = options_.secret,
                                   .tls = tls_,
                                   .connect_timeout_ms = options_.connect_timeout_ms,
                                   .back_off_min_ms = options_.back_off_min_ms,
                                   .back_off_max_ms = options_.back_off_max_ms,
                                   .calls_max = kCallsMax,
                                   .on_orders =
                                       [this](const HeartbeatReply& orders) {
                                         post([this, orders] { membership_->take_orders(orders); });
                                       },
                                   .on_connection = surroundings_.wake,
                                   .on_trouble = [this](const std::string& why) { note(why); }};
  for (std::unique_ptr<DirectoryClient>* client : {&life_, &bulk_}) {
    Result<std::unique_ptr<DirectoryClient>> started = DirectoryClient::start(options);
    if (!started.ok()) return started.status();
    *client = std::move(started.value());
    options.on_trouble = nullptr;  // One tells for both.
  }
  return Status();
}

Member Cluster::member() const {
  return {.name = options_.name,
          .incarnation = surroundings_.incarnation,
          .addresses = surroundings_.addresses,
          .failure_domain = options_.failure_domain,
          .capacity_bytes = surroundings_.store.capacity_bytes()};
}

/// Nothing runs before the first advance().
void Cluster::enter() {
  PageStore& store = surroundings_.store;
  SsdTier* ssd = surroundings_.ssd;
  membership_ = std::make_unique<Membership>(
      Membership::Options{.member = member(), .call_timeout_ms = options_.call_timeout_ms},
      Membership::Surroundings{
          .life = *life_,
          .bulk = *bulk_,
          .announcer = announcer_,
          .post = [this](Membership::Task task) { post(std::move(task)); },
          .capacity_bytes = [&store] { return store.capacity_bytes(); },
          .free_bytes = [&store] { return store.reachable_free_bytes() + store.spare_bytes(); },
          .busy_ns = surroundings_.busy_ns,
          .tally = surroundings_.tally,
          .clear = surroundings_.clear,
          .is_done =
              [ssd](uint64_t ticket) {
                return ticket == 0 || ssd == nullptr || ssd->is_done(ticket);
              },
          .on_notice = [this](const std::string& why) { note(why); },
          .on_heard =
              [this](const HeartbeatReply& reply) {
                quotas_->heard(reply, membership_->seat(), membership_->counts().joins);
              }});
  quotas_ = std::make_unique<ClusterQuotas>(ClusterQuotas::Surroundings{
      .directory = *life_,
      .store = store,
      .own = surroundings_.quotas,
      .call_timeout_ms = options_.call_timeout_ms,
      .post = [this](std::function<void()> task) { post(std::move(task)); }});
  store.set_listener(announcer_);
  if (ssd != nullptr) ssd->set_listener(announcer_);
}

void Cluster::stop() {
  if (life_ && membership_ && membership_->seat().node != kNoNode) {
    const auto [node, incarnation] = membership_->seat();
    // Nobody has to wait for a probe then. A master that does not answer finds out by itself.
    (void)life_->call<PlainReply>(LeaveRequest{0, node, incarnation}, Deadline::after_ms(kLeaveMs));
    membership_->leave();
  }
  if (life_) life_->stop();
  if (bulk_) bulk_->stop();
}

void Cluster::clear_elsewhere(const NamespaceDigest& digest, uint64_t patience_ms,
                              std::function<void(Code)> done) {
  // What this node had told of the namespace is before it on the same connection, and what it is
  // to keep comes after.
  const auto [node, incarnation] = membership_->seat();
  bulk_->ask<ClearSpaceReply>(ClearSpaceRequest{0, digest, node, incarnation},
                              Deadline::after_ms(std::min(patience_ms, options_.call_timeout_ms)),
                              [this, done = std::move(done)](Result<ClearSpaceReply> reply) {
                                Code code =
                                    reply.ok() ? reply.value().head.code : reply.status().code();
                                if (code != Code::kOk && code != Code::kBusy)
                                  code = Code::kUnavailable;
                                post([done, code] { done(code); });
                              });
}

void Cluster::add_stats(NodeStats& stats, uint64_t now_ms) const {
  const Announcer::Counts& told = announcer_.counts();
  const Membership::Counts& counts = membership_->counts();
  stats.cluster_joined = membership_->is_joined();
  stats.cluster_draining = membership_->is_draining();
  stats.cluster_announcing = announcer_.is_announcing();
  stats.cluster_pending_pages = announcer_.pending_count();
  stats.cluster_lag_ms = announcer_.lag_ms(now_ms);
  stats.cluster_joins = counts.joins;
  stats.cluster_orders = counts.orders;
  stats.cluster_batches = told.batches;
  stats.cluster_changes = told.changes;
  stats.cluster_announcements = told.announcements;
  stats.cluster_overflows = told.overflows;
  stats.cluster_refused_batches = counts.refused_batches;
}

void Cluster::note(const std::string& trouble) {
  {
    const std::lock_guard lock(trouble_mutex_);
    trouble_ = trouble;
  }
  surroundings_.on_notice(trouble);
}

std::string Cluster::trouble() const {
  if (membership_->is_joined()) return "";
  const std::lock_guard lock(trouble_mutex_);
  return trouble_;
}

void Cluster::post(std::function<void()> task) {
  {
    const std::lock_guard lock(posted_mutex_);
    posted_.push_back(std::move(task));
    is_posted_ = true;
  }
  surroundings_.wake();
}

uint64_t Cluster::advance(uint64_t now_ms) {
  std::vector<std::function<void()>> posted;
  {
    const std::lock_guard lock(posted_mutex_);
    posted.swap(posted_);
    is_posted_ = false;
  }
  for (const std::function<void()>& task : posted) task();
  return membership_->advance(now_ms);
}

}  // namespace hicache
