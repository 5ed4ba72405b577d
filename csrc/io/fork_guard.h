// Sockets that children must not keep.
//
// A child that is forked, and runs no other program, has all descriptors of its parent: as long as
// it lives, peers do not see that the parent has died, and its port stays taken. In each child the
// sockets that are kept here are replaced by /dev/null. Not closed: the objects that own them exist
// in the child too, and what those might close must not be somebody else's by then.
//
// A socket is known by its number and its inode, so that closing it needs no word to this.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <functional>

#include "io/fd.h"

namespace hicache {

/// Keeps what `make` returns, a new socket or none, from children. `make` must not block: forks
/// wait for it, so that none falls in between. errno is as `make` left it.
Fd made_kept_from_children(const std::function<int()>& make);

/// The same for one that exists already.
void keep_from_children(const Fd& socket);

/// Grows in each child: what was noted before a fork differs after it.
uint32_t fork_count();

}  // namespace hicache
