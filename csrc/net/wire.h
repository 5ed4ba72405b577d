// Bounded reading and writing of fixed-width little-endian values.
//
// A reader never trusts a count it has not checked against the bytes that are really there, so a
// hostile frame cannot make anyone allocate more than it carries.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/bytes.h"

namespace hicache {

static_assert(std::endian::native == std::endian::little, "wire and pool are little endian");

class WireWriter {
 public:
  /// Appends to `buffer`, which the caller owns.
  explicit WireWriter(std::vector<uint8_t>& buffer) : buffer_(buffer) {}

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    put_bytes(&value, sizeof(value));
  }

  void put_bytes(const void* source, size_t size) {
    if (size == 0) return;
    const size_t old = buffer_.size();
    buffer_.resize(old + size);
    std::memcpy(buffer_.data() + old, source, size);
  }

  void put_string(std::string_view text) {
    put(static_cast<uint32_t>(text.size()));
    put_bytes(text.data(), text.size());
  }

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put_array(std::span<const T> values) {
    put(static_cast<uint32_t>(values.size()));
    put_bytes(values.data(), values.size_bytes());
  }

 private:
  std::vector<uint8_t>& buffer_;
};

class WireReader {
 public:
  explicit WireReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  /// The next value. After the end: a zero value, and ok() turns false for good.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value{};
    if (take(sizeof(T))) std::memcpy(&value, bytes_.data() + offset_ - sizeof(T), sizeof(T));
    return value;
  }

  std::string get_string(size_t size_max) {
    const auto size = get<uint32_t>();
    if (size > size_max || !take(size)) {
      ok_ = false;
      return {};
    }
    return std::string(reinterpret_cast<const char*>(bytes_.data()) + offset_ - size, size);
  }

  /// Fills `values`, whose old content is dropped.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void get_array(std::vector<T>& values, size_t count_max) {
    values.clear();
    const auto count = get<uint32_t>();
    if (count > count_max || !take(count * sizeof(T))) {
      ok_ = false;
      return;
    }
    values.resize(count);
    if (count != 0) {
      std::memcpy(values.data(), bytes_.data() + offset_ - count * sizeof(T), count * sizeof(T));
    }
  }

  /// True while nothing was read past the end or beyond a bound.
  bool ok() const { return ok_; }
  /// True when everything was read and nothing is left: what a well-formed message leaves behind.
  bool finished() const { return ok_ && offset_ == bytes_.size(); }

 private:
  bool take(size_t size) {
    if (!ok_ || bytes_.size() - offset_ < size) {
      ok_ = false;
      return false;
    }
    offset_ += size;
    return true;
  }

  std::span<const uint8_t> bytes_;
  size_t offset_ = 0;
  bool ok_ = true;
};

}  // namespace hicache
