// The local transport: one-sided copies between engines of one machine and one user.
//
// A peer is on this machine if its abstract unix socket, which its endpoint() names, answers with
// proof of the secret and of the epoch, and belongs to the same user. Over that socket come, for
// each buffer of the peer, its range and, if it lies in a sealed memfd, the memfd: it is mapped,
// for reading only unless the peer lets others write, and copied to and from by plain stores. Other
// memory is copied by process_vm_readv/writev where the system permits (probed with a nonce; with
// Yama the peer names one requester at a time as its tracer). Memory of this same process is
// copied as it is. The bytes that come over the socket are checked here, before anything is
// touched: nothing outside a range that the peer registered is ever read or written.
//
// Small ops are copied inside submit(), larger ones in pieces by `copy_threads` threads.
//
// What is promised when memory goes away:
//   * unregister_buffer(): once it returns, no requester touches the buffer. Each requester says in
//     memory that it shares with the owner which buffer it is about to touch, before each piece of
//     1 MiB at most, and then looks whether that buffer is still there (use_table.h). So an idle or
//     stopped requester costs nothing; one in the middle of a piece is waited for, for about 100
//     us. One that is stopped (SIGSTOP, a debugger) right in a piece is waited for a second. What
//     it has mapped cannot be taken from it, nor can a copy by the kernel be called back: until it
//     goes on or dies untouched() says so, and the memory must stay as it is.
//   * A mapping outlives the owner's: what a requester still maps of a dead peer can be read, not
//     used; ops end with kUnavailable and the mapping goes with the path.
//   * Death of a peer is seen through its socket and its pidfd at once, and looked for after each
//     piece. A process id that is used again is never touched: both are looked at before each
//     piece.
//   * What cannot be promised: a deadline inside a piece. A copy that the kernel holds up (swap, a
//     fault that user space answers) ends late.
//
// Memory of a GPU: between engines of one process any memory is copied to any other, by the CUDA
// driver; memory that is neither a GPU's nor pinned goes through pinned slots. To and from memory
// of another process's CPU the local end may be a GPU's, through slots as well. A buffer on a GPU
// of another process is kUnsupported: TCP has it.
//
// Not here: choosing this transport before others.
//
// Threads: any. Paths must be destroyed before their transport, and no path inside a
// CompletionSink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "net/greeting.h"
#include "transfer/transport.h"

namespace hicache {

struct LocalOptions {
  uint64_t epoch;  // Of this engine; not 0.
  Secret secret;
  size_t copy_threads;  // For ops that are not copied in the caller's thread; at least 1.
};

/// kIo: no threads or descriptors are to be had. kNoSpace: no memory for the shared tables.
Result<std::unique_ptr<Transport>> make_local_transport(const LocalOptions& options);

}  // namespace hicache
