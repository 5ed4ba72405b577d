// A peer of a node that says whatever a test wants, byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "io/memory.h"
#include "io/unix_socket.h"
#include "messages_samples.h"
#include "net/frame.h"
#include "store/messages.h"

namespace hicache::testing {

class RawClient {
 public:
  explicit RawClient(const std::string& path) {
    Result<Fd> connected = unix_connect(path);
    if (connected.ok()) socket = std::move(connected.value());
  }

  /// Connects and says hello; the pool is mapped.
  static std::unique_ptr<RawClient> greeted(const std::string& path) {
    auto client = std::make_unique<RawClient>(path);
    return client->say_hello() ? std::move(client) : nullptr;
  }

  bool say_hello() {
    std::vector<uint8_t> frame = frame_of(NodeOp::kHello, HelloRequest{"raw"});
    if (!send_all(socket, frame, Deadline::after_ms(2000)).ok()) return false;
    frame.resize(kFrameHeaderSize + kHelloReplySize);
    Fd fd;
    if (!receive_all(socket, frame, Deadline::after_ms(2000), {&fd, 1}).ok()) return false;
    HelloReply reply{};
    if (!decode(WireReader(std::span(frame).subspan(kFrameHeaderSize)), reply)) return false;
    auto mapped = SharedMemory::map(std::move(fd), reply.pool_size_bytes);
    if (!mapped.ok()) return false;
    pool = std::move(mapped.value());
    return true;
  }

  template <typename Message>
  static std::vector<uint8_t> frame_of(NodeOp op, const Message& message) {
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode(writer, message);
    end_frame(frame, static_cast<uint16_t>(op), 1);
    return frame;
  }
  static std::vector<uint8_t> keys_frame(NodeOp op, NamespaceIndex index, uint8_t flags,
                                         std::span<const Key> keys,
                                         uint32_t patience_ms = kPatient) {
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode_keys(writer, index, flags, keys, patience_ms);
    end_frame(frame, static_cast<uint16_t>(op), 1);
    return frame;
  }

  bool send(std::span<const uint8_t> bytes) {
    return send_all(socket, bytes, Deadline::after_ms(2000)).ok();
  }

  /// The next reply's payload; nothing if the node closed the connection or was silent.
  std::optional<std::vector<uint8_t>> receive(uint64_t timeout_ms = 2000) {
    const Deadline deadline = Deadline::after_ms(timeout_ms);
    std::vector<uint8_t> bytes(kFrameHeaderSize);
    if (!receive_all(socket, bytes, deadline).ok()) return std::nullopt;
    const auto header = decode_frame_header(std::span(bytes).first<kFrameHeaderSize>());
    if (!header.ok()) return std::nullopt;
    bytes.resize(header.value().payload_size);
    if (!receive_all(socket, bytes, deadline).ok()) return std::nullopt;
    return bytes;
  }

  std::optional<std::vector<uint8_t>> call(std::span<const uint8_t> frame) {
    return send(frame) ? receive() : std::nullopt;
  }

  NamespaceIndex open_namespace(const NamespaceDigest& digest) {
    const auto payload =
        call(frame_of(NodeOp::kOpenNamespace, OpenNamespaceRequest{digest, "raw"}));
    OpenNamespaceReply reply{};
    EXPECT_TRUE(payload && decode(WireReader(*payload), reply) && reply.code == Code::kOk);
    return reply.index;
  }

  Places places(std::span<const uint8_t> frame, uint64_t timeout_ms = 2000) {
    const auto payload = send(frame) ? receive(timeout_ms) : std::nullopt;
    Places read;
    EXPECT_TRUE(payload && decode(WireReader(*payload), read, {pool->size_bytes(), 0}));
    return read;
  }

  Places reserve(NamespaceIndex index, std::vector<Key> keys, uint64_t size) {
    std::vector<uint64_t> sizes(keys.size(), size);
    return places(frame_of(NodeOp::kReserve, ReserveRequest{index, 0, Pin::kNone, kAnySpace, Key{},
                                                            std::move(keys), std::move(sizes)}));
  }

  Places lease(NamespaceIndex index, std::span<const Key> keys) {
    return places(keys_frame(NodeOp::kLease, index, 0, keys));
  }

  /// True once the node has closed this connection.
  bool is_closed(uint64_t timeout_ms = 2000) {
    const Deadline deadline = Deadline::after_ms(timeout_ms);
    std::vector<uint8_t> byte(1);
    for (;;) {
      const Code code = receive_all(socket, byte, deadline).code();
      if (code != Code::kOk) return code == Code::kUnavailable;
    }
  }

  Fd socket;
  std::unique_ptr<SharedMemory> pool;
};

}  // namespace hicache::testing
