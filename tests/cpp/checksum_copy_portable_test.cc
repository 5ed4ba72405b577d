// The copy as CPUs without AVX2 run it: the source once more, without SIMD, under another name.
#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic ignored "-Wtsan"  // One thread copies here; no fence is put to the test.
#endif
#define HICACHE_PORTABLE_COPY
#define hicache hicache_portable
#include "transfer/checksum_copy.cc"  // NOLINT: on purpose
#undef hicache

#define HICACHE_COPY ::hicache_portable
#define HICACHE_COPY_SUITE ChecksumCopyPortable
#include "checksum_copy_cases.h"
