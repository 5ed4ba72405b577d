// Memory of a GPU as a dma-buf, through which other devices reach it without the CPU.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "io/fd.h"

namespace hicache {

struct GpuDmabuf {
  Fd fd;
  uint64_t offset;  // Where the range begins in it.
};

/// Of any range of a buffer in memory of a GPU. Fails where the driver or the machine has none of
/// it. Blocks for a system call.
///
/// Threads: any.
Result<GpuDmabuf> gpu_dmabuf_of(uint64_t address, uint64_t size);

}  // namespace hicache
