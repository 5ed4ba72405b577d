#include "net/stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

namespace hicache {
namespace {

/// The oldest error that OpenSSL noted in this thread, as text; the others are dropped.
std::string tls_reason() {
  char text[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0) {
    ERR_error_string_n(code, text, sizeof(text));
  }
  ERR_clear_error();
  return text;
}

Status bad_file(const std::string& what, const std::string& path) {
  return Status(Code::kInvalidArgument, "TLS " + what + " '" + path + "': " + tls_reason());
}

bool would_block(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::load(const Files& files) {
  ERR_clear_error();
  SSL_CTX* context = SSL_CTX_new(TLS_method());
  if (context == nullptr) return Status(Code::kInternal, "starting TLS: " + tls_reason());
  auto loaded = std::make_shared<TlsContext>(context);
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // Connections are few and live long: nothing to gain from resuming, and its tickets are writes
  // that a client which only waits would have to read.
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1) {
    return bad_file("certificate", files.certificate);
  }
  if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return bad_file("key", files.key);
  }
  if (SSL_CTX_check_private_key(context) != 1) {
    return bad_file("key does not belong to the certificate:", files.key);
  }
  if (SSL_CTX_load_verify_locations(context, files.authority.c_str(), nullptr) != 1) {
    return bad_file("authority", files.authority);
  }
  return loaded;
}

TlsContext::~TlsContext() {
  SSL_CTX_free(context_);
}

Stream::Stream(Fd socket, End end, std::shared_ptr<TlsContext> tls)
    : socket_(std::move(socket)), tls_(std::move(tls)) {
  if (tls_ == nullptr) return;
  ssl_ = SSL_new(tls_->get());
  // Without memory for it there is nothing to talk through: calls then say so.
  if (ssl_ == nullptr) {
    socket_.reset();
    return;
  }
  SSL_set_fd(ssl_, socket_.get());
  if (end == End::kClient) {
    SSL_set_connect_state(ssl_);
  } else {
    SSL_set_accept_state(ssl_);
  }
}

Stream::Stream(Stream&& other) noexcept
    : socket_(std::move(other.socket_)),
      tls_(std::move(other.tls_)),
      ssl_(std::exchange(other.ssl_, nullptr)),
      events_(other.events_) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(socket_, other.socket_);
  std::swap(tls_, other.tls_);
  std::swap(ssl_, other.ssl_);
  std::swap(events_, other.events_);
  return *this;
}

Stream::~Stream() {
  if (ssl_ != nullptr) SSL_free(ssl_);
}

Fd Stream::release() {
  assert(ssl_ == nullptr);
  return std::move(socket_);
}

/// What a call of OpenSSL that returned `moved` comes to.
Result<size_t> Stream::outcome_of(int moved, bool is_read) {
  if (moved > 0) return static_cast<size_t>(moved);
  switch (SSL_get_error(ssl_, moved)) {
    case SSL_ERROR_WANT_READ:
      events_ = EPOLLIN;
      return size_t{0};
    case SSL_ERROR_WANT_WRITE:
      events_ = EPOLLOUT;
      return size_t{0};
    case SSL_ERROR_ZERO_RETURN:
      return Status(Code::kUnavailable, "the peer closed the connection");
    case SSL_ERROR_SYSCALL:
      return Status(Code::kUnavailable, std::string("the connection to the peer broke: ") +
                                            (errno == 0 ? "closed" : std::strerror(errno)));
    default:
      return Status(Code::kUnavailable, std::string(is_read ? "TLS, reading: " : "TLS, writing: ") +
                                            tls_reason() +
                                            "; both ends need a certificate of the same authority");
  }
}

Result<size_t> Stream::read_some(std::span<uint8_t> bytes) {
  assert(!bytes.empty());
  if (!socket_.valid()) return Status(Code::kUnavailable, "the connection is closed");
  if (ssl_ != nullptr) {
    ERR_clear_error();
    errno = 0;
    const auto size = static_cast<int>(std::min<size_t>(bytes.size(), INT_MAX));
    return outcome_of(SSL_read(ssl_, bytes.data(), size), true);
  }
  const ssize_t got = recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got > 0) return static_cast<size_t>(got);
  if (got == 0) return Status(Code::kUnavailable, "the peer closed the connection");
  events_ = EPOLLIN;
  if (would_block(errno)) return size_t{0};
  return Status(Code::kUnavailable, std::string("receiving from the peer: ") + strerror(errno));
}

Result<size_t> Stream::write_some(std::span<const uint8_t> bytes) {
  assert(!bytes.empty());
  if (!socket_.valid()) return Status(Code::kUnavailable, "the connection is closed");
  if (ssl_ != nullptr) {
    ERR_clear_error();
    errno = 0;
    const auto size = static_cast<int>(std::min<size_t>(bytes.size(), INT_MAX));
    return outcome_of(SSL_write(ssl_, bytes.data(), size), false);
  }
  const ssize_t sent = send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) return static_cast<size_t>(sent);
  events_ = EPOLLOUT;
  if (would_block(errno)) return size_t{0};
  return Status(Code::kUnavailable, std::string("sending to the peer: ") + strerror(errno));
}

Status Stream::wait(Deadline deadline) const {
  if (deadline.expired()) {
    return Status(Code::kTimeout, "the peer did not answer in time");
  }
  pollfd waited{socket_.get(), static_cast<short>(events_ == EPOLLOUT ? POLLOUT : POLLIN), 0};
  (void)poll(&waited, 1, deadline.remaining_ms());
  return Status();
}

Status Stream::read_all(std::span<uint8_t> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    Result<size_t> moved = read_some(bytes);
    if (!moved.ok()) return moved.status();
    if (moved.value() == 0) HICACHE_RETURN_IF_ERROR(wait(deadline));
    bytes = bytes.subspan(moved.value());
  }
  return Status();
}

Status Stream::write_all(std::span<const uint8_t> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    Result<size_t> moved = write_some(bytes);
    if (!moved.ok()) return moved.status();
    if (moved.value() == 0) HICACHE_RETURN_IF_ERROR(wait(deadline));
    bytes = bytes.subspan(moved.value());
  }
  return Status();
}

}  // namespace hicache
