// Codes, Status and Result<T>: how every fallible function of the core answers.
//
// A code exists only if its caller does something different on seeing it. Success is one byte and
// an empty string, so the good path allocates nothing. Nothing here throws; only bind/ does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace hicache {

enum class Code : uint8_t {
  kOk = 0,
  // Outcomes: answers, not failures.
  kNotFound = 1,
  kAlreadyExists = 2,
  // Try again here.
  kBusy = 3,
  kTimeout = 4,
  // Try elsewhere.
  kUnavailable = 5,
  kNotLeader = 6,
  kLeaseExpired = 7,
  // No room.
  kNoSpace = 8,
  // Damaged bytes.
  kCorrupt = 9,
  // The caller's mistake.
  kInvalidArgument = 10,
  kUnsupported = 11,
  // Life cycle.
  kCancelled = 12,
  kClosed = 13,
  // Environment (errno in the message) and bugs.
  kIo = 14,
  kInternal = 15,
  // No room for this tenant, whatever room there is for others.
  kOverQuota = 16,
};

inline constexpr uint8_t kCodeCount = 17;

/// The code's name as users see it in messages ("NoSpace").
std::string_view code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  /// What was tried, on what, what came back, what to do.
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

/// A kIo status that names what was tried and the text of `error_number`.
Status io_error(std::string_view tried, int error_number);

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit on purpose

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

#define HICACHE_RETURN_IF_ERROR(expression)                                      \
  do {                                                                           \
    if (::hicache::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

}  // namespace hicache
