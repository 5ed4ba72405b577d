#include "store/client_connection.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "io/unix_socket.h"
#include "net/frame.h"
#include "tier/slot_allocator.h"

namespace hicache {
namespace {

/// What the node passed as its n-th SSD file is hostile until it is known to be a file that can be
/// read past the page cache.
Status check_file(const Fd& file, size_t number) {
  const std::string what = "SSD file " + std::to_string(number) + " of the node";
  if (!file.valid()) {
    return Status(Code::kUnavailable, what +
                                          " did not arrive; this process may be at its limit of "
                                          "open files: raise it (ulimit -n)");
  }
  struct stat stat{};
  if (fstat(file.get(), &stat) != 0) return io_error("looking at " + what, errno);
  if (!S_ISREG(stat.st_mode)) {
    return Status(Code::kInvalidArgument, what +
                                              " is not a regular file; run the same release on "
                                              "both sides");
  }
  const int flags = fcntl(file.get(), F_GETFL);
  if (flags < 0) return io_error("asking how " + what + " was opened", errno);
  if ((flags & O_ACCMODE) == O_WRONLY || (flags & O_DIRECT) == 0) {
    return Status(Code::kInvalidArgument, what +
                                              " is not open for direct reading; run the same "
                                              "release on both sides");
  }
  return Status();
}

}  // namespace

Result<std::shared_ptr<ClientConnection>> ClientConnection::open(const std::string& path,
                                                                 HelloRequest greeting,
                                                                 Deadline deadline) {
  Result<Fd> socket = unix_connect(path);
  if (!socket.ok()) return socket.status();
  const Result<PeerIdentity> peer = peer_identity(socket.value());
  if (!peer.ok()) return peer.status();
  if (peer.value().uid != geteuid()) {
    return Status(Code::kInvalidArgument,
                  "the node at " + path + " belongs to user " + std::to_string(peer.value().uid) +
                      " and this process to user " + std::to_string(geteuid()) +
                      "; use a runtime_dir of your own");
  }
  std::shared_ptr<ClientConnection> connection =
      std::unique_ptr<ClientConnection>(new ClientConnection());
  connection->socket_ = std::move(socket.value());
  HICACHE_RETURN_IF_ERROR(connection->say_hello(std::move(greeting), deadline));
  ClientConnection& self = *connection;
  self.mapper_ = std::make_unique<PoolMapper>(
      *self.pool_, [&self](uint64_t offset, uint64_t size) { self.note_mapped(offset, size); });
  return connection;
}

Status ClientConnection::say_hello(HelloRequest greeting, Deadline deadline) {
  greeting.client_name.resize(std::min(greeting.client_name.size(), kClientNameSizeMax));
  std::vector<uint8_t> frame = framed([&](WireWriter& writer) { encode(writer, greeting); });
  end_frame(frame, static_cast<uint16_t>(NodeOp::kHello), 0);
  HICACHE_RETURN_IF_ERROR(send_all(socket_, frame, deadline));
  frame.resize(kFrameHeaderSize + kHelloReplySize);
  const std::span<uint8_t> bytes(frame);
  std::array<Fd, 1 + kSsdFilesMax> passed;  // The pool, then the files.
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes.first(kFrameHeaderSize), deadline, passed));
  // Before more is waited for: a node of another version sends no more.
  const Result<FrameHeader> header = decode_frame_header(bytes.first<kFrameHeaderSize>());
  if (!header.ok()) return header.status();
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes.subspan(kFrameHeaderSize), deadline));
  HelloReply reply{};
  if (header.value().op != (static_cast<uint16_t>(NodeOp::kHello) | kReplyBit) ||
      header.value().payload_size != kHelloReplySize ||
      !decode(WireReader(std::span(frame).subspan(kFrameHeaderSize)), reply)) {
    return Status(Code::kCorrupt, "the node's greeting is malformed");
  }
  Result<std::unique_ptr<SharedMemory>> memory =
      SharedMemory::map(std::move(passed[0]), reply.pool_size_bytes);
  if (!memory.ok()) return memory.status();
  pool_ = std::move(memory.value());
  const uint64_t slots = (reply.pool_size_bytes + kSlotSize - 1) / kSlotSize;
  backed_ = std::make_unique<std::atomic<uint8_t>[]>(slots);
  for (size_t i = 1; i <= reply.file_count; ++i) {
    HICACHE_RETURN_IF_ERROR(check_file(passed[i], i));
    files_.push_back(std::make_unique<ReadableFile>(std::move(passed[i])));
  }
  return Status();
}

bool ClientConnection::back(uint64_t offset, uint64_t size, SharedMemory::Access access) {
  const uint64_t last = (offset + size - 1) / kSlotSize;
  for (uint64_t slot = offset / kSlotSize; slot <= last;) {
    if (backed_[slot].load(std::memory_order_acquire) != 0) {
      ++slot;
      continue;
    }
    // As many as need it, in one call. Not more: the neighbours are another thread's work.
    uint64_t end = slot + 1;
    while (end <= last && backed_[end].load(std::memory_order_relaxed) == 0) ++end;
    const uint64_t start = slot * kSlotSize;
    const uint64_t bytes = std::min(end * kSlotSize, pool_->size_bytes()) - start;
    if (!pool_->populate(start, bytes, access).ok()) return false;
    for (; slot < end; ++slot) backed_[slot].store(1, std::memory_order_release);
  }
  return true;
}

