// The owner's end of the local transport: listens on the abstract unix socket and tells requesters
// that have proven themselves what they may touch.
//
// Runs on an IoLoop's thread; nothing here blocks. Who is not this user, does not know the secret,
// or breaks the protocol is closed, counted, and costs no memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "io/io_loop.h"
#include "net/greeting.h"
#include "transfer/local/own_buffers.h"

namespace hicache {

struct LocalServerCounters {
  std::atomic<uint64_t> requesters{0};  // Connected now.
  std::atomic<uint64_t> refused{0};     // Another user, no proof, or too many.
  std::atomic<uint64_t> hostile{0};     // Closed for what came over them.
};

/// What the sources of the loop share.
struct LocalServerSetup {
  Secret secret;
  uint64_t epoch;
  std::shared_ptr<OwnBuffers> buffers;
  LocalServerCounters* counters;  // Outlives the loop.
  IoLoop* loop;
};

/// Listens until the loop ends. kIo: the socket cannot be had.
Status start_local_server(const LocalServerSetup& setup);

/// A descriptor that is readable when that process has ended, all of its threads; invalid where the
/// system has none.
Fd open_pidfd(pid_t pid);

}  // namespace hicache
