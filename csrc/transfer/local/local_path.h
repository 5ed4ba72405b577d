// A way to one incarnation of a peer on this machine.
//
// Small ops are copied by the thread that submits them, as long as they are few; the others by the
// transport's copy threads. Ops on a buffer that is not known yet wait until the peer has told of
// it, or for their deadline.
//
// Threads: any; no method from inside a CompletionSink but submit().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "transfer/device_staging.h"
#include "transfer/local/copy_queue.h"
#include "transfer/local/peer_link.h"
#include "transfer/transport.h"

namespace hicache {

struct LocalCounters {
  std::atomic<uint64_t> paths{0};  // Open now.
  std::atomic<uint64_t> read_bytes{0};
  std::atomic<uint64_t> written_bytes{0};
  std::atomic<uint64_t> inline_ops{0};  // Copied inside submit().
  std::atomic<uint64_t> queued_ops{0};
  std::atomic<uint64_t> failed_ops{0};
};

class LocalPath : public Path {
 public:
  /// `queue`, `staging`, `loop` and `counters` outlive it; `sink` as Transport::open() says.
  LocalPath(std::shared_ptr<PeerLink> link, CopyQueue& queue, DeviceStaging& staging, IoLoop& loop,
            CompletionSink& sink, LocalCounters& counters);
  ~LocalPath() override;

  const std::string& name() const override;
  std::string_view device() const override { return {}; }
  PathCost cost() const override;
  uint64_t slice_size_bytes() const override;
  size_t submit(std::span<const Op> ops) override;
  Status probe() override;
  void close() override;

  PeerLink& link() const;

 private:
  class State;
  const std::shared_ptr<State> state_;
};

}  // namespace hicache
