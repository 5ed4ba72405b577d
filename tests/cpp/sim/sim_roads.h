// The roads between nodes in the simulated network: links over its streams, with a breaker like
// that of node_link.h; readers that copy out of the other machine's memory, in two steps between
// which anything may happen there.
#pragma once

#include <functional>
#include <memory>

#include "sim/sim_world.h"
#include "store/peer_roads.h"

namespace hicache::testing {

/// A node as others reach it.
struct Neighbour {
  Host* host;
  uint64_t incarnation;
  const uint8_t* pool;
};

class SimRoads : public PeerRoads {
 public:
  /// Who is at a port now; null: nobody.
  using Find = std::function<const Neighbour*(uint16_t port)>;

  SimRoads(World& world, Host& owner, std::string own_name, uint8_t* pool, Find find)
      : world_(world), owner_(owner), own_name_(std::move(own_name)), pool_(pool), find_(find) {}

  Result<std::unique_ptr<PeerLine>> link_to(const HostPort& address, uint64_t incarnation) override;
  std::unique_ptr<PeerReader> reader_of(const PeerHelloReply& peer, PeerReader::Done done) override;

 private:
  World& world_;
  Host& owner_;
  const std::string own_name_;
  uint8_t* const pool_;
  const Find find_;
};

}  // namespace hicache::testing
