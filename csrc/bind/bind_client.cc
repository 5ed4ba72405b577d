#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"

#include "bind/bind.h"
#include "bind/convert.h"
#include "bind/own_process.h"
#include "store/client.h"

namespace nb = nanobind;

namespace hicache {
namespace {

constexpr uint64_t kPollMaxUs = 150;

/// Pages of a batch as numpy describes them: addresses[n, s] and sizes[s] or sizes[n, s].
class PageMemory {
 public:
  PageMemory(size_t page_count, const U64Array& addresses, const U64Array& sizes) {
    if (addresses.ndim() != 2 || addresses.shape(0) != page_count) {
      raise(Status(Code::kInvalidArgument, "addresses must be a uint64 array of shape (" +
                                               std::to_string(page_count) +
                                               ", segments): one row per key"));
    }
    segments_ = addresses.shape(1);
    const bool common = sizes.ndim() == 1 && sizes.shape(0) == segments_;
    const bool own =
        sizes.ndim() == 2 && sizes.shape(0) == page_count && sizes.shape(1) == segments_;
    if (!common && !own) {
      raise(Status(Code::kInvalidArgument,
                   "sizes must be a uint64 array of shape (segments,) or of that of addresses"));
    }
    addresses_ = addresses.data();
    sizes_ = sizes.data();
    size_stride_ = own ? segments_ : 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes_[i] <= kSegmentSizeMax) continue;
      raise(Status(Code::kInvalidArgument, "sizes holds " + std::to_string(sizes_[i]) +
                                               ": no piece of memory is that large"));
    }
  }

  void append(size_t page, std::vector<MemorySegment>& segments) const {
    for (size_t s = 0; s < segments_; ++s) {
      const uint64_t size = sizes_[page * size_stride_ + s];
      if (size == 0) continue;
      segments.push_back({reinterpret_cast<uint8_t*>(addresses_[page * segments_ + s]), size});
    }
  }

  bool append_if_size(size_t page, uint64_t size, std::vector<MemorySegment>& segments) const {
    append(page, segments);
    uint64_t wanted = 0;
    for (const MemorySegment& segment : segments) wanted += segment.size;
    return wanted == size;
  }

 private:
  // The address space of a process; sums of as many as fit into memory cannot wrap.
  static constexpr uint64_t kSegmentSizeMax = uint64_t{1} << 47;

  const uint64_t* addresses_;
  const uint64_t* sizes_;
  size_t segments_;
  size_t size_stride_;
};

std::shared_ptr<Client> make_client(unsigned copy_threads, unsigned put_copy_threads,
                                    uint64_t call_timeout_ms, bool verify, std::string name,
                                    uint64_t pool_contribution_bytes) {
  const auto check = [](const char* option, unsigned threads) {
    if (threads >= 1 && threads <= 256) return;
    raise(Status(Code::kInvalidArgument,
                 std::string(option) + " = " + std::to_string(threads) + ": give 1 to 256"));
  };
  check("copy_threads", copy_threads);
  check("put_copy_threads", put_copy_threads);
  return of_own_process(std::make_unique<Client>(
      Client::Options{copy_threads, call_timeout_ms, verify, std::move(name), put_copy_threads,
                      pool_contribution_bytes}));
}

size_t open_namespace(Client& self, const nb::bytes& digest, std::string description) {
  if (digest.size() != kKeySize) {
    raise(Status(Code::kInvalidArgument,
                 "a namespace digest has 32 bytes, not " + std::to_string(digest.size())));
  }
  if (description.size() > kDescriptionSizeMax) description.resize(kDescriptionSizeMax);
  return self.open_namespace(key_from(digest), std::move(description));
}

CodeArray lookup(Client& self, size_t name_space, nb::handle keys, bool lease, bool prefix,
                 uint64_t poll_us, bool resident) {
  // The most that is sent and answered within the time for which it is worth while.
  constexpr size_t kPolledKeysMax = 4096;
  const std::vector<Key> parsed = keys_from(keys);
  std::vector<Code> codes;
  {
    std::optional<nb::gil_scoped_release> no_gil;
    const auto release = [&] {
      if (!no_gil) no_gil.emplace();
    };
    if (poll_us == 0 || parsed.size() > kPolledKeysMax) release();
    // To get the GIL back from a thread that never waits takes its switch interval, 5 ms, and an
    // answer takes a fiftieth of it: so it is given up only when the answer is late.
    const Waiting waiting{monotonic_ns() + std::min(poll_us, kPollMaxUs) * 1000, release};
    self.lookup(name_space, parsed, {lease, prefix, resident}, codes, &waiting);
  }
  return to_numpy(std::move(codes));
}

