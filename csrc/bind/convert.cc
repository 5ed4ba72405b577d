#include "bind/convert.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <memory>

namespace nb = nanobind;

namespace hicache {
namespace {

/// Value of each hexadecimal digit; 0xFF for everything else.
constexpr std::array<uint8_t, 256> kHexDigits = [] {
  std::array<uint8_t, 256> digits{};
  digits.fill(0xFF);
  for (uint8_t i = 0; i < 10; ++i) digits['0' + i] = i;
  for (uint8_t i = 0; i < 6; ++i) digits['a' + i] = digits['A' + i] = 10 + i;
  return digits;
}();

bool decode_hex(const char* text, size_t size, Key* key) {
  if (size != 2 * kKeySize) return false;
  uint8_t invalid = 0;  // Looked at once at the end: branches would cost more than the digits.
  for (size_t i = 0; i < kKeySize; ++i) {
    const uint8_t high = kHexDigits[static_cast<uint8_t>(text[2 * i])];
    const uint8_t low = kHexDigits[static_cast<uint8_t>(text[2 * i + 1])];
    invalid |= high | low;
    key->bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return (invalid & 0xF0) == 0;
}

/// "INVALID_ARGUMENT" of "InvalidArgument": how Python names enumerators.
std::string python_name(Code code) {
  std::string name;
  for (const char c : code_name(code)) {
    if (std::isupper(static_cast<unsigned char>(c)) != 0 && !name.empty()) name += '_';
    name += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

}  // namespace

void raise(const Status& status) {
  const nb::object find =
      nb::module_::import_("mooncake_hicache.errors").attr("class_for_code_name");
  const nb::object type = find(python_name(status.code()));
  PyErr_SetString(type.ptr(), status.message().c_str());
  throw nb::python_error();
}

void raise_if_error(const Status& status) {
  if (!status.ok()) raise(status);
}

Key key_from(nb::handle object) {
  Key key;
  if (PyBytes_Check(object.ptr()) && PyBytes_GET_SIZE(object.ptr()) == kKeySize) {
    std::memcpy(key.bytes.data(), PyBytes_AS_STRING(object.ptr()), kKeySize);
    return key;
  }
  if (PyUnicode_Check(object.ptr())) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
    if (text == nullptr) throw nb::python_error();
    if (decode_hex(text, static_cast<size_t>(size), &key)) return key;
  }
  raise(Status(Code::kInvalidArgument, "a key is 32 bytes or 64 hexadecimal digits, not " +
                                           std::string(nb::repr(object).c_str())));
}

uint8_t replica_count_from(int value) {
  if (value >= 1 && value <= kReplicaCountMax) return static_cast<uint8_t>(value);
  raise(Status(Code::kInvalidArgument, "replicas = " + std::to_string(value) + ": give 1 to " +
                                           std::to_string(kReplicaCountMax)));
}

Pin pin_from(int value) {
  if (value >= 0 && value < kPinCount) return static_cast<Pin>(value);
  raise(Status(Code::kInvalidArgument,
               "pin = " + std::to_string(value) + ": 0 is none, 1 soft, 2 hard"));
}

std::vector<Key> keys_from(nb::handle object) {
  std::vector<Key> keys;
  if (PySequence_Check(object.ptr()) && !PyBytes_Check(object.ptr()) &&
      !PyByteArray_Check(object.ptr()) && !PyMemoryView_Check(object.ptr()) &&
      !PyUnicode_Check(object.ptr())) {
    const nb::object fast = nb::steal(PySequence_Fast(object.ptr(), "keys must be a sequence"));
    if (!fast.is_valid()) throw nb::python_error();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
    keys.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      keys.push_back(key_from(PySequence_Fast_GET_ITEM(fast.ptr(), i)));
    }
    return keys;
  }
  Py_buffer buffer;
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_SIMPLE) != 0) throw nb::python_error();
  const auto size = static_cast<size_t>(buffer.len);
  if (size % kKeySize == 0) {
    keys.resize(size / kKeySize);
    std::copy_n(static_cast<const uint8_t*>(buffer.buf), size,
                reinterpret_cast<uint8_t*>(keys.data()));
  }
  PyBuffer_Release(&buffer);
  if (size % kKeySize != 0) {
    raise(Status(Code::kInvalidArgument, "packed keys have " + std::to_string(size) +
                                             " bytes, which is not a multiple of 32"));
  }
  return keys;
}

CodeArray to_numpy(std::vector<Code> codes) {
  static_assert(sizeof(Code) == 1);
  auto owned = std::make_unique<std::vector<Code>>(std::move(codes));
  auto* first = reinterpret_cast<uint8_t*>(owned->data());
  const size_t size = owned->size();
  nb::capsule owner(owned.release(), [](void* released) noexcept {
    const std::unique_ptr<std::vector<Code>> last(static_cast<std::vector<Code>*>(released));
  });
  return CodeArray(first, {size}, owner);
}

nb::object json_to_python(const std::string& json) {
  const nb::bytes bytes(json.data(), json.size());
  return nb::module_::import_("json").attr("loads")(bytes.attr("decode")("utf-8", "replace"));
}

TransportKind transport_from(const std::string& name) {
  for (const TransportKind kind :
       {TransportKind::kLocal, TransportKind::kTcp, TransportKind::kRdma}) {
    if (name == transport_name(kind)) return kind;
  }
  raise(Status(Code::kInvalidArgument,
               "transport \"" + name + "\": choose from \"local\", \"rdma\" and \"tcp\""));
}

}  // namespace hicache
