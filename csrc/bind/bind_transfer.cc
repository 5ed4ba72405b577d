#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "bind/bind.h"
#include "bind/convert.h"
#include "bind/without_gil.h"
#include "transfer/engine.h"

namespace nb = nanobind;

namespace hicache {
namespace {

using ByteArray = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

constexpr uint64_t kMs = 1'000'000;

uint64_t deadline_after(uint64_t timeout_ms) {
  return monotonic_ns() + std::min(timeout_ms, kTimeoutMaxMs) * kMs;
}

Direction direction_of(bool write) {
  return write ? Direction::kWrite : Direction::kRead;
}

Priority priority_of(bool background) {
  return background ? Priority::kBackground : Priority::kUrgent;
}

/// Numbers of a uint64 array, or of any sequence of integers.
class Numbers {
 public:
  Numbers(const char* name, nb::handle object) {
    if (nb::try_cast(object, array_, false) && array_.ndim() == 1) {
      first_ = array_.data();
      size_ = array_.size();
      return;
    }
    const nb::object items = nb::steal(PySequence_Fast(object.ptr(), ""));
    if (!items.is_valid()) {
      PyErr_Clear();
      raise(Status(Code::kInvalidArgument,
                   std::string(name) + ": give a uint64 array or a list of integers"));
    }
    PyObject** item = PySequence_Fast_ITEMS(items.ptr());
    const auto count = static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
    own_.reserve(count);
    for (size_t i = 0; i < count; ++i) own_.push_back(number_from(name, i, item[i]));
    first_ = own_.data();
    size_ = count;
  }

  size_t size() const { return size_; }
  uint64_t operator[](size_t i) const { return first_[i]; }

 private:
  static uint64_t number_from(const char* name, size_t index, PyObject* object) {
    const nb::object number = nb::steal(PyNumber_Index(object));  // numpy's integers too.
    const uint64_t value = number.is_valid() ? PyLong_AsUnsignedLongLong(number.ptr()) : 0;
    if (PyErr_Occurred() == nullptr) return value;
    PyErr_Clear();
    raise(Status(Code::kInvalidArgument, std::string(name) + "[" + std::to_string(index) +
                                             "] is no number from 0 to 2^64"));
  }

  U64Array array_;
  std::vector<uint64_t> own_;
  const uint64_t* first_ = nullptr;
  size_t size_ = 0;
};

std::vector<TransferRequest> requests_from(bool write, nb::handle local, nb::handle remote,
                                           nb::handle sizes) {
  const Numbers locals("local_addresses", local);
  const Numbers remotes("remote_addresses", remote);
  const Numbers all_sizes("sizes", sizes);
  if (remotes.size() != locals.size() || all_sizes.size() != locals.size()) {
    raise(Status(Code::kInvalidArgument, std::to_string(locals.size()) + " local addresses, " +
                                             std::to_string(remotes.size()) + " remote ones and " +
                                             std::to_string(all_sizes.size()) +
                                             " sizes: give as many of each"));
  }
  std::vector<TransferRequest> requests(locals.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i] = {direction_of(write), locals[i], remotes[i], all_sizes[i]};
  }
  return requests;
}

nb::tuple to_python(const BatchState& state) {
  return nb::make_tuple(state.is_done, state.bytes_done, state.status.code(),
                        state.status.message());
}

struct PythonTransferEngine {
  std::unique_ptr<TransferEngine> engine;
  std::vector<std::string> notices;

  explicit PythonTransferEngine(const TransferEngine::Options& options) {
    engine = without_gil([&] { return TransferEngine::start(options, notices); });
  }
  ~PythonTransferEngine() {
    nb::gil_scoped_release no_gil;  // It waits for threads.
    engine.reset();
  }