/// Stages of the segments of a page, checked.
std::vector<uint32_t> stages_from(const LoadStages& stages, size_t part,
                                  const std::optional<U64Array>& stage_of_segment,
                                  const U64Array& sizes) {
  if (part >= stages.part_count()) {
    raise(Status(Code::kInvalidArgument, "part " + std::to_string(part) + ": the load has " +
                                             std::to_string(stages.part_count())));
  }
  const bool has_one_each = stage_of_segment && stage_of_segment->ndim() == 1 &&
                            sizes.ndim() == 1 && sizes.shape(0) == stage_of_segment->shape(0);
  const uint64_t* end = sizes.data() + sizes.size();
  if (!has_one_each || std::find(sizes.data(), end, 0) != end) {
    raise(Status(Code::kInvalidArgument,
                 "a load in stages needs stage_of_segment, a uint64 array with one stage for each "
                 "of sizes[:], none of which is 0"));
  }
  std::vector<uint32_t> found;
  for (size_t i = 0; i < stage_of_segment->shape(0); ++i) {
    const uint64_t stage = stage_of_segment->data()[i];
    if (stage >= stages.stage_count()) {
      raise(Status(Code::kInvalidArgument, "stage_of_segment holds " + std::to_string(stage) +
                                               ": the load has " +
                                               std::to_string(stages.stage_count())));
    }
    found.push_back(static_cast<uint32_t>(stage));
  }
  return found;
}

CodeArray get(Client& self, size_t name_space, nb::handle keys, const U64Array& addresses,
              const U64Array& sizes, int device, LoadStages* stages, size_t part,
              const std::optional<U64Array>& stage_of_segment) {
  const std::vector<Key> parsed = keys_from(keys);
  const PageMemory memory(parsed.size(), addresses, sizes);
  std::vector<uint32_t> stage_of;
  if (stages != nullptr) stage_of = stages_from(*stages, part, stage_of_segment, sizes);
  const Client::GetOptions options{device, stages, part, stage_of};
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    self.get(
        name_space, parsed,
        [&](size_t page, uint64_t size, std::vector<MemorySegment>& segments) {
          return memory.append_if_size(page, size, segments);
        },
        options, codes);
  }
  return to_numpy(std::move(codes));
}

CodeArray put(Client& self, size_t name_space, nb::handle keys, const U64Array& addresses,
              const U64Array& sizes, nb::object parent, bool chained, uint64_t ttl_ms, int pin,
              bool replace, int replicas, int device) {
  const std::vector<Key> parsed = keys_from(keys);
  const PageMemory memory(parsed.size(), addresses, sizes);
  std::optional<Key> parent_key;
  if (!parent.is_none()) parent_key = key_from(parent);
  Client::PutOptions options{parent_key ? &*parent_key : nullptr, chained, replace, pin_from(pin),
                             ttl_ms};
  options.replica_count = replica_count_from(replicas);
  options.device = device;
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    self.put(
        name_space, parsed,
        [&](size_t page, std::vector<MemorySegment>& segments) { memory.append(page, segments); },
        options, codes);
  }
  return to_numpy(std::move(codes));
}

/// Reads whole objects of unknown size into new bytes objects.
nb::list get_bytes_batch(Client& self, size_t name_space, nb::handle keys) {
  const std::vector<Key> parsed = keys_from(keys);
  std::vector<nb::object> values(parsed.size());
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    self.get(
        name_space, parsed,
        [&](size_t page, uint64_t size, std::vector<MemorySegment>& segments) {
          nb::gil_scoped_acquire gil;
          values[page] =
              nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
          if (!values[page].is_valid()) {
            PyErr_Clear();
            return false;
          }
          segments.push_back(
              {reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(values[page].ptr())), size});
          return true;
        },
        codes);
  }
  nb::list result;
  for (size_t i = 0; i < parsed.size(); ++i) {
    result.append(codes[i] == Code::kOk ? values[i] : nb::none());
  }
  return result;
}

