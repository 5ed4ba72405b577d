// XXH3 compiled for AVX2, whatever the rest is compiled for. Nothing but xxHash may be included
// after the pragma: an inline function of a shared header, compiled here, could be the one that the
// linker keeps for everybody.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2")
#define XXH_VECTOR 2  // XXH_AVX2
#include <xxhash.h>

#include "transfer/tcp/slice_checksum_table.h"

namespace hicache {

const ChecksumTable kChecksumAvx2 = HICACHE_CHECKSUM_TABLE;

}  // namespace hicache

#pragma GCC pop_options

#endif