  uint64_t transfer(SegmentId segment, std::span<const TransferRequest> requests, bool background,
                    uint64_t timeout_ms) const {
    const BatchState state = without_gil([&] {
      return engine->transfer(segment, requests, priority_of(background),
                              deadline_after(timeout_ms));
    });
    raise_if_error(state.status);
    return state.bytes_done;
  }
};

using Self = PythonTransferEngine;

std::unique_ptr<Self> make_engine(const nb::dict& given) {
  const auto text = [&](const char* name) { return nb::cast<std::string>(given[name]); };
  const auto number = [&](const char* name) { return nb::cast<uint64_t>(given[name]); };
  TransferEngine::Options options{
      .name = text("name"),
      .bind_host = text("bind_host"),
      .public_host = text("public_host"),
      .port_min = nb::cast<uint16_t>(given["port_min"]),
      .port_max = nb::cast<uint16_t>(given["port_max"]),
      .secret = secret_from_text(text("secret")),
      .tls = {text("tls_certificate"), text("tls_key"), text("tls_authority")},
      .transports = {},
      .slice_size_bytes = number("slice_size_bytes"),
      .spin_us = nb::cast<unsigned>(given["spin_us"]),
      .tries_max = nb::cast<unsigned>(given["tries_max"]),
      .batches_max = number("batches_max"),
      .requests_max = number("requests_max"),
      .slices_max = number("slices_max"),
      .tcp_lanes = number("tcp_lanes"),
      .tcp_io_threads = number("tcp_io_threads"),
      .tcp_checksum = nb::cast<bool>(given["tcp_checksum"]),
      .local_copy_threads = number("local_copy_threads"),
      .rdma_devices = text("rdma_devices"),
      .rdma_options = text("rdma_options"),
      .topology = text("topology"),
  };
  for (const auto& name : nb::cast<std::vector<std::string>>(given["transports"])) {
    options.transports.push_back(transport_from(name));
  }
  return std::make_unique<Self>(options);
}

ByteArray allocate(nb::handle_t<Self> self, uint64_t size_bytes) {
  const TransferEngine& engine = *nb::cast<Self&>(self).engine;
  const uint64_t address =
      without_gil([&] { return const_cast<TransferEngine&>(engine).allocate_memory(size_bytes); });
  // The array holds the engine, and with it the mapping.
  return ByteArray(reinterpret_cast<uint8_t*>(address), {size_bytes}, self);
}

nb::dict describe(const Self& self, SegmentId segment, uint64_t timeout_ms) {
  const SegmentDescriptor descriptor =
      without_gil([&] { return self.engine->describe(segment, deadline_after(timeout_ms)); });
  nb::list buffers;
  for (const BufferDescriptor& buffer : descriptor.buffers) {
    nb::dict item;
    item["id"] = buffer.id;
    item["address"] = buffer.address;
    item["size"] = buffer.size;
    item["location"] = buffer.location;
    item["writable"] = buffer.remote_write;
    buffers.append(item);
  }
  nb::dict result;
  result["name"] = descriptor.name;
  result["epoch"] = descriptor.epoch;
  result["version"] = descriptor.version;
  result["buffers"] = buffers;
  return result;
}

nb::list take_notices(const Self& self) {
  nb::list notices;
  for (const Notice& notice : self.engine->take_notices()) {
    const auto text = [](const std::string& bytes) {
      return nb::bytes(bytes.data(), bytes.size()).attr("decode")("utf-8", "replace");
    };
    notices.append(nb::make_tuple(text(notice.from), text(notice.name), text(notice.message)));
  }
  return notices;
}

void bind_batches(nb::class_<Self>& engine) {
  using namespace nb::literals;
  engine
      .def(
          "transfer_one",
          [](const Self& self, SegmentId segment, bool write, uint64_t local_address,
             uint64_t remote_address, uint64_t size, bool background, uint64_t timeout_ms) {
            const TransferRequest request{direction_of(write), local_address, remote_address, size};
            return self.transfer(segment, {&request, 1}, background, timeout_ms);
          },
          "segment"_a, "write"_a, "local_address"_a, "remote_address"_a, "size"_a, "background"_a,
          "timeout_ms"_a, "Move one range and wait for it; return the bytes moved.")
      .def(
          "transfer",
          [](const Self& self, SegmentId segment, bool write, nb::handle local_addresses,
             nb::handle remote_addresses, nb::handle sizes, bool background, uint64_t timeout_ms) {
            return self.transfer(segment,
                                 requests_from(write, local_addresses, remote_addresses, sizes),
                                 background, timeout_ms);
          },
          "segment"_a, "write"_a, "local_addresses"_a, "remote_addresses"_a, "sizes"_a,
          "background"_a, "timeout_ms"_a, "Move many ranges and wait for them all.")
      .def(
          "submit",
          [](const Self& self, SegmentId segment, bool write, nb::handle local_addresses,
             nb::handle remote_addresses, nb::handle sizes, bool background, uint64_t timeout_ms) {
            const auto requests = requests_from(write, local_addresses, remote_addresses, sizes);
            return without_gil([&] {
              return self.engine->submit(segment, requests, priority_of(background),
                                         deadline_after(timeout_ms));
            });
          },
          "segment"_a, "write"_a, "local_addresses"_a, "remote_addresses"_a, "sizes"_a,
          "background"_a, "timeout_ms"_a, "Begin to move many ranges; return the batch's number.")
      .def(
          "poll",
          [](const Self& self, BatchId batch) {
            return to_python(without_gil([&] { return self.engine->poll(batch); }));
          },
          "batch"_a, nb::sig("def poll(self, batch: int) -> tuple[bool, int, Code, str]"),
          "Return (is_done, bytes_done, code, message).")
      .def(
          "wait",
          [](const Self& self, BatchId batch, uint64_t timeout_ms) {
            return to_python(
                without_gil([&] { return self.engine->wait(batch, deadline_after(timeout_ms)); }));
          },
          "batch"_a, "timeout_ms"_a,
          nb::sig("def wait(self, batch: int, timeout_ms: int) -> tuple[bool, int, Code, str]"),
          "Block until the batch is done or the time-out; return as `poll`.")
      .def(
          "release",
          [](const Self& self, BatchId batch) {
            without_gil([&] { return self.engine->release(batch); });
          },
          "batch"_a, "Forget a batch; block until nothing of it is in flight.");
}

void bind_memory(nb::class_<Self>& engine) {
  using namespace nb::literals;
  engine
      .def(
          "register_memory",
          [](const Self& self, uint64_t address, uint64_t size, const std::string& location,
             bool remote_write) {
            without_gil([&] {
              return self.engine->register_memory(address, size, location, remote_write);
            });
          },
          "address"_a, "size"_a, "location"_a, "remote_write"_a)
      .def(
          "unregister_memory",
          [](const Self& self, uint64_t address) {
            without_gil([&] { return self.engine->unregister_memory(address); });
          },
          "address"_a, "Once this returns no peer touches the range.")
      .def("allocate_memory", &allocate, "size_bytes"_a,
           nb::sig("def allocate_memory(self, size_bytes: int) -> "
                   "numpy.typing.NDArray[numpy.uint8]"),
           "Return registered memory that peers of this machine can map.")
      .def(
          "free_memory",
          [](const Self& self, uint64_t address) {
            without_gil([&] { return self.engine->free_memory(address); });
          },
          "address"_a, "Unmap what allocate_memory() gave. Nothing may look at it any more.");
}

void bind_peers(nb::class_<Self>& engine) {
  using namespace nb::literals;
  engine
      .def(
          "open_segment",
          [](const Self& self, const std::string& address, uint64_t timeout_ms) {
            return without_gil(
                [&] { return self.engine->open_segment(address, deadline_after(timeout_ms)); });
          },
          "address"_a, "timeout_ms"_a, "Connect to the engine at \"host:port\".")
      .def(
          "close_segment",
          [](const Self& self, SegmentId segment) {
            nb::gil_scoped_release no_gil;
            self.engine->close_segment(segment);
          },
          "segment"_a)
      .def(
          "is_lost",
          [](const Self& self, SegmentId segment) { return self.engine->is_lost(segment); },
          "segment"_a, "Whether the peer is gone.")
      .def("describe", &describe, "segment"_a, "timeout_ms"_a,
           nb::sig("def describe(self, segment: int, timeout_ms: int) -> dict[str, typing.Any]"))
      .def(
          "notify",
          [](const Self& self, SegmentId segment, const std::string& name,
             const std::string& message, uint64_t timeout_ms) {
            without_gil([&] {
              return self.engine->notify(segment, name, message, deadline_after(timeout_ms));
            });
          },
          "segment"_a, "name"_a, "message"_a, "timeout_ms"_a)
      .def("take_notices", &take_notices,
           nb::sig("def take_notices(self) -> list[tuple[str, str, str]]"),
           "Return (from, name, message) of each, oldest first.")
      .def(
          "probe",
          [](const Self& self, SegmentId segment, uint64_t timeout_ms) {
            without_gil([&] { return self.engine->probe(segment, deadline_after(timeout_ms)); });
          },
          "segment"_a, "timeout_ms"_a);
}

}  // namespace

