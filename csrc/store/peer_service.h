// The node as other nodes reach it: they look its pages up, lease them, and read them one-sided
// through the transfer engine.
//
// A part of the node's epoll loop. Peers prove that they know the secret (net/reception.h), in TLS
// where it is configured; a stranger learns nothing. What they ask is answered by peer_desk.h. The
// number of peers is bounded, and so is what is kept for one: who does not read its replies is not
// read from, and is closed after a while.
//
// Threads: the node's alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "directory/frame_pipe.h"
#include "net/reception.h"
#include "store/peer_desk.h"

namespace hicache {

class PeerService {
 public:
  struct Options {
    Secret secret;
    std::shared_ptr<TlsContext> tls;  // Null: connections are in the clear.
    size_t peers_max;
    uint64_t stall_timeout_ms;  // Of peers that do not read their replies, or say no hello.
    PeerHelloReply hello;       // Its incarnation is what the greeting asks for.
    /// Somebody was refused for speaking another version. May be empty.
    std::function<void(const std::string&)> on_notice{};
  };

  /// `epoll` and `pages` outlive it.
  PeerService(Options options, Listening listening, int epoll, PeerPages& pages);
  Status start() { return reception_.start(); }
  uint16_t port() const { return reception_.port(); }

  bool owns(int fd) const { return peers_.contains(fd) || reception_.owns(fd); }
  /// What an event of such a descriptor leads to.
  void advance(int fd, uint64_t now_ms);
  /// Goes on with what one turn did not finish, and closes who is late. Returns when it wants to be
  /// called again.
  uint64_t advance(uint64_t now_ms);
  /// Closes everything.
  void close();

  size_t peer_count() const { return peers_.size(); }
  /// Closed before they were let in, and for what they sent.
  uint64_t refused_count() const { return reception_.refused_count() + refused_count_; }

 private:
  struct Peer {
    FramePipe pipe;
    uint64_t since_ms;
    PeerDesk::Guest guest{};
    bool has_more = false;  // Frames that one turn did not allow for.
    uint32_t events = 0;
    uint64_t blocked_ms = 0;  // Since when the socket takes nothing; 0: it does.
  };
  using Payload = std::span<const uint8_t>;

  void welcome(Reception::Guest guest, uint64_t now_ms);
  void turn_of(int fd, uint64_t now_ms);
  /// One turn: receives, answers, sends; false: close it.
  bool serve(Peer& peer, uint64_t now_ms);
  bool answer_some(Peer& peer, uint64_t now_ms);
  /// Fills in frame_, where there is a reply; false: the request is hostile.
  bool answer(Peer& peer, const FrameHeader& header, Payload payload, uint64_t now_ms);
  bool send(Peer& peer, uint64_t now_ms);
  void refuse(Peer& peer, const Status& why);
  void close_stalled(uint64_t now_ms);
  void forget(int fd);

  const Options options_;
  const int epoll_;
  PeerDesk desk_;
  Reception reception_;
  std::unordered_map<int, Peer> peers_;
  std::vector<int> with_more_;
  std::vector<uint8_t> frame_;
  uint64_t refused_count_ = 0;
  uint64_t stalls_due_ms_ = 0;
};

}  // namespace hicache
