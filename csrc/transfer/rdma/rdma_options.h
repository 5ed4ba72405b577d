// Options of the RDMA transport: one JSON object, every name optional, unknown names refused.
//
//   gid_index            which entry of the port's GID table; -1: the best (gid_choice.h)     -1
//   mtu                  path MTU in bytes, 256 … 4096; 0: what both ports can                 0
//   traffic_class        of the packets, 0 … 255 (DSCP * 4)                                    0
//   service_level        0 … 15                                                                0
//   queue_pairs          of each path, 1 … 16                                                  2
//   queue_depth          requests under way on one queue pair, 8 … 8192                      128
//   inline_size_bytes    writes up to this go into the request itself, 0 … 1024              128
//   ack_timeout          4.096 µs * 2^n until a packet is sent again, 1 … 31                  14
//   retry_count          how often, 0 … 6 (7 would be for ever)                                6
//   odp                  page memory in on demand where the device offers it               false
//   relaxed_ordering     let the PCIe fabric reorder what is written                       false
//   all_pairs            paths between all rails, not only between the matching ones        true
//   connections_max      paths connected at once, in each direction; idle ones go           1024
//
// With 14 and 6 a peer that does not answer is noticed after about half a second.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace hicache {

struct RdmaSettings {
  int gid_index;
  unsigned mtu;
  uint8_t traffic_class;
  uint8_t service_level;
  unsigned queue_pairs;
  unsigned queue_depth;
  unsigned inline_size_bytes;
  uint8_t ack_timeout;
  uint8_t retry_count;
  bool odp;
  bool relaxed_ordering;
  bool all_pairs;
  unsigned connections_max;
};

/// kInvalidArgument names the option, its value and what it may be. "": as listed above.
Result<RdmaSettings> parse_rdma_settings(std::string_view json);

}  // namespace hicache
