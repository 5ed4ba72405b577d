#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/convert.h"
#include "bind/own_process.h"
#include "store/node.h"

namespace nb = nanobind;

namespace hicache {
namespace {

HugePages parse_huge_pages(const std::string& text) {
  if (text == "never") return HugePages::kNever;
  if (text == "auto") return HugePages::kAuto;
  if (text == "always") return HugePages::kAlways;
  raise(Status(Code::kInvalidArgument,
               "huge_pages = \"" + text + "\": choose \"auto\", \"always\" or \"never\""));
}

EvictionKind parse_eviction(const std::string& text) {
  const auto kind = parse_eviction_kind(text);
  if (kind) return *kind;
  raise(Status(Code::kInvalidArgument,
               "eviction_policy = \"" + text + "\": choose \"adaptive\", \"lru\" or \"s3fifo\""));
}

IoEngine parse_io(const std::string& text) {
  if (text == "auto") return IoEngine::kAuto;
  if (text == "io_uring") return IoEngine::kUring;
  if (text == "threads") return IoEngine::kThreads;
  raise(Status(Code::kInvalidArgument,
               "ssd_io = \"" + text + "\": choose \"auto\", \"io_uring\" or \"threads\""));
}

double share_from(const char* name, double value) {
  if (value >= 0 && value <= 1) return value;
  raise(Status(Code::kInvalidArgument,
               std::string(name) + " = " + std::to_string(value) + ": give a share from 0 to 1"));
}

/// Path, limit and what is left to others on its file system, in bytes.
using NamedDirectory = std::tuple<std::string, uint64_t, uint64_t>;

ClusterOptions cluster_from(const nb::dict& given) {
  const auto text = [&](const char* name) { return nb::cast<std::string>(given[name]); };
  const auto number = [&](const char* name) { return nb::cast<uint64_t>(given[name]); };
  ClusterOptions options{
      .masters = {},
      .name = text("name"),
      .bind_host = text("bind_host"),
      .public_host = text("public_host"),
      .port_min = nb::cast<uint16_t>(given["port_min"]),
      .port_max = nb::cast<uint16_t>(given["port_max"]),
      .failure_domain = text("failure_domain"),
      .secret = secret_from_text(text("secret")),
      .tls = {text("tls_certificate"), text("tls_key"), text("tls_authority")},
      .connect_timeout_ms = number("connect_timeout_ms"),
      .back_off_min_ms = number("back_off_min_ms"),
      .back_off_max_ms = number("back_off_max_ms"),
      .call_timeout_ms = number("call_timeout_ms"),
      .peers = {.transports = {},
                .tcp_lanes = number("tcp_lanes"),
                .tcp_io_threads = number("tcp_io_threads"),
                .tcp_checksum = nb::cast<bool>(given["tcp_checksum"]),
                .local_copy_threads = number("local_copy_threads"),
                .rdma_devices = text("rdma_devices"),
                .peers_max = number("peers_max"),
                .lookup_timeout_ms = number("lookup_timeout_ms"),
                .stall_timeout_ms = number("stall_timeout_ms"),
                .fetch_timeout_ms = number("fetch_timeout_ms"),
                .call_timeout_ms = number("peer_call_timeout_ms"),
                .staging_share = nb::cast<double>(given["staging_share"])},
  };
  using Address = std::pair<std::string, uint16_t>;
  for (const auto& [host, port] : nb::cast<std::vector<Address>>(given["masters"])) {
    options.masters.push_back({host, port});
  }
  for (const auto& name : nb::cast<std::vector<std::string>>(given["transports"])) {
    options.peers.transports.push_back(transport_from(name));
  }
  return options;
}

struct PythonNode {
  OwnProcessPtr<Node> node;

  PythonNode(std::string socket_path, uint64_t pool_size_bytes, uint64_t pool_size_max_bytes,
             const std::string& huge_pages, int numa_node, const std::string& eviction_policy,
             uint64_t read_lease_ttl_ms, uint64_t lookup_lease_ttl_ms, double lookup_lease_share,
             double hard_pin_share, uint64_t reservation_ttl_ms, uint32_t clients_max,
             const std::vector<NamedDirectory>& ssd_directories, uint64_t ssd_region_size_bytes,
             bool ssd_write_through, uint64_t ssd_write_budget_bytes, const std::string& ssd_io,
             bool ssd_staging, Quotas quotas, const std::optional<nb::dict>& cluster) {
    Node::Options options{
        .socket_path = std::move(socket_path),
        .pool_size_bytes = pool_size_bytes,
        .pool_size_max_bytes = pool_size_max_bytes,
        .huge_pages = parse_huge_pages(huge_pages),
        .numa_node = numa_node,
        .eviction = parse_eviction(eviction_policy),
        .read_lease_ttl_ms = read_lease_ttl_ms,
        .lookup_lease_ttl_ms = lookup_lease_ttl_ms,
        .lookup_lease_share = share_from("lookup_lease_share", lookup_lease_share),
        .hard_pin_share = share_from("hard_pin_share", hard_pin_share),
        .reservation_ttl_ms = reservation_ttl_ms,
        .clients_max = clients_max,
        .ssd = {.directories = {},
                .region_size_bytes = ssd_region_size_bytes,
                .write_through = ssd_write_through,
                .write_budget_bytes = ssd_write_budget_bytes,
                .engine = parse_io(ssd_io),
                .staging = ssd_staging,
                .read_lease_ttl_ms = read_lease_ttl_ms,
                .lookup_lease_ttl_ms = lookup_lease_ttl_ms,
                .staging_share = share_from("lookup_lease_share", lookup_lease_share)},
        .quotas = std::move(quotas),
    };
    for (const auto& [path, limit_bytes, free_min_bytes] : ssd_directories) {
      options.ssd.directories.push_back({path, limit_bytes, free_min_bytes});
    }
    if (cluster) options.cluster = cluster_from(*cluster);
    Result<std::unique_ptr<Node>> started = [&] {
      nb::gil_scoped_release no_gil;
      return Node::start(std::move(options));
    }();
    raise_if_error(started.status());
    node = of_own_process(std::move(started.value()));
  }