void bind_transfer(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Self> engine(
      m, "TransferEngine",
      "A transfer engine: see csrc/transfer/engine.h. Any number of threads may call; every call\n"
      "that may wait releases the GIL. Addresses are of this process; `segment` and `batch` are\n"
      "numbers that the engine gave, and bogus ones are refused.");
  engine.def(nb::new_(&make_engine), "options"_a)
      .def_prop_ro("name", [](const Self& self) { return self.engine->name(); })
      .def_prop_ro("port", [](const Self& self) { return self.engine->port(); })
      .def_prop_ro("epoch", [](const Self& self) { return self.engine->epoch(); })
      .def_ro("notices", &Self::notices, "What was asked for and could not be had.")
      .def(
          "stats",
          [](const Self& self) {
            return json_to_python([&] {
              nb::gil_scoped_release no_gil;
              return self.engine->stats();
            }());
          },
          nb::sig("def stats(self) -> dict[str, typing.Any]"))
      .def(
          "set_topology",
          [](const Self& self, const std::string& json) {
            raise_if_error(self.engine->set_topology(json));
          },
          "json"_a, "Prefer rails that are near to the memory they move; \"\": as measured.")
      .def(
          "stop", [](const Self& self) { without_gil([&] { return self.engine->stop(); }); },
          "End everything; block until no byte is in flight. May be called again. A time-out says "
          "that a stopped process may still touch what is registered.");
  bind_memory(engine);
  bind_peers(engine);
  bind_batches(engine);
}

}  // namespace hicache
