// Which transports an engine starts.
#include <algorithm>
#include <utility>

#include "io/verbs.h"
#include "transfer/engine_start.h"
#include "transfer/local/local_transport.h"
#include "transfer/rdma/rdma_transport.h"
#include "transfer/tcp/tcp_transport.h"

namespace hicache {
namespace {

/// Of all peers together.
constexpr size_t kLanesInMax = 4096;

/// Shared memory before RDMA before TCP, whatever the order they were asked for in.
constexpr TransportKind kBestFirst[] = {TransportKind::kLocal, TransportKind::kRdma,
                                        TransportKind::kTcp};

Status add_tcp(const TransferEngine::Options& options, uint64_t epoch, TransportSet& set) {
  Result<std::unique_ptr<TcpTransport>> made =
      make_tcp_transport({options.public_host, options.secret, epoch, options.tcp_lanes,
                          options.tcp_io_threads, options.tcp_checksum, kLanesInMax});
  if (!made.ok()) return made.status();
  TcpTransport* tcp = made.value().get();
  set.set_port = [tcp](uint16_t port) { tcp->set_port(port); };
  set.adopt_lane = [tcp](Fd lane) { tcp->adopt_lane(std::move(lane)); };
  set.transports.push_back(std::move(made.value()));
  return Status();
}

Status add_local(const TransferEngine::Options& options, uint64_t epoch, TransportSet& set) {
  Result<std::unique_ptr<Transport>> made =
      make_local_transport({epoch, options.secret, options.local_copy_threads});
  if (!made.ok()) return made.status();
  set.transports.push_back(std::move(made.value()));
  return Status();
}

Status add_rdma(const TransferEngine::Options& options, uint64_t epoch, TransportSet& set,
                std::vector<std::string>& notices) {
  const Result<const Verbs*> verbs = Verbs::load();
  if (!verbs.ok()) return verbs.status();
  Result<std::unique_ptr<Transport>> made = make_rdma_transport(
      {epoch, options.rdma_devices, options.rdma_options}, *verbs.value(), notices);
  if (!made.ok()) return made.status();
  set.transports.push_back(std::move(made.value()));
  return Status();
}

Status add(TransportKind kind, const TransferEngine::Options& options, uint64_t epoch,
           TransportSet& set, std::vector<std::string>& notices) {
  switch (kind) {
    case TransportKind::kLocal:
      return add_local(options, epoch, set);
    case TransportKind::kRdma:
      return add_rdma(options, epoch, set, notices);
    case TransportKind::kTcp:
      return add_tcp(options, epoch, set);
  }
  return Status(Code::kUnsupported, "there is no such transport");
}

}  // namespace

Result<TransportSet> make_transports(const TransferEngine::Options& options, uint64_t epoch,
                                     std::vector<std::string>& notices) {
  TransportSet set;
  for (const TransportKind kind : kBestFirst) {
    if (std::ranges::find(options.transports, kind) == options.transports.end()) continue;
    const Status status = add(kind, options, epoch, set, notices);
    if (status.ok()) continue;
    notices.push_back("no " + std::string(transport_name(kind)) + ": " + status.message());
  }
  if (!set.transports.empty()) return set;
  std::string message = "no transport can be started";
  for (const std::string& notice : notices) message += "; " + notice;
  return Status(Code::kUnsupported, message);
}

Result<std::unique_ptr<TransferEngine>> TransferEngine::start(const Options& options,
                                                              std::vector<std::string>& notices) {
  const uint64_t epoch = life_token();
  Result<TransportSet> set = make_transports(options, epoch, notices);
  if (!set.ok()) return set.status();
  return start_engine(options, epoch, std::move(set.value()));
}

}  // namespace hicache
