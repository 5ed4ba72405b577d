// Where a range of this process's memory is: asked of the CUDA driver, if the process uses it.
//
// Threads: any.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace hicache {

struct MemoryPlace {
  int device = -1;         // Of a GPU's memory; -1: the CPU can touch it.
  bool is_pinned = false;  // The CPU's, and devices reach it.

  bool is_on_device() const { return device >= 0; }
};

/// kInvalidArgument: its two ends are in different places. kIo: the driver fails.
Result<MemoryPlace> place_of(uint64_t address, uint64_t size);

}  // namespace hicache
