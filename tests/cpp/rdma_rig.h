// The RDMA transport under the contract suite, and under tests of its own.
//
// The suite moves whatever memory it has; RDMA wants it registered. So a RegisteringTransport
// stands before the real one: it registers the local range of each op, and drops it when the op is
// completed. The control connection is a real one, with its secret.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/verbs.h"
#include "transport_contract.h"

namespace hicache::testing {

struct RdmaRig {
  const Verbs* verbs;
  std::string devices;
  std::string settings;
};

/// An end whose transport's endpoint also says where its control server listens.
std::unique_ptr<End> make_rdma_end(const RdmaRig& rig, uint64_t epoch, const std::string& secret);

/// Over the fake fabric; over real devices too, if HICACHE_RDMA_DEVICES names some ("rxe0,rxe1"),
/// with the options of HICACHE_RDMA_OPTIONS (rdma_options.h).
std::vector<Rig> rdma_rigs();

}  // namespace hicache::testing
