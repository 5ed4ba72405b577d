// The greeting (greeting.h) over a connected socket or stream, for callers that may block.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/status.h"
#include "io/fd.h"
#include "net/greeting.h"
#include "net/stream.h"

namespace hicache {

/// The client's side. Returns the server's epoch. kUnavailable: the peer does not know the secret,
/// is another incarnation, speaks another version, or is gone; the message says which and what to
/// do. kTimeout.
Result<uint64_t> greet_server(const Fd& socket, const Secret& secret, const Greeting& greeting,
                              Deadline deadline);
Result<uint64_t> greet_server(Stream& stream, const Secret& secret, const Greeting& greeting,
                              Deadline deadline);

/// The server's side; for a thread of its own with a short deadline.
Result<Greeting> greet_client(const Fd& socket, const Secret& secret, uint64_t own_epoch,
                              Deadline deadline);

}  // namespace hicache
