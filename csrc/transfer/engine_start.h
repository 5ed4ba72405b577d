// The engine around transports that were made before: start() in two steps, so that tests can put
// transports of their own in between.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transfer/engine.h"

namespace hicache {

/// The transports of one engine, best first.
struct TransportSet {
  std::vector<std::unique_ptr<Transport>> transports;
  /// Told where the control server listens, and of TCP lanes that arrive there; may be empty.
  std::function<void(uint16_t port)> set_port;
  std::function<void(Fd lane)> adopt_lane;
};

/// Makes the transports that the options name, as far as they are to be had.
Result<TransportSet> make_transports(const TransferEngine::Options& options, uint64_t epoch,
                                     std::vector<std::string>& notices);

Result<std::unique_ptr<TransferEngine>> start_engine(const TransferEngine::Options& options,
                                                     uint64_t epoch, TransportSet set);

}  // namespace hicache
