#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

#include "net/greeting.h"
#include "rdma_rig.h"
#include "transfer/control.h"
#include "transfer/local/local_transport.h"
#include "transfer/tcp/tcp_transport.h"
#include "transport_contract.h"

namespace hicache::testing {
namespace {

constexpr uint8_t kOtherByte = 0x5A;

class LocalEnd : public End {
 public:
  LocalEnd(uint64_t epoch, const std::string& secret) : End(epoch) {
    auto made = make_local_transport(
        {.epoch = epoch, .secret = secret_from_text(secret), .copy_threads = 2});
    EXPECT_TRUE(made.ok()) << made.status().message();
    transport_ = std::move(made.value());
  }
  Transport& transport() override { return *transport_; }

 private:
  std::unique_ptr<Transport> transport_;
};

class TcpRigEnd : public End {
 public:
  TcpRigEnd(uint64_t epoch, const std::string& secret) : End(epoch) {
    TcpOptions options{.public_host = "127.0.0.1",
                       .secret = secret_from_text(secret),
                       .epoch = epoch,
                       .lanes = 3,
                       .io_threads = 2,
                       .checksum = true,
                       .lanes_in_max = 64};
    auto made = make_tcp_transport(options);
    EXPECT_TRUE(made.ok()) << made.status().message();
    transport_ = std::move(made.value());
    ControlServer::Answers answers;
    answers.call = [](ControlOp, std::span<const uint8_t>) -> Result<std::vector<uint8_t>> {
      return Status(Code::kUnsupported, "the suite asks nothing");
    };
    answers.lane = [this](Fd lane) { transport_->adopt_lane(std::move(lane)); };
    auto server = ControlServer::start({.host = "127.0.0.1",
                                        .port_min = 0,
                                        .port_max = 0,
                                        .secret = options.secret,
                                        .epoch = epoch,
                                        .tls = nullptr,
                                        .connections_max = 64},
                                       std::move(answers));
    EXPECT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(server.value());
    transport_->set_port(server_->port());
  }
  ~TcpRigEnd() override { server_->stop(); }
  Transport& transport() override { return *transport_; }

 private:
  std::unique_ptr<TcpTransport> transport_;
  std::unique_ptr<ControlServer> server_;
};

template <typename Made>
std::unique_ptr<End> make(uint64_t epoch, const std::string& secret) {
  return std::make_unique<Made>(epoch, secret);
}

/// For transports that ask nothing over the control connection.
class NoControl : public ControlCalls {
 public:
  Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t>, uint64_t) override {
    return Status(Code::kUnsupported, "no control connection in this rig");
  }
};

ControlCalls* no_control(const SegmentDescriptor&) {
  static NoControl none;
  return &none;
}

const Rig& rig_named(const std::string& name) {
  return *std::ranges::find(rigs(), name, &Rig::name);
}

class NearTarget : public Target {
 public:
  explicit NearTarget(const Rig& rig)
      : memory_(rig.is_shared), end_(rig.make_end(random_token(), Client::kSecret)) {
    memory_.add_to(*end_);
  }

  SegmentDescriptor describe() override { return end_->describe(); }
  void unregister_large() override {
    end_->remove(kLarge);
    std::memset(memory_.large(), kOtherByte, TargetMemory::kLargeSize);
  }
  bool is_large_untouched() override {
    const uint8_t* bytes = memory_.large();
    return bytes[0] == kOtherByte &&
           std::memcmp(bytes, bytes + 1, TargetMemory::kLargeSize - 1) == 0;
  }

