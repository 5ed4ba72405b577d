#include "store/object_page.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstring>

namespace hicache {
namespace {

constexpr char kMagic[8] = {'h', 'c', 'o', 'b', 'j', 'e', 'c', 't'};
constexpr uint32_t kVersion = 1;
constexpr size_t kNameOffset = 16;

}  // namespace

Key object_key(std::string_view name) {
  Key key;
  SHA256(reinterpret_cast<const uint8_t*>(name.data()), name.size(), key.bytes.data());
  return key;
}

std::vector<uint8_t> object_head(std::string_view name) {
  std::vector<uint8_t> head(round_up(kNameOffset + name.size(), kObjectHeadUnit));
  const auto name_size = static_cast<uint32_t>(name.size());
  std::memcpy(head.data(), kMagic, sizeof(kMagic));
  std::memcpy(head.data() + 8, &kVersion, sizeof(kVersion));
  std::memcpy(head.data() + 12, &name_size, sizeof(name_size));
  if (!name.empty()) std::memcpy(head.data() + kNameOffset, name.data(), name.size());
  return head;
}

std::optional<std::string> object_name(std::span<const uint8_t> bytes, const Key& key) {
  if (bytes.size() < kNameOffset) return std::nullopt;
  uint32_t name_size = 0;
  std::memcpy(&name_size, bytes.data() + 12, sizeof(name_size));
  if (name_size > kObjectNameSizeMax || name_size > bytes.size() - kNameOffset) return std::nullopt;
  std::string name(reinterpret_cast<const char*>(bytes.data()) + kNameOffset, name_size);
  const std::vector<uint8_t> head = object_head(name);
  const bool is_whole =
      head.size() <= bytes.size() && std::equal(head.begin(), head.end(), bytes.begin());
  if (!is_whole || object_key(name) != key) return std::nullopt;
  return name;
}

}  // namespace hicache
