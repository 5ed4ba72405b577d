#include "transfer/engine_fork.h"

#include <unistd.h>

#include <utility>

#include "io/fork_guard.h"

namespace hicache {
namespace {

class OneProcessEngine final : public TransferEngine {
 public:
  explicit OneProcessEngine(std::unique_ptr<TransferEngine> engine)
      : engine_(std::move(engine)), name_(engine_->name()), port_(engine_->port()) {}
  ~OneProcessEngine() override {
    if (is_in_child()) (void)engine_.release();
  }

  Status stop() override { return is_in_child() ? refusal() : engine_->stop(); }
  const std::string& name() const override { return name_; }
  uint16_t port() const override { return port_; }
  uint64_t epoch() const override { return engine_->epoch(); }

  Status register_memory(uint64_t address, uint64_t size, const std::string& location,
                         bool remote_write) override {
    if (is_in_child()) return refusal();
    return engine_->register_memory(address, size, location, remote_write);
  }
  Status unregister_memory(uint64_t address) override {
    return is_in_child() ? refusal() : engine_->unregister_memory(address);
  }
  Result<uint64_t> allocate_memory(uint64_t size) override {
    if (is_in_child()) return refusal();
    return engine_->allocate_memory(size);
  }
  Status free_memory(uint64_t address) override {
    return is_in_child() ? refusal() : engine_->free_memory(address);
  }

  Result<SegmentId> open_segment(const std::string& address, uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->open_segment(address, deadline_ns);
  }
  void close_segment(SegmentId segment) override {
    if (!is_in_child()) engine_->close_segment(segment);
  }
  bool is_lost(SegmentId segment) const override {
    return is_in_child() || engine_->is_lost(segment);
  }
  Result<SegmentDescriptor> describe(SegmentId segment, uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->describe(segment, deadline_ns);
  }

  Result<BatchId> submit(SegmentId segment, std::span<const TransferRequest> requests,
                         Priority priority, uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->submit(segment, requests, priority, deadline_ns);
  }
  Result<BatchState> poll(BatchId batch) override {
    if (is_in_child()) return refusal();
    return engine_->poll(batch);
  }
  Result<BatchState> wait(BatchId batch, uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->wait(batch, deadline_ns);
  }
  Result<BatchState> transfer(SegmentId segment, std::span<const TransferRequest> requests,
                              Priority priority, uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->transfer(segment, requests, priority, deadline_ns);
  }
  Status release(BatchId batch) override {
    return is_in_child() ? refusal() : engine_->release(batch);
  }

  Status notify(SegmentId segment, const std::string& name, const std::string& message,
                uint64_t deadline_ns) override {
    if (is_in_child()) return refusal();
    return engine_->notify(segment, name, message, deadline_ns);
  }
  std::vector<Notice> take_notices() override {
    if (is_in_child()) return {};
    return engine_->take_notices();
  }
  Status probe(SegmentId segment, uint64_t deadline_ns) override {
    return is_in_child() ? refusal() : engine_->probe(segment, deadline_ns);
  }
  Status set_topology(const std::string& json) override {
    return is_in_child() ? refusal() : engine_->set_topology(json);
  }
  std::string stats() const override {
    return is_in_child() ? std::string("{}") : engine_->stats();
  }

 private:
  bool is_in_child() const { return fork_count() != forks_; }
  static Status refusal() {
    return Status(Code::kClosed, "this transfer engine was started in a process whose child " +
                                     std::to_string(getpid()) +
                                     " is, after fork(): start a new one in the child");
  }

  std::unique_ptr<TransferEngine> engine_;
  const uint32_t forks_ = fork_count();
  const std::string name_;
  const uint16_t port_;
};

}  // namespace

std::unique_ptr<TransferEngine> refuse_after_fork(std::unique_ptr<TransferEngine> engine) {
  return std::make_unique<OneProcessEngine>(std::move(engine));
}

}  // namespace hicache