nb::object get_bytes(Client& self, size_t name_space, nb::handle key) {
  nb::list keys;
  keys.append(key);
  return get_bytes_batch(self, name_space, keys)[0];
}

CodeArray remove(Client& self, size_t name_space, nb::handle keys) {
  const std::vector<Key> parsed = keys_from(keys);
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    self.remove(name_space, parsed, codes);
  }
  return to_numpy(std::move(codes));
}

CodeArray set_pin(Client& self, size_t name_space, nb::handle keys, int pin) {
  const std::vector<Key> parsed = keys_from(keys);
  const Pin wanted = pin_from(pin);
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    self.set_pin(name_space, parsed, wanted, codes);
  }
  return to_numpy(std::move(codes));
}

uint64_t clear(Client& self, size_t name_space) {
  const Result<uint64_t> count = [&] {
    nb::gil_scoped_release no_gil;
    return self.clear(name_space);
  }();
  raise_if_error(count.status());
  return count.value();
}

nb::object node_stats(Client& self) {
  const Result<std::string> json = [&] {
    nb::gil_scoped_release no_gil;
    return self.node_stats_json();
  }();
  raise_if_error(json.status());
  return json_to_python(json.value());
}

nb::dict client_stats(const Client& self) {
  nb::dict stats;
  stats["connected"] = self.is_connected();
#define HICACHE_FIELD(name) stats[#name] = self.stats().name.load();
  HICACHE_CLIENT_STATS(HICACHE_FIELD)
#undef HICACHE_FIELD
  return stats;
}

void connect(Client& self, const std::string& socket_path, uint64_t timeout_ms) {
  const Status status = [&] {
    nb::gil_scoped_release no_gil;
    return self.connect(socket_path, timeout_ms);
  }();
  raise_if_error(status);
}

void pin_pool(Client& self, int device) {
  const Status status = [&] {
    nb::gil_scoped_release no_gil;
    return self.pin_pool(device);
  }();
  raise_if_error(status);
}

void stop_node(Client& self) {
  const Status status = [&] {
    nb::gil_scoped_release no_gil;
    return self.stop_node();
  }();
  raise_if_error(status);
}

}  // namespace

