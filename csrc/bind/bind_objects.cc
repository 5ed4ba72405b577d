// Named objects of any size over a client's pages: what `mooncake.store` is made of.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "bind/bind.h"
#include "bind/convert.h"
#include "store/client.h"
#include "store/object_page.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hicache {
namespace {

constexpr uint64_t kPieceSizeMax = uint64_t{1} << 47;
// Of a page, looked at to find its name; for longer names it is looked at once more.
constexpr uint64_t kFirstLookSize = 512;

/// The objects of a call: keys, and the heads of their pages.
struct Names {
  std::vector<std::string> names;
  std::vector<Key> keys;
  std::vector<std::vector<uint8_t>> heads;

  /// Hashes; needs no GIL.
  void resolve(bool with_heads) {
    for (const std::string& name : names) {
      keys.push_back(object_key(name));
      if (with_heads) heads.push_back(object_head(name));
    }
  }
};

Names names_from(nb::handle list) {
  Names names;
  for (nb::handle item : list) {
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    if (PyUnicode_Check(item.ptr())) {
      bytes = const_cast<char*>(PyUnicode_AsUTF8AndSize(item.ptr(), &size));
      if (bytes == nullptr) throw nb::python_error();
    } else if (PyBytes_AsStringAndSize(item.ptr(), &bytes, &size) != 0) {
      throw nb::python_error();
    }
    if (static_cast<size_t>(size) > kObjectNameSizeMax) {
      raise(Status(Code::kInvalidArgument, "a name has " + std::to_string(size) +
                                               " bytes; the longest has " +
                                               std::to_string(kObjectNameSizeMax)));
    }
    names.names.emplace_back(bytes, static_cast<size_t>(size));
  }
  return names;
}

uint64_t number_from(nb::handle item) {
  const nb::object index = nb::steal(PyNumber_Index(item.ptr()));
  if (!index.is_valid()) throw nb::python_error();
  const unsigned long long value = PyLong_AsUnsignedLongLong(index.ptr());
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

/// Memory of the objects of a call: for each one piece (a number) or several (a list).
using Pieces = std::vector<std::vector<MemorySegment>>;

std::vector<MemorySegment> segments_from(nb::handle addresses, nb::handle sizes) {
  std::vector<MemorySegment> segments;
  const auto add = [&](nb::handle address, nb::handle size_object) {
    const uint64_t size = number_from(size_object);
    if (size > kPieceSizeMax) {
      raise(Status(Code::kInvalidArgument,
                   "a size is " + std::to_string(size) + ": no piece of memory is that large"));
    }
    segments.push_back({reinterpret_cast<uint8_t*>(number_from(address)), size});
  };
  if (!PySequence_Check(addresses.ptr())) {
    add(addresses, sizes);
    return segments;
  }
  const size_t count = nb::len(addresses);
  if (nb::len(sizes) != count) {
    raise(Status(Code::kInvalidArgument, "an object has " + std::to_string(count) +
                                             " addresses and another number of sizes"));
  }
  for (size_t i = 0; i < count; ++i) add(addresses[i], sizes[i]);
  return segments;
}

Pieces pieces_from(nb::handle addresses, nb::handle sizes, size_t count) {
  if (nb::len(addresses) != count || nb::len(sizes) != count) {
    raise(Status(Code::kInvalidArgument,
                 "names, addresses and sizes differ in length: give one of each per object"));
  }
  Pieces pieces;
  for (size_t i = 0; i < count; ++i) pieces.push_back(segments_from(addresses[i], sizes[i]));
  return pieces;
}

nb::list numbers_to_list(const std::vector<uint64_t>& numbers) {
  nb::list list;
  for (const uint64_t number : numbers) list.append(number);
  return list;
}

uint64_t total(const std::vector<MemorySegment>& segments) {
  uint64_t size = 0;
  for (const MemorySegment& segment : segments) size += segment.size;
  return size;
}

/// Appends the first `size` bytes of `segments`.
void append_first(const std::vector<MemorySegment>& segments, uint64_t size,
                  std::vector<MemorySegment>& target) {
  for (const MemorySegment& segment : segments) {
    const uint64_t part = std::min(segment.size, size);
    if (part != 0) target.push_back({segment.address, part});
    size -= part;
  }
}

/// Reads objects: the heads are compared, the rest of each page goes where `target_of` says.
class Reading {
 public:
  explicit Reading(Names& names) : names_(names), found_(names.names.size()) {}

  /// `target_of(i, size, segments)`: false if the object is not wanted there.
  template <typename TargetOf>
  void run(Client& client, size_t name_space, TargetOf target_of) {
    names_.resolve(true);
    found_ = names_.heads;  // Of the same sizes.
    sizes_.assign(names_.names.size(), 0);
    refused_.assign(names_.names.size(), 0);
    client.get(
        name_space, names_.keys,
        [&](size_t i, uint64_t page_size, std::vector<MemorySegment>& segments) {
          if (page_size <= found_[i].size()) return false;
          std::fill(found_[i].begin(), found_[i].end(), uint8_t{0});
          segments.push_back({found_[i].data(), found_[i].size()});
          sizes_[i] = page_size - found_[i].size();
          refused_[i] = !target_of(i, sizes_[i], segments);
          return refused_[i] == 0;
        },
        codes_);
    for (size_t i = 0; i < codes_.size(); ++i) {
      if (refused_[i] != 0) codes_[i] = Code::kInvalidArgument;
      if (codes_[i] == Code::kOk && found_[i] != names_.heads[i]) codes_[i] = Code::kNotFound;
    }
  }

  std::vector<Code>& codes() { return codes_; }
  const std::vector<uint64_t>& sizes() const { return sizes_; }

 private:
  Names& names_;
  std::vector<std::vector<uint8_t>> found_;
  std::vector<uint64_t> sizes_;
  std::vector<uint8_t> refused_;
  std::vector<Code> codes_;
};

CodeArray put(Client& self, size_t name_space, nb::handle list, nb::handle addresses,
              nb::handle sizes, int pin, uint64_t ttl_ms, bool replace, int replicas,
              uint64_t ssd_wait_ms) {
  Names names = names_from(list);
  const Pieces pieces = pieces_from(addresses, sizes, names.names.size());
  Client::PutOptions options;
  options.replace = replace;
  options.pin = pin_from(pin);
  options.ttl_ms = ttl_ms;
  options.replica_count = replica_count_from(replicas);
  options.ssd_wait_ms = ssd_wait_ms;
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    names.resolve(true);
    self.put(
        name_space, names.keys,
        [&](size_t i, std::vector<MemorySegment>& segments) {
          segments.push_back({names.heads[i].data(), names.heads[i].size()});
          append_first(pieces[i], UINT64_MAX, segments);
        },
        options, codes);
  }
  return to_numpy(std::move(codes));
}

nb::tuple get_into(Client& self, size_t name_space, nb::handle list, nb::handle addresses,
                   nb::handle sizes) {
  Names names = names_from(list);
  const Pieces pieces = pieces_from(addresses, sizes, names.names.size());
  Reading reading(names);
  {
    nb::gil_scoped_release no_gil;
    reading.run(self, name_space,
                [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
                  if (total(pieces[i]) < size) return false;
                  append_first(pieces[i], size, segments);
                  return true;
                });
  }
  return nb::make_tuple(to_numpy(std::move(reading.codes())), numbers_to_list(reading.sizes()));
}

/// Values are bytes objects, made when their sizes are known.
nb::tuple get(Client& self, size_t name_space, nb::handle list) {
  Names names = names_from(list);
  std::vector<nb::object> values(names.names.size());
  Reading reading(names);
  {
    nb::gil_scoped_release no_gil;
    reading.run(
        self, name_space, [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
          nb::gil_scoped_acquire gil;
          PyObject* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
          if (bytes == nullptr) {
            PyErr_Clear();
            return false;
          }
          values[i] = nb::steal(bytes);
          segments.push_back({reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(bytes)), size});
          return true;
        });
  }
  nb::list result;
  for (size_t i = 0; i < values.size(); ++i) {
    result.append(reading.codes()[i] == Code::kOk ? values[i] : nb::none());
  }
  return nb::make_tuple(to_numpy(std::move(reading.codes())), result);
}

