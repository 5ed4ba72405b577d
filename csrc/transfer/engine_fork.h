// What a forked child has of its parent's engine: nothing.
//
// None of the engine's threads runs in the child, its locks may be taken for ever, and its sockets
// are gone (io/fork_guard.h). So there nothing is asked of it: every method says kClosed, and its
// destruction leaves the engine where it is.
//
// Threads: as TransferEngine.
#pragma once

#include <memory>

#include "transfer/engine.h"

namespace hicache {

/// The same engine, for the process that calls this.
std::unique_ptr<TransferEngine> refuse_after_fork(std::unique_ptr<TransferEngine> engine);

}  // namespace hicache