 private:
  const TargetMemory memory_;
  const std::unique_ptr<End> end_;  // Ends before its memory.
};

/// Into a file of that ending, in one step.
void publish(const std::string& path, const std::string& ending, std::string_view bytes) {
  {
    std::ofstream file(path + ".part", std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::rename((path + ".part").c_str(), (path + ending).c_str());
}

}  // namespace

const std::vector<Rig>& rigs() {
  static const std::vector<Rig> all = [] {
    std::vector<Rig> made = {
        {"LocalPrivate", make<LocalEnd>, false, true, no_control},
        {"LocalShared", make<LocalEnd>, true, true, no_control},
        {"Tcp", make<TcpRigEnd>, false, true, no_control},
    };
    for (Rig& rig : rdma_rigs()) made.push_back(std::move(rig));
    return made;
  }();
  return all;
}

// ---- Ends and targets

BufferId End::add(uint64_t address, uint64_t size, bool remote_write, int shared_fd,
                  uint64_t shared_offset) {
  const std::lock_guard lock(mutex_);
  const Buffer buffer{next_id_++, address,      size,      MemoryKind::kHost,
                      "*",        remote_write, shared_fd, shared_offset};
  Result<std::vector<uint8_t>> key = transport().register_buffer(buffer);
  EXPECT_TRUE(key.ok()) << key.status().message();
  if (!key.ok()) return kNoBuffer;
  BufferDescriptor described{buffer.id, address, size, buffer.kind, remote_write, "*", {}};
  described.keys.push_back({transport().kind(), std::move(key.value())});
  buffers_.push_back(std::move(described));
  ++version_;
  return buffer.id;
}

void End::remove(BufferId id) {
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(buffers_, [&](const BufferDescriptor& buffer) { return buffer.id == id; });
    ++version_;
  }
  transport().unregister_buffer(id);
}

SegmentDescriptor End::describe() {
  const std::lock_guard lock(mutex_);
  SegmentDescriptor segment{"suite", epoch_, version_, {}, buffers_};
  segment.endpoints.push_back({transport().kind(), transport().endpoint()});
  std::ranges::sort(segment.buffers, {}, &BufferDescriptor::address);
  return segment;
}

TargetMemory::TargetMemory(bool is_shared) {
  if (is_shared) {
    std::vector<std::string> notices;
    auto made = SharedMemory::create({kLargeSize + kSmallSize, HugePages::kNever, -1}, notices);
    EXPECT_TRUE(made.ok()) << made.status().message();
    shared_ = std::move(made.value());
  } else {
    own_ = MappedMemory::make(kLargeSize + kSmallSize);
    EXPECT_TRUE(own_.valid());
  }
  std::ranges::copy(large_bytes(), large());
  std::ranges::copy(read_only_bytes(), read_only());
}

uint8_t* TargetMemory::large() const {
  return shared_ != nullptr ? shared_->address() : own_.address();
}

void TargetMemory::add_to(End& end) const {
  const int fd = shared_ != nullptr ? shared_->fd().get() : -1;
  const auto address = reinterpret_cast<uintptr_t>(large());
  EXPECT_EQ(end.add(address, kLargeSize, true, fd, 0), kLarge);
  EXPECT_EQ(end.add(address + kLargeSize, kSmallSize, false, fd, fd < 0 ? 0 : kLargeSize),
            kReadOnly);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Rig& rig : rigs()) {
    all.push_back({rig, Where::kHere});
    if (rig.reaches_children) all.push_back({rig, Where::kChild});
  }
  return all;
}

std::string case_name(const ::testing::TestParamInfo<Case>& tested) {
  return tested.param.rig.name + (tested.param.where == Where::kHere ? "Here" : "Child");
}

std::unique_ptr<Target> make_target(const Case& tested) {
  if (tested.where == Where::kHere) return std::make_unique<NearTarget>(tested.rig);
  auto child = std::make_unique<ChildTarget>(tested.rig);
  EXPECT_TRUE(child->is_ready());
  return child;
}

int run_transport_target(const std::vector<std::string>& arguments) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  sigaddset(&signals, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // Before there are other threads.
  const std::string& path = arguments.at(1);
  NearTarget target(rig_named(arguments.at(0)));
  const std::vector<uint8_t> segment = encode_segment(target.describe());
  publish(path, ".segment", {reinterpret_cast<const char*>(segment.data()), segment.size()});
  if (write(STDOUT_FILENO, "r", 1) != 1) return 1;
  for (int number; sigwait(&signals, &number) == 0;) {
    if (number == SIGUSR1) {
      target.unregister_large();
      publish(path, ".gone", "gone");
    } else {
      publish(path, ".verdict", target.is_large_untouched() ? "untouched" : "touched");
    }
  }
  return 1;
}

