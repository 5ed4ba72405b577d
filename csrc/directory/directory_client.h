// A connection to the directory that comes back: for nodes, and for clients that look pages up.
//
// Calls of several threads share one connection and overtake nobody: many may be under way. Every
// call ends by its deadline, exactly once. While there is no connection calls fail at once, with
// the reason: the caller takes what it asks for as a miss. The addresses are tried in turn, ever
// more slowly, until one answers that leads; replies of a leader older than one heard of before
// are not believed.
//
// A node uses two: one for joining and heartbeats, one for batches and look-ups, so that heartbeats
// do not wait behind them. When connection_number() of the first changes, it joins again.
//
// Threads: any. What is called back is called from the client's own thread and must not block.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "directory/directory_line.h"
#include "directory/frame_pipe.h"
#include "io/event_fd.h"
#include "io/tcp_socket.h"
#include "net/greeting.h"
#include "net/stream.h"

namespace hicache {

class DirectoryClient : public DirectoryLine {
 public:
  struct Options {
    std::vector<HostPort> addresses;  // Of all that may lead.
    Secret secret;
    std::shared_ptr<TlsContext> tls;
    uint64_t connect_timeout_ms;
    uint64_t back_off_min_ms;  // Between two rounds through the addresses; doubles up to
    uint64_t back_off_max_ms;  // this.
    size_t calls_max;          // Under way at the same time. More are kBusy.
    /// Orders that come unasked. May be empty.
    std::function<void(const HeartbeatReply&)> on_orders;
    /// connection_number() has changed. May be empty.
    std::function<void()> on_connection{};
    /// An address could not be reached, or refused this client, or went: why. May be empty.
    std::function<void(const std::string&)> on_trouble{};
  };
  static Result<std::unique_ptr<DirectoryClient>> start(Options options);
  ~DirectoryClient() override;
  /// Ends all calls with kClosed, and the thread. May be called again.
  void stop();

  uint64_t connection_number() const override { return connection_number_; }
  /// Blocks. kTimeout, with what the last attempt came to.
  /// `but`: the number of a connection that does not count.
  Status wait_connected(Deadline deadline, uint64_t but = 0);

 private:
  struct Call {
    DirectoryOp op;
    uint64_t deadline_ns;
    AnswerDone done;
  };

  DirectoryClient(Options options, EventFd wake);

  void submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline deadline,
              AnswerDone done) override;
  void cut(uint64_t connection) override;

  void run();
  Result<Stream> connect(const HostPort& address) const;
  /// Serves one connection until it breaks; returns why.
  Status serve(FramePipe pipe);
  Status exchange(FramePipe& pipe, uint64_t connection);
  Status take(const FramePipe::Frame& frame, uint64_t connection);
  int expire_calls();
  void fail_calls(const Status& status);
  void pause(uint64_t ms);

  const Options options_;
  EventFd wake_;
  std::atomic<uint64_t> connection_number_{0};
  std::atomic<uint64_t> cut_{0};  // The newest connection that is to end.
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable connected_;
  // Guarded by mutex_:
  Status state_{Code::kUnavailable, "no connection to the directory was made yet"};
  std::unordered_map<uint64_t, Call> calls_;
  std::set<std::pair<uint64_t, uint64_t>> deadlines_;  // (time, call).
  std::vector<uint8_t> unsent_;
  uint64_t next_id_ = 1;
  // Of the thread alone:
  uint64_t last_connection_ = 0;
  std::thread thread_;
};

}  // namespace hicache
