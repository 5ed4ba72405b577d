// What the contract suite of transports needs: rigs, ends, targets in this process and in others.
//
// A Rig is one way of setting a transport up; transport_contract_test.cc has the list. To put
// another transport under the suite, add a Rig to it that makes an End: the fake verbs table goes
// in there.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "child_process.h"
#include "io/mapped_memory.h"
#include "io/memory.h"
#include "support.h"
#include "transfer/transport.h"

namespace hicache::testing {

/// One engine's share: a transport and what it needs around it.
class End {
 public:
  explicit End(uint64_t epoch) : epoch_(epoch) {}
  virtual ~End() = default;

  virtual Transport& transport() = 0;

  uint64_t epoch() const { return epoch_; }
  /// As an engine would do it. kNoBuffer: the transport refused.
  BufferId add(uint64_t address, uint64_t size, bool remote_write, int shared_fd = -1,
               uint64_t shared_offset = 0);
  void remove(BufferId id);
  /// What a peer is told now.
  SegmentDescriptor describe();

 private:
  const uint64_t epoch_;
  std::mutex mutex_;
  std::vector<BufferDescriptor> buffers_;
  BufferId next_id_ = 1;
  uint64_t version_ = 0;
};

/// How a transport is set up, and what may be expected of it.
struct Rig {
  std::string name;
  std::function<std::unique_ptr<End>(uint64_t epoch, const std::string& secret)> make_end;
  /// Targets live in a memfd.
  bool is_shared;
  /// Ends of two processes reach each other. A fake device may reach only its own.
  bool reaches_children;
  /// Answers calls of the control connection: nullptr if it needs none.
  ControlCalls* (*control)(const SegmentDescriptor& peer);
};

const std::vector<Rig>& rigs();

/// The memory that a test reads and writes: three buffers with known bytes.
struct TargetMemory {
  static constexpr uint64_t kLargeSize = 80 * kMiB;
  static constexpr uint64_t kSmallSize = kMiB + 123;

  explicit TargetMemory(bool is_shared);
  uint8_t* large() const;
  uint8_t* read_only() const { return large() + kLargeSize; }
  /// Registers with `end`: 1 the large one, 2 the read-only one.
  void add_to(End& end) const;

  /// What the bytes are before anybody writes.
  static std::vector<uint8_t> large_bytes() { return bytes_of(1, kLargeSize); }
  static std::vector<uint8_t> read_only_bytes() { return bytes_of(2, kSmallSize); }

 private:
  std::unique_ptr<SharedMemory> shared_;  // Null: own_ instead.
  MappedMemory own_;
};

inline constexpr BufferId kLarge = 1;
inline constexpr BufferId kReadOnly = 2;

/// A peer: in this process, or in a child that can be stopped and killed.
class Target {
 public:
  virtual ~Target() = default;
  virtual SegmentDescriptor describe() = 0;
  /// Takes the large buffer away, and fills its memory with other bytes once it may.
  virtual void unregister_large() = 0;
  /// Whether those bytes are all still there.
  virtual bool is_large_untouched() = 0;
};

/// Where the target of a test lives.
enum class Where : uint8_t { kHere, kChild };
struct Case {
  Rig rig;
  Where where;
};
/// Each rig with each place that it reaches.
std::vector<Case> cases();
std::string case_name(const ::testing::TestParamInfo<Case>& tested);

std::unique_ptr<Target> make_target(const Case& tested);

class ChildTarget : public Target {
 public:
  explicit ChildTarget(const Rig& rig);
  ~ChildTarget() override;
  SegmentDescriptor describe() override;
  void unregister_large() override;
  bool is_large_untouched() override;

  bool is_ready() const { return child_.is_ready(); }
  void stop() { child_.signal(SIGSTOP); }
  void resume() { child_.signal(SIGCONT); }
  void end() { child_.end(); }

 private:
  /// What the child has written into the file of that ending, once it has.
  std::string await(const std::string& ending);

  const std::string path_;
  ChildProcess child_;
};

/// Hears of completions and counts them.
class Recorder : public CompletionSink {
 public:
  void complete(uint64_t token, Status status) override;

  /// Waits until that many completions have come, at most `timeout_ms`.
  bool wait_count(size_t count, uint64_t timeout_ms);
  /// Waits for the completion of that token, at most 30 s.
  Status wait_for(uint64_t token);
  size_t count() const;
  /// Of the only completion of that token; kInternal if there was none, or more than one.
  Status status_of(uint64_t token) const;
  /// How often each code came; fails the test if a token came twice.
  std::map<Code, size_t> codes() const;
  /// Called for each completion, after it was counted.
  std::function<void(uint64_t token, const Status& status)> on_complete;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  size_t count_ = 0;
  std::map<uint64_t, std::vector<Status>> by_token_;
};

/// An open path, and what it was opened with.
class Client {
 public:
  Client(const Rig& rig, const std::string& secret = kSecret);
  ~Client();

  /// Opens a path; the status says why there is none.
  Status open(const SegmentDescriptor& peer, uint64_t timeout_ms = 5000);
  Path& path() { return *path_; }
  bool has_path() const { return path_ != nullptr; }
  void drop_path() { path_.reset(); }
  Transport& transport() { return end_->transport(); }
  Recorder& recorder() { return recorder_; }

  Op op(Direction direction, const void* local, uint64_t remote, uint64_t size,
        BufferId buffer = kLarge, uint64_t timeout_ms = 20'000);
  /// Submits and waits for one op.
  Status run(const Op& op);
  /// Submits all, offering the rest again after completions. False: no room within 20 s.
  bool submit_all(std::span<const Op> ops);

  static constexpr char kSecret[] = "the suite's";

 private:
  const Rig& rig_;
  std::unique_ptr<End> end_;
  Recorder recorder_;
  std::unique_ptr<Path> path_;
  std::atomic<uint64_t> next_token_{1};
};

/// `--role=transport RIG FILE`: a target to be stopped and killed. SIGUSR1: unregister_large();
/// SIGUSR2: is_large_untouched().
int run_transport_target(const std::vector<std::string>& arguments);

}  // namespace hicache::testing
