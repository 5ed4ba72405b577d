// Between Python objects and the core's types. Called with the GIL held.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "store/page_record.h"
#include "transfer/segment.h"

namespace hicache {

/// One result per key, as numpy sees it.
using CodeArray = nanobind::ndarray<nanobind::numpy, uint8_t, nanobind::ndim<1>>;
/// Addresses or sizes given by numpy.
using U64Array = nanobind::ndarray<const uint64_t, nanobind::c_contig, nanobind::device::cpu>;

/// Raises the class of mooncake_hicache.errors that belongs to the code.
[[noreturn]] void raise(const Status& status);
void raise_if_error(const Status& status);

/// 32 bytes, or 64 hexadecimal digits.
Key key_from(nanobind::handle object);

/// A sequence of keys, or one bytes-like object of n * 32 bytes.
std::vector<Key> keys_from(nanobind::handle object);

/// "local", "rdma" or "tcp"; raises.
TransportKind transport_from(const std::string& name);
/// 0, 1 or 2.
Pin pin_from(int value);
/// 1 … kReplicaCountMax.
uint8_t replica_count_from(int value);

CodeArray to_numpy(std::vector<Code> codes);

/// Parses JSON of the core. Bytes in it that are no text become replacement characters.
nanobind::object json_to_python(const std::string& json);

}  // namespace hicache
