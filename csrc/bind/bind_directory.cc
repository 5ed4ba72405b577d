// The directory for Python: what a master hosts, and what asks it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/convert.h"
#include "bind/own_process.h"
#include "bind/without_gil.h"
#include "directory/directory_client.h"
#include "directory/directory_server.h"

namespace nb = nanobind;

namespace hicache {
namespace {

/// Host and port.
using Address = std::pair<std::string, uint16_t>;

constexpr uint64_t kBackOffMinMs = 20;
constexpr uint64_t kBackOffMaxMs = 500;
constexpr size_t kCallsMax = 1024;

const char* name_of(NodeState state) {
  switch (state) {
    case NodeState::kJoining:
      return "joining";
    case NodeState::kAnnouncing:
      return "announcing";
    case NodeState::kLive:
      return "live";
    case NodeState::kDraining:
      return "draining";
    case NodeState::kSuspect:
      return "suspect";
    case NodeState::kGone:
      break;
  }
  return "gone";
}

/// Null without files.
std::shared_ptr<TlsContext> tls_from(const TlsContext::Files& files) {
  if (files.certificate.empty() && files.key.empty() && files.authority.empty()) return nullptr;
  Result<std::shared_ptr<TlsContext>> tls = TlsContext::load(files);
  raise_if_error(tls.status());
  return std::move(tls.value());
}

nb::list to_python(const std::vector<MemberView>& members) {
  nb::list found;
  for (const MemberView& view : members) {
    nb::dict one;
    one["name"] = view.member.name;
    one["state"] = name_of(view.state);
    one["incarnation"] = view.member.incarnation;
    one["addresses"] = view.member.addresses;
    one["failure_domain"] = view.member.failure_domain;
    one["pages"] = view.page_count;
    one["capacity_bytes"] = view.member.capacity_bytes;
    one["free_bytes"] = view.member.free_bytes;
    one["load"] = view.member.load_permille / 1000.0;
#define HICACHE_FIELD(name) one[#name] = view.member.tally.name;
    HICACHE_NODE_TALLY(HICACHE_FIELD)
#undef HICACHE_FIELD
    found.append(one);
  }
  return found;
}

struct PythonDirectory {
  OwnProcessPtr<DirectoryServer> server;

  explicit PythonDirectory(const DirectoryServer::Options& options) {
    server = of_own_process(without_gil([&] { return DirectoryServer::start(options); }));
  }
  ~PythonDirectory() {
    nb::gil_scoped_release no_gil;  // It waits for threads.
    server.reset();
  }
};

std::unique_ptr<PythonDirectory> make_directory(const nb::dict& given) {
  const auto text = [&](const char* name) { return nb::cast<std::string>(given[name]); };
  const auto number = [&](const char* name) { return nb::cast<uint64_t>(given[name]); };
  const auto small = [&](const char* name) { return nb::cast<uint32_t>(given[name]); };
  const DirectoryServer::Options options{
      .host = text("host"),
      .port_min = nb::cast<uint16_t>(given["port_min"]),
      .port_max = nb::cast<uint16_t>(given["port_max"]),
      .secret = secret_from_text(text("secret")),
      .tls = tls_from({text("tls_certificate"), text("tls_key"), text("tls_authority")}),
      .connections_max = number("connections_max"),
      .stall_timeout_ms = number("stall_timeout_ms"),
      .directory = {.nodes_max = small("nodes_max"),
                    .pages_max = number("pages_max"),
                    .holdings_max = small("holdings_max"),
                    .heartbeat_interval_ms = small("heartbeat_interval_ms"),
                    .silence_max_ms = number("silence_max_ms"),
                    .probe_interval_ms = number("probe_interval_ms"),
                    .probe_timeout_ms = number("probe_timeout_ms"),
                    .is_elected = nb::cast<bool>(given["is_elected"])},
  };
  return std::make_unique<PythonDirectory>(options);
}

nb::dict stats_of(const PythonDirectory& self) {
  std::vector<std::pair<std::string, uint64_t>> stats;
  {
    nb::gil_scoped_release no_gil;
    stats = self.server->stats();
  }
  nb::dict found;
  for (const auto& [name, value] : stats) found[name.c_str()] = value;
  return found;
}

nb::list members_of(const PythonDirectory& self) {
  std::vector<MemberView> members;
  {
    nb::gil_scoped_release no_gil;
    members = self.server->members();
  }
  return to_python(members);
}

struct PythonDirectoryClient {
  OwnProcessPtr<DirectoryClient> client;

  explicit PythonDirectoryClient(DirectoryClient::Options options) {
    client =
        of_own_process(without_gil([&] { return DirectoryClient::start(std::move(options)); }));
  }
  ~PythonDirectoryClient() {
    nb::gil_scoped_release no_gil;
    client.reset();
  }

