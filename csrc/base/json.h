// Writes one JSON object, in order, without building a tree.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace hicache {

class JsonWriter {
 public:
  JsonWriter() { open('{'); }

  void member(std::string_view name, uint64_t value) {
    key(name);
    text_ += std::to_string(value);
  }
  void member(std::string_view name, double value) {
    key(name);
    number(value);
  }
  void member(std::string_view name, std::string_view value) {
    key(name);
    string(value);
  }
  void open_member(std::string_view name, char bracket) {
    key(name);
    open(bracket);
  }

  void element(uint64_t value) {
    comma();
    text_ += std::to_string(value);
  }
  void element(double value) {
    comma();
    number(value);
  }
  void open_element(char bracket) {
    comma();
    open(bracket);
  }

  void close(char bracket) {
    text_ += bracket;
    is_first_ = false;
  }

  /// Closes the object and hands it out.
  std::string finish() {
    close('}');
    return std::move(text_);
  }

 private:
  void open(char bracket) {
    text_ += bracket;
    is_first_ = true;
  }
  void comma() {
    if (!is_first_) text_ += ',';
    is_first_ = false;
  }
  void key(std::string_view name) {
    comma();
    string(name);
    text_ += ':';
  }
  void number(double value) {
    char digits[32];  // Not printf: a program's locale may write 0.5 as 0,5.
    const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
    text_.append(digits, end);
  }
  void string(std::string_view value) {
    text_ += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') {
        text_ += '\\';
        text_ += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escape[8];
        std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
        text_ += escape;
      } else {
        text_ += c;
      }
    }
    text_ += '"';
  }

  std::string text_;
  bool is_first_ = true;
};

}  // namespace hicache
