#include "rdma_rig.h"

#include <algorithm>
#include <cstdlib>
#include <unordered_map>

#include "fake_verbs.h"
#include "net/wire.h"
#include "transfer/control.h"
#include "transfer/rdma/rdma_transport.h"

namespace hicache::testing {
namespace {

/// Numbers for buffers that the suite does not know of.
constexpr BufferId kFirstOwnBuffer = 1U << 24;

class Control : public ControlCalls {
 public:
  explicit Control(std::unique_ptr<ControlClient> client) : client_(std::move(client)) {}
  Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t> request,
                                    uint64_t deadline_ns) override {
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ms = deadline_ns <= now_ns ? 0 : (deadline_ns - now_ns) / 1'000'000;
    return client_->call(ControlOp::kTransport, request, Deadline::after_ms(left_ms));
  }

 private:
  const std::unique_ptr<ControlClient> client_;
};

/// Registers what an op names, and gives it on; hears of completions first.
class RegisteringPath : public Path, private CompletionSink {
 public:
  RegisteringPath(Transport& transport, CompletionSink& sink, std::atomic<BufferId>& next_id)
      : transport_(transport), sink_(sink), next_id_(next_id) {}
  ~RegisteringPath() override { path_.reset(); }

  Status open(const SegmentDescriptor& peer, std::unique_ptr<ControlClient> client,
              uint64_t deadline_ns) {
    control_ = std::make_unique<Control>(std::move(client));
    auto opened = transport_.open(peer, *control_, *this, deadline_ns);
    if (!opened.ok()) return opened.status();
    if (opened.value().empty()) return Status(Code::kUnavailable, "there is no path");
    path_ = std::move(opened.value().front());
    return Status();
  }
  Path& inner() { return *path_; }

  const std::string& name() const override { return path_->name(); }
  std::string_view device() const override { return path_->device(); }
  PathCost cost() const override { return path_->cost(); }
  uint64_t slice_size_bytes() const override { return path_->slice_size_bytes(); }
  Status probe() override { return path_->probe(); }
  void close() override { path_->close(); }

  size_t submit(std::span<const Op> ops) override {
    std::vector<Op> own(ops.begin(), ops.end());
    register_all(own);
    const size_t taken = path_->submit(own);
    for (const Op& op : std::span(own).subspan(taken)) release(op.token);
    return taken;
  }

 private:
  /// A registration that ops share; dropped with the last of them.
  class Lease {
   public:
    Lease(Transport& transport, BufferId id, uint64_t address, uint64_t size)
        : transport_(transport), id_(id) {
      const Buffer buffer{id, address, size, MemoryKind::kHost, "*", false, -1, 0};
      const auto key = transport.register_buffer(buffer);
      EXPECT_TRUE(key.ok()) << key.status().message();
    }
    ~Lease() { transport_.unregister_buffer(id_); }
    BufferId id() const { return id_; }

   private:
    Transport& transport_;
    const BufferId id_;
  };

  /// One registration for all ops whose ranges lie side by side.
  void register_all(std::vector<Op>& ops) {
    constexpr uint64_t kOsPage = 4096;
    std::vector<Op*> by_address;
    for (Op& op : ops) {
      if (op.local_buffer == kNoBuffer) by_address.push_back(&op);
    }
    std::ranges::sort(by_address, {}, [](const Op* op) { return op->local_address; });
    for (size_t first = 0; first < by_address.size();) {
      const uint64_t begin = by_address[first]->local_address;
      uint64_t end = begin + 1;
      size_t next = first;
      for (; next < by_address.size() && by_address[next]->local_address < end + kOsPage; ++next) {
        end = std::max(end, by_address[next]->local_address + by_address[next]->size);
      }
      const auto lease =
          std::make_shared<Lease>(transport_, next_id_.fetch_add(1), begin, end - begin);
      const std::lock_guard lock(mutex_);
      for (; first < next; ++first) {
        by_address[first]->local_buffer = lease->id();
        leases_[by_address[first]->token] = lease;
      }
    }
  }
  void release(uint64_t token) {
    std::shared_ptr<Lease> dropped;  // Without the lock.
    const std::lock_guard lock(mutex_);
    const auto found = leases_.find(token);
    if (found == leases_.end()) return;
    dropped = std::move(found->second);
    leases_.erase(found);
  }
  void complete(uint64_t token, Status status) override {
    release(token);
    sink_.complete(token, std::move(status));
  }

  Transport& transport_;
  CompletionSink& sink_;
  std::atomic<BufferId>& next_id_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Lease>> leases_;  // By token.
  std::unique_ptr<Control> control_;
  std::unique_ptr<Path> path_;
};

class RegisteringTransport : public Transport {
 public:
  RegisteringTransport(std::unique_ptr<Transport> inner, Secret secret)
      : inner_(std::move(inner)), secret_(std::move(secret)) {}

  Transport& inner() { return *inner_; }
  void set_port(uint16_t port) { port_ = port; }

