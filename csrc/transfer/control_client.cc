#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "net/secure_channel.h"
#include "net/wire.h"
#include "transfer/control.h"

namespace hicache {
namespace {

Status named(const Status& status, const std::string& what) {
  return Status(status.code(), what + ": " + status.message());
}

class SocketControlClient final : public ControlClient {
 public:
  SocketControlClient(std::string name, Stream stream, uint64_t peer_epoch)
      : name_(std::move(name)), stream_(std::move(stream)), peer_epoch_(peer_epoch) {}

  uint64_t peer_epoch() const override { return peer_epoch_; }
  Result<std::vector<uint8_t>> call(ControlOp op, std::span<const uint8_t> request,
                                    Deadline deadline) override;
  int fd() const override { return stream_.socket().get(); }
  bool is_broken() const override;
  void cut() override { (void)shutdown(stream_.socket().get(), SHUT_RDWR); }

 private:
  Result<std::vector<uint8_t>> ask(ControlOp op, std::span<const uint8_t> request,
                                   Deadline deadline);
  Result<std::vector<uint8_t>> exchange(ControlOp op, std::span<const uint8_t> request,
                                        Deadline deadline);
  Result<std::vector<uint8_t>> decode_reply(std::span<const uint8_t> reply) const;

  const std::string name_;
  std::mutex mutex_;
  std::condition_variable free_;
  bool is_asking_ = false;  // Somebody has the stream; guarded by mutex_.
  Stream stream_;
  const uint64_t peer_epoch_;
  uint64_t next_request_id_ = 1;
  std::atomic<bool> is_broken_{false};
};

Result<std::vector<uint8_t>> SocketControlClient::call(ControlOp op,
                                                       std::span<const uint8_t> request,
                                                       Deadline deadline) {
  {
    std::unique_lock lock(mutex_);
    if (!free_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()),
                        [this] { return !is_asking_; })) {
      return Status(Code::kTimeout, "asking " + name_ + ": earlier questions were not answered");
    }
    is_asking_ = true;
  }
  Result<std::vector<uint8_t>> reply = ask(op, request, deadline);
  const std::lock_guard lock(mutex_);
  is_asking_ = false;
  free_.notify_one();
  return reply;
}

Result<std::vector<uint8_t>> SocketControlClient::ask(ControlOp op,
                                                      std::span<const uint8_t> request,
                                                      Deadline deadline) {
  if (is_broken_) return Status(Code::kUnavailable, "the connection to " + name_ + " is broken");
  Result<std::vector<uint8_t>> reply = exchange(op, request, deadline);
  return reply.ok() ? std::move(reply) : named(reply.status(), "asking " + name_);
}

Result<std::vector<uint8_t>> SocketControlClient::exchange(ControlOp op,
                                                           std::span<const uint8_t> request,
                                                           Deadline deadline) {
  if (request.size() > kControlRequestSizeMax) {
    return Status(Code::kInvalidArgument,
                  "a request of " + std::to_string(request.size()) + " bytes; at most " +
                      std::to_string(kControlRequestSizeMax) + " are taken");
  }
  const uint64_t request_id = next_request_id_++;
  std::vector<uint8_t> bytes;
  begin_frame(bytes);
  bytes.insert(bytes.end(), request.begin(), request.end());
  end_frame(bytes, static_cast<uint16_t>(op), request_id);

  // After a failure in the middle nobody knows where the next reply begins.
  is_broken_ = true;
  HICACHE_RETURN_IF_ERROR(stream_.write_all(bytes, deadline));
  bytes.resize(kFrameHeaderSize);
  HICACHE_RETURN_IF_ERROR(stream_.read_all(bytes, deadline));
  Result<FrameHeader> header = decode_frame_header(std::span(bytes).first<kFrameHeaderSize>());
  if (!header.ok()) return header.status();
  if (header.value().request_id != request_id) {
    return Status(Code::kCorrupt, "the reply belongs to another request");
  }
  bytes.resize(header.value().payload_size);
  HICACHE_RETURN_IF_ERROR(stream_.read_all(bytes, deadline));
  is_broken_ = false;
  return decode_reply(bytes);
}

Result<std::vector<uint8_t>> SocketControlClient::decode_reply(
    std::span<const uint8_t> reply) const {
  WireReader reader(reply);
  const auto code = reader.get<uint8_t>();
  std::string message = reader.get_string(kTransportBytesMax);
  if (!reader.ok() || code >= kCodeCount) {
    return Status(Code::kCorrupt, "the reply is malformed");
  }
  if (code != static_cast<uint8_t>(Code::kOk)) {
    return Status(static_cast<Code>(code), std::move(message));
  }
  const size_t read = sizeof(code) + sizeof(uint32_t) + message.size();
  return std::vector<uint8_t>(reply.begin() + static_cast<ptrdiff_t>(read), reply.end());
}

bool SocketControlClient::is_broken() const {
  if (is_broken_) return true;
  pollfd waited{stream_.socket().get(), POLLRDHUP, 0};
  return poll(&waited, 1, 0) > 0;
}

}  // namespace

Result<std::unique_ptr<ControlClient>> ControlClient::connect(const HostPort& address,
                                                              const Secret& secret,
                                                              std::shared_ptr<TlsContext> tls,
                                                              uint64_t epoch, Deadline deadline) {
  const std::string name = to_string(address);
  Result<Fd> socket = tcp_connect(address, deadline);
  if (!socket.ok()) return socket.status();
  HICACHE_RETURN_IF_ERROR(tune(socket.value()));
  const bool has_tls = tls != nullptr;
  Stream stream(std::move(socket.value()), Stream::End::kClient, std::move(tls));

  const Result<uint64_t> greeted =
      greet_server(stream, secret, {Purpose::kControl, epoch}, deadline);
  if (!greeted.ok()) {
    const Status& status = greeted.status();
    const std::string hint =
        has_tls ? "" : " (does the peer want TLS? then this end needs a certificate too)";
    return named(status, "greeting " + name + (status.code() == Code::kUnavailable ? hint : ""));
  }
  return std::unique_ptr<ControlClient>(
      std::make_unique<SocketControlClient>(name, std::move(stream), greeted.value()));
}

}  // namespace hicache