void ClientConnection::pin_for(const std::shared_ptr<GpuLane>& lane) {
  const std::lock_guard lock(pinner_mutex_);
  if (pinner_ == nullptr) pinner_ = std::make_unique<PoolPinner>(*pool_, lane);
}

bool ClientConnection::pin_unit(uint64_t offset) {
  const PoolPinner::State state = pinner_->state(offset);
  if (state != PoolPinner::State::kOpen) return state == PoolPinner::State::kPinned;
  const uint64_t begin = offset / PoolPinner::kUnitSize * PoolPinner::kUnitSize;
  const uint64_t size = std::min(PoolPinner::kUnitSize, pool_->size_bytes() - begin);
  if (back(begin, size, SharedMemory::Access::kWrite)) return pinner_->pin_unit(begin);
  pinner_->refuse_unit(begin);
  return false;
}

void ClientConnection::note_mapped(uint64_t offset, uint64_t size) {
  const uint64_t end = offset + size;
  const uint64_t last =
      end == pool_->size_bytes() ? (end + kSlotSize - 1) / kSlotSize : end / kSlotSize;
  for (uint64_t slot = (offset + kSlotSize - 1) / kSlotSize; slot < last; ++slot) {
    backed_[slot].store(1, std::memory_order_release);
  }
}

std::vector<ReadableFile*> ClientConnection::files() const {
  std::vector<ReadableFile*> files;
  for (const auto& file : files_) files.push_back(file.get());
  return files;
}

Status ClientConnection::take_turn(Deadline deadline, const Waiting* waiting) {
  if (broken_) return Status(Code::kUnavailable, "the connection to the node is broken");
  std::unique_lock lock(turn_mutex_);
  if (turn_taken_ && waiting != nullptr) {
    // Not with the lock: what the caller gives up may be what the next in turn waits for.
    lock.unlock();
    waiting->before_sleep();
    lock.lock();
  }
  if (!turn_free_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()),
                           [this] { return !turn_taken_; })) {
    return Status(Code::kTimeout, "other calls kept the connection until the deadline");
  }
  turn_taken_ = true;
  return Status();
}

void ClientConnection::end_turn() {
  {
    std::lock_guard lock(turn_mutex_);
    turn_taken_ = false;
  }
  turn_free_.notify_one();
}

Status ClientConnection::exchange_in_turn(NodeOp op, std::vector<uint8_t>& frame,
                                          std::vector<uint8_t>* reply, Deadline deadline,
                                          const Waiting* waiting) {
  if (broken_) return Status(Code::kUnavailable, "the connection to the node is broken");
  const uint64_t request_id = next_request_id_++;
  end_frame(frame, static_cast<uint16_t>(op), request_id);
  Status status = send_all(socket_, frame, deadline, {}, waiting);
  if (status.ok() && reply != nullptr) {
    reply->resize(kFrameHeaderSize);
    status = receive_all(socket_, *reply, deadline, {}, waiting);
    if (status.ok()) {
      const Result<FrameHeader> header =
          decode_frame_header(std::span(*reply).first<kFrameHeaderSize>());
      if (!header.ok()) {
        status = header.status();
      } else if (header.value().op != (static_cast<uint16_t>(op) | kReplyBit) ||
                 header.value().request_id != request_id) {
        status = Status(Code::kCorrupt, "the node answered another request than was asked");
      } else {
        reply->resize(header.value().payload_size);
        status = receive_all(socket_, *reply, deadline, {}, waiting);
      }
    }
  }
  // Whatever failed, the stream has lost its place: a late reply must never meet a later request.
  if (!status.ok()) break_off();
  return status;
}

void ClientConnection::break_off() {
  broken_ = true;
  shutdown(socket_.get(), SHUT_RDWR);
}

bool ClientConnection::wait_broken(int timeout_ms) const {
  return broken_ || wait_closed(socket_, timeout_ms);
}

Result<NamespaceIndex> ClientConnection::namespace_index(size_t local,
                                                         const NamespaceDigest& digest,
                                                         const std::string& description,
                                                         Deadline deadline,
                                                         const Waiting* waiting) {
  {
    std::lock_guard lock(namespaces_mutex_);
    if (local >= namespaces_.size()) namespaces_.resize(local + 1, -1);
    if (namespaces_[local] >= 0) return static_cast<NamespaceIndex>(namespaces_[local]);
  }
  OpenNamespaceReply reply{};
  HICACHE_RETURN_IF_ERROR(ask(
      NodeOp::kOpenNamespace, deadline,
      [&](WireWriter& writer) { encode(writer, OpenNamespaceRequest{digest, description}); },
      [&](WireReader reader) { return decode(reader, reply); }, waiting));
  if (reply.code != Code::kOk) return Status(reply.code, reply.message);
  std::lock_guard lock(namespaces_mutex_);
  namespaces_[local] = reply.index;
  return reply.index;
}

}  // namespace hicache
