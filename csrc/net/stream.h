// A connected socket that carries bytes as they are, or inside TLS.
//
// With TLS both ends show a certificate that the same authority signed: a cluster has an authority
// of its own, so who holds a certificate of it belongs to the cluster; names are not compared.
// OpenSSL writes with write(2): a process that uses TLS must ignore SIGPIPE, as Python does.
// Threads: one stream, one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "io/fd.h"

typedef struct ssl_st SSL;          // NOLINT: OpenSSL's own spelling.
typedef struct ssl_ctx_st SSL_CTX;  // NOLINT

namespace hicache {

/// Certificate, private key and authority, read from files once and shared by all streams.
class TlsContext {
 public:
  struct Files {
    std::string certificate;  // PEM, the chain included.
    std::string key;
    std::string authority;
  };
  /// kInvalidArgument names the file and what is wrong with it.
  static Result<std::shared_ptr<TlsContext>> load(const Files& files);
  /// Owns the context. Use load().
  explicit TlsContext(SSL_CTX* context) : context_(context) {}
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  SSL_CTX* get() const { return context_; }

 private:
  SSL_CTX* context_;
};

class Stream {
 public:
  enum class End : uint8_t { kClient, kServer };

  Stream() = default;
  /// `tls` may be null: bytes as they are. The TLS handshake happens inside the first calls.
  Stream(Fd socket, End end, std::shared_ptr<TlsContext> tls);
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();

  const Fd& socket() const { return socket_; }
  /// Gives the socket away. Only without TLS.
  Fd release();
  bool is_tls() const { return ssl_ != nullptr; }

  /// Some bytes, or 0 when none can be moved now: wait for events() on the socket.
  /// kUnavailable: the other end is gone, or what arrived is not what it should be.
  Result<size_t> read_some(std::span<uint8_t> bytes);
  Result<size_t> write_some(std::span<const uint8_t> bytes);
  /// What the last call that moved nothing waits for: EPOLLIN or EPOLLOUT.
  uint32_t events() const { return events_; }

  /// All bytes, or why not. Block until `deadline`.
  Status read_all(std::span<uint8_t> bytes, Deadline deadline);
  Status write_all(std::span<const uint8_t> bytes, Deadline deadline);

 private:
  Result<size_t> outcome_of(int moved, bool is_read);
  Status wait(Deadline deadline) const;

  Fd socket_;
  std::shared_ptr<TlsContext> tls_;
  SSL* ssl_ = nullptr;
  uint32_t events_ = 0;
};

}  // namespace hicache
