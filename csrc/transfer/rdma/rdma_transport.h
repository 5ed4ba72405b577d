// The RDMA transport: one-sided READ and WRITE over reliable connected queue pairs.
//
// A rail is one port of one device. A path is a pair of rails, one at each end, and owns a few
// queue pairs of its own; the other end's queue pairs only answer. Queue pairs are exchanged over
// the engine's control connection (rdma_wire.h), when a path is first used, after they were lost,
// and after they were evicted because too many are open (endpoint_cache.h).
//
// Not here: how libibverbs is found (io/verbs.h), options (rdma_options.h), GPU memory.
//
// Threads: everything may be called from any thread. Each device has a thread that waits for
// completions, for trouble that the device tells and for deadlines; one more connects. Paths must
// be destroyed before their transport, and no path inside a CompletionSink.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transfer/transport.h"

namespace hicache {

class Verbs;

struct RdmaOptions {
  uint64_t epoch;        // The engine's; peers that mean another incarnation are refused.
  std::string devices;   // "": all; "mlx5_0,mlx5_1/2": those, or that port.
  std::string settings;  // JSON, see rdma_options.h; "": all as it comes.
};

/// `verbs` outlives the transport. kUnsupported: no usable device, with the reason for each;
/// kInvalidArgument: the options. `notices` tells which devices are left out, and why.
Result<std::unique_ptr<Transport>> make_rdma_transport(const RdmaOptions& options,
                                                       const Verbs& verbs,
                                                       std::vector<std::string>& notices);

}  // namespace hicache