CodeArray lookup(Client& self, size_t name_space, nb::handle list, bool lease) {
  Names names = names_from(list);
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    names.resolve(false);
    self.lookup(name_space, names.keys, {lease, false}, codes);
  }
  return to_numpy(std::move(codes));
}

nb::tuple sizes(Client& self, size_t name_space, nb::handle list) {
  Names names = names_from(list);
  std::vector<uint64_t> sizes;
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    names.resolve(true);
    self.sizes(name_space, names.keys, sizes, codes);
    for (size_t i = 0; i < codes.size(); ++i) {
      if (codes[i] != Code::kOk) continue;
      if (sizes[i] <= names.heads[i].size()) codes[i] = Code::kNotFound;
      sizes[i] -= std::min<uint64_t>(sizes[i], names.heads[i].size());
    }
  }
  return nb::make_tuple(to_numpy(std::move(codes)), numbers_to_list(sizes));
}

CodeArray remove(Client& self, size_t name_space, nb::handle list) {
  Names names = names_from(list);
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    names.resolve(false);
    self.remove(name_space, names.keys, codes);
  }
  return to_numpy(std::move(codes));
}

CodeArray set_pin(Client& self, size_t name_space, nb::handle list, int pin) {
  Names names = names_from(list);
  const Pin wanted = pin_from(pin);
  std::vector<Code> codes;
  {
    nb::gil_scoped_release no_gil;
    names.resolve(false);
    self.set_pin(name_space, names.keys, wanted, codes);
  }
  return to_numpy(std::move(codes));
}

