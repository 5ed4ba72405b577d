// A node that answers as a test tells it to: hands out places that no real node would, or not yet.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/memory.h"
#include "io/unix_socket.h"
#include "messages_samples.h"
#include "net/frame.h"
#include "store/messages.h"

namespace hicache::testing {

class FakeNode {
 public:
  static constexpr uint64_t kPoolSize = 16 * kMiB;
  using Locations = std::vector<PageStore::Location>;

  /// `files` travel with the hello, `announced` of them are announced.
  FakeNode(std::vector<int> files, uint8_t announced)
      : files_(std::move(files)), announced_(announced) {
    std::vector<std::string> notices;
    auto memory = SharedMemory::create({kPoolSize, HugePages::kNever, -1}, notices);
    EXPECT_TRUE(memory.ok());
    pool = std::move(memory.value());
    auto listening = unix_listen(path, 8);
    EXPECT_TRUE(listening.ok());
    listener_ = std::move(listening.value());
    thread_ = std::thread([this] { serve_clients(); });
  }
  ~FakeNode() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  FakeNode(const FakeNode&) = delete;
  FakeNode& operator=(const FakeNode&) = delete;

  /// Answers a lease. The extents must outlive the node.
  std::function<Locations(const KeysRequest&)> lease = [](const KeysRequest&) {
    return Locations();
  };

  /// Pages that were released, or reported as corrupt, so far.
  std::vector<PageRef> refs_of(NodeOp op) {
    std::lock_guard lock(mutex_);
    return op == NodeOp::kRelease ? released_ : corrupt_;
  }

  const std::string path = socket_name();
  std::unique_ptr<SharedMemory> pool;

 private:
  /// One client after the other.
  void serve_clients() {
    for (;;) {
      pollfd waited{listener_.get(), POLLIN, 0};
      if (poll(&waited, 1, -1) < 0) continue;
      const Fd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client.valid()) return;
      while (serve(client)) {
      }
    }
  }

  bool serve(const Fd& client) {
    const Deadline deadline = Deadline::after_ms(20'000);
    std::vector<uint8_t> bytes(kFrameHeaderSize);
    if (!receive_all(client, bytes, deadline).ok()) return false;
    const auto header = decode_frame_header(std::span(bytes).first<kFrameHeaderSize>());
    if (!header.ok()) return false;
    bytes.resize(header.value().payload_size);
    if (!receive_all(client, bytes, deadline).ok()) return false;
    const auto op = static_cast<NodeOp>(header.value().op);
    std::vector<uint8_t> reply;
    begin_frame(reply);
    WireWriter writer(reply);
    std::vector<int> passed;
    if (op == NodeOp::kHello) {
      encode(writer, HelloReply{1, kPoolSize, announced_});
      passed.push_back(pool->fd().get());
      passed.insert(passed.end(), files_.begin(), files_.end());
    } else if (op == NodeOp::kOpenNamespace) {
      encode(writer, OpenNamespaceReply{Code::kOk, 0, ""});
    } else if (op == NodeOp::kLease) {
      KeysRequest request;
      if (!decode(WireReader(bytes), request)) return false;
      encode_locations(writer, lease(request));
    } else if (op == NodeOp::kRelease || op == NodeOp::kReportCorrupt) {
      note_refs(op, bytes);
      return true;
    } else {
      return false;
    }
    end_frame(reply, static_cast<uint16_t>(op) | kReplyBit, header.value().request_id);
    return send_all(client, reply, deadline, passed).ok();
  }

  void note_refs(NodeOp op, std::span<const uint8_t> payload) {
    RefsRequest request;
    EXPECT_TRUE(decode(WireReader(payload), request));
    std::lock_guard lock(mutex_);
    std::vector<PageRef>& noted = op == NodeOp::kRelease ? released_ : corrupt_;
    noted.insert(noted.end(), request.refs.begin(), request.refs.end());
  }

  const std::vector<int> files_;
  const uint8_t announced_;
  Fd listener_;
  std::mutex mutex_;
  std::vector<PageRef> released_;
  std::vector<PageRef> corrupt_;
  std::thread thread_;
};

}  // namespace hicache::testing
