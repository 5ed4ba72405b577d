// Asking the directory, whatever carries the questions: a connection that comes back
// (directory_client.h), or the simulated network of the tests.
//
// Requests leave and replies arrive encoded. Every call ends by its deadline, exactly once. Replies
// of a leader older than one heard of before are not believed.
//
// Threads: as who carries says. What is called back must not block.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "directory/directory_messages.h"

namespace hicache {

class DirectoryLine {
 public:
  template <typename Reply>
  using Done = std::function<void(Result<Reply>)>;

  virtual ~DirectoryLine() = default;

  /// 1 for the first connection, and so on; 0: there is none now.
  virtual uint64_t connection_number() const = 0;
  /// The newest epoch heard of.
  uint64_t epoch() const { return epoch_; }

  /// `done` is called once: with the reply, whose code is kOk or what the directory said; or with
  /// kTimeout, kUnavailable, kNotLeader, kBusy, kCorrupt or kClosed.
  template <typename Reply, typename Request>
  void ask(Request request, Deadline deadline, Done<Reply> done) {
    request.epoch = epoch_;
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode(writer, request);
    submit(op_of(request), std::move(frame), deadline,
           [this, done = std::move(done)](Result<Answer> answer) {
             done(decode_answer<Reply>(std::move(answer)));
           });
  }

  /// The same, waiting for it.
  template <typename Reply, typename Request>
  Result<Reply> call(Request request, Deadline deadline) {
    auto promise = std::make_shared<std::promise<Result<Reply>>>();
    std::future<Result<Reply>> reply = promise->get_future();
    ask<Reply>(std::move(request), deadline,
               [promise](Result<Reply> result) { promise->set_value(std::move(result)); });
    return reply.get();
  }

 protected:
  struct Answer {
    std::span<const uint8_t> payload;
    uint64_t connection;
  };
  using AnswerDone = std::function<void(Result<Answer>)>;

  /// Sends a frame that is yet to be sealed.
  virtual void submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline deadline,
                      AnswerDone done) = 0;
  /// Ends a connection, if it is still the present one.
  virtual void cut(uint64_t connection) = 0;

  template <typename Reply>
  Result<Reply> decode_answer(Result<Answer> answer) {
    if (!answer.ok()) return answer.status();
    Reply reply;
    if (!decode(WireReader(answer.value().payload), reply)) {
      cut(answer.value().connection);
      return Status(Code::kCorrupt,
                    "the directory's reply is malformed; run the same release of "
                    "mooncake-hicache on all machines");
    }
    HICACHE_RETURN_IF_ERROR(believe(reply.head, answer.value().connection));
    return reply;
  }

 private:
  /// Notes the epoch; kNotLeader: who answered does not lead, or not any more.
  Status believe(const ReplyHead& head, uint64_t connection) {
    uint64_t known = epoch_;
    while (head.epoch > known && !epoch_.compare_exchange_weak(known, head.epoch)) {
    }
    if (head.code != Code::kNotLeader && head.epoch >= known) return Status();
    cut(connection);
    return Status(Code::kNotLeader,
                  head.code == Code::kNotLeader
                      ? "who was asked does not lead the cluster; another address is tried"
                      : "a leader of epoch " + std::to_string(head.epoch) +
                            " answered, but epoch " + std::to_string(known) + " has begun");
  }

  std::atomic<uint64_t> epoch_{0};
};

}  // namespace hicache