/// Adds the names of the pages whose heads tell them, and leaves the other keys in `keys`.
Status add_names(Client& client, size_t name_space, Client::HeadsOptions options,
                 std::vector<Key>& keys, std::vector<std::string>& names) {
  std::vector<std::vector<uint8_t>> heads;
  std::vector<Code> codes;
  client.heads(name_space, keys, options, heads, codes);
  std::vector<Key> unknown;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (codes[i] == Code::kNotFound || codes[i] == Code::kCorrupt) continue;
    if (codes[i] != Code::kOk) {
      return Status(codes[i],
                    "an object is there whose name could not be read in time; list again");
    }
    std::optional<std::string> name = object_name(heads[i], keys[i]);
    if (name.has_value()) {
      names.push_back(std::move(*name));
    } else {
      unknown.push_back(keys[i]);
    }
  }
  keys.swap(unknown);
  return Status();
}

/// Adds the names that the list itself tells. Returns the other keys.
std::vector<Key> take_names(const ListReply& listed, std::vector<std::string>& names) {
  std::vector<Key> unknown;
  size_t at = 0;
  for (size_t i = 0; i < listed.keys.size(); ++i) {
    const size_t size = listed.head_sizes.empty() ? 0 : listed.head_sizes[i];
    std::optional<std::string> name =
        object_name(std::span(listed.heads).subspan(at, size), listed.keys[i]);
    at += size;
    if (name.has_value()) {
      names.push_back(std::move(*name));
    } else {
      unknown.push_back(listed.keys[i]);
    }
  }
  return unknown;
}

nb::tuple list(Client& self, size_t name_space, uint64_t cursor) {
  std::vector<std::string> names;
  const Status status = [&]() -> Status {
    nb::gil_scoped_release no_gil;
    const bool are_elsewhere = cursor >= kListMembers;
    ListReply listed;
    HICACHE_RETURN_IF_ERROR(self.list(name_space, &cursor, listed));
    std::vector<Key> keys = take_names(listed, names);
    for (const uint64_t size : {kFirstLookSize, kObjectHeadSizeMax}) {
      if (keys.empty()) break;
      HICACHE_RETURN_IF_ERROR(add_names(self, name_space, {size, are_elsewhere}, keys, names));
    }
    return Status();
  }();
  raise_if_error(status);
  nb::list result;
  for (const std::string& name : names) result.append(nb::bytes(name.data(), name.size()));
  return nb::make_tuple(result, cursor == kListEnd ? nb::none() : nb::object(nb::int_(cursor)));
}

/// Bytes that nobody else has, for whoever takes them by address or by the buffer protocol.
struct OwnBytes {
  nb::bytes value;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const nb::bytes& value = nb::inst_ptr<OwnBytes>(self)->value;
  return PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(value.ptr()),
                           static_cast<Py_ssize_t>(value.size()), 0, flags);
}

PyType_Slot buffer_handle_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                                     {0, nullptr}};

void bind_buffer_handle(nb::module_& m) {
  nb::class_<OwnBytes>(m, "BufferHandle", nb::type_slots(buffer_handle_slots),
                       "An object that was read. It lives as long as this, or a view of it.")
      .def(
          "__init__",
          [](OwnBytes* self, nb::bytes value) { new (self) OwnBytes{std::move(value)}; }, "value"_a,
          "Takes bytes that nobody else uses.")
      .def(
          "ptr",
          [](const OwnBytes& self) {
            return reinterpret_cast<uintptr_t>(PyBytes_AS_STRING(self.value.ptr()));
          },
          "Return the address of the first byte.")
      .def(
          "size", [](const OwnBytes& self) { return self.value.size(); },
          "Return how many bytes there are.")
      .def("__len__", [](const OwnBytes& self) { return self.value.size(); });
}

}  // namespace

void bind_objects(nb::module_& m, nb::class_<Client>& client) {
  bind_buffer_handle(m);
  client
      .def("object_put", &put, "namespace"_a, "names"_a, "addresses"_a, "sizes"_a, nb::kw_only(),
           "pin"_a, "ttl_ms"_a, "replace"_a, "replicas"_a = 1, "ssd_wait_ms"_a = 0,
           "Store objects: for each an address and a size, or lists of them that are gathered.\n"
           "`ssd_wait_ms`: for so long it waits for an SSD to take what it would push out.\n"
           "OK: stored; ALREADY_EXISTS: nothing to do.")
      .def("object_get_into", &get_into, "namespace"_a, "names"_a, "addresses"_a, "sizes"_a,
           "Read objects into memory at least as large as they are; returns codes and sizes.\n"
           "INVALID_ARGUMENT: the memory is too small.")
      .def("object_get", &get, "namespace"_a, "names"_a,
           "Return codes, and each object as bytes, or None.")
      .def("object_lookup", &lookup, "namespace"_a, "names"_a, nb::kw_only(), "lease"_a,
           "Return OK or NOT_FOUND per name.")
      .def("object_sizes", &sizes, "namespace"_a, "names"_a,
           "Return codes and sizes; nothing is copied.")
      .def("object_remove", &remove, "namespace"_a, "names"_a)
      .def("object_set_pin", &set_pin, "namespace"_a, "names"_a, "pin"_a)
      .def("object_list", &list, "namespace"_a, "cursor"_a,
           "Return some of the names in the cluster and the next cursor. Begin with 0; None: that "
           "was\n"
           "all. What stays at one node all the while is listed at least once. Raises "
           "UnavailableError\n"
           "if a node of the cluster, or its master, does not answer.");
}

}  // namespace hicache