  /// Waits for a connection to one that leads, so that what is raised tells why there is none.
  template <typename Reply, typename Request>
  Reply call(const Request& request, uint64_t timeout_ms) const {
    const Deadline deadline = Deadline::after_ms(timeout_ms);
    Reply reply = without_gil([&]() -> Result<Reply> {
      uint64_t tried = 0;
      for (;;) {
        HICACHE_RETURN_IF_ERROR(client->wait_connected(deadline, tried));
        tried = client->connection_number();
        Result<Reply> answer = client->call<Reply>(request, deadline);
        // The client goes on to another address.
        if (answer.ok() || answer.status().code() != Code::kNotLeader) return answer;
      }
    });
    if (reply.head.code != Code::kOk) {
      raise(Status(reply.head.code, "the directory refused what it was asked for"));
    }
    return reply;
  }
};

std::unique_ptr<PythonDirectoryClient> make_client(const std::vector<Address>& addresses,
                                                   const std::string& secret,
                                                   const std::string& tls_certificate,
                                                   const std::string& tls_key,
                                                   const std::string& tls_authority,
                                                   uint64_t connect_timeout_ms) {
  DirectoryClient::Options options{
      .addresses = {},
      .secret = secret_from_text(secret),
      .tls = tls_from({tls_certificate, tls_key, tls_authority}),
      .connect_timeout_ms = connect_timeout_ms,
      .back_off_min_ms = kBackOffMinMs,
      .back_off_max_ms = kBackOffMaxMs,
      .calls_max = kCallsMax,
      .on_orders = nullptr,
  };
  for (const auto& [host, port] : addresses) options.addresses.push_back({host, port});
  return std::make_unique<PythonDirectoryClient>(std::move(options));
}

/// Names come from descriptions, which may be cut anywhere.
nb::object text_from(const std::string& text) {
  return nb::steal(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

nb::tuple quotas_of(const PythonDirectoryClient& self, uint64_t timeout_ms) {
  const auto reply = self.call<QuotasReply>(QuotasRequest{}, timeout_ms);
  nb::dict quotas;
  for (const TenantQuota& quota : reply.quotas) {
    if (quota.size_bytes != 0) quotas[text_from(quota.name)] = quota.size_bytes;
  }
  nb::dict uses;
  for (const TenantUse& use : reply.uses) {
    nb::dict one;
    one["limit_bytes"] = use.limit_bytes;
    one["used_bytes"] = use.used_bytes;
    one["reserved_bytes"] = use.reserved_bytes;
    one["pages"] = use.page_count;
    uses[text_from(use.name)] = one;
  }
  return nb::make_tuple(quotas, uses);
}

void set_quota(const PythonDirectoryClient& self, std::string tenant, uint64_t size_bytes,
               uint64_t timeout_ms) {
  if (tenant.empty() || tenant.size() > kTenantNameSizeMax) {
    raise(Status(Code::kInvalidArgument, "a tenant's name has 1 to " +
                                             std::to_string(kTenantNameSizeMax) + " bytes, not " +
                                             std::to_string(tenant.size())));
  }
  QuotasRequest request;
  request.quotas.push_back({.name = std::move(tenant), .size_bytes = size_bytes});
  self.call<QuotasReply>(request, timeout_ms);
}

NamespaceDigest digest_from(nb::handle object) {
  static_assert(sizeof(NamespaceDigest) == sizeof(Key));
  NamespaceDigest digest;
  const Key key = key_from(object);
  std::memcpy(&digest, &key, sizeof(digest));
  return digest;
}

nb::list locate(const PythonDirectoryClient& self, nb::handle digest, nb::handle keys,
                bool is_prefix, uint8_t replicas_max, uint64_t timeout_ms) {
  LocateRequest request;
  request.digest = digest_from(digest);
  request.is_prefix = is_prefix;
  request.replicas_max = replicas_max;
  request.keys = keys_from(keys);
  if (request.keys.size() > kLocateKeysMax || replicas_max < 1 || replicas_max > kReplicasMax) {
    raise(Status(Code::kInvalidArgument,
                 std::to_string(request.keys.size()) + " keys, " + std::to_string(replicas_max) +
                     " replicas of each: ask for at most " + std::to_string(kLocateKeysMax) +
                     " keys and 1 to " + std::to_string(kReplicasMax) + " replicas at a time"));
  }
  const size_t key_count = request.keys.size();
  const auto reply = self.call<LocateReply>(request, timeout_ms);
  nb::list found;
  size_t next = 0;
  for (size_t i = 0; i < key_count; ++i) {
    nb::list replicas;
    const size_t count = i < reply.counts.size() ? reply.counts[i] : 0;
    for (size_t end = next + count; next < end; ++next) {
      const Replica& one = reply.replicas[next];
      replicas.append(nb::make_tuple(one.node, one.tiers, one.generation));
    }
    found.append(replicas);
  }
  return found;
}

void bind_server(nb::module_& m) {
  nb::class_<PythonDirectory>(
      m, "Directory",
      "The directory of a cluster, served at a TCP port by a thread of its own.\n\n"
      "It leads nobody until lead() is called. Every method may be called from any thread.")
      .def(nb::new_([](const nb::dict& options) { return make_directory(options); }),
           nb::arg("options"))
      .def_prop_ro("port", [](const PythonDirectory& self) { return self.server->port(); })
      .def_prop_ro(
          "epoch", [](const PythonDirectory& self) { return self.server->epoch(); },
          "0: it does not lead.")
      .def_prop_ro(
          "newest_epoch_heard",
          [](const PythonDirectory& self) { return self.server->newest_epoch_heard(); },
          "The newest epoch that anybody spoke of. Above its own: another may lead.")
      .def(
          "lead",
          [](PythonDirectory& self, uint64_t epoch) {
            nb::gil_scoped_release no_gil;
            self.server->lead(epoch);
          },
          nb::arg("epoch"),
          "Lead from now on, with nothing known; 0: no longer. Done when it returns.")
      .def("stats", &stats_of, "Return counters and gauges. Waits for the directory's thread.")
      .def("members", &members_of, "Return what is known of each node. Waits likewise.")
      .def(
          "notices_since",
          [](const PythonDirectory& self, uint64_t known) {
            const std::vector<std::string> found = self.server->notices_since(known);
            return nb::make_tuple(known, found);
          },
          nb::arg("known"),
          "Return how many notices there ever were, and the newest of them without the first\n"
          "`known`: who was refused for speaking another version.")
      .def(
          "stop",
          [](PythonDirectory& self) {
            nb::gil_scoped_release no_gil;
            self.server->stop();
          },
          "Close every connection and end the threads. May be called again.");
}

void bind_asking(nb::module_& m) {
  nb::class_<PythonDirectoryClient>(
      m, "DirectoryClient",
      "Asks whichever of several directories leads.\n\n"
      "It connects by itself, again and again. Any thread. Calls raise UnavailableError or\n"
      "TimeoutError_ with the cause when nobody answers that leads.")
      .def(nb::new_(&make_client), nb::kw_only(), nb::arg("addresses"), nb::arg("secret"),
           nb::arg("tls_certificate") = "", nb::arg("tls_key") = "", nb::arg("tls_authority") = "",
           nb::arg("connect_timeout_ms") = 2000)
      .def_prop_ro(
          "epoch", [](const PythonDirectoryClient& self) { return self.client->epoch(); },
          "The newest epoch heard of.")
      .def(
          "members",
          [](const PythonDirectoryClient& self, uint64_t timeout_ms) {
            return to_python(self.call<MembersReply>(MembersRequest{}, timeout_ms).members);
          },
          nb::arg("timeout_ms"), "Return what the directory knows of each node.")
      .def("locate", &locate, nb::arg("digest"), nb::arg("keys"), nb::arg("is_prefix") = false,
           nb::arg("replicas_max") = 1, nb::arg("timeout_ms") = 1000,
           "Return for each key who has the page: (index of the node, tiers, generation).")
      .def(
          "drain",
          [](const PythonDirectoryClient& self, const std::string& name, bool is_on,
             uint64_t timeout_ms) {
            self.call<PlainReply>(DrainRequest{.is_on = is_on, .name = name}, timeout_ms);
          },
          nb::arg("name"), nb::arg("is_on") = true, nb::kw_only(), nb::arg("timeout_ms") = 5000,
          "Have a node give its pages away, or end that.")
      .def("quotas", &quotas_of, nb::arg("timeout_ms") = 5000,
           "Return the bytes that each tenant may use of all nodes' memory, by name; and what "
           "those\n"
           "use that have a quota anywhere, by name: limits and bytes of all nodes together.")
      .def("set_quota", &set_quota, nb::arg("tenant"), nb::arg("size_bytes"), nb::kw_only(),
           nb::arg("timeout_ms") = 5000,
           "Say what a tenant may use of all nodes' memory; 0: it has no quota any more.")
      .def(
          "clear",
          [](const PythonDirectoryClient& self, nb::handle digest, uint64_t timeout_ms) {
            ClearSpaceRequest request;
            request.digest = digest_from(digest);
            return self.call<ClearSpaceReply>(request, timeout_ms).replica_count;
          },
          nb::arg("digest"), nb::kw_only(), nb::arg("timeout_ms") = 5000,
          "Have all nodes forget a namespace; return how many replicas were known.")
      .def(
          "stop",
          [](PythonDirectoryClient& self) {
            nb::gil_scoped_release no_gil;
            self.client->stop();
          },
          "End the connection. May be called again.");
}

}  // namespace

void bind_directory(nb::module_& m) {
  bind_server(m);
  bind_asking(m);
}

}  // namespace hicache
