// The directory as nodes and clients reach it: one thread, one core, many connections.
//
// Connections prove that they know the secret (net/greeting.h), in TLS where it is configured, and
// send requests (directory_messages.h), as many at a time as they like; replies come in order. What
// is kept for a connection is bounded: who does not read its replies is not read from, and is
// closed after a while. No connection keeps the thread for long, so that a node's heartbeats, on a
// connection of their own, never wait behind what others or itself announce.
//
// Other threads may call every public method.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/notice_list.h"
#include "directory/directory_desk.h"
#include "directory/directory_messages.h"
#include "directory/frame_pipe.h"
#include "directory/prober.h"
#include "io/event_fd.h"
#include "net/reception.h"

namespace hicache {

class DirectoryServer {
 public:
  struct Options {
    std::string host;
    uint16_t port_min;
    uint16_t port_max;
    Secret secret;
    std::shared_ptr<TlsContext> tls;  // Null: connections are in the clear.
    size_t connections_max;           // More are closed at once, and counted.
    uint64_t stall_timeout_ms;        // Of clients that do not read their replies.
    Directory::Options directory;
  };

  /// Listens and answers; everybody is told kNotLeader until lead() is called.
  static Result<std::unique_ptr<DirectoryServer>> start(const Options& options);
  ~DirectoryServer();

  uint16_t port() const { return port_; }
  /// Begins to lead with nothing known; 0: leads no longer. Done when it returns.
  void lead(uint64_t epoch);
  /// 0: does not lead.
  uint64_t epoch() const { return epoch_; }
  /// The newest epoch that anybody spoke of. Above its own: another may lead.
  uint64_t newest_epoch_heard() const { return newest_epoch_heard_; }
  /// (name, value): those of Directory, connections, refused, malformed, stalled, requests,
  /// cut_turns.
  std::vector<std::pair<std::string, uint64_t>> stats();
  std::vector<MemberView> members();
  /// Who was refused for speaking another version; the newest, oldest first. Without the first
  /// `known` that there ever were; `known` becomes how many that is now.
  std::vector<std::string> notices_since(uint64_t& known) const;
  /// Closes all connections and ends the threads. May be called again.
  void stop();

 private:
  struct Connection {
    FramePipe pipe;
    SessionId session;
    uint32_t events = 0;      // That the epoll waits for.
    uint64_t blocked_ms = 0;  // Since when the socket takes nothing; 0: it does.
    bool has_more = false;    // Frames that one turn did not allow for.
  };
  using Payload = std::span<const uint8_t>;

  DirectoryServer(const Options& options, Listening listening, Fd epoll, EventFd wake);

  Status run();
  void serve();
  void turn_of(int fd);
  void welcome(Reception::Guest guest);
  /// One turn: receives, answers, sends; false: close it.
  bool advance(Connection& connection);
  /// What one connection may have in one turn: not only of bytes that came, since a small question
  /// may have a large answer.
  struct Turn {
    size_t received_bytes = 0;
    size_t frames = 0;
    size_t answered_bytes = 0;
    bool is_over() const;
  };
  /// Answers frames that are there, up to a bound; false: one is hostile.
  bool answer_some(Connection& connection, Turn& turn);
  /// Fills in frame_; false: the request is malformed.
  bool answer(Connection& connection, const FrameHeader& header, Payload payload);
  bool send(Connection& connection);
  void refuse(Connection& connection, const Status& why);
  void note(const std::string& notice);
  void forget(int fd);
  /// Calls what others posted, lets the core do what is due, carries out its effects.
  void advance_core();
  void carry_out(const Directory::Effect& effect);
  void close_stalled();
  int wait_ms();
  /// Has the thread call `task`.
  void post(std::function<void()> task);
  /// The same, and waits for its result; T{} once stopped.
  template <typename T>
  T ask(std::function<T()> task);

  const Options options_;
  const uint16_t port_;
  Fd epoll_;
  EventFd wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<uint64_t> newest_epoch_heard_{0};
  std::mutex tasks_mutex_;
  std::vector<std::function<void()>> tasks_;
  bool is_deaf_ = false;  // No task will be called any more; guarded by tasks_mutex_.
  mutable std::mutex notices_mutex_;
  NoticeList notices_;
  // Of the thread alone.
  Directory directory_;
  DirectoryDesk desk_{directory_};
  Reception reception_;
  std::unordered_map<int, Connection> connections_;
  std::unordered_map<SessionId, int> by_session_;
  std::vector<int> with_more_;
  SessionId last_session_ = 0;
  uint64_t round_ms_ = 0;  // When this turn of the loop began: the core's time.
  uint64_t core_due_ms_ = 0;
  uint64_t stalls_due_ms_ = 0;
  std::vector<uint8_t> frame_;  // Scratch of a reply.
  uint64_t unwelcome_count_ = 0;
  uint64_t malformed_count_ = 0;
  uint64_t stalled_count_ = 0;
  uint64_t request_count_ = 0;
  uint64_t cut_turn_count_ = 0;
  std::unique_ptr<Prober> prober_;
  std::thread thread_;
};

}  // namespace hicache
