// Where connections between machines arrive: a listener, and those who have not yet proven that
// they know the secret.
//
// A part of its owner's epoll loop: the owner hands it the events of descriptors that it owns(),
// and gets connections whose greeting (net/greeting.h) is over. Nothing is allocated for a stranger
// but the fixed size of the greeting; strangers are bounded in number and in time, and the oldest
// goes when there are too many, so that they cannot crowd out peers.
//
// Threads: its owner's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "io/tcp_socket.h"
#include "net/greeting.h"
#include "net/stream.h"

namespace hicache {

class Reception {
 public:
  struct Options {
    Secret secret;
    uint64_t epoch;                   // 0: whoever asks for a certain one is refused.
    std::shared_ptr<TlsContext> tls;  // Null: who speaks TLS is refused.
    size_t guests_max;                // More are closed at once.
    /// Who greets in another version was refused: who, and which. A stranger can have it called
    /// once a minute. May be empty.
    std::function<void(const std::string&)> on_other_version{};
  };
  /// Greeted. Its descriptor is in the epoll already, and bytes may have been received with the
  /// greeting's: read first, then wait.
  struct Guest {
    Stream stream;
    Purpose purpose;
  };

  /// `epoll` outlives it.
  Reception(Options options, Listening listening, int epoll);
  Status start();
  uint16_t port() const { return listening_.port; }

  bool owns(int fd) const { return fd == listening_.fd.get() || visitors_.contains(fd); }
  /// What an event of such a descriptor leads to. `guest_count`: that the owner has.
  std::optional<Guest> advance(int fd, size_t guest_count);
  /// Closes those who are late. Returns when the next one will be, in ms; -1: there is none.
  int expire();
  /// The owner closed a connection: there may be a descriptor again.
  void guest_left();
  /// Closes everything.
  void close();
  /// Closed before their greeting was over.
  uint64_t refused_count() const { return refused_count_; }

 private:
  struct Visitor {
    /// Not yet a stream: the first byte says whether TLS is spoken.
    Fd socket;
    Stream stream;
    ServerGreeting greeting;
    uint64_t deadline_ns;
    std::vector<uint8_t> in;
    size_t in_size = 0;
    std::vector<uint8_t> out;
    size_t out_size = 0;
    bool is_refused = false;
  };

  enum class Next : uint8_t { kWait, kDone, kClose };

  void accept_some(size_t guest_count);
  Next greet(Visitor& visitor);
  void note_refusal(const Visitor& visitor, const Status& why);
  static bool receive(Visitor& visitor, bool& is_gone);
  static bool send(Visitor& visitor, bool& is_gone);
  void refuse(int fd);
  void refuse_oldest();
  Status watch(int fd, uint32_t events, int operation) const;

  const Options options_;
  Listening listening_;
  const int epoll_;
  std::unordered_map<int, Visitor> visitors_;
  bool is_accepting_ = true;
  uint64_t accept_again_ns_ = 0;  // If not: when to try.
  uint64_t note_again_ns_ = 0;    // Of another version; not before.
  uint64_t refused_count_ = 0;
};

}  // namespace hicache
