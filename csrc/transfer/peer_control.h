// The control connection to one incarnation of one peer, made anew when a reply on it never came.
//
// Calls take turns. Each waits for its turn, for a new connection and for its reply until its own
// deadline and no longer, whatever deadlines the others have. One whose reply does not come in time
// spoils the connection, for nobody knows where the next reply begins; those that wait have sent
// nothing yet, and go on over a new one. Nothing is ever sent twice.
//
// The peer is gone when its connection breaks, or when nobody or somebody else listens where it
// did.
//
// Threads: any. Only ask() blocks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transfer/control.h"

namespace hicache {

class PeerControl {
 public:
  /// `watch` has is_gone() called when something happens to that socket, once; it is called with a
  /// lock held.
  PeerControl(HostPort address, const Secret& secret, std::shared_ptr<TlsContext> tls,
              std::function<void(int fd)> watch);

  Result<std::vector<uint8_t>> ask(ControlOp op, std::span<const uint8_t> request,
                                   Deadline deadline);
  /// Of the incarnation; 0: not connected yet.
  uint64_t epoch() const;
  /// Looks at the connection, and watches it further if it stands.
  bool is_gone();
  /// Calls that wait for a reply or their turn end with kUnavailable, and so do all that come; one
  /// that is connecting ends at its deadline.
  void end();

 private:
  Result<std::vector<uint8_t>> ask_in_turn(ControlOp op, std::span<const uint8_t> request,
                                           Deadline deadline);
  Result<std::shared_ptr<ControlClient>> connected(Deadline deadline);
  Status ended_status() const;

  const HostPort address_;
  const std::string name_;
  const Secret secret_;
  const std::shared_ptr<TlsContext> tls_;
  const std::function<void(int fd)> watch_;

  mutable std::mutex mutex_;  // Of what follows; never held while anything is waited for.
  std::condition_variable free_;
  bool is_taken_ = false;  // It is somebody's turn.
  bool is_ended_ = false;
  std::shared_ptr<ControlClient> client_;
  bool is_spoilt_ = false;  // A reply is outstanding that nobody waits for.
  bool is_gone_ = false;    // What was tried instead of a spoilt connection was refused.
  uint64_t epoch_ = 0;
};

}  // namespace hicache
