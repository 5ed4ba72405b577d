// Takes the cost of the first write out of the first copy.
//
// The first write into an OS page has to set its dirty bit, in a virtual machine at several times
// the price of the copy itself: on an H200 machine the first copy into fresh host memory ran at 22
// GB/s and later ones at 53. Writing one byte per OS page beforehand, with many threads, makes the
// first copy as fast as the rest.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "transfer/copy_threads.h"

namespace hicache {

/// Writes to every OS page of a range and changes no byte, even if others write at the same time.
/// Requires: the memory is mapped and writable. Blocks until done or until the deadline.
/// Returns false if the deadline came first.
bool write_each_page(uint8_t* address, uint64_t size, CopyThreads& threads, Deadline deadline);

}  // namespace hicache
