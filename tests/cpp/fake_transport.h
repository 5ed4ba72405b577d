// A transport whose paths a test breaks, blocks and mends; memory is of this process.
#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "transfer/transport.h"

namespace hicache::testing {

enum class FakeMode : uint8_t {
  kWorks,    // Ops are done inside submit().
  kHolds,    // They are taken, and wait for the test.
  kBroken,   // They fail at once, and probes too.
  kRefuses,  // Nothing is taken.
};

class FakePath;

/// What the test and the path share.
struct FakeRail {
  explicit FakeRail(std::string rail_name) : name(std::move(rail_name)) {}

  const std::string name;
  std::mutex mutex;
  FakeMode mode = FakeMode::kWorks;
  Code broken_code = Code::kUnavailable;
  size_t take_max = SIZE_MAX;  // Of each submit().
  size_t op_count = 0;
  size_t probe_count = 0;
  uint64_t done_bytes = 0;
  bool is_closed = false;
  std::deque<Op> held;
  CompletionSink* sink = nullptr;

  void set(FakeMode to) {
    const std::lock_guard lock(mutex);
    mode = to;
  }
  size_t count_of(size_t FakeRail::* member) {
    const std::lock_guard lock(mutex);
    return this->*member;
  }
  size_t held_count() {
    const std::lock_guard lock(mutex);
    return held.size();
  }
  static void move(const Op& op) {
    auto* local = reinterpret_cast<uint8_t*>(op.local_address);
    auto* remote = reinterpret_cast<uint8_t*>(op.remote_address);
    if (op.direction == Direction::kRead) std::memcpy(local, remote, op.size);
    if (op.direction == Direction::kWrite) std::memcpy(remote, local, op.size);
  }
  /// Ends what is held, done or failed.
  void end_held(Code code) {
    std::deque<Op> ending;
    {
      const std::lock_guard lock(mutex);
      ending.swap(held);
    }
    for (const Op& op : ending) {
      if (code == Code::kOk) move(op);
      sink->complete(op.token, code == Code::kOk ? Status() : Status(code, "ended by the test"));
    }
  }
};

class FakePath final : public Path {
 public:
  FakePath(std::shared_ptr<FakeRail> rail, CompletionSink& sink) : rail_(std::move(rail)) {
    rail_->sink = &sink;
  }
  ~FakePath() override { close(); }

  const std::string& name() const override { return rail_->name; }
  std::string_view device() const override { return rail_->name; }
  PathCost cost() const override { return {1000, 0.1}; }
  uint64_t slice_size_bytes() const override { return 64 * 1024; }

  size_t submit(std::span<const Op> ops) override {
    FakeMode mode;
    size_t count = ops.size();
    Code broken_code;
    {
      const std::lock_guard lock(rail_->mutex);
      if (rail_->is_closed || rail_->mode == FakeMode::kRefuses) return 0;
      mode = rail_->mode;
      broken_code = rail_->broken_code;
      count = std::min(count, rail_->take_max);
      rail_->op_count += count;
      for (const Op& op : ops.first(count)) {
        if (mode == FakeMode::kHolds) rail_->held.push_back(op);
        if (mode == FakeMode::kWorks) rail_->done_bytes += op.size;
      }
    }
    for (const Op& op : ops.first(count)) {
      if (mode == FakeMode::kWorks) {
        FakeRail::move(op);
        rail_->sink->complete(op.token, Status());
      } else if (mode == FakeMode::kBroken) {
        rail_->sink->complete(op.token, Status(broken_code, "the cable is out"));
      }
    }
    return count;
  }

  Status probe() override {
    const std::lock_guard lock(rail_->mutex);
    ++rail_->probe_count;
    if (rail_->mode == FakeMode::kWorks) return Status();
    return Status(Code::kUnavailable, "still out");
  }

  void close() override {
    {
      const std::lock_guard lock(rail_->mutex);
      rail_->is_closed = true;
    }
    rail_->end_held(Code::kCancelled);
  }

 private:
  const std::shared_ptr<FakeRail> rail_;
};

class FakeTransport final : public Transport {
 public:
  FakeTransport(TransportKind kind, std::vector<std::shared_ptr<FakeRail>> rails)
      : kind_(kind), rails_(std::move(rails)) {}

  TransportKind kind() const override { return kind_; }
  std::vector<uint8_t> endpoint() const override { return {}; }
  Result<std::vector<uint8_t>> register_buffer(const Buffer&) override {
    return std::vector<uint8_t>();
  }
  void unregister_buffer(BufferId) override {}
  bool needs_registration() const override { return false; }
  Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor&, ControlCalls&,
                                                  CompletionSink& sink, uint64_t) override {
    std::vector<std::unique_ptr<Path>> paths;
    for (const std::shared_ptr<FakeRail>& rail : rails_) {
      paths.push_back(std::make_unique<FakePath>(rail, sink));
    }
    return paths;
  }
  void update(Path&, const SegmentDescriptor&) override {}
  Result<std::vector<uint8_t>> answer(std::span<const uint8_t>) override {
    return std::vector<uint8_t>();
  }
  std::vector<std::pair<std::string, uint64_t>> stats() const override { return {}; }

 private:
  const TransportKind kind_;
  const std::vector<std::shared_ptr<FakeRail>> rails_;
};

}  // namespace hicache::testing
