#include "store/cluster.h"

#include <utility>

namespace hicache {
namespace {

constexpr size_t kCallsMax = 4096;  // Under way at the same time.

}  // namespace

Result<std::unique_ptr<Cluster>> Cluster::start(ClusterOptions options, Surroundings surroundings) {
  std::unique_ptr<Cluster> cluster(new Cluster(std::move(options), std::move(surroundings)));
  HICACHE_RETURN_IF_ERROR(cluster->connect());
  return cluster;
}

Cluster::Cluster(ClusterOptions options, Surroundings surroundings)
    : options_(std::move(options)), surroundings_(std::move(surroundings)) {}

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
  const DirectoryClient::Options options{.addresses = options_.masters,
                                         .secret = options_.secret,
                                         .tls = tls_,
                                         .connect_timeout_ms = options_.connect_timeout_ms,
                                         .back_off_min_ms = options_.back_off_min_ms,
                                         .back_off_max_ms = options_.back_off_max_ms,
                                         .calls_max = kCallsMax,
                                         .on_orders = nullptr,
                                         .on_connection = surroundings_.wake};
  for (std::unique_ptr<DirectoryClient>* client : {&life_, &bulk_}) {
    Result<std::unique_ptr<DirectoryClient>> started = DirectoryClient::start(options);
    if (!started.ok()) return started.status();
    *client = std::move(started.value());
  }
  return Status();
}

void Cluster::stop() {
  if (life_) life_->stop();
  if (bulk_) bulk_->stop();
}

void Cluster::post(std::function<void()> task) {
  {
    const std::lock_guard lock(posted_mutex_);
    posted_.push_back(std::move(task));
    is_posted_ = true;
  }
  surroundings_.wake();
}

uint64_t Cluster::advance(uint64_t) {
  std::vector<std::function<void()>> posted;
  {
    const std::lock_guard lock(posted_mutex_);
    posted.swap(posted_);
    is_posted_ = false;
  }
  for (const std::function<void()>& task : posted) task();
  return UINT64_MAX;
}

}  // namespace hicache
