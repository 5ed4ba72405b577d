// Transport: one way of moving registered memory, one-sided, behind one contract.
//
// A transport knows how to make memory reachable (register_buffer), how others reach it (endpoint)
// and how to reach a peer (open, one Path for each pair of rails). A Path moves bytes: it takes ops
// and completes each exactly once. Choosing paths, cutting requests into slices, trying again
// elsewhere and waiting are the engine's; a transport never retries on another path.
//
// The contract, which tests/cpp/transport_contract_test.cc runs over every transport:
//   * submit() takes the first n ops and says n; fewer than given is back-pressure, not an error.
//     Room is made by completions: after one, the rest may be offered again.
//   * Each taken op is completed exactly once, after success, failure, deadline and close() alike.
//   * Once an op is completed, the transport touches its local memory no more; not after success,
//     not after a failure, not after its deadline.
//   * A READ that completes kOk has put exactly the peer's bytes in place, verified where the
//     transport verifies and no `arrival` sum was written. A WRITE that completes kOk has been
//     applied: whoever is told about it can read it. After any other code the target range holds
//     anything.
//   * An op is completed at its deadline (kTimeout), give or take kDeadlineGraceMs, whatever the
//     peer, the link or the device does.
//   * Loss of a peer completes all its ops with kUnavailable within a second of being noticeable.
//
// Codes of completions: kOk · kTimeout (deadline) · kUnavailable (this path is down; another may
// do) · kCorrupt (checksum; trying again may do) · kInvalidArgument (outside what the peer
// registered; no path will do) · kNotFound (not this memory on this path; others of this transport
// may do) · kUnsupported (not this memory by this transport; others may do) · kCancelled (close())
// · kIo, kNoSpace (local trouble of this path). kNotFound and kUnsupported say nothing against the
// path.
//
// Threads: everything may be called from any thread. CompletionSink is called from a thread of the
// transport or from inside submit() and close(); without a lock of the transport held, so it may
// call submit().
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "transfer/segment.h"

namespace hicache {

inline constexpr uint64_t kDeadlineGraceMs = 250;

enum class Direction : uint8_t { kRead, kWrite };

/// What waits on the caller's critical path goes before what does not.
enum class Priority : uint8_t { kUrgent, kBackground };

/// The XXH3-64 of what a read brought, taken while it was put in place.
struct ArrivalSum {
  uint64_t value = 0;
  bool is_known = false;
};
/// Up to this size a read is not cut by a path that takes such sums.
inline constexpr uint64_t kArrivalSizeMax = 512 * 1024;

/// A piece of a transfer on one path. Plain values; the transport copies it.
struct Op {
  Direction direction;
  Priority priority;
  uint64_t local_address;
  /// Of the local range, if it is registered; kNoBuffer: it is not. See needs_registration().
  BufferId local_buffer;
  uint64_t remote_address;
  /// Of the remote range, as the peer's descriptor lists it.
  BufferId remote_buffer;
  uint64_t size;
  uint64_t deadline_ns;  // monotonic_ns()
  uint64_t token;        // The engine's, below 2^63; comes back with the completion.
  /// Of a read whose caller knows the checksum of what it asks for, and compares. A path through
  /// whose hands the bytes pass may write their sum there before it completes the op kOk, and then
  /// need not have verified them: the caller's checksum covers the wire, and more than that.
  ArrivalSum* arrival = nullptr;
};

/// Who hears of completions. Must be quick and must not block.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  virtual void complete(uint64_t token, Status status) = 0;
};

/// What using a path costs: `fixed_ns + size * ns_per_byte`; the engine measures and corrects it.
struct PathCost {
  double fixed_ns;
  double ns_per_byte;
};

/// One way to one incarnation of one peer. Destroying it closes it.
class Path {
 public:
  virtual ~Path() = default;

  /// Names the rails at both ends, for people: "rxe0 -> rxe1", "tcp 10.0.0.1 -> 10.0.0.2:15001".
  virtual const std::string& name() const = 0;
  /// The local device that it goes through, as topologies name it ("mlx5_0"); empty: none.
  virtual std::string_view device() const = 0;
  virtual PathCost cost() const = 0;
  /// The size of slice that this path likes best, in bytes.
  virtual uint64_t slice_size_bytes() const = 0;

  virtual size_t submit(std::span<const Op> ops) = 0;

  /// Tries whether the path works (again), within a second. Blocks. The engine calls it from a
  /// thread of its own after failures, before it gives the path work again.
  virtual Status probe() = 0;

  /// Completes all ops that were taken, with kCancelled unless they were done; returns when all
  /// completions have been delivered. submit() takes nothing any more. Blocks kDeadlineGraceMs at
  /// most.
  virtual void close() = 0;
};

/// Asks the peer's transport of the same kind something, over the engine's authenticated control
/// connection: how RDMA peers exchange their queue pairs. Blocks until the reply or `deadline_ns`.
class ControlCalls {
 public:
  virtual ~ControlCalls() = default;
  virtual Result<std::vector<uint8_t>> call(TransportKind kind, std::span<const uint8_t> request,
                                            uint64_t deadline_ns) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual TransportKind kind() const = 0;

  /// What a peer's transport of this kind has to know to reach this one; opaque to all others.
  virtual std::vector<uint8_t> endpoint() const = 0;

  /// Makes a buffer reachable. Returns what peers need to name it; opaque, empty if nothing.
  /// May block (pinning takes 0.3 s per GiB).
  virtual Result<std::vector<uint8_t>> register_buffer(const Buffer& buffer) = 0;
  /// Ends that: once it returns no peer can touch the buffer any more, unless untouched() says so.
  /// Blocks while ops touch it, which their deadlines bound, or for a second.
  virtual void unregister_buffer(BufferId buffer) = 0;
  /// Of a buffer that was unregistered. kTimeout: a process may still touch it, since it was
  /// stopped in the middle of that; which one. The memory has to stay until a later call says kOk.
  virtual Status untouched(BufferId) { return Status(); }

  /// Whether the local range of an op must be registered.
  virtual bool needs_registration() const = 0;

  /// Ways to a peer: one Path for each pair of rails that may work, best first; none if this
  /// transport does not reach it (another host, no common device), with the reason as status if
  /// that is worth telling. Blocks until `deadline_ns` at most. `control` and `sink` outlive the
  /// paths.
  virtual Result<std::vector<std::unique_ptr<Path>>> open(const SegmentDescriptor& peer,
                                                          ControlCalls& control,
                                                          CompletionSink& sink,
                                                          uint64_t deadline_ns) = 0;

  /// Tells about buffers that a peer registered (or dropped) after open(). Does not block.
  virtual void update(Path& path, const SegmentDescriptor& peer) = 0;

  /// Answers what ControlCalls::call() of a peer asks. `request` is hostile. Must not block long.
  virtual Result<std::vector<uint8_t>> answer(std::span<const uint8_t> request) = 0;

  /// Figures for metrics and `status`: (name, value).
  virtual std::vector<std::pair<std::string, uint64_t>> stats() const = 0;
};

}  // namespace hicache
