// A connection to another node, for asking it about its pages.
//
// It is made when something is asked, and made again when it broke. Many calls may be under way;
// each ends by its deadline, exactly once. The breaker: a peer that cannot be reached, breaks off,
// or leaves a call without an answer is left alone for a while, which doubles until it answers;
// meanwhile calls fail at once, so that what it has is read elsewhere or missed without delay.
//
// The leases that a peer grants end with the connection over which they were asked for.
//
// Threads: any may ask. What is called back is called from the link's own thread, or from inside
// ask(), and must not block.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "directory/frame_pipe.h"
#include "io/event_fd.h"
#include "io/tcp_socket.h"
#include "net/greeting.h"
#include "store/peer_roads.h"

namespace hicache {

class NodeLink : public PeerLine {
 public:
  struct Options {
    std::string own_name;
    HostPort address;
    uint64_t incarnation;  // Of the peer: another process there is refused.
    Secret secret;
    std::shared_ptr<TlsContext> tls;
    uint64_t connect_timeout_ms;
    uint64_t call_timeout_ms;
    uint64_t back_off_min_ms;
    uint64_t back_off_max_ms;
    size_t calls_max;  // Under way at the same time. More are kBusy.
    /// The peer speaks another version. From the link's thread. May be empty.
    std::function<void(const std::string&)> on_other_version{};
  };

  static Result<std::unique_ptr<NodeLink>> start(Options options);
  ~NodeLink() override;

  void ask(NodeOp op, std::vector<uint8_t> message, Done done) override;
  void tell(NodeOp op, std::vector<uint8_t> message) override;

  bool is_failing() const override { return monotonic_ns() < closed_until_ns_; }
  uint64_t breaks_count() const override { return breaks_count_; }

  void stop_soon() override;
  bool has_ended() const override { return has_ended_; }

 private:
  struct Call {
    NodeOp op;
    uint64_t deadline_ns;
    Done done;
  };

  NodeLink(Options options, EventFd wake);

  void run();
  /// Serves one connection until it breaks; returns why. kOk: nothing was asked for long.
  Status serve();
  Result<Stream> connect() const;
  Status say_hello(Stream& stream);
  Status exchange(FramePipe& pipe);
  Status take(const FramePipe::Frame& frame);
  /// How long until the first call is late, in ms; kTimeout: one is.
  Result<int> next_late_ms() const;
  bool give_up_idle();
  void fail_calls(const Status& status);
  void open_breaker();

  const Options options_;
  EventFd wake_;
  std::atomic<uint64_t> closed_until_ns_{0};
  std::atomic<uint64_t> breaks_count_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> has_ended_{false};
  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::unordered_map<uint64_t, Call> calls_;
  std::set<std::pair<uint64_t, uint64_t>> deadlines_;  // (time, call).
  std::vector<uint8_t> unsent_;
  uint64_t next_id_ = 1;
  bool is_connected_ = false;
  // Of the thread alone:
  std::shared_ptr<const PeerHelloReply> peer_;
  uint64_t back_off_ms_;
  std::thread thread_;
};

}  // namespace hicache
