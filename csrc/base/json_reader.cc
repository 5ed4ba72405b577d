#include "base/json_reader.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <unordered_set>

namespace hicache {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

void append_utf8(uint32_t point, std::string& out) {
  const auto put = [&out](uint32_t byte) { out += static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xC0 | point >> 6);
    put(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    put(0xE0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  } else {
    put(0xF0 | point >> 18);
    put(0x80 | (point >> 12 & 0x3F));
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  }
}

/// The size of the UTF-8 sequence that `text` begins with; 0 if it is none.
size_t utf8_size(std::string_view text) {
  const auto byte = [text](size_t index) { return static_cast<uint8_t>(text[index]); };
  const uint8_t first = byte(0);
  const size_t size = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (size == 0 || first > 0xF4 || text.size() < size) return 0;
  for (size_t index = 1; index < size; ++index) {
    if ((byte(index) & 0xC0) != 0x80) return 0;
  }
  // Too long for what it says, half of a surrogate pair, or beyond the last code point.
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;
  if (first == 0xF0 && byte(1) < 0x90) return 0;
  if (first == 0xF4 && byte(1) > 0x8F) return 0;
  return size;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<JsonValue> parse() {
    JsonValue value;
    skip_space();
    if (!read_value(value, 0)) return failure();
    skip_space();
    if (at_ != text_.size()) {
      fail("something follows the value");
      return failure();
    }
    return value;
  }

 private:
  Status failure() const {
    return {Code::kInvalidArgument, "not valid JSON at byte " + std::to_string(at_) + ": " + why_};
  }
  bool fail(const char* why) {
    if (why_.empty()) why_ = why;
    return false;
  }

  bool is_at(char c) const { return at_ < text_.size() && text_[at_] == c; }
  bool take(char c) {
    if (!is_at(c)) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void skip_space() {
    while (is_at(' ') || is_at('\t') || is_at('\n') || is_at('\r')) ++at_;
  }

  bool read_value(JsonValue& value, size_t depth) {
    using Kind = JsonValue::Kind;
    if (depth > kJsonDepthMax) return fail("nested too deeply");
    if (++count_ > kJsonValuesMax) return fail("too many values");
    if (is_at('{')) return read_object(value, depth);
    if (is_at('[')) return read_array(value, depth);
    if (is_at('"')) {
      value.kind = Kind::kString;
      return read_string(value.string);
    }
    if (take("null")) return true;
    if (take("true") || take("false")) {
      value.kind = Kind::kBool;
      value.boolean = text_[at_ - 2] == 'u';
      return true;
    }
    value.kind = Kind::kNumber;
    return read_number(value.number);
  }

  bool read_array(JsonValue& value, size_t depth) {
    value.kind = JsonValue::Kind::kArray;
    ++at_;
    skip_space();
    if (take(']')) return true;
    while (true) {
      skip_space();
      JsonValue element;
      if (!read_value(element, depth + 1)) return false;
      value.elements.push_back(std::move(element));
      skip_space();
      if (take(']')) return true;
      if (!take(',')) return fail("',' or ']' is expected");
    }
  }

  bool read_object(JsonValue& value, size_t depth) {
    value.kind = JsonValue::Kind::kObject;
    ++at_;
    skip_space();
    if (take('}')) return true;
    std::unordered_set<std::string> names;
    while (true) {
      skip_space();
      std::string name;
      if (!is_at('"')) return fail("a name in '\"' is expected");
      if (!read_string(name)) return false;
      if (!names.insert(name).second) return fail("a name is there twice");
      skip_space();
      if (!take(':')) return fail("':' is expected");
      skip_space();
      JsonValue member;
      if (!read_value(member, depth + 1)) return false;
      value.members.emplace_back(std::move(name), std::move(member));
      skip_space();
      if (take('}')) return true;
      if (!take(',')) return fail("',' or '}' is expected");
    }
  }

  bool read_string(std::string& out) {
    ++at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return true;
      }
      if (static_cast<uint8_t>(c) < 0x20) return fail("a control character in a string");
      if (c == '\\') {
        if (!read_escape(out)) return false;
        continue;
      }
      const size_t size = utf8_size(text_.substr(at_));
      if (size == 0) return fail("not UTF-8");
      out += text_.substr(at_, size);
      at_ += size;
    }
    return fail("a string without end");
  }

  bool read_escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    ++at_;
    if (at_ == text_.size()) return fail("a string without end");
    if (const size_t which = kNames.find(text_[at_]); which != std::string_view::npos) {
      ++at_;
      out += kMeanings[which];
      return true;
    }
    uint32_t point = 0;
    if (!take('u') || !read_hex(point)) return fail("not an escape");
    if (point >= 0xDC00 && point < 0xE000) return fail("half of a surrogate pair");
    if (point >= 0xD800 && point < 0xDC00) {
      uint32_t low = 0;
      if (!take("\\u") || !read_hex(low) || low < 0xDC00 || low >= 0xE000) {
        return fail("half of a surrogate pair");
      }
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(point, out);
    return true;
  }

  bool read_hex(uint32_t& value) {
    const std::string_view digits = text_.substr(at_, 4);
    if (digits.size() != 4) return false;
    const char* end = digits.data() + digits.size();
    const auto read = std::from_chars(digits.data(), end, value, 16);
    if (read.ec != std::errc() || read.ptr != end) return false;
    at_ += 4;
    return true;
  }

  bool read_number(double& value) {
    const size_t start = at_;
    take('-');
    if (!take('0') && !take_digits()) return fail("no value");
    if (take('.') && !take_digits()) return fail("a digit is expected");
    if (take('e') || take('E')) {
      if (!take('-')) take('+');
      if (!take_digits()) return fail("a digit is expected");
    }
    const auto read = std::from_chars(text_.data() + start, text_.data() + at_, value);
    if (read.ec != std::errc() || !std::isfinite(value)) return fail("a number out of range");
    return true;
  }

  bool take_digits() {
    const size_t start = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    return at_ > start;
  }

  std::string_view text_;
  size_t at_ = 0;
  size_t count_ = 0;
  std::string why_;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view name) const {
  for (const auto& [own, value] : members) {
    if (own == name) return &value;
  }
  return nullptr;
}

Result<JsonValue> parse_json(std::string_view text) {
  if (text.size() > kJsonSizeMax) {
    return Status(Code::kInvalidArgument, "JSON of " + std::to_string(text.size()) +
                                              " bytes: at most " + std::to_string(kJsonSizeMax));
  }
  return Parser(text).parse();
}

}  // namespace hicache
