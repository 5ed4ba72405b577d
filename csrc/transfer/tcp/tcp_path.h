// A way to one incarnation of a peer over TCP: spreads ops over its lanes, opens lanes again.
//
// What is small goes over one lane as long as little is under way there, so that many small ops
// share system calls; what is large goes over all lanes at once. A lane that breaks fails what is
// on it and comes back with the next probe(); until then the others have its share.
//
// Threads: any; no method from inside a CompletionSink but submit().
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "io/tcp_socket.h"
#include "transfer/tcp/client_lane.h"
#include "transfer/tcp/tcp_transport.h"

namespace hicache {

class TcpPath : public Path {
 public:
  struct Setup {
    HostPort peer;
    uint64_t peer_epoch;
    Secret secret;
    size_t lanes;
    bool is_checked;
    std::vector<IoLoop*> loops;  // Outlive the path.
  };

  TcpPath(Setup setup, CompletionSink& sink, TcpCounters& counters);
  ~TcpPath() override { close(); }

  /// Opens lanes that are closed, as many as can be had until the deadline. Blocks. The status is
  /// the first failure's; ok if there was none.
  Status open_lanes(Deadline deadline);
  bool has_lanes() const;

  const std::string& name() const override { return name_; }
  std::string_view device() const override { return {}; }
  PathCost cost() const override;
  uint64_t slice_size_bytes() const override;
  size_t submit(std::span<const Op> ops) override;
  Status probe() override;
  void close() override;

 private:
  Status open_lane(size_t index, Deadline deadline);
  size_t take(std::span<const Op> ops, std::vector<OpDone>& done, uint64_t& deadline_ns);
  std::shared_ptr<ClientLane> lane_for(Priority priority) const;
  void distribute(std::vector<std::shared_ptr<ClientLane>>& to_pump);
  Status ping_lanes(Deadline deadline);

  const Setup setup_;
  const size_t first_lane_;  // Paths differ, so that their small ops use different loops.
  const std::shared_ptr<PathState> state_;
  std::mutex opening_;  // One thread opens or probes at a time.
  std::string name_;
};

}  // namespace hicache
