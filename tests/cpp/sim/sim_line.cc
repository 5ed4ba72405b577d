#include "sim/sim_line.h"

#include <utility>

namespace hicache::testing {

void SimLine::connect() {
  Host& master = *options_.masters[next_master_++ % options_.masters.size()];
  world_.connect(*options_.owner, master,
                 [this](StreamRef stream) { stream ? connected(std::move(stream)) : closed(); });
}

void SimLine::connected(StreamRef stream) {
  stream_ = std::move(stream);
  number_ = ++last_number_;
  stream_->listen(0, [this](const Message& message) { take(message); }, [this] { closed(); });
  options_.on_connection();
}

void SimLine::closed() {
  stream_.reset();
  number_ = 0;
  for (const auto& [id, call] : std::exchange(calls_, {})) {
    call.done(Status(Code::kUnavailable, "the stream broke"));
  }
  options_.on_connection();
  world_.after_us(*options_.owner, world_.random().size_up_to(100'000), [this] { connect(); });
}

void SimLine::cut(uint64_t connection) {
  world_.after_us(*options_.owner, 0, [this, connection] {
    if (number_ != connection || !stream_) return;
    stream_->close(0);
    closed();
  });
}

void SimLine::submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline deadline,
                     AnswerDone done) {
  if (number_ == 0) return done(Status(Code::kUnavailable, "no stream"));
  const uint64_t id = ++last_id_;
  calls_.emplace(id, Call{op, std::move(done)});
  Message message = message_of(static_cast<uint16_t>(op), id, frame);
  if (op == DirectoryOp::kBatch && world_.chance(world_.faults().repeated_batch)) {
    world_.note(options_.owner, "a batch will come again");
    Message again = message;
    again.id = ++last_id_;  // Its answer is of no interest.
    world_.after_us(*options_.owner, world_.random().size_up_to(2'000'000),
                    [this, again = std::move(again)] {
                      if (stream_) stream_->send(0, again);
                    });
  }
  const bool is_lost = op == DirectoryOp::kBatch && world_.chance(world_.faults().lost_batch);
  if (is_lost) world_.note(options_.owner, "a batch is lost");
  if (!is_lost) stream_->send(0, std::move(message));
  world_.after_us(*options_.owner, deadline.remaining_ns() / 1000 + 1, [this, id] {
    const auto late = calls_.find(id);
    if (late == calls_.end()) return;
    const AnswerDone late_done = std::move(late->second.done);
    calls_.erase(late);
    late_done(Status(Code::kTimeout, "no answer in time"));
  });
}

void SimLine::take(const Message& message) {
  if (message.id == 0) {
    const Result<HeartbeatReply> orders =
        decode_answer<HeartbeatReply>(Answer{message.payload, number_});
    if (orders.ok()) options_.on_orders(orders.value());
    return;
  }
  const auto found = calls_.find(message.id);
  if (found == calls_.end()) return;  // It was late, or asked twice.
  const AnswerDone done = std::move(found->second.done);
  calls_.erase(found);
  done(Answer{message.payload, number_});
}

}  // namespace hicache::testing
