// libFuzzer's entry. One program per target: HICACHE_FUZZ_TARGET names the function of targets.h.
#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  hicache::fuzz::HICACHE_FUZZ_TARGET({bytes, size});
  return 0;
}