  ~PythonNode() {
    nb::gil_scoped_release no_gil;
    node.reset();
  }
};

nb::object stats_of(const PythonNode& self) {
  Result<std::string> json = [&] {
    nb::gil_scoped_release no_gil;
    return self.node->stats_json();
  }();
  raise_if_error(json.status());
  return json_to_python(json.value());
}

bool flush(PythonNode& self, uint64_t timeout_ms) {
  const nb::gil_scoped_release no_gil;
  return self.node->flush(timeout_ms);
}

bool drain(PythonNode& self, uint64_t timeout_ms) {
  const nb::gil_scoped_release no_gil;
  return self.node->drain(timeout_ms);
}

}  // namespace

void bind_node(nb::module_& m) {
  nb::class_<PythonNode>(
      m, "Node",
      "A node: a pool of shared memory and the index of its pages, served on a unix socket.\n\n"
      "One thread of its own; every method may be called from any thread. Sizes are bytes, times\n"
      "milliseconds, shares 0 to 1. A `socket_path` that starts with \"@\" is abstract: no file.")
      .def(nb::init<std::string, uint64_t, uint64_t, const std::string&, int, const std::string&,
                    uint64_t, uint64_t, double, double, uint64_t, uint32_t,
                    const std::vector<NamedDirectory>&, uint64_t, bool, uint64_t,
                    const std::string&, bool, Quotas, const std::optional<nb::dict>&>(),
           nb::kw_only(), nb::arg("socket_path"), nb::arg("pool_size_bytes"),
           nb::arg("pool_size_max_bytes"), nb::arg("huge_pages"), nb::arg("numa_node"),
           nb::arg("eviction_policy"), nb::arg("read_lease_ttl_ms"), nb::arg("lookup_lease_ttl_ms"),
           nb::arg("lookup_lease_share"), nb::arg("hard_pin_share"), nb::arg("reservation_ttl_ms"),
           nb::arg("clients_max"), nb::arg("ssd_directories"), nb::arg("ssd_region_size_bytes"),
           nb::arg("ssd_write_through"), nb::arg("ssd_write_budget_bytes"), nb::arg("ssd_io"),
           nb::arg("ssd_staging"), nb::arg("quotas"), nb::arg("cluster") = nb::none())
      .def_prop_ro("socket_path", [](const PythonNode& self) { return self.node->socket_path(); })
      .def_prop_ro(
          "incarnation", [](const PythonNode& self) { return self.node->incarnation(); },
          "Differs between any two lives of a node.")
      .def(
          "notices_since",
          [](const PythonNode& self, uint64_t known) {
            const std::vector<std::string> found = self.node->notices_since(known);
            return nb::make_tuple(known, found);
          },
          nb::arg("known"),
          "Return how many notices there ever were, and the newest of them without the first\n"
          "`known`: what could not be had, and what has failed since.")
      .def("stats", &stats_of, "Return counters and gauges. Waits up to 2 s for the node's thread.")
      .def(
          "wait_stopped",
          [](PythonNode& self, uint64_t timeout_ms) {
            nb::gil_scoped_release no_gil;
            return self.node->wait_stopped(timeout_ms);
          },
          nb::arg("timeout_ms"),
          "Block until a client asked the node to stop, or stop() was called; False at the "
          "time-out.")
      .def("flush", &flush, nb::arg("timeout_ms"),
           "Write everything worth keeping to the SSDs; it serves meanwhile. Block until that is\n"
           "done: True. False: the time-out came first, or there is no SSD to write to. May be "
           "called\n"
           "again: `ssd_flush_left_bytes` of stats() tells how much is left.")
      .def(
          "drain", &drain, nb::arg("timeout_ms"),
          "Have the cluster know that this node is about to leave, and other nodes take what it "
          "has\n"
          "in memory; it serves meanwhile. Block until each page is safe or given up: True. "
          "False:\n"
          "the time-out came first, or there is no master or no other node. `drain_left_bytes` of\n"
          "stats() tells how much is left.")
      .def(
          "idle_ms", [](const PythonNode& self) { return self.node->idle_ms(); },
          "Return the milliseconds since the last client left, 0 while there is one.")
      .def(
          "stop",
          [](PythonNode& self) {
            nb::gil_scoped_release no_gil;
            self.node->stop();
          },
          "Close every connection and end the thread. May be called again.");
}

}  // namespace hicache