  TransportKind kind() const override { return inner_->kind(); }
  std::vector<uint8_t> endpoint() const override {
    std::vector<uint8_t> bytes;
    WireWriter writer(bytes);
    writer.put(port_);
    const std::vector<uint8_t> own = inner_->endpoint();
    writer.put_bytes(own.data(), own.size());
    return bytes;
  }
  Result<std::vector<uint8_t>> register_buffer(const Buffer& buffer) override {
    return inner_->register_buffer(buffer);
  }
  void unregister_buffer(BufferId buffer) override { inner_->unregister_buffer(buffer); }
  bool needs_registration() const override { return false; }
  Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor& peer, ControlCalls&,
                                                  CompletionSink& sink,
                                                  uint64_t deadline_ns) override {
    const std::span<const uint8_t> endpoint = peer.endpoint(kind());
    const auto port = WireReader(endpoint).get<uint16_t>();
    auto client = ControlClient::connect({"127.0.0.1", port}, secret_, nullptr, peer.epoch,
                                         Deadline::after_ms(2000));
    if (!client.ok()) return client.status();
    SegmentDescriptor stripped = peer;
    stripped.endpoints = {{kind(), {endpoint.begin() + sizeof(port), endpoint.end()}}};
    auto path = std::make_unique<RegisteringPath>(*inner_, sink, next_id_);
    HICACHE_RETURN_IF_ERROR(path->open(stripped, std::move(client.value()), deadline_ns));
    std::vector<std::unique_ptr<Path>> paths;
    paths.push_back(std::move(path));
    return paths;
  }
  void update(Path& path, const SegmentDescriptor& peer) override {
    inner_->update(static_cast<RegisteringPath&>(path).inner(), peer);
  }
  Result<std::vector<uint8_t>> answer(std::span<const uint8_t> request) override {
    return inner_->answer(request);
  }
  std::vector<std::pair<std::string, uint64_t>> stats() const override { return inner_->stats(); }

 private:
  const std::unique_ptr<Transport> inner_;
  const Secret secret_;
  uint16_t port_ = 0;
  std::atomic<BufferId> next_id_{kFirstOwnBuffer};
};

class RdmaEnd : public End {
 public:
  RdmaEnd(const RdmaRig& rig, uint64_t epoch, const std::string& text) : End(epoch) {
    const Secret secret = secret_from_text(text);
    std::vector<std::string> notices;
    auto made = make_rdma_transport({epoch, rig.devices, rig.settings}, *rig.verbs, notices);
    EXPECT_TRUE(made.ok()) << made.status().message();
    for (const std::string& notice : notices) ADD_FAILURE() << notice;
    transport_ = std::make_unique<RegisteringTransport>(std::move(made.value()), secret);
    ControlServer::Answers answers;
    answers.call = [this](ControlOp, std::span<const uint8_t> request) {
      return transport_->answer(request);
    };
    answers.lane = [](Fd) {};
    auto server = ControlServer::start({.host = "127.0.0.1",
                                        .port_min = 0,
                                        .port_max = 0,
                                        .secret = secret,
                                        .epoch = epoch,
                                        .tls = nullptr,
                                        .connections_max = 64},
                                       std::move(answers));
    EXPECT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(server.value());
    transport_->set_port(server_->port());
  }
  ~RdmaEnd() override { server_->stop(); }
  Transport& transport() override { return *transport_; }

 private:
  std::unique_ptr<RegisteringTransport> transport_;
  std::unique_ptr<ControlServer> server_;
};

ControlCalls* own_control(const SegmentDescriptor&) {
  class None : public ControlCalls {
    Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t>, uint64_t) override {
      return Status(Code::kUnsupported, "ends of this rig have control connections of their own");
    }
  };
  static None none;
  return &none;
}

}  // namespace

std::unique_ptr<End> make_rdma_end(const RdmaRig& rig, uint64_t epoch, const std::string& secret) {
  return std::make_unique<RdmaEnd>(rig, epoch, secret);
}

std::vector<Rig> rdma_rigs() {
  std::vector<Rig> rigs;
  rigs.push_back({"RdmaFake",
                  [](uint64_t epoch, const std::string& secret) {
                    static const FakeVerbs fabric({"fake0"});
                    return make_rdma_end({&fabric, "", ""}, epoch, secret);
                  },
                  false, false, own_control});
  if (const char* devices = std::getenv("HICACHE_RDMA_DEVICES"); devices != nullptr) {
    const char* given = std::getenv("HICACHE_RDMA_OPTIONS");
    const RdmaRig rig{Verbs::load().value(), devices, given == nullptr ? "" : given};
    rigs.push_back({"Rdma",
                    [rig](uint64_t epoch, const std::string& secret) {
                      return make_rdma_end(rig, epoch, secret);
                    },
                    false, true, own_control});
  }
  return rigs;
}

}  // namespace hicache::testing
