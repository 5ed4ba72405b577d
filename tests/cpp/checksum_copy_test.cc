// The copy as it is built for this machine.
#include "transfer/checksum_copy.h"

#define HICACHE_COPY ::hicache
#define HICACHE_COPY_SUITE ChecksumCopy
#include "checksum_copy_cases.h"
