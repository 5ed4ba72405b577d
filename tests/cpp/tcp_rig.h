// Two ends of the TCP transport for tests: in one process, or one of them in a process of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "io/fd.h"
#include "support.h"
#include "transfer/control.h"
#include "transfer/tcp/tcp_transport.h"

namespace hicache::testing {

inline constexpr BufferId kTcpBuffer = 7;
inline constexpr BufferId kTcpReadOnly = 8;

inline Secret tcp_secret() {
  return secret_from_text("a secret of tests");
}

/// Collects completions.
class Completions : public CompletionSink {
 public:
  void complete(uint64_t token, Status status) override {
    const std::lock_guard lock(mutex_);
    times_[token] += 1;
    order_.push_back(token);
    statuses_[token] = std::move(status);
    changed_.notify_all();
  }
  /// Whether so many have come, ever, within the time.
  bool wait_count(size_t count, uint64_t timeout_ms = 20'000) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                             [&] { return order_.size() >= count; });
  }
  size_t count() const {
    const std::lock_guard lock(mutex_);
    return order_.size();
  }
  Status status(uint64_t token) const {
    const std::lock_guard lock(mutex_);
    const auto found = statuses_.find(token);
    return found == statuses_.end() ? Status(Code::kNotFound, "not complete") : found->second;
  }
  std::vector<uint64_t> order() const {
    const std::lock_guard lock(mutex_);
    return order_;
  }
  bool each_once() const {
    const std::lock_guard lock(mutex_);
    return std::all_of(times_.begin(), times_.end(), [](const auto& e) { return e.second == 1; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Status> statuses_;
  std::map<uint64_t, int> times_;
  std::vector<uint64_t> order_;
};

class NoCalls : public ControlCalls {
 public:
  Result<std::vector<uint8_t>> call(TransportKind, std::span<const uint8_t>, uint64_t) override {
    return Status(Code::kUnsupported, "nobody to call");
  }
};

/// One end: a transport, and the control server that lanes arrive at.
struct TcpEnd {
  struct Setup {
    std::string host = "127.0.0.1";
    size_t lanes = 4;
    size_t io_threads = 2;
    bool checksum = true;
    size_t lanes_in_max = 64;
    Secret secret = tcp_secret();
  };

  TcpEnd() : TcpEnd(Setup{}) {}
  explicit TcpEnd(const Setup& setup) : epoch(random_token()) {
    auto made = make_tcp_transport({.public_host = setup.host,
                                    .secret = setup.secret,
                                    .epoch = epoch,
                                    .lanes = setup.lanes,
                                    .io_threads = setup.io_threads,
                                    .checksum = setup.checksum,
                                    .lanes_in_max = setup.lanes_in_max});
    EXPECT_TRUE(made.ok()) << made.status().message();
    transport = std::move(made.value());
    auto started = ControlServer::start(
        {.host = setup.host,
         .port_min = 0,
         .port_max = 0,
         .secret = setup.secret,
         .epoch = epoch,
         .tls = nullptr,
         .connections_max = 100},
        {.call = [](ControlOp, std::span<const uint8_t>) -> Result<std::vector<uint8_t>> {
           return std::vector<uint8_t>();
         },
         .lane = [this](Fd lane) { transport->adopt_lane(std::move(lane)); }});
    EXPECT_TRUE(started.ok()) << started.status().message();
    control = std::move(started.value());
    transport->set_port(control->port());
  }
  ~TcpEnd() {
    control->stop();
    paths.clear();
  }

  void share(uint8_t* address, uint64_t size, BufferId id = kTcpBuffer, bool remote_write = true) {
    const Buffer buffer{
        id, reinterpret_cast<uint64_t>(address), size, MemoryKind::kHost, "cpu:0", remote_write, -1,
        0};
    ASSERT_TRUE(transport->register_buffer(buffer).ok());
  }

  SegmentDescriptor descriptor() const {
    SegmentDescriptor described{};
    described.epoch = epoch;
    described.endpoints.push_back({TransportKind::kTcp, transport->endpoint()});
    return described;
  }

  Result<std::vector<std::unique_ptr<Path>>> try_open(const SegmentDescriptor& peer) {
    return transport->open(peer, calls, completions, monotonic_ns() + 5'000'000'000);
  }
  /// The path to another end; it lives as long as this one.
  Path& open(const SegmentDescriptor& peer) {
    auto opened = try_open(peer);
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    EXPECT_EQ(opened.value().size(), 1U);
    paths.push_back(std::move(opened.value().at(0)));
    return *paths.back();
  }

  uint64_t stat(const std::string& name) const {
    for (const auto& [key, value] : transport->stats()) {
      if (key == name) return value;
    }
    ADD_FAILURE() << "no figure " << name;
    return 0;
  }

  const uint64_t epoch;
  Completions completions;
  NoCalls calls;
  std::unique_ptr<TcpTransport> transport;
  std::unique_ptr<ControlServer> control;
  std::vector<std::unique_ptr<Path>> paths;
};

inline Op op_of(Direction direction, const void* local, uint64_t remote, uint64_t size,
                uint64_t token, uint64_t timeout_ms = 20'000) {
  return Op{.direction = direction,
            .priority = Priority::kUrgent,
            .local_address = reinterpret_cast<uint64_t>(local),
            .local_buffer = kNoBuffer,
            .remote_address = remote,
            .remote_buffer = kTcpBuffer,
            .size = size,
            .deadline_ns = monotonic_ns() + timeout_ms * 1'000'000,
            .token = token};
}

inline Op op_of(Direction direction, const void* local, const void* remote, uint64_t size,
                uint64_t token, uint64_t timeout_ms = 20'000) {
  return op_of(direction, local, reinterpret_cast<uint64_t>(remote), size, token, timeout_ms);
}

/// Memory that another process has as well, and what it says about itself.
class TcpSharedFile {
 public:
  struct Told {
    uint64_t epoch;
    uint64_t address;
    uint16_t port;
  };
  static constexpr uint64_t kSize = 32 * kMiB;

  explicit TcpSharedFile(const std::string& path) : path_(path) {
    const Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(kSectorSize + kSize)), 0);
    void* mapped =
        mmap(nullptr, kSectorSize + kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    EXPECT_NE(mapped, MAP_FAILED);
    begin_ = static_cast<uint8_t*>(mapped);
  }
  ~TcpSharedFile() {
    munmap(begin_, kSectorSize + kSize);
    unlink(path_.c_str());
  }
  TcpSharedFile(const TcpSharedFile&) = delete;
  TcpSharedFile& operator=(const TcpSharedFile&) = delete;

  Told& told() { return *reinterpret_cast<Told*>(begin_); }
  uint8_t* bytes() { return begin_ + kSectorSize; }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  uint8_t* begin_;
};

/// The role "tcp_peer FILE": an end that shares the memory in the file, until it is killed.
inline void serve_tcp_peer(TcpSharedFile& file, TcpEnd& end) {
  end.share(file.bytes(), TcpSharedFile::kSize);
  file.told() = {end.epoch, reinterpret_cast<uint64_t>(file.bytes()), end.control->port()};
}

}  // namespace hicache::testing