void bind_client(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Client> client(
      m, "Client",
      "A client of one node. Any number of threads may call; every call releases the GIL, a\n"
      "look-up when its answer does not come at once.\n\n"
      "`keys` is a sequence of 32-byte `bytes` or 64-digit hex `str`, or one bytes-like object of\n"
      "n * 32 bytes, at most 65536 of them. Batch calls return one `Code` per key as a uint8 "
      "array\n"
      "and raise only for misuse: when not connected every item is UNAVAILABLE, at once. No call\n"
      "waits for the node longer than `call_timeout_ms`, and after it returned, whatever the\n"
      "outcome, nothing touches the given memory any more.");
  client
      .def(nb::new_(&make_client), nb::kw_only(), "copy_threads"_a, "put_copy_threads"_a,
           "call_timeout_ms"_a, "verify"_a, "name"_a, "pool_contribution_bytes"_a = 0)
      .def("connect", &connect, "socket_path"_a, "timeout_ms"_a,
           "Connect to the node that listens there, in place of any earlier connection.")
      .def("is_connected", &Client::is_connected)
      .def(
          "wait_disconnected",
          [](const Client& self, uint64_t timeout_ms) {
            nb::gil_scoped_release no_gil;
            return self.wait_disconnected(timeout_ms);
          },
          "timeout_ms"_a, "Block until not connected (True) or the time-out (False).")
      .def("pin_pool", &pin_pool, "device"_a,
           "Pin the node's pool for GPUs in the background, so that the first copies do not wait.")
      .def("open_namespace", &open_namespace, "digest"_a, "description"_a,
           "Return a number for the namespace, valid for this client's life.")
      .def(
          "lookup", &lookup, "namespace"_a, "keys"_a, nb::kw_only(), "lease"_a, "prefix"_a,
          "poll_us"_a, "resident"_a = false,
          "Return OK or NOT_FOUND per key. `lease`: keep what is found for the read to come.\n"
          "`prefix`: everything after the first miss is NOT_FOUND. `poll_us`: for how long the "
          "GIL\n"
          "is kept while a few keys' answer is on its way, in microseconds; 150 at most.\n"
          "`resident`: only what is in the node's memory counts; what is on SSD or on other nodes\n"
          "is brought there meanwhile.")
      .def("get", &get, "namespace"_a, "keys"_a, "addresses"_a, "sizes"_a, nb::kw_only(),
           "device"_a = Client::kCpu, "stages"_a.none() = nb::none(), "part"_a = 0,
           "stage_of_segment"_a.none() = nb::none(),
           "Read pages into memory: page i is scattered over addresses[i, :] with sizes[:] or\n"
           "sizes[i, :]. An object of another total size is NOT_FOUND. `device`: all of it is "
           "memory\n"
           "of that GPU; -1: of the CPU. `stages`: told as they arrive, of part `part`, where\n"
           "stage_of_segment[:] says which stage each of sizes[:] belongs to.")
      .def("put", &put, "namespace"_a, "keys"_a, "addresses"_a, "sizes"_a, nb::kw_only(),
           "parent"_a.none(), "chained"_a, "ttl_ms"_a = 0, "pin"_a = 0, "replace"_a = false,
           "replicas"_a = 1, "device"_a = Client::kCpu,
           "Store pages gathered from memory. OK: stored; ALREADY_EXISTS: nothing to do.")
      .def("get_bytes", &get_bytes, "namespace"_a, "key"_a,
           nb::sig("def get_bytes(self, namespace: int, key: bytes | str) -> bytes | None"),
           "Return an object of any size, or None.")
      .def("get_bytes_batch", &get_bytes_batch, "namespace"_a, "keys"_a,
           "Return each object, or None, in one round trip.")
      .def("remove", &remove, "namespace"_a, "keys"_a)
      .def("set_pin", &set_pin, "namespace"_a, "keys"_a, "pin"_a, "Pin: 0 none, 1 soft, 2 hard.")
      .def("clear", &clear, "namespace"_a, "Drop every page of the namespace; return how many.")
      .def("node_stats", &node_stats, "Return the node's counters and gauges.")
      .def("stats", &client_stats, "Return this client's counters.")
      .def("stop_node", &stop_node, "Ask the node to stop.")
      .def(
          "close",
          [](Client& self) {
            nb::gil_scoped_release no_gil;
            self.disconnect();
          },
          "Break the connection. May be called again.");
  bind_objects(m, client);
}

void bind_stages(nb::module_& m) {
  using namespace nb::literals;
  const auto make = [](LoadStages* self, size_t stage_count, size_t part_count) {
    if (stage_count == 0 || part_count == 0) {
      raise(Status(Code::kInvalidArgument, "a load has at least one stage and one part"));
    }
    new (self) LoadStages(stage_count, part_count);
  };
  nb::class_<LoadStages>(
      m, "LoadStages",
      "Which parts of a load have arrived. A load is made of parts, each a `get` of its own, and\n"
      "of stages that arrive in order. Having a stage is no proof that it is right: that is known\n"
      "when the gets have returned. Any thread may call.")
      .def("__init__", make, "stage_count"_a, "part_count"_a)
      .def_prop_ro("stage_count", &LoadStages::stage_count)
      .def_prop_ro("part_count", &LoadStages::part_count)
      .def(
          "end",
          [](LoadStages& self, size_t part) {
            if (part >= self.part_count()) {
              raise(Status(Code::kInvalidArgument, "there is no part " + std::to_string(part)));
            }
            self.end(part);
          },
          "part"_a, "Have nobody wait for a part; a `get` does so itself when it returns.")
      .def(
          "wait",
          [](const LoadStages& self, size_t stage, uint64_t stream, uint64_t timeout_ms) {
            if (stage >= self.stage_count()) {
              raise(Status(Code::kInvalidArgument, "there is no stage " + std::to_string(stage)));
            }
            nb::gil_scoped_release no_gil;
            return self.wait(stage, reinterpret_cast<GpuStream>(stream),
                             Deadline::after_ms(timeout_ms));
          },
          "stage"_a, "stream"_a, "timeout_ms"_a,
          "Wait until every part has queued the stage on its GPU or ended, and have the CUDA\n"
          "stream `stream` (its address) wait for what is queued. False: the time-out came first.");
}

}  // namespace hicache
