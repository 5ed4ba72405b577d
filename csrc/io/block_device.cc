#include "io/block_device.h"

#include <cassert>

#include "io/thread_device.h"
#include "io/uring_device.h"

namespace hicache {

Result<std::unique_ptr<BlockDevice>> BlockDevice::make(const Options& options) {
  assert(options.depth >= 1 && options.depth <= kDepthMax);
  if (options.engine == IoEngine::kThreads) return ThreadDevice::make(options);
  auto made = UringDevice::make(options);
  if (made.ok() || options.engine == IoEngine::kUring) return made;
  return ThreadDevice::make(options);
}

}  // namespace hicache
