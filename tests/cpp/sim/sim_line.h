// A line to the directory over simulated streams, as directory_client.h is one over sockets: it
// tries the masters in turn, ends calls by their deadlines, and fails those of a stream that broke.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "directory/directory_line.h"
#include "sim/sim_world.h"

namespace hicache::testing {

class SimLine : public DirectoryLine {
 public:
  struct Options {
    Host* owner;
    std::vector<Host*> masters;
    std::function<void()> on_connection;
    std::function<void(const HeartbeatReply&)> on_orders;
  };

  SimLine(World& world, Options options) : world_(world), options_(std::move(options)) {
    connect();
  }

  uint64_t connection_number() const override { return number_; }
  size_t call_count() const { return calls_.size(); }

 private:
  struct Call {
    DirectoryOp op;
    AnswerDone done;
  };

  void submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline deadline,
              AnswerDone done) override;
  void cut(uint64_t connection) override;
  void connect();
  void connected(StreamRef stream);
  void closed();
  void take(const Message& message);

  World& world_;
  const Options options_;
  StreamRef stream_;
  uint64_t number_ = 0;
  uint64_t last_number_ = 0;
  size_t next_master_ = 0;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Call> calls_;
};

/// A frame that is yet to be sealed, without the room for its header.
inline Message message_of(uint16_t op, uint64_t id, const std::vector<uint8_t>& frame) {
  return {op, id, {frame.begin() + static_cast<ptrdiff_t>(kFrameHeaderSize), frame.end()}};
}

}  // namespace hicache::testing
