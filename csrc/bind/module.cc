// The compiled module mooncake_hicache._core: the only door between Python and the core.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <bit>

#include "base/status.h"
#include "bind/bind.h"
#include "bind/convert.h"

namespace nb = nanobind;

NB_MODULE(_core, m) {
  using hicache::Code;
  // A forked child keeps its parent's objects alive on purpose, see Store; that is no leak.
  nb::set_leak_warnings(false);
  m.doc() = "The compiled core of mooncake_hicache. Use the modules of the package instead.";
  m.attr("KEY_SIZE") = hicache::kKeySize;
  m.attr("REPLICAS_MAX") = hicache::kReplicaCountMax;
  nb::enum_<Code>(m, "Code", nb::is_arithmetic(), "How one item of a batch ended.")
      .value("OK", Code::kOk)
      .value("NOT_FOUND", Code::kNotFound, "A miss.")
      .value("ALREADY_EXISTS", Code::kAlreadyExists, "Nothing to do: the page is there.")
      .value("BUSY", Code::kBusy, "Nothing was started; try again.")
      .value("TIMEOUT", Code::kTimeout, "It may have happened.")
      .value("UNAVAILABLE", Code::kUnavailable, "Not connected to a node.")
      .value("NOT_LEADER", Code::kNotLeader)
      .value("LEASE_EXPIRED", Code::kLeaseExpired)
      .value("NO_SPACE", Code::kNoSpace, "No room, and nothing that may be evicted.")
      .value("CORRUPT", Code::kCorrupt, "The bytes did not match their checksum; dropped.")
      .value("INVALID_ARGUMENT", Code::kInvalidArgument)
      .value("UNSUPPORTED", Code::kUnsupported)
      .value("CANCELLED", Code::kCancelled, "The namespace was cleared or the put took too long.")
      .value("CLOSED", Code::kClosed)
      .value("IO", Code::kIo)
      .value("INTERNAL", Code::kInternal)
      .value("OVER_QUOTA", Code::kOverQuota,
             "The namespace's tenant may have no more, and none of its pages may be evicted.");
  hicache::bind_node(m);
  hicache::bind_stages(m);
  hicache::bind_client(m);
  hicache::bind_copy(m);
  hicache::bind_eviction(m);
  hicache::bind_transfer(m);
  hicache::bind_directory(m);
}