ChildTarget::ChildTarget(const Rig& rig)
    : path_(::testing::TempDir() + "hicache-transport-" + std::to_string(random_token())),
      child_("transport", {rig.name, path_}) {}

ChildTarget::~ChildTarget() {
  for (const char* ending : {".part", ".segment", ".gone", ".verdict"}) {
    unlink((path_ + ending).c_str());
  }
}

std::string ChildTarget::await(const std::string& ending) {
  EXPECT_TRUE(eventually(30'000, [&] { return access((path_ + ending).c_str(), R_OK) == 0; }))
      << ending;
  std::ifstream file(path_ + ending, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

SegmentDescriptor ChildTarget::describe() {
  const std::string bytes = await(".segment");
  auto decoded = decode_segment({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  EXPECT_TRUE(decoded.ok()) << decoded.status().message();
  return decoded.value();
}

void ChildTarget::unregister_large() {
  child_.signal(SIGUSR1);
  EXPECT_EQ(await(".gone"), "gone");
}

bool ChildTarget::is_large_untouched() {
  child_.signal(SIGUSR2);
  return await(".verdict") == "untouched";
}

// ---- Recorder and client

void Recorder::complete(uint64_t token, Status status) {
  {
    const std::lock_guard lock(mutex_);
    by_token_[token].push_back(status);
    ++count_;
    changed_.notify_all();
  }
  if (on_complete) on_complete(token, status);
}

bool Recorder::wait_count(size_t count, uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return count_ >= count; });
}

Status Recorder::wait_for(uint64_t token) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(30), [&] { return by_token_.contains(token); });
  }
  return status_of(token);
}

size_t Recorder::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

Status Recorder::status_of(uint64_t token) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_token_.find(token);
  if (found == by_token_.end()) return Status(Code::kInternal, "no completion");
  if (found->second.size() != 1) return Status(Code::kInternal, "several completions");
  return found->second[0];
}

std::map<Code, size_t> Recorder::codes() const {
  const std::lock_guard lock(mutex_);
  std::map<Code, size_t> codes;
  for (const auto& [token, statuses] : by_token_) {
    EXPECT_EQ(statuses.size(), 1U) << "completions of token " << token;
    for (const Status& status : statuses) ++codes[status.code()];
  }
  return codes;
}

Client::Client(const Rig& rig, const std::string& secret)
    : rig_(rig), end_(rig.make_end(random_token(), secret)) {}

Client::~Client() {
  path_.reset();
}

Status Client::open(const SegmentDescriptor& peer, uint64_t timeout_ms) {
  auto opened = transport().open(peer, *rig_.control(peer), recorder_,
                                 monotonic_ns() + timeout_ms * 1'000'000);
  if (!opened.ok()) return opened.status();
  if (opened.value().empty()) return Status(Code::kUnavailable, "there is no path");
  path_ = std::move(opened.value().front());
  return Status();
}

Op Client::op(Direction direction, const void* local, uint64_t remote, uint64_t size,
              BufferId buffer, uint64_t timeout_ms) {
  return {.direction = direction,
          .priority = Priority::kUrgent,
          .local_address = reinterpret_cast<uintptr_t>(local),
          .local_buffer = kNoBuffer,
          .remote_address = remote,
          .remote_buffer = buffer,
          .size = size,
          .deadline_ns = monotonic_ns() + timeout_ms * 1'000'000,
          .token = next_token_.fetch_add(1)};
}

Status Client::run(const Op& op) {
  if (!submit_all({&op, 1})) return Status(Code::kInternal, "the op was not taken");
  return recorder_.wait_for(op.token);
}

bool Client::submit_all(std::span<const Op> ops) {
  while (!ops.empty()) {
    const size_t before = recorder_.count();
    const size_t taken = path_->submit(ops);
    ops = ops.subspan(taken);
    if (taken == 0 && !recorder_.wait_count(before + 1, 20'000)) return false;
  }
  return true;
}

}  // namespace hicache::testing
